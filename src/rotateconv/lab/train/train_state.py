"""All that changes while a model is trained, and how it is built, saved and restored."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from rotateconv.errors import ConfigError, RunError, first_line
from rotateconv.lab.config import RunConfig, changed_keys, from_json, to_json
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.train.average import RunningAverage
from rotateconv.lab.train.checkpoint import Checkpoint, save_checkpoint
from rotateconv.lab.train.device import chosen_device, is_indexed
from rotateconv.lab.train.pretrained import StartingPoint, check_takes, initial_model, load_source
from rotateconv.lab.train.running_metrics import RunningMetrics
from rotateconv.lab.train.schedule import build_optimizer
from rotateconv.nn.batched import batched_kernels
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.pruning import prune_smallest
from rotateconv.quantization.qat import QuantizedTraining
from rotateconv.quantization.quantize import quantize

EVALUATED_PIXELS = 2**20
"""Pixels of the images that a GPU evaluates at a time, if more than a batch: its launches outlast small ones."""


@dataclass
class TrainingState:
    """A run in motion.

    Args:
        config: of the run.
        accelerator: device, precision and processes.
        data: description of the images.
        model: the plain one; `prepared` is the same wrapped for precision and processes.
        optimizer: over `param_groups`.
        average: running average of the model, or None.
        teacher: model to distil from, or None.
        average_scales: the same of the learned scales of the weights, or None.
        qat: lends the model its quantized numbers, where the run trains for them.
        train: the images that are trained on.
        batches, validation, test: all images in batches; validation is None where it is trained on.
        infinite: names of tensors that are not finite from the start, such as a mask of minus infinity.
        start_angles: per layer, before the first step; they follow from the seed.
        step, epoch: how many are finished.
        metrics: of the epoch that is running.
    """

    config: RunConfig
    accelerator: Accelerator
    data: DataDescription
    model: nn.Module
    prepared: nn.Module
    optimizer: torch.optim.Optimizer
    average: RunningAverage | None
    average_scales: RunningAverage | None
    teacher: nn.Module | None
    qat: QuantizedTraining | None
    train: Split
    batches: Batches
    validation: Batches | None
    test: Batches
    start_angles: list[Tensor]
    infinite: frozenset[str]
    step: int = 0
    epoch: int = 0
    metrics: RunningMetrics = field(default_factory=RunningMetrics)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.batches)

    @property
    def images(self) -> int:
        """Training images of an epoch."""
        return len(self.train)

    def loss_scale(self, images: int) -> float:
        """Return the weight of this process's mean loss in the batch, over 1 / processes.

        Gradients are averaged over the processes, whose parts of an epoch's last batch differ by an image.
        """
        if self.accelerator.num_processes == 1:
            return 1.0
        position = self.step % len(self.batches)
        together = min(self.config.batch_size, len(self.train) - position * self.config.batch_size)
        return float(images * self.accelerator.num_processes / together)

    def all_reduce(self, *values: float, largest: bool = False) -> list[float]:
        """Return the sums, or the largest, of the values of all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        dist.all_reduce(together, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        return [float(value) for value in together]

    def broadcast_buffers(self) -> None:
        """Give every process the main one's buffers of the result; each has seen other images for its norms."""
        if self.accelerator.num_processes > 1:
            for buffer in self.exact_result.buffers():
                dist.broadcast(buffer, src=0)

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated and kept: the average where there is one, quantized where the run trains so."""
        bits = self.config.bits
        if bits is None:
            return self.exact_result
        return quantize(self.exact_result, **bits.arguments, scales=self.scales)

    @property
    def scales(self) -> Mapping[str, Tensor]:
        """The learned scales of the model's weights by name, or their average; empty where none are learned."""
        learned = {} if self.qat is None else self.qat.scales
        if self.average_scales is None:
            return learned
        return dict(zip(learned, self.average_scales.module.parameters(), strict=True))

    @property
    def exact_result(self) -> nn.Module:
        """The model whose numbers the optimizer moves, or their average."""
        return self.model if self.average is None else self.average.module

    def fake_quantized(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the numbers that a training step sees."""
        return nullcontext() if self.qat is None else self.qat()

    def shared_kernels(self) -> AbstractContextManager[None]:
        """Return a context for a forward pass of training: all kernels of the model are made by one call."""
        return nullcontext() if self.config.compile else batched_kernels(self.model)


def start_accelerator(precision: str) -> Accelerator:
    """Return device, precision and processes of a run; ConfigError where the device lacks the precision."""
    # Accelerate keeps the first precision of a process for all later ones; runs here follow each other.
    AcceleratorState._reset_state()
    device = chosen_device()
    if device.type == "cuda" and is_indexed(device):
        torch.cuda.set_device(device)  # what Accelerate calls "cuda"
    try:
        # Without the word "cpu" the processes of torchrun on a machine without GPUs would not know of each other.
        accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    except ValueError as error:
        raise ConfigError(f"precision={precision} does not run here: {error}") from None
    if precision != "no" and not accelerator.native_amp:
        raise ConfigError(f"precision={precision} does not run on this {device.type}: choose bf16 or no")
    return accelerator


def build_state(
    config: RunConfig,
    accelerator: Accelerator,
    images: ImageData,
    *,
    run: Path | None = None,
    start: StartingPoint | None = None,
) -> TrainingState:
    """Return the run before its first step; every process gets the same initial weights.

    Args:
        config: of the run.
        accelerator: that it is trained by.
        images: that it is trained on.
        run: a folder that may hold what the run starts from, such as that of a run that goes on.
        start: models that are loaded already, in place of those that the configuration names.

    Raises:
        ValueError: the configuration asks for what the model, the data or the teacher cannot do.
    """
    data = DataDescription.of(images)
    if config.batch_size % accelerator.num_processes:
        processes = accelerator.num_processes
        raise ConfigError(f"batch_size {config.batch_size} must be a multiple of the {processes} processes")
    torch.manual_seed(config.seed)
    model = initial_model(config, data, run, images.train) if start is None else start.model.train()
    if config.factory is not None:
        check_takes(model, data, config.factory)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(accelerator.device).to(memory_format=layout)
    if config.prune:
        prune_smallest(model, config.prune)
    average = None if config.ema_decay is None else RunningAverage(model, config.ema_decay)
    teacher = None
    if config.teacher is not None:
        given = None if start is None else start.teacher
        teacher = given if given is not None else load_source(config.teacher, config.factory, data)
        teacher = teacher.eval().requires_grad_(False).to(accelerator.device).to(memory_format=layout)
    qat = None
    if config.bits is not None:
        assert config.qat_scales is not None
        qat = QuantizedTraining(model, **config.bits.arguments, scales=config.qat_scales)
    learned = [] if qat is None else list(qat.scales.values())
    average_scales = None
    if config.ema_decay is not None and learned:
        average_scales = RunningAverage(nn.ParameterList(learned), config.ema_decay)
    start_angles = [angle.detach().clone() for angle in _angles(model)]
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimization, learned))
    if config.compile:
        model.compile()
    torch.manual_seed(config.seed + accelerator.process_index)  # each process drops other units
    train = images.train
    if not config.validation:
        parts = (images.train, images.validation)
        train = Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return TrainingState(
        config=config,
        accelerator=accelerator,
        data=data,
        model=model,
        prepared=prepared,
        optimizer=optimizer,
        average=average,
        average_scales=average_scales,
        teacher=teacher,
        qat=qat,
        train=train,
        batches=_batches(config, accelerator, data, train, train=True),
        validation=_batches(config, accelerator, data, images.validation) if config.validation else None,
        test=_batches(config, accelerator, data, images.test),
        start_angles=start_angles,
        infinite=frozenset(name for name, tensor in model.state_dict().items() if not _finite(tensor)),
    )


def _batches(
    config: RunConfig, accelerator: Accelerator, data: DataDescription, split: Split, *, train: bool = False
) -> Batches:
    """Return the part of a split that is this process's, in batches: as it is, or as it is trained on."""
    size = config.batch_size // accelerator.num_processes
    if not train and accelerator.device.type == "cuda":
        size = max(size, EVALUATED_PIXELS // split.images[0, 0].numel())
    return Batches(
        split,
        size,
        mean=data.mean,
        std=data.std,
        augment=config.augment if train else "none",
        flip=data.flip and train,
        shuffle=train,
        # A process without a single image of the last batch could not normalise it.
        drop_last=train and len(split) % config.batch_size < accelerator.num_processes,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        channels_last=config.channels_last,
    )


def angle_movement(state: TrainingState) -> tuple[float, float, tuple[float, ...]] | None:
    """Return mean and largest |angle - its start| in radians over all RotateConv2d, and the mean of each; else None."""
    pairs = zip(_angles(state.model), state.start_angles, strict=True)
    moved = [(angle.detach() - start).abs().flatten() for angle, start in pairs]
    if not moved:
        return None
    every = torch.cat(moved)
    return every.mean().item(), every.max().item(), tuple(torch.stack([layer.mean() for layer in moved]).tolist())


def save_state(state: TrainingState, folder: Path) -> Path | None:
    """Write a checkpoint from which the run goes on exactly; every process calls it, the main one writes."""
    state.metrics.read()
    accelerator = state.accelerator
    own = {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(accelerator.device) if accelerator.device.type == "cuda" else None,
        "tally": state.metrics.to_saved(),
    }
    processes = gather_object([own])
    if not accelerator.is_main_process:
        return None
    models = {"model": state.model}
    if state.average is not None:
        models["average"] = state.average.module
    rest = {
        "config": to_json(state.config),
        "step": state.step,
        "epoch": state.epoch,
        "loader": state.batches.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "scales": _tensors(state.qat.scales) if state.qat is not None else {},
        "average_scales": _tensors(state.scales) if state.average_scales is not None else {},
        "n_averaged": state.average.n_averaged if state.average is not None else 0,
        "processes": processes,
    }
    return save_checkpoint(folder, models, rest)


def restore_state(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Put a fresh state where the checkpoint was written.

    Raises:
        RunError: it is of another configuration or model.
    """
    rest = checkpoint.state
    try:
        _check_config(state.config, rest)
        _restore(state, checkpoint)
    # A file of the right hash can hold anything.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, RunError):
            raise
        reason = first_line(error)
        raise RunError(
            f"the checkpoint {checkpoint.path} does not fit this run ({reason}): remove it, or overwrite the run"
        ) from error


def _check_config(config: RunConfig, rest: Mapping[str, Any]) -> None:
    """Raise RunError unless the run began with this configuration; checkpoints of before it was kept pass."""
    if "config" not in rest:
        return
    changed = changed_keys(from_json(rest["config"]), config)
    if changed:
        raise RunError(f"config.json was changed since the run began, {changed}: restore it, or overwrite the run")


def _restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    rest = checkpoint.state
    state.model.load_state_dict(checkpoint.weights["model"])
    if state.average is not None:
        state.average.module.load_state_dict(checkpoint.weights["average"])
        state.average.n_averaged = _updates(rest)
    if state.qat is not None and state.qat.scales:
        _put(rest["scales"], state.qat.scales)
    if state.average_scales is not None:
        _put(rest["average_scales"], state.scales)
        state.average_scales.n_averaged = _updates(rest)
    state.optimizer.load_state_dict(rest["optimizer"])
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(rest["scaler"])
    state.batches.load_state_dict(rest["loader"])
    state.step, state.epoch = rest["step"], rest["epoch"]
    _restore_process(state, rest["processes"])


def _updates(rest: Mapping[str, Any]) -> int:
    count = rest["n_averaged"]
    if not isinstance(count, int) or not 0 <= count <= rest["step"]:
        raise ValueError(f"expected one average a step, found {count} of {rest['step']} steps")
    return count


def _tensors(scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: size.detach().cpu().clone() for name, size in scales.items()}


@torch.no_grad()
def _put(saved: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
    for name, size in scales.items():
        size.copy_(saved[name])


def _restore_process(state: TrainingState, processes: list[Mapping[str, Any]]) -> None:
    """Give this process its random numbers and sums; another number of processes gets the sums alone."""
    accelerator = state.accelerator
    if len(processes) != accelerator.num_processes:
        if accelerator.is_main_process:
            state.metrics = RunningMetrics.from_saved([process["tally"] for process in processes])
        return
    own = processes[accelerator.process_index]
    torch.set_rng_state(own["rng"])
    if own["cuda_rng"] is not None and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_rng"], accelerator.device)
    state.metrics = RunningMetrics.from_saved([own["tally"]])


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _angles(model: nn.Module) -> list[Tensor]:
    return [module.angle for module in model.modules() if isinstance(module, RotateConv2d)]
