"""Loss, accuracy and confusion of a model on labeled batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.convert.recalibrate import evaluating
from rotateconv.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        loss: Mean cross-entropy per image, in nats.
        accuracy: Share of images whose largest output is their class, in percent.
        confusion: (classes, classes) int64 on the CPU; `[true, predicted]` counts images.
        classes: Names of the classes.
    """

    loss: float
    accuracy: float
    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """Accuracy in percent of each class, None for a class without images."""
        totals = self.confusion.sum(dim=1).tolist()
        correct = self.confusion.diagonal().tolist()
        rows = zip(self.classes, correct, totals, strict=True)
        return {name: 100 * right / total if total else None for name, right, total in rows}


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str]) -> Evaluation:
    """Return loss, accuracy and confusion over all batches, without gradients, in evaluation mode.

    In a process group each process gives its own batches, no image in two of them, and every process gets the
    sums over all. The training flags of the model's modules are restored afterwards.

    Raises:
        ValueError: no image at all, or another number of outputs than classes.

    Example:
        >>> batch = (torch.eye(2), torch.tensor([0, 0]))
        >>> evaluate(nn.Identity(), [batch], ["left", "right"]).accuracy
        50.0
    """
    n = len(classes)
    losses: list[Tensor] = []
    confusion = torch.zeros(n * n, dtype=torch.int64)
    with evaluating(model):
        for images, labels in batches:
            scores = model(images)
            if scores.shape[1:] != (n,):
                raise InputError(f"expected {n} outputs, one a class, not {tuple(scores.shape[1:])}")
            losses.append(F.cross_entropy(scores.float(), labels, reduction="sum"))
            cells = labels * n + scores.argmax(dim=1)
            confusion = confusion.to(cells.device) + torch.bincount(cells, minlength=n * n)
    # The sum of float32 batch sums is exact enough only in float64, which some accelerators lack.
    loss = torch.stack(losses).cpu().double().sum() if losses else torch.zeros((), dtype=torch.float64)
    loss, confusion = _over_processes(loss, confusion)
    confusion = confusion.view(n, n)
    count = int(confusion.sum())
    if count == 0:
        raise InputError("expected at least one image to evaluate, not 0")
    accuracy = 100 * int(confusion.trace()) / count
    return Evaluation(loss.item() / count, accuracy, confusion, tuple(classes))


def _over_processes(loss: Tensor, confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Return both summed over all processes, on the CPU."""
    if dist.is_available() and dist.is_initialized():
        loss = loss.to(confusion.device)
        dist.all_reduce(loss)
        dist.all_reduce(confusion)
    return loss.cpu(), confusion.cpu()
