"""Sums over the steps of an epoch, which a checkpoint keeps and no step waits for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class RunningMetrics:
    """Sums over the steps of an epoch so far, of this process.

    The sums of single steps stay on the device, in `unread`, until somebody asks: reading a number from a GPU
    waits for it.
    """

    loss: float = 0.0
    num_correct: int = 0
    num_samples: int = 0
    seconds: float = 0.0
    unread: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, loss: Tensor, num_correct: Tensor, num_samples: int) -> None:
        """Note a step: the sum of its losses, its correct answers, its images."""
        self.unread.append((loss, num_correct))
        self.num_samples += num_samples

    def read(self) -> int | None:
        """Bring the sums up to date; return how many steps ago a loss was not finite, 1 for the last."""
        if not self.unread:
            return None
        losses, correct = (torch.stack(values).tolist() for values in zip(*self.unread, strict=True))
        self.unread.clear()
        self.loss += math.fsum(losses)
        self.num_correct += sum(correct)
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        return len(losses) - bad[0] if bad else None

    def to_saved(self) -> dict[str, float]:
        """Return what a checkpoint keeps of the sums that are read."""
        return {"loss": self.loss, "hits": self.num_correct, "images": self.num_samples, "seconds": self.seconds}

    @classmethod
    def from_saved(cls, processes: Sequence[Mapping[str, Any]]) -> "RunningMetrics":
        """Return the sums over all of what `to_saved` gave in so many processes, which took their time together."""
        loss, correct, samples = (sum(saved[key] for saved in processes) for key in ("loss", "hits", "images"))
        return cls(loss, correct, samples, processes[0]["seconds"])
