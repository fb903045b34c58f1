"""What the angles of a finished run did: how far they moved, how they lie, what shuffling them costs."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.errors import RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.train.load import evaluate_split, load_run
from rotateconv.lab.train.pretrained import initial_model
from rotateconv.lab.train.run_folder import Record, read_json
from rotateconv.nn.conv import RotateConv2d
from rotateconv.quantization.pack import load_packed, pack

_BINS = 36
_AGREE = 1e-3  # relative: of the movement found here and the one that the run recorded


def analyse(run: str | Path, images: ImageData, draws: int = 3) -> Record:
    """Return what became of a finished run's angles, and how much of its accuracy fits into a packed file.

    Args:
        run: its folder.
        images: that the run was trained on.
        draws: shuffles of each layer.

    Returns:
        validation_accuracy: percent, of the net as it is.
        validation_seen: whether the run was trained on those images too.
        packed: bytes of the file that `pack` writes by default, and the validation accuracy of what is in it.
        angles: as `analyse_angles` returns it, or None for a net without angles.

    Raises:
        RunError: other images, or a start that does not follow from its seed here.
    """
    run = Path(run)
    trained = load_run(run)
    if DataDescription.of(images) != trained.data:
        raise RunError(f"{run} was trained on other images of {trained.data.name}: give it the same --data-dir")

    def accuracy(net: nn.Module) -> float:
        return evaluate_split(net, trained.config, trained.data, images.validation).accuracy

    angles = None
    if lines_of(trained.model):
        start = start_net(trained.config, trained.data)
        _check_start(run, trained.config, start, trained.model)
        angles = analyse_angles(start, trained.model, lambda: accuracy(trained.model), draws, trained.config.seed)
    with TemporaryDirectory() as folder:
        file = Path(folder, "net.rcp")
        pack(trained.model, file)
        packed = {"bytes": file.stat().st_size, "validation_accuracy": accuracy(load_packed(file))}
    return {
        "validation_accuracy": accuracy(trained.model),
        "validation_seen": not trained.config.validation,
        "packed": packed,
        "angles": angles,
    }


def analyse_angles(
    start: nn.Module, end: nn.Module, accuracy: Callable[[], float], draws: int = 3, seed: int = 0
) -> Record:
    """Return what the angles did between two states of a net, layer by layer and all together.

    Shuffling permutes the angles of `end` over the slices of a layer; weights and the statistics of norms stay.

    Args:
        start, end: nets of the same RotateConv2d layers, at least one; `end` is left as it was.
        accuracy: measures `end`.
        draws: shuffles of each layer.
        seed: of the permutations.

    Returns:
        period: of the angles: π where all taps are shared, since turning by π gives the same kernel; else 2π.
        layers, all: a dict a layer with its name, and one of all layers together, each with slices (how many
            angles), movement (mean and max |angle - start| in rad), before and after (`uniformity` of start and
            end) and shuffled (mean and std of the accuracy). `all` has a histogram before and after besides.
    """
    lines, starts = lines_of(end), lines_of(start)
    before = {name: starts[name].angle.detach().flatten().cpu().double() for name in lines}
    after = {name: layer.angle.detach().flatten().cpu().double() for name, layer in lines.items()}
    period = math.pi if all(layer.taps == "shared" for layer in lines.values()) else 2 * math.pi
    generator = torch.Generator().manual_seed(seed)

    def shuffle(layers: Sequence[RotateConv2d]) -> Record:
        found = []
        for _ in range(draws):
            with shuffled(layers, generator):
                found.append(accuracy())
        return {"mean": statistics.fmean(found), "std": statistics.stdev(found) if draws > 1 else None, "draws": draws}

    layers = []
    for name, layer in lines.items():
        layers.append({"name": name, **_describe(before[name], after[name], period), "shuffled": shuffle([layer])})
    first, last = torch.cat(list(before.values())), torch.cat(list(after.values()))
    together = {**_describe(first, last, period), "shuffled": shuffle(list(lines.values()))}
    together["histogram"] = {"before": histogram(first, period), "after": histogram(last, period)}
    return {"period": period, "layers": layers, "all": together}


def lines_of(net: nn.Module) -> dict[str, RotateConv2d]:
    """Return the layers that have angles, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, RotateConv2d)}


def start_net(config: RunConfig, data: DataDescription) -> nn.Module:
    """Return the net of a run as it was before the first step; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return initial_model(config, data)


@contextmanager
def shuffled(layers: Sequence[RotateConv2d], generator: torch.Generator) -> Iterator[None]:
    """Permute the angles of each layer over its slices, and put them back afterwards.

    Args:
        layers: each is shuffled by itself.
        generator: of the permutations, on the CPU.
    """
    kept = [layer.angle.detach().clone() for layer in layers]
    try:
        for layer, angle in zip(layers, kept, strict=True):
            order = torch.randperm(angle.numel(), generator=generator).to(angle.device)
            layer.angle.data.copy_(angle.flatten()[order].view_as(angle))
        yield
    finally:
        for layer, angle in zip(layers, kept, strict=True):
            layer.angle.data.copy_(angle)


def uniformity(angles: Tensor, period: float) -> Record:
    """Return how far angles are from uniform over their period.

    Kuiper's V = max(F - u) + max(u - F), F the empirical and u the uniform distribution function, does not
    depend on where the period begins. With λ = (√N + 0.155 + 0.24/√N) V its probability under the uniform law is

        p = 2 Σ_{j≥1} (4 j² λ² - 1) exp(-2 j² λ²)

    The mean of cos 4θ is 1 where all lines lie along rows and columns, -1 where they lie along diagonals, and under
    the uniform law 0 ± 1/√(2N).

    Args:
        angles: radians, of any shape.
        period: radians after which an angle means the same.

    Returns:
        kuiper: V; probability: p; axes: the mean of cos 4θ.

    Example:
        >>> uniformity(torch.linspace(0, 2 * math.pi, 1001)[:-1], 2 * math.pi)["kuiper"] < 0.002
        True

    Reference:
        Kuiper, "Tests concerning random points on a circle" (1960); Stephens, "Use of the Kolmogorov-Smirnov,
        Cramér-von Mises and related statistics without extensive tables" (1970) for λ.
    """
    turned = angles.flatten().double()
    count = turned.numel()
    u = (turned.remainder(period) / period).sort().values
    steps = torch.arange(count, dtype=torch.float64, device=u.device)
    kuiper = ((steps + 1) / count - u).max().item() + (u - steps / count).max().item()
    root = math.sqrt(count)
    return {
        "kuiper": kuiper,
        "probability": kuiper_probability((root + 0.155 + 0.24 / root) * kuiper),
        "axes": (4 * turned).cos().mean().item(),
    }


def kuiper_probability(scaled: float) -> float:
    """Return the probability that λ is at least as large under the uniform law; 1 where the series has no digits left.

    Example:
        >>> round(kuiper_probability(1.747), 3)  # the tabled 5 % point
        0.05
    """
    if scaled < 0.4:  # p > 1 - 1e-7 there, and the terms cancel
        return 1.0
    squares = [(j * scaled) ** 2 for j in range(1, 101)]
    return min(1.0, max(0.0, 2 * math.fsum((4 * s - 1) * math.exp(-2 * s) for s in squares)))


def histogram(angles: Tensor, period: float) -> list[int]:
    """Return how many angles, taken modulo the period, lie in each of its equal parts, 36 of them."""
    parts = (angles.flatten().remainder(period) / period * _BINS).long().clamp(max=_BINS - 1)
    return [int(count) for count in torch.bincount(parts, minlength=_BINS)]


def _describe(before: Tensor, after: Tensor, period: float) -> dict[str, Any]:
    moved = (after - before).abs()
    return {
        "slices": after.numel(),
        "movement": {"mean": moved.mean().item(), "max": moved.max().item()},
        "before": uniformity(before, period),
        "after": uniformity(after, period),
    }


def _check_start(run: Path, config: RunConfig, start: nn.Module, end: nn.Module) -> None:
    """Raise RunError where the start found here is not the one that the run moved away from."""
    if config.ema_decay is not None or config.qat:
        return  # the run keeps other angles than those whose movement it recorded
    starts = lines_of(start)
    pairs = [(layer.angle.detach(), starts[name].angle.detach()) for name, layer in lines_of(end).items()]
    found = torch.cat([(after - before).abs().flatten() for after, before in pairs]).mean().item()
    recorded = read_json(run / "summary.json")["last"]["angle_movement_mean"]
    if not math.isclose(found, recorded, rel_tol=_AGREE, abs_tol=1e-5):
        raise RunError(
            f"the angles of {run} moved by {recorded:.4g} rad, from the start that its seed gives here by {found:.4g}: "
            "analyse it with the versions that its environment.json names"
        )
