"""A step and an evaluation of a user's own model before anything is written, so that nothing is lost to it late."""

import torch
from torch import Tensor

from rotateconv.convert.recalibrate import evaluating
from rotateconv.errors import ConfigError, first_line
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import Split
from rotateconv.lab.train.checkpoint import weights_bytes
from rotateconv.lab.train.train_state import TrainingState


def rehearse(state: TrainingState) -> None:
    """Do with a model all that the run will do with it, on two images, and leave it as it was.

    The run's own memory format, precision, quantization and processes; the fewest images that a batch will have. A
    ConfigError says what the model does not do, and what may help.
    """
    config = state.config
    size = _smallest_batch(state)
    split = Split(state.train.images[:size], state.train.labels[:size])
    batch = Batches(
        split,
        size,
        mean=state.data.mean,
        std=state.data.std,
        device=state.accelerator.device,
        channels_last=config.channels_last,
    )
    ((images, labels),) = list(batch)
    buffers = {buffer: buffer.clone() for buffer in state.model.buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    doing = "train"
    try:
        with torch.random.fork_rng(devices=devices):
            _step(state, images, labels)
            doing = "be evaluated"
            result = state.result
            with evaluating(result), state.accelerator.autocast():
                result(images)
            doing = "be saved"
            weights_bytes(result)
    except ConfigError:
        raise
    except Exception as error:  # the user's code may raise anything
        advice = "" if doing == "be saved" else _advice(state, size)
        raise ConfigError(f"the model of {config.factory} cannot {doing}: {first_line(error)}{advice}") from error
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def _step(state: TrainingState, images: Tensor, labels: Tensor) -> None:
    """A training step without the optimizer's part."""
    state.prepared.train()
    with state.fake_quantized(), state.accelerator.autocast(), state.shared_kernels():
        scores = state.prepared(images)
        expected = (len(images), len(state.data.classes))
        if not isinstance(scores, Tensor) or scores.shape != expected:
            found = tuple(scores.shape) if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise ConfigError(
                f"the model of {state.config.factory} must give a tensor of {expected} in training mode too, not "
                f"{found}: let the function that builds it leave auxiliary outputs out"
            )
        state.accelerator.backward(torch.nn.functional.cross_entropy(scores, labels))


def _smallest_batch(state: TrainingState) -> int:
    """Two images, or the one that is left for the last batch of an epoch."""
    last = len(state.train) % state.config.batch_size
    return 1 if last == 1 and state.accelerator.num_processes == 1 else min(2, len(state.train))


def _advice(state: TrainingState, size: int) -> str:
    if size == 1:
        return (
            f"; the last batch of an epoch of {len(state.train):,} images has a single one: "
            f"choose another batch_size than {state.config.batch_size}"
        )
    return "; it may need channels_last=false" if state.config.channels_last else ""
