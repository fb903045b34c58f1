"""Compact ONNX files: they compute what the quantized model does, and ONNX Runtime folds all decoding away."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rotateconv import RotateConv2d, build_model, pack, quantize
from rotateconv.export import compact as compacts
from rotateconv.export.export import export_onnx
from rotateconv.models import CONVS
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.nn.factored import LowRankConv2d, OuterConv2d
from rotateconv.nn.masked import MaskedConv2d

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def lively(model: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """The model as after some training: norms with statistics of a batch, other scales and shifts, biases."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.momentum = 1.0
        model.train()(torch.randn(4, *size))
    return model.eval()


def run(path: Path, images: Tensor) -> Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def operators(path: Path) -> Counter[str]:
    """What ONNX Runtime runs, with its default options, once it has opened a file."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, in proportion to the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def fitted(layer: MaskedConv2d) -> MaskedConv2d:
    """With positions that come from no seed."""
    layer.fit(torch.randn(layer.out_channels, layer.in_channels, *layer.kernel_size))
    return layer


ROTATE = {
    f"{taps}-{path}": {"taps": taps, "path": path}
    for taps in ("free", "shared", "profile")
    for path in ("circle", "square")
}
LAYERS: dict[str, Any] = {
    **{
        name: lambda i, o, k, options=options: RotateConv2d(i, o, k, padding=k // 2, **options)
        for name, options in ROTATE.items()
    },
    **{
        f"{taps}-groups": lambda i, o, k, taps=taps: RotateConv2d(i, o, k, padding=k // 2, taps=taps, angle_groups=2)
        for taps in ("free", "shared", "profile")
    },
    "grouped": lambda i, o, k: RotateConv2d(i, o, k, padding=k // 2, groups=2, taps="profile"),
    "strided": lambda i, o, k: RotateConv2d(i, o, k, padding="valid", stride=2, bias=False),
    "masked": lambda i, o, k: MaskedConv2d(i, o, k, padding=k // 2, bias=False),
    "masked-five": lambda i, o, k: MaskedConv2d(i, o, k, kept=5, padding=k // 2, padding_mode="reflect"),
    "masked-twice": lambda i, o, k: nn.Sequential(
        MaskedConv2d(i, o, k, padding=k // 2), MaskedConv2d(o, o, k, padding=k // 2)
    ),
    "masked-fitted": lambda i, o, k: fitted(MaskedConv2d(i, o, k, padding=k // 2)),
    "patterns": lambda i, o, k: MaskedConv2d(i, o, k, patterns=3, padding=k // 2),
    "codebook": lambda i, o, k: CodebookConv2d(i, o, k, entries=5, padding=k // 2),
    "codebook-grouped": lambda i, o, k: CodebookConv2d(i, o, k, entries=16, padding=k // 2, groups=2, bias=False),
    "outer": lambda i, o, k: OuterConv2d(i, o, k, padding=k // 2),
    "low-rank": lambda i, o, k: LowRankConv2d(i, o, k, padding=k // 2, numbers=3),
    "dense": lambda i, o, k: nn.Conv2d(i, o, k, padding=k // 2, bias=False),
    "dense-grouped": lambda i, o, k: nn.Conv2d(i, o, k, padding=k // 2, dilation=1, groups=2),
    "pointwise": lambda i, o, k: nn.Conv2d(i, o, 1),
    "transposed": lambda i, o, k: nn.ConvTranspose2d(i, o, k, padding=k // 2),
}  # fmt: skip


def stack(name: str, channels: int, size: int, norm: bool) -> nn.Module:
    """A stem, the layer, perhaps a norm, the global average, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        LAYERS[name](channels, channels + 2, size),
        nn.BatchNorm2d(channels + 2) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels + 2, 7, bias=norm),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("free-groups", "codebook") else pytest.mark.slow) for name in LAYERS],
)
@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.generate],  # an export takes seconds: a failure is reported as it was found
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    bits=st.tuples(st.integers(1, 8), st.integers(2, 8), st.integers(1, 8)),
    part=st.sampled_from([None, 0.0, 0.3, 1.0]),
    channels=st.sampled_from([2, 4, 10]),
    size=st.sampled_from([3, 5, 7]),
    norm=st.booleans(),
    profile=st.sampled_from([None, 2, 4, 8]),
)
def test_bits_are_bits(
    name: str,
    bits: tuple[int, int, int],
    part: float | None,
    channels: int,
    size: int,
    norm: bool,
    profile: int | None,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = lively(stack(name, channels, size, norm), (3, 9, 9))
    keywords: dict[str, int | None] = dict(zip(("weight_bits", "angle_bits", "dense_bits"), bits, strict=True))
    keywords["profile_bits"] = profile
    if part is not None and bits[0] < 8:  # of the numbers of levels that there are with these bits
        least = 2 ** (bits[0] - 1) + 1
        keywords["weight_levels"] = least + round(part * (2 ** bits[0] - least))
    export_onnx(model, tmp_path / "small.onnx", input_size=(3, 9, 9), compact=True, **keywords)
    images = torch.rand(5, 3, 9, 9) * 2 - 0.5
    with torch.no_grad():
        expected = quantize(model, **keywords)(images)
    assert difference(run(tmp_path / "small.onnx", images), expected) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy's
        reference = onnx.reference.ReferenceEvaluator(str(tmp_path / "small.onnx"))
        (found,) = reference.run(None, {"images": images.numpy()})
    assert difference(torch.from_numpy(np.asarray(found)), expected) < 1e-4
    export_onnx(model, tmp_path / "dense.onnx", input_size=(3, 9, 9))
    assert operators(tmp_path / "small.onnx") == operators(tmp_path / "dense.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("conv", "largest"), [("rotate2p", 44_000), ("rotate4", 72_000)])
def test_a_resnet20_of_four_bits(conv: str, largest: int, tmp_path: Path) -> None:
    model = lively(build_model("resnet20", conv), (3, 32, 32))
    classes = [f"class {number}" for number in range(10)]
    found = export_onnx(
        model,
        tmp_path / "small.onnx",
        input_size=(3, 32, 32),
        compact=True,
        classes=classes,
        mean=[0.5] * 3,
        std=[0.2] * 3,
    )
    assert found.bytes <= largest
    pack(model, tmp_path / "model.rcp", angle_bits=4, classes=classes, mean=[0.5] * 3, std=[0.2] * 3)
    assert found.bytes <= 1.25 * (tmp_path / "model.rcp").stat().st_size
    export_onnx(model, tmp_path / "dense.onnx", input_size=(3, 32, 32))
    assert operators(tmp_path / "small.onnx") == operators(tmp_path / "dense.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "conv"),
    [
        *(("resnet20", conv) for conv in CONVS),
        # Half a minute each: of the kinds of codes.
        *(("densenet40", conv) for conv in ("conv3x3", "rotate4", "rotate2p-g4-k5", "codebook16", "mask4", "pattern4")),
    ],
)
def test_every_convolution_of_every_family(name: str, conv: str, tmp_path: Path) -> None:
    model = lively(build_model(name, conv, **({"width": 0.5} if name == "resnet20" else {})), (3, 16, 16))
    found = export_onnx(model, tmp_path / "small.onnx", input_size=(3, 16, 16), compact=True)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = quantize(model, 4, 4)(images)
    assert difference(run(tmp_path / "small.onnx", images), expected) < 1e-4
    dense = export_onnx(model, tmp_path / "dense.onnx", input_size=(3, 16, 16))
    assert found.bytes < dense.bytes / 3
    assert operators(tmp_path / "small.onnx") == operators(tmp_path / "dense.onnx")


@pytest.mark.slow
def test_every_kernel_of_a_model_becomes_codes(tmp_path: Path) -> None:
    model = lively(build_model("resnet20", width=0.5), (3, 16, 16))
    export_onnx(model, tmp_path / "small.onnx", input_size=(3, 16, 16), compact=True, notes={"license": "MIT"})
    proto = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(proto, full_check=True)
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(tensor.dims) for tensor in floats) < 64  # where taps at 16 angles lie, and units of coefficients
    assert {prop.key: prop.value for prop in proto.metadata_props} == {"input_size": "[3, 16, 16]", "license": "MIT"}


def test_a_kernel_that_is_not_its_layers_stays_as_it_is() -> None:
    own = np.array([[1.0, 2.0], [0.0, 0.0], [-3.0, 1.0]])
    assert compacts._factor(own * [[2.0], [5.0], [-1.0]], own) == pytest.approx([2.0, 0.0, -1.0])
    assert compacts._factor(own + 0.001, own) is None


def test_bits_out_of_range_write_nothing(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match="angle_bits must be a whole number from 2 to 8, got 9"):
        export_onnx(model, tmp_path / "small.onnx", input_size=(3, 8, 8), compact=True, angle_bits=9)
    assert not list(tmp_path.iterdir())
