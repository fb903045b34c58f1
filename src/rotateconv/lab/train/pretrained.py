"""The trained model that a run starts from, or learns from: another run's, or a user's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rotateconv.convert.convert import NothingToConvertError, convert_layers, convert_to
from rotateconv.convert.recalibrate import evaluating
from rotateconv.convert.reconstruct import Progress
from rotateconv.convert.report import ConversionReport
from rotateconv.errors import ConfigError, RunError, first_line
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import Split
from rotateconv.lab.naming import layers_name
from rotateconv.lab.parts import Conversion
from rotateconv.lab.train.build import build_configured, build_from, conversion_filter, set_angle_grad_scale
from rotateconv.lab.train.load import calibration_batches, load_run
from rotateconv.lab.train.run_folder import INITIAL, read_config
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.models.convs import find_conv
from rotateconv.quantization.pack import describe_packed, load_packed
from rotateconv.quantization.pack_description import PackedDescription


def load_source(path: str, factory: str | None, data: DataDescription) -> nn.Module:
    """Return the trained model of a run folder, or of a file of weights and what builds it: on the CPU, for evaluation.

    Raises:
        ConfigError: a file without a factory, weights that do not fit, or a model that does not take these images.
        RunError: no run folder, or one without weights.
    """
    if not Path(path).is_file():
        run = load_run(path)
        for key in ("classes", "input_shape", "mean", "std"):
            ours, theirs = getattr(data, key), getattr(run.data, key)
            if ours != theirs:
                raise ConfigError(
                    f"the model of {path} was trained with {key} {theirs}, this run has {ours}: give both the same data"
                )
        return run.model
    if factory is None:
        raise ConfigError(
            f"{path} is a file of weights: say which function builds its model, as package.module:function"
        )
    with torch.random.fork_rng(devices=[]):
        model = build_from(factory)
    load_weights(model, read_weights_file(path), path)
    check_takes(model, data, factory)
    return model.eval()


def load_packed_file(
    path: str | Path, factory: str | None = None, *, fused: bool = False
) -> tuple[nn.Module, PackedDescription]:
    """Return the model in a packed file, as `load_packed` does, and what the file says of it.

    Raises:
        ConfigError: A factory where the file needs none, none where it needs one, or one that builds no model.
        InputError: As `load_packed`.
    """
    description = describe_packed(path)
    if description.build is not None:
        if factory is not None:
            raise ConfigError(f"{path} says itself how its model is built: leave --model {factory} out")
        return load_packed(path, fused=fused), description
    if factory is None:
        raise ConfigError(
            f"{path} holds a {description.architecture}, a model of your own: say which function builds it, with "
            "--model package.module:function"
        )
    with torch.random.fork_rng(devices=[]):
        model = build_from(factory)
    return load_packed(path, fused=fused, model=model), description


@dataclass(frozen=True)
class StartingPoint:
    """Models that a caller has at hand already, so that nothing is loaded or fitted twice.

    Attributes:
        model: With the values that the run starts from; it is trained itself.
        teacher: That it learns from, where the configuration names one.
    """

    model: nn.Module
    teacher: nn.Module | None = None


def initial_model(
    config: RunConfig, data: DataDescription, run: Path | None = None, images: Split | None = None
) -> nn.Module:
    """Return a run's model as it is before the first step; its fresh weights take torch's random numbers.

    With `config.source` it has that model's values: those that the run folder kept when it began, else the source
    is loaded, and converted unless its own configuration says that it was converted so already. Where it is dense and
    the run's layers are of another kind, they are fitted to its kernels, or to what these compute on the images.

    Raises:
        ConfigError, RunError: as `load_source`; or the source has other tensors than the run's model.
        ValueError: there is nothing to convert.
    """
    model = build_configured(config.architecture, data)
    if config.source is None:
        return model
    if run is not None and (run / INITIAL).is_file():
        load_weights(model, read_weights_file(run / INITIAL), run / INITIAL)
        return model
    source = load_source(config.source, config.factory, data)
    before = None if Path(config.source).is_file() else read_config(Path(config.source))  # a file of weights is dense
    converted = before is not None and (before.rotate, before.convert_only) == (config.rotate, config.convert_only)
    if config.conversion is not None and not converted:
        with dense_source(config.source):
            convert_source(source, config.conversion, data, images)
    elif before is not None and config.factory is None and before.conv != config.conv:
        if before.conv != "conv3x3" or before.rotate is not None:
            raise ConfigError(
                f"only a run of conv3x3 can go on as {config.conv}, and {config.source} is of {before.conv}"
            )
        convert_layers(source, find_conv(config.conv))
    load_weights(model, source.state_dict(), config.source)
    return model


@contextmanager
def dense_source(path: str) -> Iterator[None]:
    """Let a run that has nothing left to convert be refused by what it is; a file of weights by its layers.

    Raises:
        ConfigError: the run was converted before, or trained with other layers than dense ones.
    """
    try:
        yield
    except NothingToConvertError:
        if Path(path).is_file():
            raise
        run = read_config(Path(path))
        if run.convert_taps is not None:
            origin = _dense_origin(run)
            such = "" if origin is None else f", such as its source, {origin}"
            has = layers_name(run)
            raise ConfigError(f"{path} has {has} already: give a model of dense convolutions{such}") from None
        if run.factory is not None or run.conv == "conv3x3":
            raise
        raise ConfigError(
            f"{path} was trained as {run.conv} and has no dense layer to convert: train one with --conv conv3x3, or "
            "make it small with rotateconv finish"
        ) from None


def _dense_origin(run: RunConfig) -> str | None:
    """Return the model that a converted run was made of, where it is still there."""
    passed: set[str] = set()  # a damaged folder may be its own source
    while run.source is not None and run.source not in passed:
        passed.add(run.source)
        if Path(run.source).is_file():
            return run.source
        try:
            before = read_config(Path(run.source))
        except (ConfigError, RunError):
            return None
        if before.convert_taps is None:
            return run.source
        run = before
    return None


def convert_source(
    source: nn.Module,
    conversion: Conversion,
    data: DataDescription,
    images: Split | None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a trained model in evaluation mode, in place.

    Raises:
        ValueError: there is nothing to convert.
        RunError: layers are fitted to what they compute on images, and there are none.
    """
    batches = None
    if conversion.convert_fit == "outputs":
        if images is None:
            raise RunError("the layers were fitted to images: their start cannot be made again without them")
        batches = [images for images, _ in calibration_batches(source, conversion.execution, data, images)]
    where = conversion_filter(source, conversion.convert_only)
    report = convert_to(source, conversion.rotate, where=where, data=batches, progress=progress)
    set_angle_grad_scale(source, conversion.angle_grad_scale)
    return report


def check_takes(model: nn.Module, data: DataDescription, factory: str) -> None:
    """Raise ConfigError unless a user's model maps images of the data's shape to one number per class."""
    shape = "x".join(map(str, data.input_shape))
    try:
        with evaluating(model):
            scores = model(torch.zeros(2, *data.input_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the model of {factory} does not take images of {shape}: {first_line(error)}") from error
    classes = len(data.classes)
    if not isinstance(scores, torch.Tensor) or scores.shape != (2, classes):
        found = tuple(scores.shape[1:]) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ConfigError(f"the model of {factory} must give {classes} numbers per image, one per class, not {found}")
