"""The laboratory from Python: a run folder as a model with all that belongs to it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from rotateconv.errors import ConfigError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.preprocessing import Preprocessing
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.study_record import read_run
from rotateconv.lab.train.evaluate import Evaluation
from rotateconv.lab.train.load import evaluate_model, load_run
from rotateconv.lab.train.run_folder import SUMMARY, read_summary


@dataclass(frozen=True)
class LoadedRun:
    """A run folder, read.

    Attributes:
        model: On the CPU, in float32 and evaluation mode: the finished run's, or that of its last checkpoint.
        preprocessing: From uint8 images to what the model takes.
        classes: Names of the classes, in the order of the model's outputs.
        config: What the run was configured to do.
        record: What it found; None for a run that is not finished.
    """

    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    config: RunConfig
    record: RunRecord | None


def load(run: str | Path) -> LoadedRun:
    """Return the model of a run folder with its preprocessing, classes, configuration and record.

    Args:
        run: The folder. No code in it is run: a model of one's own is built by the function that the user has named
            (`rotateconv.lab.trust`).

    Raises:
        RunError: It is no run folder, it has no weights yet, or a file of it is damaged.

    Example:
        >>> import tempfile
        >>> from rotateconv.lab.config import make_config
        >>> from rotateconv.lab.train.fit import fit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = fit(make_config("digits", overrides=["epochs=1", "width=0.25"]), f"{folder}/run")
        ...     run = load(f"{folder}/run")
        >>> images = load_images(run.config.images).test.images[:5]
        >>> run.model(run.preprocessing(images)).shape, run.classes[:3], run.record.summary.steps
        (torch.Size([5, 10]), ('0', '1', '2'), 21)
    """
    folder = Path(run)
    trained = load_run(folder)
    record = None
    if (folder / SUMMARY).is_file():  # whole, with what the record of a study leaves out
        record = dataclasses.replace(read_run(folder), summary=read_summary(folder))
    return LoadedRun(trained.model, Preprocessing(trained.data), trained.data.classes, trained.config, record)


def evaluate(
    run: str | Path,
    split: Literal["train", "validation", "test"] = "test",
    *,
    data: ImageData | None = None,
    batch_size: int = 512,
) -> Evaluation:
    """Return loss, accuracy and confusion of a run's model on one of its splits.

    Args:
        run: The folder.
        split: Which images; whoever chooses by the test split has none left to report.
        data: The images, where they are loaded already; None loads those that the run names.
        batch_size: Images at a time.

    Raises:
        RunError, DataError: The run or its images cannot be read.
        ConfigError: There is no such split.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"split must be train, validation or test, not {split!r}")
    trained = load_run(run)
    images = data if data is not None else load_images(trained.config.images)
    return evaluate_model(trained.model, trained.config.execution, trained.data, getattr(images, split), batch_size)
