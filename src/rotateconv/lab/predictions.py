"""Classify image files with a trained model: a run folder, a packed file or an ONNX file."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv._files import limited_memory, read_regular
from rotateconv.errors import ConfigError, DataError, InputError, first_line, needing
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.preprocessing import Preprocessing
from rotateconv.lab.train.load import TrainedRun, load_run
from rotateconv.lab.train.pretrained import load_packed_file

LARGEST_ONNX = 2**28
"""Bytes of the largest ONNX file that is opened."""

_ONNX_MEMORY = 2**32
"""Bytes that this process may take beyond what it has while ONNX Runtime opens or runs a file, on Linux."""

_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Of the files of a folder that are taken for images."""

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a model makes of an image.

    Attributes:
        image: The file.
        classes: The likeliest classes, the first first.
        probabilities: Of these classes.
        resized: Whether the image had another size than the model takes.
    """

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    resized: bool


@dataclass(frozen=True)
class Classifier:
    """A model with what it needs.

    Attributes:
        scores: From normalized images to (N, classes) scores.
        preprocessing: From image files to normalized images.
        data: What it needs to know of the images; its classes are in the order of the scores.
    """

    scores: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    data: DataDescription

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.classes


def predict(
    model: str | Path, images: Sequence[str | Path], *, top: int = 5, factory: str | None = None
) -> list[Prediction]:
    """Return the likeliest classes of images, with the preprocessing of the model's training.

    Args:
        model: A run folder, a packed file, or an ONNX file that `export_onnx` wrote with classes, mean and std.
        images: Files, or folders of them, which are searched with all their folders.
        top: Classes of each image.
        factory: Of a packed file with a model of one's own: the function "package.module:function" that builds it.

    Returns:
        One for each image, those of a folder in the order of their names.

    Raises:
        RunError, InputError: The model cannot be read, or does not say what it needs.
        DataError: An image is missing or does not decode.
        ConfigError: No image, or top is below 1.
    """
    if top < 1:
        raise ConfigError(f"top must be 1 or more, not {top}")
    paths = [path for image in images for path in _files(Path(image))]
    if not paths:
        raise ConfigError("expected at least one image, got none")
    classifier = open_classifier(model, factory)
    found = []
    for start in range(0, len(paths), _BATCH):
        part = paths[start : start + _BATCH]
        pixels, resized = classifier.preprocessing.read(part)
        with torch.no_grad():
            scores = classifier.scores(classifier.preprocessing(pixels))
        if scores.shape != (len(part), len(classifier.classes)):
            outputs = " x ".join(map(str, scores.shape[1:]))
            raise InputError(f"{model} has {outputs} outputs and names {len(classifier.classes)} classes")
        best = scores.softmax(1).topk(min(top, scores.shape[1]))
        for path, places, values, changed in zip(
            part, best.indices.tolist(), best.values.tolist(), resized, strict=True
        ):
            names = tuple(classifier.classes[place] for place in places)
            found.append(Prediction(path, names, tuple(values), changed))
    return found


def open_classifier(model: str | Path, factory: str | None = None) -> Classifier:
    """Return the model of a run folder, a packed file or an ONNX file, ready to classify.

    Raises:
        RunError, InputError: It cannot be read, or does not say what it needs.
    """
    path = Path(model)
    onnx = path.suffix.lower() == ".onnx"
    if factory is not None and (onnx or path.is_dir()):
        raise ConfigError(f"{path} says itself how its model is built: leave --model {factory} out")
    if path.is_dir():
        run = load_run(path)
        return Classifier(run.model, Preprocessing(run.data), run.data)
    if onnx:
        scores, values = _open_onnx(path)
    else:
        scores, description = load_packed_file(path, factory, fused=True)
        values = {key: getattr(description, key) for key in _NEEDED}
    data = _description(path, values)
    return Classifier(scores, Preprocessing(data), data)


def open_file(path: Path, factory: str | None = None) -> TrainedRun:
    """Return the model of a packed or an ONNX file as that of a run with the default configuration, in float32.

    Raises:
        InputError: It cannot be read, or does not say what it needs.
    """
    classifier = open_classifier(path, factory)
    scores = classifier.scores
    model = scores if isinstance(scores, nn.Module) else _Scores(scores)  # a module goes to the device itself
    return TrainedRun(RunConfig(precision="no"), model, classifier.data)


class _Scores(nn.Module):
    """A function as a model."""

    def __init__(self, scores: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(images.cpu()).to(images.device)


_NEEDED = ("classes", "mean", "std", "input_size")


def _description(path: Path, values: dict[str, Any]) -> DataDescription:
    """What a file says of the images, checked."""
    missing = [key for key in _NEEDED if values.get(key) is None]
    if missing:
        raise InputError(
            f"{path} does not say its {', '.join(missing)}: write it with rotateconv export or pack from a run"
        )
    classes, mean, std, size = (values[key] for key in _NEEDED)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for row in (mean, std, size) for v in row)
    if not (numbers and len(size) == 3 and all(isinstance(v, int) and 0 < v <= 2**14 for v in size)):
        raise InputError(f"{path} must say its input_size as channels, height and width, got {size}")
    if not len(mean) == len(std) == size[0] or not all(value > 0 for value in std):
        raise InputError(f"{path} must say a mean and a standard deviation above 0 for each of {size[0]} channels")
    if not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path} must say its classes as a list of names")
    channels, height, width = size
    shape = (channels, height, width)
    return DataDescription(str(path), tuple(classes), tuple(mean), tuple(std), shape, False, 0, 0, 0)


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """An ONNX file as a function, and its metadata. Nothing in it runs code, and no other file is read for it."""
    with needing("export", "ONNX files need more packages", InputError):
        import onnx
        import onnxruntime
    try:
        data = read_regular(path, LARGEST_ONNX)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf, whose classes differ between versions
        raise InputError(f"{path} is no ONNX file, or it was cut off: {first_line(error)}") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(proto)):
        raise InputError(f"{path} keeps numbers in other files, which are not opened: save it as one file")
    values: dict[str, Any] = {}
    for prop in proto.metadata_props:
        if prop.key in _NEEDED:
            with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is missing
                value = json.loads(prop.value)
                values[prop.key] = value if isinstance(value, list) else None
    _description(path, values)  # before any memory is taken for it
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        with limited_memory(_ONNX_MEMORY):
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has classes of its own, without a common one
        raise InputError(f"ONNX Runtime cannot open {path}: {first_line(error)}") from None
    if len(session.get_inputs()) != 1:
        raise InputError(f"{path} takes {len(session.get_inputs())} inputs, and a classifier takes one: the images")
    given = session.get_inputs()[0]

    def run(images: Tensor) -> Tensor:
        try:
            with limited_memory(_ONNX_MEMORY):
                return torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])
        except Exception as error:
            raise InputError(f"{path} cannot classify images of its input_size: {first_line(error)}") from None

    def scores_of_pixels(images: Tensor) -> Tensor:
        """Of a file that normalizes uint8 images itself, (N, height, width, channels), and gives probabilities."""
        mean, std = (torch.tensor(values[key]).view(-1, 1, 1) for key in ("mean", "std"))
        pixels = ((images * std + mean) * 255).round().to(torch.uint8)
        return run(pixels.permute(0, 2, 3, 1).contiguous()).clamp_min(1e-38).log()

    return scores_of_pixels if given.type == "tensor(uint8)" else run, values


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message of ONNX, those in attributes, functions and inner graphs too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "__len__") else (value,):
                yield from _tensors(inner)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not found:
        raise DataError(f"there is no image in the folder {path}")
    return found
