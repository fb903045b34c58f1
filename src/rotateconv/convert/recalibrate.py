"""The statistics of batch norms recalibrated, for a model whose weights were changed after its training."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rotateconv.errors import InputError


def recalibrate(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Recalibrate the running means and variances of a model's batch norms, in place, without labels.

    Quantized weights (`quantize`) and line segments in the place of trained kernels (`convert`) shift what each
    norm sees, and the statistics that it kept from the training no longer fit: with few bits most of the accuracy
    that is lost is lost here. Each norm takes the mean over the batches b, weighted by their images n_b::

        running_mean = Σ n_b mean_b / Σ n_b,    running_var = Σ n_b var_b / Σ n_b

    of its input, where the norms before it already normalize by the batch, as in training; one that is passed several
    times in a batch counts each of them. All else, dropout too, is in evaluation mode. Norms that keep no statistics,
    or that no batch reaches, stay as they are.

    Args:
        model: Its training flags and the momentum of its norms are as before afterwards.
        batches: Images on the model's device, each batch large enough for its variances to mean something, or
            sequences that begin with them, as a DataLoader gives; a few hundred to a few thousand images, of the
            kind that the model will see: normalized, not augmented.

    Raises:
        ValueError: If there is no image, or a batch has a single value per channel, or the statistics are not finite;
            all norms are then as before.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> recalibrate(model, [Tensor([[1.0], [3.0]]), Tensor([[2.0], [6.0]])])
        >>> model[0].running_mean.item(), model[0].running_var.item()
        (3.0, 5.0)

    Reference:
        Sun et al., "Hybrid 8-bit floating point (HFP8) training and inference for deep neural networks", NeurIPS
        2019, re-tunes the statistics in this way after quantization; `torch.optim.swa_utils.update_bn`
        does it for averaged weights, with dropout as in training.
    """
    average_statistics(model, norms_of(model), batches, model)


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a model that keep statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def average_statistics(
    model: nn.Module,
    norms: Mapping[str, _BatchNorm],
    batches: Iterable[Tensor | Sequence[Tensor]],
    run: Callable[[Tensor], object],
) -> None:
    """`recalibrate`, for some of the norms, and with what runs the images: the model, or a part of it."""
    momenta = {norm: norm.momentum for norm in norms.values()}
    statistics = {buffer: buffer.clone() for norm in norms.values() for buffer in norm.buffers()}
    seen: Counter[nn.Module] = Counter()  # by norm: one may be passed twice in a batch, or never

    def average(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if seen[norm] == 0:
            norm.reset_running_stats()
        seen[norm] += len(args[0])
        norm.momentum = len(args[0]) / seen[norm]

    hooks = [norm.register_forward_pre_hook(average) for norm in norms.values()]
    images_seen, done = 0, False
    try:
        with evaluating(model):
            for norm in norms.values():
                norm.train()
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                images_seen += len(images)
                if len(images):
                    run(images)
        if images_seen == 0:
            raise InputError("expected at least one image to measure the statistics on, not 0")
        for name, norm in norms.items():
            if not all(bool(value.isfinite().all()) for value in norm.buffers()):
                raise InputError(f"the images give the norm {name!r} statistics that are not finite: look for NaN")
        done = True
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        if not done:
            for buffer, value in statistics.items():
                buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode inside; afterwards the training flags of the model's modules as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
