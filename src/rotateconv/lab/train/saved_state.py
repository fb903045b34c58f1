"""A run in motion, written to a checkpoint, and put back where that was written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rotateconv.errors import RunError, first_line
from rotateconv.lab.config import RunConfig, changed_keys, from_json, to_json
from rotateconv.lab.train.checkpoint import Checkpoint, save_checkpoint
from rotateconv.lab.train.running_metrics import RunningMetrics
from rotateconv.lab.train.train_state import TrainingState


def save_state(state: TrainingState) -> Path | None:
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
        "scales": _tensors(state.learned_scales),
        "average_scales": _tensors(state.scales) if state.average is not None else {},
        "n_averaged": state.average.n_averaged if state.average is not None else 0,
        "processes": processes,
    }
    return save_checkpoint(state.checkpoints, models, rest)


def restore_state(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Put a fresh state where the checkpoint was written; RunError for another model."""
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
        state.average.n_averaged = count = rest["n_averaged"]
        if not isinstance(count, int) or not 0 <= count <= rest["step"]:
            raise ValueError(f"expected one average a step, found {count} of {rest['step']} steps")
    if state.learned_scales:
        _put(rest["scales"], state.learned_scales)
        if state.average is not None:
            _put(rest["average_scales"], state.scales)
    state.optimizer.load_state_dict(rest["optimizer"])
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(rest["scaler"])
    state.batches.load_state_dict(rest["loader"])
    state.step, state.epoch = rest["step"], rest["epoch"]
    _restore_process(state, rest["processes"])


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
