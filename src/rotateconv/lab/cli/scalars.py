"""The records of a run as TensorBoard's event files."""

import shutil
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError
from rotateconv.lab.train.events import EpochEnd, Event, RunStart

_KEYS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("angle_movement_mean", "angle_movement_max", "images_per_second"),
)


class Scalars:
    """An event callback of `fit` that writes every epoch's numbers; in processes that hear nothing it does nothing.

    Args:
        folder: where the event files go; those of a run that is overwritten are removed.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"--tensorboard needs a package that does not import ({error}): pip install 'rotateconv[tensorboard]'"
            ) from None
        self.folder, self.make_writer = folder, SummaryWriter
        self.writer: Any = None

    def __call__(self, event: Event) -> None:
        """Note an event of `fit`."""
        if isinstance(event, RunStart):
            if event.step == 0:
                shutil.rmtree(self.folder, ignore_errors=True)
            # What an earlier, interrupted run wrote beyond its last checkpoint is hidden.
            self.writer = self.make_writer(str(self.folder), purge_step=event.epoch + 1)
        elif isinstance(event, EpochEnd):
            record = event.record
            rates = {f"learning_rate/{group}": rate for group, rate in record.learning_rates.items()}
            for key, value in {**{key: getattr(record, key) for key in _KEYS}, **rates}.items():
                if value is not None:
                    self.writer.add_scalar(key, value, record.epoch)

    def close(self) -> None:
        """Write what is not written yet."""
        if self.writer is not None:
            self.writer.close()
