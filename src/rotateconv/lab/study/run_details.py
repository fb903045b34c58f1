"""What a page about one run shows beyond its record: kernels from start to end, sizes of its files, confusion."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from rotateconv.errors import InputError, RunError
from rotateconv.export.export import export_onnx
from rotateconv.lab.study.angles import check_start, histogram, starting_model
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.study_record import read_run
from rotateconv.lab.train.build import configured_cost, rotate_layers
from rotateconv.lab.train.load import TrainedRun, load_run, pack_model
from rotateconv.lab.train.run_folder import SUMMARY, read_environment, read_summary
from rotateconv.lab.train.weights import state_bytes
from rotateconv.nn.conv import RotateConv2d
from rotateconv.quantization.bits import Bits

FRAMES = 17
"""Pictures of a kernel on its way from the first angle to the last, the first and the last included."""
_SHOWN = 18  # kernels of a layer


@dataclass(frozen=True)
class MovedLayer:
    """The angles and some kernels of a RotateConv layer, before the first step and after the last one.

    Attributes:
        name: Of the layer.
        channels: Output and input channels (of a group).
        size: Of a kernel, k.
        angles: How many it has.
        period: Radians after which an angle gives the same kernel.
        before, after: How many angles lie in each of the equal parts of the period; `before` is None where the start
            is not known.
        moved: Mean |angle - start| in radians; None likewise.
        shown: Output and input channel of the kernels with the largest norms, after the training.
        turns: Start and end of their angles in radians, the short way round.
        frames: Those kernels while weights and angles go straight from start to end, as int8 in the order frame,
            kernel, row, column; 127 is the largest number of all. A single frame where the start is not known.
    """

    name: str
    channels: tuple[int, int]
    size: int
    angles: int
    period: float
    before: tuple[int, ...] | None
    after: tuple[int, ...]
    moved: float | None
    shown: tuple[tuple[int, int], ...]
    turns: tuple[tuple[float, float], ...]
    frames: bytes


@dataclass(frozen=True)
class FileSize:
    """A form of the model and its bytes; None with the reason why it has none."""

    form: str
    bytes: int | None
    reason: str = ""


@dataclass(frozen=True)
class RunDetails:
    """All that a page shows of a run.

    Attributes:
        record: As a study has it.
        command: That began it.
        confusion: [true][predicted] counts test images; None in runs that did not keep it.
        layers: With angles, in the order of the model.
        start: Why the start of the angles is not known; "" where it is, or where there are none.
        sizes: Of the model in its forms.
    """

    record: RunRecord
    command: str | None
    confusion: tuple[tuple[int, ...], ...] | None
    layers: tuple[MovedLayer, ...]
    start: str
    sizes: tuple[FileSize, ...]


def read_details(run: str | Path) -> RunDetails:
    """Return what a page shows of a finished run, from its folder alone; RunError where it is not finished."""
    run = Path(run)
    if not (run / SUMMARY).is_file():
        raise RunError(f"the run in {run} is not finished: resume it, or leave it out")
    trained = load_run(run)
    layers, start, reason = rotate_layers(trained.model), None, ""
    if layers:
        try:
            start = starting_model(trained.config, trained.data, run)
            check_start(run, trained.config, start, trained.model)
        except InputError as error:
            start, reason = None, str(error)
    starts = rotate_layers(start) if start is not None else {}
    moved = tuple(moved_layer(name, starts.get(name), layer) for name, layer in layers.items())
    command = read_environment(run).began.command
    return RunDetails(read_run(run), command, read_summary(run).test_confusion, moved, reason, _file_sizes(trained))


@torch.no_grad()
def moved_layer(name: str, start: RotateConv2d | None, end: RotateConv2d) -> MovedLayer:
    """Return how the angles and kernels of a layer moved."""
    kernels = end.kernel()
    out, of_group, size = kernels.shape[:3]
    shown = kernels.flatten(2).norm(dim=2).flatten().topk(min(_SHOWN, out * of_group)).indices
    moving = copy.deepcopy(end)
    differences: dict[str, Tensor] = {}
    moved = None
    if start is not None:
        first, last = dict(start.state_dict()), dict(end.state_dict())
        differences = {key: last[key] - first[key] for key in last}
        moved = differences["angle"].abs().mean().item()
        differences["angle"] = short_way(differences["angle"])

    def at(left: float) -> Tensor:
        """The shown kernels with so much of the way left."""
        moving.load_state_dict({key: value - left * differences.get(key, 0) for key, value in end.state_dict().items()})
        return moving.kernel().flatten(0, 1)[shown]

    frames = torch.stack([at(1 - step / (FRAMES - 1)) for step in range(FRAMES)] if differences else [at(0)])
    scale = frames.abs().max().clamp_min(1e-30)
    rows = shown // of_group * end.angle.shape[0] // out, shown % of_group  # of the angle, which a group may share
    last_angle = end.angle[rows].double()
    first_angle = last_angle - differences["angle"][rows].double() if differences else last_angle
    period = math.pi if end.taps == "shared" else 2 * math.pi
    return MovedLayer(
        name=name,
        channels=(out, of_group),
        size=size,
        angles=end.angle.numel(),
        period=period,
        before=histogram(start.angle.double(), period) if start is not None else None,
        after=histogram(end.angle.double(), period),
        moved=moved,
        shown=tuple((index // of_group, index % of_group) for index in shown.tolist()),
        turns=tuple(zip(first_angle.tolist(), last_angle.tolist(), strict=True)),
        frames=bytes((frames / scale * 127).round().to(torch.int8).flatten().view(torch.uint8).tolist()),
    )


def short_way(difference: Tensor) -> Tensor:
    """Return differences of angles in radians, less the whole periods of 2π in them.

    Example:
        >>> short_way(torch.tensor([0.5, 6.0])).round(decimals=3)
        tensor([ 0.5000, -0.2830])
    """
    return torch.remainder(difference + math.pi, 2 * math.pi) - math.pi


def _file_sizes(trained: TrainedRun) -> tuple[FileSize, ...]:
    """Return the bytes of a run's model: written out densely if it is not so already, as trained, packed, compact ONNX.

    The bits are those that it was trained for, or 4 per weight and the defaults of `pack` and of compact files.
    """
    config, data, model = trained.config, trained.data, trained.model.cpu()
    packed, compact = config.bits or Bits(), config.bits or Bits(angle=4)
    trained_bytes = state_bytes(model)
    dense = FileSize("dense: every kernel written out, float32", configured_cost(config.architecture, data).fused_bytes)
    return (
        *((dense,) if dense.bytes != trained_bytes else ()),  # a dense model has that form already
        FileSize("as trained, float32", trained_bytes),
        _written(f"packed, {packed.weight}-bit weights", lambda file: pack_model(model, data, file, packed)),
        _written(
            f"compact ONNX, {compact.weight}-bit weights",
            lambda file: export_onnx(model, file, input_size=data.input_shape, compact=True, **compact.arguments),
        ),
    )


def _written(form: str, write: Callable[[Path], object]) -> FileSize:
    with TemporaryDirectory() as folder:
        file = Path(folder, "model")
        try:
            write(file)
        except (InputError, ValueError) as error:
            return FileSize(form, None, str(error))
        return FileSize(form, file.stat().st_size)
