"""Weights put into a model: their names and shapes are the model's, or the first that are not are named."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rotateconv.errors import ConfigError

_NAMED = 5  # mismatches that an error names


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Put weights into a model; the names and shapes must be the model's.

    Raises:
        ConfigError: the first five names that are missing, unknown or of another shape, or values that are refused.

    Example:
        >>> load_weights(nn.Linear(2, 3, bias=False), nn.Linear(2, 2, bias=False).state_dict(), "old.pt")
        Traceback (most recent call last):
        rotateconv.errors.ConfigError: the weights in old.pt do not fit the model: weight is 2x2, expected 3x2
    """
    check_weights(model, weights, where)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # values that a layer does not take
        raise ConfigError(
            f"the weights in {where} do not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from None


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise ConfigError as `load_weights` does; the model, which may be an outline, is not changed."""
    expected = model.state_dict()
    wrong = [
        f"{name} is missing, expected {_shape(tensor)}" for name, tensor in expected.items() if name not in weights
    ]
    wrong += [f"{name} is {_shape(t)}, and the model has none" for name, t in weights.items() if name not in expected]
    wrong += [
        f"{name} is {_shape(weights[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConfigError(f"the weights in {where} do not fit the model: {'; '.join(wrong[:_NAMED])}{more}")


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers as they are."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
