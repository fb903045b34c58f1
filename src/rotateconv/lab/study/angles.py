"""What the angles of a finished run did: how far they moved, how they lie, what shuffling them costs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.errors import RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.sample import Sample
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.load import check_images, evaluate_model, load_run
from rotateconv.lab.train.pretrained import initial_model
from rotateconv.lab.train.run_folder import read_records, read_summary
from rotateconv.nn.conv import RotateConv2d
from rotateconv.quantization.pack import describe_packed, load_packed, pack

_BINS = 36
_AGREE = 1e-3  # relative: of the movement found here and the one that the run recorded


@dataclass(frozen=True)
class Movement(Plain):
    """Mean and largest |angle - start| in radians."""

    mean: float
    max: float


@dataclass(frozen=True)
class Alignment(Plain):
    """How angles lie: `axes` is the mean of cos 4θ.

    It is 1 where all filters lie along rows and columns, -1 where they lie along diagonals, and 0 ± 1/√(2N) for N
    angles that are uniform over a turn.
    """

    axes: float


@dataclass(frozen=True)
class Shuffled(Plain):
    """Accuracy in percent with the angles permuted over their slices: mean and deviation (None of one) of the draws."""

    mean: float
    std: float | None
    draws: int


@dataclass(frozen=True)
class Histogram(Plain):
    """How many angles, taken modulo the period, lie in each of its equal parts, before and after training."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class LayerAngles(Plain):
    """What the angles of a RotateConv layer did, or those of all layers together.

    Attributes:
        slices: Number of angles.
        movement: From their start.
        before, after: How they lay at the start and lie at the end.
        shuffled: What the model is worth when they are permuted.
        name: Of the layer; "" for all together.
        histogram: Of all together; None for a layer.
    """

    slices: int
    movement: Movement
    before: Alignment
    after: Alignment
    shuffled: Shuffled
    name: str = ""
    histogram: Histogram | None = None


@dataclass(frozen=True)
class AngleAnalysis(Plain):
    """What all angles of a model did.

    Attributes:
        period: Radians after which an angle gives the same kernel: π where all taps are shared, else 2π.
        layers: In the order of the model.
        all: All layers together.
    """

    period: float
    layers: tuple[LayerAngles, ...]
    all: LayerAngles


@dataclass(frozen=True)
class PackedResult(Plain):
    """Bytes of the file that `pack` writes by default, and the validation accuracy in percent of what is in it."""

    bytes: int
    validation_accuracy: float


@dataclass(frozen=True)
class RunAnalysis(Plain):
    """What `rotateconv analyse` found of a run: analysis.json.

    Attributes:
        validation_accuracy: Percent, of the model as it is.
        validation_seen: Whether the run was trained on those images too.
        packed: What is left of it in a packed file.
        angles: What they did; None for a model without angles.
    """

    validation_accuracy: float
    validation_seen: bool
    packed: PackedResult
    angles: AngleAnalysis | None


def analysis_from_json(value: object, where: str | Path) -> RunAnalysis:
    """Return the analysis in a run's analysis.json or in a study's record, of version 0.1 too; RunError for others."""
    return from_json(RunAnalysis, _without_kuiper(value), where)


def _without_kuiper(value: Any) -> Any:
    """Return JSON without Kuiper's test, which version 0.1 wrote beside the mean of cos 4θ."""
    if isinstance(value, list):
        return [_without_kuiper(item) for item in value]
    if isinstance(value, dict):
        return {k: _without_kuiper(item) for k, item in value.items() if k not in ("kuiper", "probability")}
    return value


def analyse(run: str | Path, images: ImageData, draws: int = 3) -> RunAnalysis:
    """Return what a finished run's angles did, and how much of its accuracy fits into a packed file.

    Raises:
        RunError: Other images, or a start that does not follow from its seed here.
    """
    run = Path(run)
    trained = load_run(run)
    check_images(run, trained.data, images)

    def accuracy(model: nn.Module) -> float:
        return evaluate_model(model, trained.config.execution, trained.data, images.validation).accuracy

    angles = None
    if rotate_layers(trained.model):
        start = starting_model(trained.config, trained.data, run)
        check_start(run, trained.config, start, trained.model)
        angles = analyse_angles(start, trained.model, lambda: accuracy(trained.model), draws, trained.config.seed)
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.rcp")
        pack(trained.model, file)
        own = trained.model if describe_packed(file).build is None else None
        packed = PackedResult(file.stat().st_size, accuracy(load_packed(file, model=own)))
    return RunAnalysis(accuracy(trained.model), not trained.config.validation, packed, angles)


def analyse_angles(
    start: nn.Module, end: nn.Module, accuracy: Callable[[], float], draws: int = 3, seed: int = 0
) -> AngleAnalysis:
    """Return what the angles did between two states of a model, layer by layer and all together.

    Shuffling permutes the angles of `end` over the slices of a layer; weights and the statistics of norms stay. `end`
    is left as it was, and `accuracy` measures it. Both states have the same RotateConv2d layers, at least one.
    """
    layers, starts = rotate_layers(end), rotate_layers(start)
    before = {name: starts[name].angle.detach().flatten().cpu().double() for name in layers}
    after = {name: layer.angle.detach().flatten().cpu().double() for name, layer in layers.items()}
    period = math.pi if all(layer.taps == "shared" for layer in layers.values()) else 2 * math.pi
    generator = torch.Generator().manual_seed(seed)

    def describe(
        shuffle: Sequence[RotateConv2d], first: Tensor, last: Tensor, name: str = "", counts: Histogram | None = None
    ) -> LayerAngles:
        accuracies = []
        for _ in range(draws):
            with shuffled(shuffle, generator):
                accuracies.append(accuracy())
        found = Sample(tuple(accuracies))
        moved = (last - first).abs()
        return LayerAngles(
            slices=last.numel(),
            movement=Movement(moved.mean().item(), moved.max().item()),
            before=Alignment(mean_cos4(first)),
            after=Alignment(mean_cos4(last)),
            shuffled=Shuffled(found.mean, found.std, found.n),
            name=name,
            histogram=counts,
        )

    each = tuple(describe([layer], before[name], after[name], name) for name, layer in layers.items())
    first, last = torch.cat(list(before.values())), torch.cat(list(after.values()))
    counts = Histogram(histogram(first, period), histogram(last, period))
    return AngleAnalysis(period, each, describe(list(layers.values()), first, last, counts=counts))


def starting_model(config: RunConfig, data: DataDescription, run: Path | None = None) -> nn.Module:
    """Return the model of a run as it was before the first step; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return initial_model(config, data, run)


@contextmanager
def shuffled(layers: Sequence[RotateConv2d], generator: torch.Generator) -> Iterator[None]:
    """Permute the angles of each layer over its slices, and put them back afterwards."""
    kept = [layer.angle.detach().clone() for layer in layers]
    try:
        for layer, angle in zip(layers, kept, strict=True):
            order = torch.randperm(angle.numel(), generator=generator).to(angle.device)
            layer.angle.data.copy_(angle.flatten()[order].view_as(angle))
        yield
    finally:
        for layer, angle in zip(layers, kept, strict=True):
            layer.angle.data.copy_(angle)


def mean_cos4(angles: Tensor) -> float:
    """Return the mean of cos 4θ of angles in radians: 1 along rows and columns, -1 along diagonals.

    Example:
        >>> round(mean_cos4(torch.tensor([0.0, math.pi / 2, math.pi / 4])), 6)
        0.333333
    """
    return (4 * angles.double()).cos().mean().item()


def histogram(angles: Tensor, period: float) -> tuple[int, ...]:
    """Return how many angles, taken modulo the period, lie in each of its equal parts, 36 of them."""
    parts = (angles.flatten().remainder(period) / period * _BINS).long().clamp(max=_BINS - 1)
    return tuple(torch.bincount(parts, minlength=_BINS).tolist())


def check_start(run: Path, config: RunConfig, start: nn.Module, end: nn.Module) -> None:
    """Raise RunError where the start found here is not the one that the run moved away from."""
    if config.ema_decay is not None or config.qat or read_summary(run).keeps_fitted:
        return  # the run keeps other angles than those whose movement it recorded
    starts = rotate_layers(start)
    pairs = [(layer.angle.detach(), starts[name].angle.detach()) for name, layer in rotate_layers(end).items()]
    found = torch.cat([(after - before).abs().flatten() for after, before in pairs]).mean().item()
    recorded = read_records(run)[-1].angle_movement_mean
    if recorded is None or not math.isclose(found, recorded, rel_tol=_AGREE, abs_tol=1e-5):
        raise RunError(
            f"the angles of {run} moved by {recorded or 0:.4g} rad, from the start that its seed gives here by "
            f"{found:.4g}: analyse it with the versions that its environment.json names"
        )
