"""All that changes while a model is trained."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import Split
from rotateconv.lab.train.average import RunningAverage
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.run_folder import CHECKPOINTS
from rotateconv.lab.train.running_metrics import RunningMetrics
from rotateconv.nn.batched import batched_kernels
from rotateconv.quantization.qat import QuantizedTraining
from rotateconv.quantization.quantize import quantize


@dataclass
class TrainingState:
    """A run in motion.

    Attributes:
        run: its folder, which may not be there yet.
        prepared: the model, wrapped for precision and processes.
        average: of the model and of the learned scales of its weights, or None.
        qat: lends the model its quantized numbers, where the run trains for them.
        batches, validation, test: all images in batches; validation is None where it is trained on.
        infinite: names of tensors that are not finite from the start, such as a mask of minus infinity.
        start_angles: per layer, before the first step; they follow from the seed.
        step, epoch: how many are finished.
        metrics: of the epoch that is running.
    """

    config: RunConfig
    run: Path
    accelerator: Accelerator
    data: DataDescription
    model: nn.Module
    prepared: nn.Module
    optimizer: torch.optim.Optimizer
    average: RunningAverage | None
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
    def checkpoints(self) -> Path:
        """Where the checkpoints of the run are."""
        return self.run / CHECKPOINTS

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
    def learned_scales(self) -> Mapping[str, nn.Parameter]:
        """The scales of the model's weights that are learned, by name."""
        return {} if self.qat is None else self.qat.scales

    @property
    def scales(self) -> Mapping[str, Tensor]:
        """The learned scales, or their average."""
        if self.average is None:
            return self.learned_scales
        return dict(zip(self.learned_scales, self.average.beside, strict=True))

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


def angle_movement(state: TrainingState) -> tuple[float, float, tuple[float, ...]] | tuple[None, None, None]:
    """Return mean and largest |angle - its start| in radians over all RotateConv2d, and the mean of each, if any."""
    pairs = zip(rotate_layers(state.model).values(), state.start_angles, strict=True)
    moved = [(layer.angle.detach() - start).abs().flatten() for layer, start in pairs]
    if not moved:
        return None, None, None
    every = torch.cat(moved)
    return every.mean().item(), every.max().item(), tuple(torch.stack([layer.mean() for layer in moved]).tolist())
