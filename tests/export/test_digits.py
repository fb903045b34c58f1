"""Numbers in bytes: all come back through the graph's own decoding, in ONNX Runtime and in onnx's reference."""

import numpy as np
import pytest
import torch

from rotateconv.export import decoding
from rotateconv.export.digits import Radix, Rice

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
runtime = pytest.importorskip("onnxruntime")

BOUNDS = (2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 126, 127, 128, 255, 256, 2**16 - 1, 2**18 - 1, 2**20 - 1, 2**24 - 1)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("size", "skew"), [(1, 1), (7, 1), (240, 1), (20_000, 4)])
def test_numbers_come_back(bound: int, centered: bool, size: int, skew: int) -> None:
    values = (bound * np.random.default_rng(size).random(size) ** skew).astype(int)
    values[-1] = bound - 1
    body = decoding.Body()
    parts = [body.numbers(values, bound, centered=centered), body.numbers(values[:1], bound, centered=centered)]
    graph = onnx.helper.make_graph(
        body.finish(),
        "graph",
        [],
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT if centered else onnx.TensorProto.INT64, [None]
            )
            for name in parts
        ],
        body.initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", decoding.OPSET)], ir_version=10)
    expected = values if not centered else values - bound // 2 if bound % 2 else 2 * values - (bound - 1)
    found = runtime.InferenceSession(model.SerializeToString()).run(None, {})
    for one, other in zip(found, onnx.reference.ReferenceEvaluator(model).run(None, {}), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], expected[:1])
    counted = any(node.op_type == "ScatterElements" for node in graph.node)
    assert counted == (skew > 1 and 2 < bound <= 256)


@pytest.mark.parametrize("values", [[1.0, -1.0, 0.0, 1.9921875, -0.00390625, 2.0**-126, 3.0e38], [0.5], [0.0, 0.0]])
def test_bf16_numbers_come_back(values: list[float]) -> None:
    given = torch.tensor(values).bfloat16().float().numpy()
    body = decoding.Body()
    decoding.floats(body, {"one": given, "two": given[None]})
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("one", "two")]
    graph = onnx.helper.make_graph(body.finish(), "graph", [], outputs, body.initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", decoding.OPSET)], ir_version=10)
    found = runtime.InferenceSession(model.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(found[0], given)
    np.testing.assert_array_equal(found[1], given[None])


@pytest.mark.parametrize("bits", range(1, 9))
def test_as_many_bits_as_it_says(bits: int) -> None:
    assert Radix.of(2**bits).pack(np.zeros(240, dtype=int)).size == 30 * bits
    assert Radix.of(3).pack(np.zeros(240, dtype=int)).size == 48  # five ternary digits a byte


@pytest.mark.parametrize("values", [np.array([7]), np.array([3] * 50), np.arange(256), np.array([0, 255] * 8 + [1])])
def test_ranks_and_marks(values: np.ndarray) -> None:
    code = Rice.of(values)
    zeros = np.diff(np.flatnonzero(code.marks), prepend=-1) - 1
    np.testing.assert_array_equal(code.table[(zeros << code.low) + code.rest][: len(values)], values)
    assert len(code.marks) % 8 == 0
    assert len(code.rest) - len(values) < 8


def test_ranks_come_close_to_the_entropy() -> None:
    values = np.random.default_rng(0).normal(128, 30, 100_000).clip(0, 255).astype(int)
    share = np.bincount(values)[np.unique(values)] / len(values)
    assert 8 * Rice.of(values).bytes < 1.04 * -(share * np.log2(share)).sum() * len(values)
