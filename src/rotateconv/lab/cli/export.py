"""`rotateconv export`: a trained model for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import bits, keys, options
from rotateconv.lab.cli.shared.console import facts, make_console
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.cli.shared.settings import check_there
from rotateconv.quantization.bits import Bits

if TYPE_CHECKING:
    from torch import nn

    from rotateconv.export.export import Export
    from rotateconv.lab.data.description import About

EXAMPLES = options.examples(
    ("For ONNX Runtime:", "rotateconv export runs/digits-resnet20-rotate4-seed0 --to onnx --out digits.onnx"),
    ("A small file that decodes itself:", "rotateconv export runs/digits --to onnx --compact --out digits.onnx"),
    ("A program of torch.export:", "rotateconv export runs/digits --to torch-export --out digits.pt2"),
    ("A folder for the Hugging Face Hub:", "rotateconv export runs/digits --to hub --out digits"),
    ("A packed file:", "rotateconv export digits.rotateconv --to onnx --out digits.onnx"),
)


@bits.takes_bits
def export(
    source: Annotated[
        Path, Parameter(name="RUN", help="Run folder of a trained model, or a packed file.", show_default=False)
    ],
    /,
    *,
    to: Annotated[
        Literal["onnx", "torch-export", "hub"],
        options.value(
            "--to",
            "onnx|torch-export|hub",
            "The format; hub is a folder for the Hugging Face Hub, with compact ONNX, picture and model card.",
        ),
    ],
    out: Annotated[Path, options.value("--out", "PATH", "The file to write, exactly; with --to hub a new folder.")],
    compact: Annotated[
        bool | None,
        Parameter(
            name="--compact",
            negative="--no-compact",
            show_default=False,
            help="ONNX of codes that the file decodes itself; without the option, of a quantized model only.",
        ),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        options.switch("--with-preprocessing", "ONNX that takes uint8 images of any size and gives probabilities."),
    ] = False,
    model: options.BuiltBy = None,
    asked: keys.Given | None = None,
    license: Annotated[
        str | None,
        options.value("--license", "TEXT", "Written into an ONNX file and a model card; mit.", show_default=False),
    ] = None,
) -> None:
    """Write a trained model, fused, for a runtime without this library, and check that it computes the same.

    A compact file is quantized to the bits that the model was trained with or has in its packed file; any other model
    gets 4 per weight, 4 per angle and 8 in stem, 1x1 and linear layers. docs/compact-onnx.md says what is in it.
    """
    for option, given, where in (
        ("--compact", compact, "it is a form of ONNX files"),
        ("--with-preprocessing", with_preprocessing, "it is of ONNX files"),
    ):
        if given and to != "onnx":
            raise ConfigError(f"{option} has no meaning with --to {to}: {where}")
    if license is not None and to == "torch-export":
        raise ConfigError(f"--license has no meaning with --to {to}: only an ONNX file and a model card hold it")
    if to == "hub":
        refuse({"--model": model}, "--to hub, which takes a run folder")
        _save_for_hub(source, out, asked, license)
        return
    trained, about, own = _load(source, model)
    small = to == "onnx" and (own is not None if compact is None else compact)
    chosen = bits.choose(asked, source, own if small else None, Bits(angle=4))
    if asked and not small:
        option = f"--{next(iter(asked)).replace('_', '-')}"
        raise ConfigError(f"{option} has no meaning without --compact: leave it out, or give both")
    from rotateconv.export.export import TOLERANCE, export_onnx, export_torch

    if to == "onnx":
        done = export_onnx(
            trained,
            out,
            compact=small,
            preprocessing=with_preprocessing,
            **chosen.arguments,
            **about,
            notes=_notes(license),
        )
    else:
        done = export_torch(trained, out, **about)
    rows = _rows(done, about, TOLERANCE, "ONNX Runtime" if to == "onnx" else "the loaded program")
    if with_preprocessing:
        channels, classes = about["input_size"][0], about["classes"] or ()
        rows["input"] = f"images, uint8, batch x height x width x {channels}, any size"
        rows["output"] = f"probabilities, batch x {len(classes)}"
    if small:
        rows["bits"] = bits.described(chosen)
    facts(make_console(), rows)


def _rows(done: "Export", about: "About", tolerance: float, runtime: str) -> dict[str, str]:
    """What there is to say of a file that was written."""
    size = " x ".join(map(str, about["input_size"]))
    allowed = f"{tolerance:g} of the outputs' size may be"
    rows = {
        "file": f"{done.path}: {done.bytes:,} bytes",
        "input": f"images, batch x {size}, any batch",
        "check": f"{runtime} differs from PyTorch by {done.largest_difference:.1e} at most ({allowed})",
    }
    if done.opset is not None:
        rows["format"] = f"ONNX opset {done.opset}, IR version {done.ir_version}"
    return rows


def _load(source: Path, built_by: str | None) -> tuple["nn.Module", "About", Bits | None]:
    """Return the model of a run folder or a packed file, what it takes and tells apart, and the bits that it has."""
    from rotateconv.lab.train.load import load_run
    from rotateconv.lab.train.pretrained import load_packed_file

    check_there(source, " or a packed file")
    if not source.is_file():
        refuse({"--model": built_by}, "a run folder, which says what builds its model")
        trained = load_run(source)
        return trained.model, trained.data.about, trained.config.bits
    model, packed = load_packed_file(source, built_by)
    if packed.input_size is None:
        raise ConfigError(f"{source} does not say what images its model takes: export the run it was packed from")
    about: About = {"classes": packed.classes, "mean": packed.mean, "std": packed.std, "input_size": packed.input_size}
    return model, about, packed.widths


def _save_for_hub(run: Path, folder: Path, asked: keys.Given | None, license: str | None) -> None:
    """Write a run as a folder of the Hub's form, and print what is in it."""
    from rotateconv.lab.hub_folder import CARD, save_for_hub
    from rotateconv.lab.train.run_folder import read_config

    chosen = bits.choose(asked, run, read_config(run, trusting=True).bits, Bits(angle=4))
    try:
        files = save_for_hub(run, folder, license=license or "mit", bits=chosen)
    except ImportError as error:
        raise ConfigError(str(error)) from None
    rows = {file.name: f"{file.bytes:,} bytes, test accuracy {file.accuracy:.2f} %: {file.content}" for file in files}
    facts(make_console(), {"folder": str(folder), "card": str(folder / CARD), **rows})


def _notes(license: str | None) -> dict[str, str]:
    """What made the file, for its metadata; no path of this computer."""
    import torch

    from rotateconv import __version__

    notes = {"command": "rotateconv export", "versions": f"rotateconv {__version__}, torch {torch.__version__}"}
    return notes if license is None else {**notes, "license": license}
