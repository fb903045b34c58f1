"""A training step captured in a CUDA graph: recorded once, and launched as a whole instead of call by call.

The steps of a small model on a large GPU wait for Python, which does here what follows for each step: copy the batch
and the learning rates to where the graph reads them, and launch it.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from rotateconv.errors import first_line
from rotateconv.lab.train.events import OnEvent, RunWarning
from rotateconv.lab.train.step import Compute, compute_step
from rotateconv.lab.train.train_state import TrainingState

Found = TypeVar("Found")
WARM_UP = 3  # steps before the capture: they make momentum, choose cuDNN's algorithms and compile Triton's kernels


def choose_step(state: TrainingState, report: OnEvent) -> Compute:
    """Return how the steps of a run are computed, after `cuda_graph`; report where it asks for what cannot be."""
    wanted = state.config.cuda_graph
    if wanted is False:
        return compute_step
    reason = not_captured(state)
    if reason is not None and wanted:
        report(RunWarning(f"cuda_graph=true has no effect here: {reason}; every step runs eagerly"))
    # A model of the user's may hide what Python should do anew at every step, such as drawing a number.
    if reason is not None or (wanted is None and state.config.factory is not None):
        return compute_step
    return CapturedStep(report)


def not_captured(state: TrainingState) -> str | None:
    """Return why the steps of a run cannot be captured; None where nothing is known that keeps them from it."""
    config, accelerator = state.config, state.accelerator
    reasons = {
        f"the run is on the {accelerator.device.type}, and only a CUDA GPU captures": accelerator.device.type != "cuda",
        f"the run has {accelerator.num_processes} processes, which exchange gradients": accelerator.num_processes > 1,
        "precision=fp16 looks at every step whether its gradients are finite": accelerator.scaler is not None,
        "compile=true compiles the model": config.compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class CapturedStep:
    """Computes steps as `compute_step` does: the first ones with it, then captured; the last, smaller batch with it.

    Nothing is done twice or undone: what warms up are steps of the run, and a capture itself runs nothing. A model
    whose step does not let itself be captured is trained on eagerly.
    """

    def __init__(self, report: OnEvent) -> None:
        self.report = report
        self.graph = CudaGraph()
        self.warm = 0
        self.failed = False
        self.images: Tensor | None = None

    def __call__(self, state: TrainingState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Do a step; see `compute_step`."""
        eager = partial(compute_step, state, images, labels)
        if self.failed or len(labels) != state.config.batch_size:
            return eager()
        if self.warm < WARM_UP:
            self.warm += 1
            return self.graph.warm_up(eager)
        if self.images is None:
            self._capture(state, images, labels)
        if self.images is None:
            return eager()
        self.images.copy_(images)
        self.labels.copy_(labels)
        for rate, group in zip(self.rates, state.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()
        return self.loss.clone(), self.correct.clone()

    def _capture(self, state: TrainingState, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.clone(), labels.clone()
        self.rates = [torch.tensor(float(group["lr"]), device=images.device) for group in state.optimizer.param_groups]
        try:
            self.graph.capture(partial(self._work, state, self.images, self.labels))
        except Exception as error:  # the model may be anybody's
            self.failed, self.images = True, None
            self.report(
                RunWarning(f"the step cannot be captured in a CUDA graph ({first_line(error)}): it runs eagerly")
            )

    def _work(self, state: TrainingState, images: Tensor, labels: Tensor) -> None:
        """A step whose learning rates lie in tensors; to everybody else they stay numbers."""
        groups = state.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for rate, group in zip(self.rates, groups, strict=True):
                group["lr"] = rate
                if "capturable" in group:  # AdamW's word for it
                    group["capturable"] = images.is_cuda
            self.loss, self.correct = compute_step(state, images, labels)
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)


class CudaGraph:
    """The part that needs a GPU."""

    def __init__(self) -> None:
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], Found]) -> Found:
        """Run on the stream that will capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            found = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return found

    def capture(self, work: Callable[[], object]) -> None:
        """Record what the work launches, without running it."""
        with torch.cuda.graph(self.graph, stream=self.stream):
            work()

    def replay(self) -> None:
        """Run what was recorded."""
        self.graph.replay()
