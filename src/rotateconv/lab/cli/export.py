"""`rotateconv export`: a trained model for other runtimes."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.cli import options

EXAMPLES = options.examples(
    ("For ONNX Runtime:", "rotateconv export runs/digits-resnet20-rotate4-seed0 --to onnx --out digits.onnx"),
    ("A program of torch.export:", "rotateconv export runs/digits --to torch-export --out digits.pt2"),
    ("A packed file:", "rotateconv export digits.rotateconv --to onnx --out digits.onnx"),
)


def export(
    source: Annotated[
        Path, Parameter(name="RUN", help="Run folder of a trained model, or a packed file.", show_default=False)
    ],
    /,
    *,
    to: Annotated[
        Literal["onnx", "torch-export"], Parameter(name="--to", metavar="onnx|torch-export", help="The format.")
    ],
    out: Annotated[Path, Parameter(name="--out", metavar="FILE", help="The file to write, exactly.")],
) -> None:
    """Write a trained model, fused, for a runtime without this library, and check that it computes the same."""
    from rotateconv.export.export import TOLERANCE, export_onnx, export_torch
    from rotateconv.lab.cli.console import facts, make_console
    from rotateconv.lab.train.load import load_run
    from rotateconv.quantization.pack import describe_packed, load_packed

    if source.is_file():
        packed = describe_packed(source)
        if packed.input_size is None:
            raise ConfigError(f"{source} does not say what images its model takes: export the run it was packed from")
        model = load_packed(source)
        size, classes, mean, std = packed.input_size, packed.classes, packed.mean, packed.std
    else:
        trained = load_run(source)
        model, data = trained.model, trained.data
        size, classes, mean, std = list(data.input_shape), list(data.classes), list(data.mean), list(data.std)
    write = export_onnx if to == "onnx" else export_torch
    done = write(model, out, input_size=size, classes=classes, mean=mean, std=std)
    runtime = "ONNX Runtime" if to == "onnx" else "the loaded program"
    rows = {
        "file": f"{done.path}: {done.bytes:,} bytes",
        "input": f"images, batch x {' x '.join(map(str, size))}, any batch",
        "check": f"{runtime} differs from PyTorch by {done.largest_difference:.1e} at most ({TOLERANCE:g} is allowed)",
    }
    if done.opset is not None:
        rows["format"] = f"ONNX opset {done.opset}, IR version {done.ir_version}"
    facts(make_console(), rows)
