"""What happens between two training steps: events, checkpoints, and the ways a run stops early."""

import math
import shlex
import time

import torch

from rotateconv.errors import DivergedError, RunInterrupted
from rotateconv.lab.train.checkpoint import list_checkpoints
from rotateconv.lab.train.events import CheckpointSaved, EpochEnd, OnEvent, StepEnd
from rotateconv.lab.train.interrupts import Interrupts
from rotateconv.lab.train.run_folder import append_record
from rotateconv.lab.train.run_results import EpochRecord
from rotateconv.lab.train.saved_state import save_state
from rotateconv.lab.train.train_state import TrainingState


class TrainingMonitor:
    """Looks at the state after every step and every epoch."""

    def __init__(self, state: TrainingState, report: OnEvent, interrupts: Interrupts) -> None:
        self.state, self.report, self.interrupts = state, report, interrupts
        self.saved_at = time.monotonic()
        self.loss: float | None = None
        self.alone = state.accelerator.num_processes == 1
        # Reading a loss makes a GPU wait, agreeing makes processes wait; on the CPU alone both are free.
        self.read_every = 1 if self.alone and state.accelerator.device.type == "cpu" else 20

    def between_steps(self) -> None:
        """Report the step; stop or save where that is due."""
        state, config = self.state, self.state.config
        last = state.step % len(state.batches) == 0
        due = config.checkpoint_steps > 0 and state.step % config.checkpoint_steps == 0
        look = last or due or state.step % self.read_every == 0
        ago: float = (state.metrics.read() if look else None) or 0
        if look:
            self.loss = state.metrics.loss / state.metrics.num_samples
        if not ago:
            sums = state.metrics
            report = StepEnd(state.epoch, state.step, state.total_steps, sums.num_samples, self.loss, sums.seconds)
            self.report(report)
        if not (look or (self.alone and self.interrupts.requested)):
            return
        late: float = time.monotonic() - self.saved_at > config.checkpoint_seconds
        ago, stop, late = state.all_reduce(ago, self.interrupts.requested, late, largest=True)
        if ago:
            raise DivergedError(_advice(state, "loss", state.step - int(ago) + 1))
        if stop or ((due or late) and not last):
            self.save()
        if stop:
            self._stop()

    def after_epoch(self, record: EpochRecord) -> None:
        """Write and report the record of the epoch, save, and stop where that was asked for meanwhile."""
        if self.state.accelerator.is_main_process:
            append_record(self.state.run, record)
        self.report(EpochEnd(record))
        self.save()
        done = self.state.epoch == self.state.config.epochs
        if any(self.state.all_reduce(self.interrupts.requested)) and not done:
            self._stop()

    def save(self) -> None:
        """Write a checkpoint, unless a weight is not finite: then the last good ones are kept."""
        check_weights(self.state)
        path = save_state(self.state)
        self.saved_at = time.monotonic()
        if path is not None:
            self.report(CheckpointSaved(path, self.state.step))

    def _stop(self) -> None:
        raise RunInterrupted(
            f"stopped and saved after step {self.state.step} of {self.state.total_steps}: go on with "
            f"rotateconv train --resume {shlex.quote(str(self.state.run))}"
        )


def check_finite(state: TrainingState, name: str, value: float) -> None:
    """Raise DivergedError where a loss is not finite."""
    if not math.isfinite(value):
        raise DivergedError(_advice(state, name, state.step))


def check_weights(state: TrainingState) -> None:
    """Raise DivergedError where a weight is not finite."""
    finite = [t.isfinite().all() for name, t in state.model.state_dict().items() if name not in state.infinite]
    if finite and not torch.stack(finite).all():  # one look at the device, not one for each
        raise DivergedError(_advice(state, "model's weights", state.step))


def _advice(state: TrainingState, name: str, step: int) -> str:
    checkpoints = list_checkpoints(state.checkpoints)
    kept = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was saved before"
    clip = "" if state.config.clip_grad_norm is not None else " or clip_grad_norm=1"
    return (
        f"the {name} became infinite or NaN at step {step} of {state.total_steps} (epoch {state.epoch + 1}); "
        f"{kept}: a new run with a lower lr than {state.config.lr:g}{clip} may help"
    )
