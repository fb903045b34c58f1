"""Quantization-aware training: forward and backward with fake-quantized numbers, steps on the exact ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.primitives import encode_weight, encode_weight_at, largest_code, scale
from rotateconv.quantization.quantize import Entry, entries, quantize_in_place


class QuantizedTraining:
    """Lends a model the parameters that `quantize` would give it, for a forward and a backward pass.

    The gradient at the quantized parameters moves the exact ones: the straight-through estimator. The parameters
    themselves are exchanged and put back, because ``w + (round(w) - w).detach()`` is not round(w) to the last
    bit, and because wrapped and compiled models see nothing of it. Statistics of norms stay exact meanwhile, and an
    angle keeps its direction where its weights are 0 for the moment, so that they come back on the line they left.

    The scales of the weights are searched, the ones of the least squared error at every pass, or learned, one per
    output channel, from that start: where m is the largest code and N the number of weights of the scale s,
    ::

        ŵ = s · c,   c = the nearest code to w / s, within ±m
        ∂ŵ/∂s = c - w/s where |w/s| <= m, else c;   times 1 / sqrt(N · m)
        ∂ŵ/∂w = 1       where |w/s| <= m, else 0
        with 2 levels, c = sign(w):  ∂ŵ/∂s = c,  ∂ŵ/∂w = 1

    The pass sees a learned scale on the grid of eighths of an octave that files hold, within those that a search
    would try. After the training, `quantize(model, ..., scales=quantized.scales)` with the same bits has the
    parameters that one more forward pass would (but for angles without effect, which become 0), and `pack` takes
    that copy.

    Args:
        model: The plain model, not a wrapper of it.
        weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits: As in quantize.
        scales: "searched", or "learned": then `scales` holds parameters that the optimizer takes too.

    Attributes:
        scales: Learned scales, (out,), by the name of their weights; empty where they are searched, as those of
            profiles and of the factors of a CodebookConv2d always are.

    Raises:
        ValueError: If bits are out of their range, or `scales` is another word.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> quantized = QuantizedTraining(model, dense_bits=2, scales="learned")
        >>> optimizer = torch.optim.SGD([*model.parameters(), *quantized.scales.values()], lr=0.1)
        >>> with quantized():
        ...     model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Reference:
        Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
        Courbariaux, Bengio, David, "BinaryConnect", NeurIPS 2015, algorithm 1.
        Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020, section 2.
    """

    def __init__(
        self,
        model: nn.Module,
        weight_bits: int = 4,
        angle_bits: int = 5,
        *,
        dense_bits: int = 8,
        weight_levels: int | None = None,
        profile_bits: int | None = None,
        layer_bits: Mapping[str, tuple[int, int]] | None = None,
        scales: Literal["searched", "learned"] = "searched",
    ) -> None:
        self.model = model
        self.bits = Bits.of(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits)
        tensors = entries(model, self.bits)  # bits out of range are the caller's mistake now, not at the first step
        if scales not in ("searched", "learned"):
            raise InputError(f"scales must be 'searched' or 'learned', got {scales!r}")
        self.scales: dict[str, nn.Parameter] = {}
        for entry in tensors if scales == "learned" else ():
            if entry.kind in ("weight", "dense"):
                self.scales[entry.name] = nn.Parameter(scale(encode_weight(entry.tensor, entry.levels)[1]))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The model has quantized numbers inside the context; backward passes belong inside too."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        chosen = [
            entry
            for entry in entries(self.model, self.bits)
            # Buffers of 16 bits are statistics, which a forward pass moves by less than a rounding.
            if entry.kind != "integer" and (entry.kind != "bf16" or id(entry.tensor) in parameters)
        ]
        exact = [entry.tensor.detach().clone() for entry in chosen]
        gradients = [_copy(entry.tensor.grad) if entry.name in self.scales else None for entry in chosen]
        try:
            quantize_in_place(chosen, self.scales, keep_unused=True)
            yield
        finally:
            with torch.no_grad():
                for entry, value, gradient in zip(chosen, exact, gradients, strict=True):
                    entry.tensor.copy_(value)
                    if entry.name in self.scales:
                        _share_gradient(entry, self.scales[entry.name], gradient)


def _share_gradient(entry: Entry, size: nn.Parameter, before: Tensor | None) -> None:
    """Give a scale its part of the gradient that a pass added to that of the weights, and clip theirs."""
    codes, exponents = encode_weight_at(entry.tensor, size, entry.levels)
    # A scale that the weights left behind would be far from where it has an effect.
    size.clamp_(scale(exponents - 0.5), scale(exponents + 0.5))
    found = entry.tensor.grad
    if found is None:
        return
    limit = largest_code(entry.levels)
    added = found if before is None else found - before
    ratio = entry.tensor / scale(exponents).view(-1, *[1] * (codes.dim() - 1))
    inside = (ratio.abs() <= limit) & (entry.levels > 2)
    slope = codes - torch.where(inside, ratio, 0)
    share = (added * slope).flatten(1).sum(1)
    share = share / (codes[:1].numel() * limit) ** 0.5
    size.grad = share if size.grad is None else size.grad + share
    if entry.levels > 2:
        found.sub_(added.masked_fill(inside, 0))


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()
