"""The loss, and what the device does in a training step: nothing here reads a number from it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rotateconv.lab.config import RunConfig
from rotateconv.lab.train.train_state import TrainingState

Compute = Callable[[TrainingState, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What `compute_step` is."""


def training_loss(scores: Tensor, labels: Tensor, config: RunConfig, teacher_scores: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: cross-entropy, or with a teacher's scores what follows.

        (1 - a) · cross-entropy + a · T² · KL(softmax(teacher / T) || softmax(scores / T))

    with a = config.teacher_weight and T = config.teacher_temperature; T² keeps the gradient's size.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    hard = F.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
    if teacher_scores is None:
        return hard
    a, temperature = config.teacher_weight, config.teacher_temperature
    teacher = F.log_softmax(teacher_scores / temperature, dim=1)
    student = F.log_softmax(scores / temperature, dim=1)
    soft = temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - a) * hard + a * soft


def compute_step(state: TrainingState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Do one optimizer step, with averages; return the sum of the losses and the number of correct answers."""
    config, accelerator = state.config, state.accelerator
    teacher_scores = None
    if state.teacher is not None:
        with torch.no_grad(), accelerator.autocast():
            teacher_scores = state.teacher(images).float()
    state.optimizer.zero_grad()
    with state.fake_quantized():
        with accelerator.autocast(), state.shared_kernels():
            scores = state.prepared(images)
        loss = training_loss(scores, labels, config, teacher_scores)
        accelerator.backward(loss * state.loss_scale(len(labels)))
    if config.clip_grad_norm is not None:
        accelerator.clip_grad_norm_(state.prepared.parameters(), config.clip_grad_norm)
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.model, state.learned_scales.values())
    return loss.detach() * len(labels), (scores.detach().argmax(dim=1) == labels).sum()
