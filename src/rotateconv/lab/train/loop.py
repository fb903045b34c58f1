"""The training loop in reading order: epochs, an epoch, a step."""

import time
from collections.abc import Callable

from torch import Tensor

from rotateconv.lab.data.loader import Batches
from rotateconv.lab.train.evaluate import Evaluation, evaluate
from rotateconv.lab.train.monitor import TrainingMonitor, check_finite, check_weights
from rotateconv.lab.train.process_memory import peak_gpu_memory, peak_memory
from rotateconv.lab.train.run_results import EpochRecord
from rotateconv.lab.train.running_metrics import RunningMetrics
from rotateconv.lab.train.schedule import factor, set_learning_rate
from rotateconv.lab.train.step import Compute
from rotateconv.lab.train.train_state import TrainingState, angle_movement


def train_epochs(state: TrainingState, monitor: TrainingMonitor, compute: Compute) -> None:
    """Do the epochs that are left of the run."""
    while state.epoch < state.config.epochs:
        train_epoch(state, monitor.between_steps, compute)
        monitor.after_epoch(finish_epoch(state))


def train_epoch(state: TrainingState, between_steps: Callable[[], None], compute: Compute) -> None:
    """Do the steps that are left of the epoch, calling `between_steps` after each."""
    started = time.perf_counter() - state.metrics.seconds
    state.prepared.train()
    for images, labels in state.batches:
        train_step(state, images, labels, compute)
        state.metrics.seconds = time.perf_counter() - started
        between_steps()


def train_step(state: TrainingState, images: Tensor, labels: Tensor, compute: Compute) -> None:
    """Do one optimizer step and note it in the metrics."""
    set_learning_rate(state.optimizer, factor(state.step, state.total_steps, state.config.optimization))
    loss, correct = compute(state, images, labels)
    if state.average is not None:
        state.average.n_averaged += 1
    state.metrics.add(loss, correct, len(labels))
    state.step += 1


def finish_epoch(state: TrainingState) -> EpochRecord:
    """Evaluate, move on to the next epoch, and return the line of metrics.jsonl about this one."""
    loss, correct, images = state.all_reduce(state.metrics.loss, state.metrics.num_correct, state.metrics.num_samples)
    seconds = state.metrics.seconds
    check_weights(state)
    started = time.perf_counter()
    validation = evaluate_state(state, state.validation) if state.validation is not None else None
    if validation is not None:
        check_finite(state, "validation loss", validation.loss)
    mean, largest, layers = angle_movement(state)
    state.epoch += 1
    state.batches.set_epoch(state.epoch)
    state.metrics = RunningMetrics()
    return EpochRecord(
        epoch=state.epoch,
        step=state.step,
        train_loss=loss / images,
        train_accuracy=100 * correct / images,
        validation_loss=validation.loss if validation is not None else None,
        validation_accuracy=validation.accuracy if validation is not None else None,
        learning_rates={group["name"]: group["lr"] for group in state.optimizer.param_groups},
        angle_movement_mean=mean,
        angle_movement_max=largest,
        angle_movement_layers=layers,
        seconds=seconds,
        validation_seconds=time.perf_counter() - started,
        images_per_second=images / seconds,
        peak_memory_bytes=peak_memory(),
        peak_gpu_memory_bytes=peak_gpu_memory(),
    )


def evaluate_state(state: TrainingState, batches: Batches) -> Evaluation:
    """Evaluate the model that the run keeps, in the run's precision: the main process's, statistics included."""
    state.broadcast_buffers()
    with state.accelerator.autocast():
        return evaluate(state.result, batches, state.data.classes)
