"""Numbers in bytes: all come back through the graph's own decoding, in ONNX Runtime and in onnx's reference."""

from typing import Any

import numpy as np
import pytest

from rotateconv.export import decoding
from rotateconv.export.digits import Radix

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

BOUNDS = (2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 126, 127, 128, 255, 256, 2**16 - 1, 2**18 - 1, 2**20 - 1, 2**24 - 1)


def decoder(bound: int, offset: int) -> Any:
    body = decoding.Body()
    numbers = body.digits("data", bound, offset)
    graph = onnx.helper.make_graph(
        body.nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("data", onnx.TensorProto.UINT8, ["bytes", 1])],
        [onnx.helper.make_tensor_value_info(numbers, onnx.TensorProto.INT64, ["numbers"])],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(decoding.DOMAIN, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=[decoding.digits_function()], ir_version=10)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("size", [0, 1, 7, 240])
def test_numbers_come_back(bound: int, size: int) -> None:
    numbers = np.random.default_rng(size).integers(0, bound, size)
    if size:
        numbers[-1] = bound - 1
    packed = Radix.of(bound).pack(numbers)
    assert packed.size >= 1
    model = decoder(bound, bound // 2)
    found = runtime.InferenceSession(model.SerializeToString()).run(None, {"data": packed})[0]
    np.testing.assert_array_equal(found[:size], numbers - bound // 2)
    reference = onnx.reference.ReferenceEvaluator(model).run(None, {"data": packed})[0]
    np.testing.assert_array_equal(reference, found)
    assert (len(found) == size) == (Radix.of(bound).fills(size) and size > 0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_as_many_bits_as_it_says(bits: int) -> None:
    assert Radix.of(2**bits).pack(np.zeros(240, dtype=int)).size == 30 * bits
    assert Radix.of(3).pack(np.zeros(240, dtype=int)).size == 48  # five ternary digits a byte
