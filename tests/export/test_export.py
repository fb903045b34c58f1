"""Export: what ONNX Runtime and torch.export compute, what the files hold, and what is refused."""

import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rotateconv import RotateConv2d, build_model, convert
from rotateconv.export import export as exports
from rotateconv.export.export import Export, export_onnx, export_torch
from rotateconv.models import MODELS

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Exporter = Callable[..., Export]


def lively(model: nn.Module) -> nn.Module:
    """The model with norms whose folding would be seen: statistics of a batch, other scales and shifts."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
            norm.momentum = 1.0
        model.train()(torch.randn(4, 3, 32, 32))
    return model


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def run_torch(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


EXPORTERS = [(export_onnx, run_onnx, "model.onnx"), (export_torch, run_torch, "model.pt2")]


@pytest.mark.slow
@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
@pytest.mark.parametrize("conv", ["rotate4", "rotate2p-g4"])
def test_the_file_computes_what_the_model_does(
    export: Exporter, run: Callable[[Path, Tensor], Tensor], name: str, conv: str, tmp_path: Path
) -> None:
    model = lively(build_model("resnet20", conv, width=0.25))
    model.stages[0].eval()
    flags = [module.training for module in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = export(model, tmp_path / name, input_size=(3, 12, 20))
    assert found.path == tmp_path / name
    assert found.bytes == (tmp_path / name).stat().st_size
    assert 0 <= found.largest_difference < 1e-4
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    model.eval()
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 12, 20)
        with torch.no_grad():
            torch.testing.assert_close(run(tmp_path / name, images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_onnx_file_is_complete_and_has_nothing_of_this_computer(tmp_path: Path) -> None:
    model = build_model("resnet20", width=0.25)
    path = tmp_path / "model.onnx"
    found = export_onnx(model, path, input_size=(3, 8, 8), classes=["café", "dog"], mean=(0.1, 0.2, 0.3), std=[1, 2, 3])
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert found.opset == exports.OPSET == proto.opset_import[0].version
    assert found.ir_version == proto.ir_version
    told = {prop.key: json.loads(prop.value) for prop in proto.metadata_props}
    assert told == {"classes": ["café", "dog"], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "input_size": [3, 8, 8]}
    assert runtime.InferenceSession(path).get_modelmeta().custom_metadata_map["mean"] == "[0.1, 0.2, 0.3]"
    (images,), (logits,) = proto.graph.input, proto.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    sizes = [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 8, 8]
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    operators = {node.op_type for node in proto.graph.node}
    assert "BatchNormalization" not in operators
    assert not operators & {"Sin", "Cos", "ScatterND", "ReduceSum"}  # no kernel is built in the file
    assert sum(node.op_type == "Conv" for node in proto.graph.node) == 19
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"rotateconv" not in path.read_bytes()


def test_a_torch_program_is_folded_and_holds_its_metadata(tmp_path: Path) -> None:
    export_torch(build_model("resnet20", width=0.25), tmp_path / "model.pt2", input_size=(3, 8, 8), classes="ab")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert "batch_norm" not in str(program.graph)
    assert json.loads(extra["metadata.json"]) == {"input_size": "[3, 8, 8]", "classes": '["a", "b"]'}


@pytest.mark.slow
@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
def test_the_file_is_not_larger_than_the_dense_models(
    export: Exporter, run: Callable[[Path, Tensor], Tensor], name: str, tmp_path: Path
) -> None:
    sizes = [
        export(build_model("resnet20", conv, width=0.5), tmp_path / name, input_size=(3, 8, 8)).bytes
        for conv in ("conv3x3", "rotate4")
    ]
    assert sizes[1] <= sizes[0] + 200  # names
    parameters = sum(parameter.numel() for parameter in build_model("resnet20", "conv3x3", width=0.5).parameters())
    assert sizes[1] < 4 * parameters * (1.1 if export is export_onnx else 1.8)


@pytest.mark.slow
def test_a_converted_torchvision_resnet18(tmp_path: Path) -> None:
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    model = lively(resnet18(num_classes=10, weights=None))
    convert(model, taps="shared")
    found = export_onnx(model, tmp_path / "model.onnx", input_size=(3, 40, 40))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", images), expected, rtol=1e-4, atol=1e-4)
    assert found.bytes < 4.05 * 11_181_642


MAIN = ("rotate4", "rotate2", "rotate2p")


@pytest.mark.slow
@pytest.mark.parametrize("conv", MAIN)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_exports_at_full_width(name: str, conv: str, tmp_path: Path) -> None:
    found = export_onnx(lively(build_model(name, conv)), tmp_path / "model.onnx", input_size=(3, 32, 32))
    assert found.largest_difference < 1e-4
    dense = sum(tensor.numel() for tensor in build_model(name, "conv3x3").state_dict().values())
    graph = 2000 * int(re.sub(r"\D", "", name))  # bytes of names and nodes: so many a layer
    assert found.bytes < 4 * dense + graph


@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
@pytest.mark.parametrize(
    ("model", "size", "match"),
    [
        (nn.Conv2d(3, 4, 3), (3, 8), r"input_size must be \(channels, height, width\), got \(3, 8\)"),
        (nn.Conv2d(3, 4, 3), (3, 8, 0), "every number of input_size must be a positive integer, got 0"),
        (nn.Conv2d(3, 4, 3), (1, 8, 8), "the model cannot take images of 1 x 8 x 8: Given groups=1"),
        (nn.Conv2d(3, 4, 3), (3, 2, 2), "the model cannot take images of 3 x 2 x 2: Calculated padded input size"),
        (nn.Conv2d(3, 4, 3).double(), (3, 8, 8), "export needs a model in float32, got torch.float64"),
        (nn.Unflatten(1, (1, 3)).requires_grad_(False), (4, 8, 8), "the model cannot take images of 4 x 8 x 8"),
    ],
)
def test_bad_input(
    export: Exporter,
    run: Callable[[Path, Tensor], Tensor],
    name: str,
    model: nn.Module,
    size: tuple[int, ...],
    match: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=match):
        export(model, tmp_path / name, input_size=size)
    assert not list(tmp_path.iterdir())


class SquareOnly(nn.Module):
    """A model that looks at the shape of its images in Python, which torch.export follows and torch.fx does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = RotateConv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.last = RotateConv2d(32, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != images.shape[3]:
            raise ValueError("square images only")
        return self.last(self.norm(self.conv(images))).mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.Identity, nn.DataParallel])
@pytest.mark.parametrize("options", [{}, {"compact": True}, None])
def test_a_model_that_looks_at_shapes_or_is_wrapped(
    wrap: Callable[[nn.Module], nn.Module], options: dict[str, bool] | None, tmp_path: Path
) -> None:
    model = SquareOnly().eval() if wrap is nn.Identity else wrap(build_model("resnet20", "rotate4", width=0.25).eval())
    if options is None:
        found = export_torch(model, tmp_path / "model.pt2", input_size=(3, 8, 8))
    else:
        found = export_onnx(model, tmp_path / "model.onnx", input_size=(3, 8, 8), **options)
    if options:
        assert found.bytes < 13_000  # a fifth of the dense file
    assert found.largest_difference < 1e-2  # of outputs up to a hundred


@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
def test_a_missing_folder_is_said_before_the_work(
    export: Exporter, run: Callable[[Path, Tensor], Tensor], name: str, tmp_path: Path
) -> None:
    class Untouched(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=r"cannot write .*: there is no folder .*no; make it first"):
        export(Untouched(3, 4, 3), tmp_path / "no" / name, input_size=(3, 8, 8))


class Pair(nn.Module):
    """A model with two outputs."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


class Ragged(nn.Module):
    """A model whose output has a shape that depends on the values."""

    def forward(self, images: Tensor) -> Tensor:
        return images.nonzero()[:, :1].float() if images.sum() > -1e9 else images


@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
def test_models_that_cannot_be_exported(
    export: Exporter, run: Callable[[Path, Tensor], Tensor], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="export needs a model whose output is one tensor, got a tuple"):
        export(Pair(), tmp_path / name, input_size=(3, 8, 8))
    with pytest.raises(ValueError, match=r"cannot be exported|that torch\.fx can trace"):
        export(Ragged(), tmp_path / name, input_size=(3, 8, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("export", "run", "name"), EXPORTERS)
def test_a_file_that_computes_something_else_gets_no_name(
    export: Exporter,
    run: Callable[[Path, Tensor], Tensor],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(model: nn.Module, fold_batchnorm: bool) -> nn.Module:
        copy = nn.Conv2d(3, 4, 3)
        copy.weight.data = model.weight.data * 1.001
        copy.bias.data = model.bias.data
        return copy.eval()

    monkeypatch.setattr(exports, "fuse", wrong)
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(ValueError, match=r"differs from the model by .*, more than 0\.0001 of outputs up to"):
        export(nn.Conv2d(3, 4, 3), tmp_path / name, input_size=(3, 8, 8))
    assert (tmp_path / name).read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"the program gives \(1, 2\) where the model gives \(1, 3\)"):
        exports._compare([torch.zeros(1, 2)], [torch.zeros(1, 3)], "the program")


def test_scores_that_are_not_numbers() -> None:
    with pytest.raises(ValueError, match="the program differs from the model by nan"):
        exports._compare([torch.tensor([[torch.nan]])], [torch.zeros(1, 1)], "the program")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_missing_packages(package: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *arguments: Any) -> Any:
        if name == package:
            raise kind(f"no {package} here")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", fail)
    match = rf"export to ONNX needs more packages \(no {package} here\): pip install 'rotateconv\[export\]'"
    with pytest.raises(ValueError, match=match):
        export_onnx(nn.Conv2d(3, 4, 3), "model.onnx", input_size=(3, 8, 8))
