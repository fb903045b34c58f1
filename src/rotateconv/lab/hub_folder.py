"""A finished run as a folder of the Hugging Face Hub's form: weights, compact ONNX, picture and card."""

from pathlib import Path

from rotateconv.errors import InputError, RunError
from rotateconv.export.export import export_onnx
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import disk_errors, write_bytes
from rotateconv.lab.predictions import open_file
from rotateconv.lab.report.figures import draw_curves
from rotateconv.lab.report.model_card import CARD_PICTURE, HubFile, model_card
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.study.study_record import read_run
from rotateconv.lab.train.load import evaluate_model, load_run
from rotateconv.lab.train.run_folder import SUMMARY
from rotateconv.quantization.bits import Bits

CARD, WEIGHTS, ONNX = "README.md", "model.safetensors", "model.onnx"
_FILES = {"config.json", CARD, WEIGHTS, ONNX, CARD_PICTURE}


def save_for_hub(
    run: str | Path,
    folder: str | Path,
    *,
    license: str = "mit",
    bits: Bits | None = None,
    data: ImageData | None = None,
) -> tuple[HubFile, ...]:
    """Write a finished run as a folder that `RotateConvNet.from_pretrained` opens and the Hub shows; nothing is sent.

    It holds config.json and model.safetensors, the compact model.onnx, whose test accuracy is measured with ONNX
    Runtime, a picture of the training and README.md, the model card. `hf upload NAME FOLDER` publishes it.

    Args:
        run: The run folder.
        folder: That is written; it may hold an earlier one.
        license: Of the weights, as the Hub has it.
        bits: Of the compact file; None for those that the run trained for, or 4 per weight and angle.
        data: The images, where they are loaded already.

    Raises:
        RunError: The run is not finished.
        InputError: Its model is none of `build_model`, or the folder holds something else.
        ImportError: huggingface_hub is not installed.
    """
    from rotateconv.hub import RotateConvNet  # needs the extra

    run, folder = Path(run), Path(folder)
    trained = load_run(run)
    if not (run / SUMMARY).is_file():
        raise RunError(f"the run in {run} is not finished: resume it first")
    foreign = sorted({path.name for path in folder.iterdir()} - _FILES) if folder.is_dir() else []
    if foreign or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} holds {foreign[0] if foreign else 'no folder'}: choose a new folder for the model")
    record, description = read_run(run), trained.data
    images = data if data is not None else load_images(trained.config.images)
    bits = bits or trained.config.bits or Bits(angle=4)
    about = description.about
    model = RotateConvNet.from_model(trained.model, classes=about["classes"], mean=about["mean"], std=about["std"])
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
    notes = {"license": license}
    done = export_onnx(trained.model, folder / ONNX, compact=True, **bits.arguments, **about, notes=notes)
    opened = open_file(folder / ONNX)
    compact = evaluate_model(opened.model, opened.config.execution, opened.data, images.test)
    own = "float32" if trained.config.bits is None else f"float32, each one of {trained.config.bits.weight} bits"
    files = (
        HubFile(WEIGHTS, f"weights, {own}", (folder / WEIGHTS).stat().st_size, record.result.test_accuracy),
        HubFile(ONNX, f"codes of {bits.weight} bits that decode themselves", done.bytes, compact.accuracy),
    )
    draw_curves(make_groups([record]), folder / CARD_PICTURE)
    write_bytes(folder / CARD, model_card(record, files, license).encode())
    return files
