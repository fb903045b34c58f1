"""A run before its first step: device and processes, model, optimizer, batches and what learns beside them."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from rotateconv.errors import ConfigError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.train.average import RunningAverage
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.device import chosen_device, is_indexed
from rotateconv.lab.train.pretrained import StartingPoint, check_takes, initial_model, load_source
from rotateconv.lab.train.quantized_start import fit_norms
from rotateconv.lab.train.schedule import build_optimizer
from rotateconv.lab.train.train_state import TrainingState
from rotateconv.nn.pruning import prune_smallest
from rotateconv.quantization.qat import QuantizedTraining

_EVALUATED_PIXELS = 2**20
"""Pixels of the images that a GPU evaluates at a time, if more than a batch: its launches outlast small ones."""


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
    run: Path,
    start: StartingPoint | Path | None = None,
) -> TrainingState:
    """Return the run before its first step; every process gets the same initial weights.

    `start` are models that are loaded already, or a folder that may hold the weights to start from, such as that of a
    run that goes on, in place of those that the configuration names.

    Raises:
        ValueError: the configuration asks for what the model, the data or the teacher cannot do.
    """
    data = DataDescription.of(images)
    if config.batch_size % accelerator.num_processes:
        processes = accelerator.num_processes
        raise ConfigError(f"batch_size {config.batch_size} must be a multiple of the {processes} processes")
    torch.manual_seed(config.seed)
    if isinstance(start, StartingPoint):
        model, teacher = start.model.train(), start.teacher
    else:
        model, teacher = initial_model(config, data, start, images.train), None
    if config.factory is not None:
        check_takes(model, data, config.factory)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(accelerator.device).to(memory_format=layout)
    if config.prune:
        prune_smallest(model, config.prune)
    if config.teacher is None:
        teacher = None
    else:
        teacher = teacher if teacher is not None else load_source(config.teacher, config.factory, data)
        teacher = teacher.eval().requires_grad_(False).to(accelerator.device).to(memory_format=layout)
    qat = None
    if config.bits is not None:
        assert config.qat_scales is not None
        qat = QuantizedTraining(model, **config.bits.arguments, scales=config.qat_scales)
        if config.source is not None and start != run:  # of a run that goes on, the norms are kept too
            fit_norms(model, qat, config, data, images.train)
    learned = [] if qat is None else list(qat.scales.values())
    average = None if config.ema_decay is None else RunningAverage(model, config.ema_decay, learned)
    start_angles = [layer.angle.detach().clone() for layer in rotate_layers(model).values()]
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimization, learned))
    if config.compile:
        model.compile()
    torch.manual_seed(config.seed + accelerator.process_index)  # each process drops other units
    train = images.train if config.validation else _together(images.train, images.validation)
    return TrainingState(
        config=config,
        run=run,
        accelerator=accelerator,
        data=data,
        model=model,
        prepared=prepared,
        optimizer=optimizer,
        average=average,
        teacher=teacher,
        qat=qat,
        train=train,
        batches=_batches(config, accelerator, data, train, train=True),
        validation=_batches(config, accelerator, data, images.validation) if config.validation else None,
        test=_batches(config, accelerator, data, images.test),
        start_angles=start_angles,
        infinite=frozenset(name for name, tensor in model.state_dict().items() if not _finite(tensor)),
    )


def _together(*splits: Split) -> Split:
    return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))


def _batches(
    config: RunConfig, accelerator: Accelerator, data: DataDescription, split: Split, *, train: bool = False
) -> Batches:
    """Return the part of a split that is this process's, in batches: as it is, or as it is trained on."""
    size = config.batch_size // accelerator.num_processes
    if not train and accelerator.device.type == "cuda":
        size = max(size, _EVALUATED_PIXELS // split.images[0, 0].numel())
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


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
