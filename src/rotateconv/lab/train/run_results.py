"""What a run found: a record per epoch and the summary of its end, as frozen dataclasses."""

from dataclasses import dataclass

from rotateconv.lab.plain import Plain


@dataclass(frozen=True)
class EpochRecord(Plain):
    """What an epoch found: a line of metrics.jsonl.

    Attributes:
        epoch, step: Finished ones, this epoch included.
        train_loss, train_accuracy: Mean over the images of the epoch, in nats and percent, of the model in training.
        validation_loss, validation_accuracy: Of the model after the epoch; None for a run that holds nothing out.
        learning_rates: Of the last step, by parameter group.
        angle_movement_mean, angle_movement_max: Of |angle - start| in radians over all angles; None without angles.
        angle_movement_layers: The mean of each RotateConv layer; None without angles.
        seconds, validation_seconds: Spent in training and in evaluation.
        images_per_second: Of training.
        peak_memory_bytes, peak_gpu_memory_bytes: Of the process so far; None without a GPU.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rates: dict[str, float]
    angle_movement_mean: float | None
    angle_movement_max: float | None
    seconds: float
    validation_seconds: float
    images_per_second: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None
    angle_movement_layers: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RunSummary(Plain):
    """What a finished run found: summary.json. Its configuration, data and epochs have files of their own.

    Attributes:
        steps: Optimizer steps.
        parameters, multiply_adds: Of the model; multiply-adds of one image, None where they cannot be counted.
        test_loss, test_accuracy: On the test split, read once, in nats and percent.
        test_class_accuracy: Percent by class; None for a class without images.
        best_epoch, best_validation_accuracy: For information: the model of the last epoch is the one that is kept;
            None for a run that holds nothing out.
        seconds: Of all epochs, evaluation included.
        seconds_per_epoch, images_per_second: Medians.
        peak_memory_bytes: Of the process.
        test_confusion: `[true][predicted]` counts images; None in the record of a study, which leaves it out.
        weights_sha256: Of model.safetensors; None in runs of version 0.1.
        keeps_fitted: Whether the run of a conversion keeps the fitted model with recalibrated norms in place of that of
            its last epoch: the test figures are of the one, all of the epochs of the other.
    """

    steps: int
    parameters: int
    multiply_adds: int | None
    test_loss: float
    test_accuracy: float
    test_class_accuracy: dict[str, float | None]
    best_epoch: int | None
    best_validation_accuracy: float | None
    seconds: float
    seconds_per_epoch: float
    images_per_second: float
    peak_memory_bytes: int
    test_confusion: tuple[tuple[int, ...], ...] | None = None
    weights_sha256: str | None = None
    keeps_fitted: bool = False


SAID_ELSEWHERE = frozenset(("recipe", "model", "conv", "lines", "width", "dataset", "seed", "epochs", "last", "data"))
"""Keys of a summary.json of version 0.1 that repeat config.json, data.json and metrics.jsonl: passed over."""
