"""Quantization-aware training: forward and backward with fake-quantized numbers, steps on the exact ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rotateconv.quantization.quantize import entries, quantize_in_place


class QuantizedTraining:
    """Lends a model the parameters that `quantize` would give it, for a forward and a backward pass.

    The gradient at the quantized parameters moves the exact ones: the straight-through estimator. The parameters
    themselves are exchanged and put back, because ``w + (round(w) - w).detach()`` is not round(w) to the last
    bit, and because wrapped and compiled models see nothing of it. Statistics of norms stay exact meanwhile.
    After the training, `quantize(model)` with the same bits has the parameters that one more forward pass would.

    Args:
        model: The plain model, not a wrapper of it.
        weight_bits, angle_bits, dense_bits: As in quantize.

    Raises:
        ValueError: If bits are out of their range.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer, quantized = torch.optim.SGD(model.parameters(), lr=0.1), QuantizedTraining(model, dense_bits=2)
        >>> with quantized():
        ...     model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Reference:
        Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
        Courbariaux, Bengio, David, "BinaryConnect", NeurIPS 2015, algorithm 1.
    """

    def __init__(self, model: nn.Module, weight_bits: int = 4, angle_bits: int = 5, *, dense_bits: int = 8) -> None:
        self.model = model
        self.bits = (weight_bits, angle_bits, dense_bits)
        entries(model, *self.bits)  # bits out of range are the caller's mistake now, not at the first step

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The model has quantized numbers inside the context; backward passes belong inside too."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        chosen = [
            entry
            for entry in entries(self.model, *self.bits)
            # Buffers of 16 bits are statistics, which a forward pass moves by less than a rounding.
            if entry.kind != "integer" and (entry.kind != "bf16" or id(entry.tensor) in parameters)
        ]
        exact = [(entry.tensor, entry.tensor.detach().clone()) for entry in chosen]
        try:
            quantize_in_place(chosen)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in exact:
                    tensor.copy_(value)
