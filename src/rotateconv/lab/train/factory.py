"""A user's own net: the function that builds it, by name, and its weights from a file."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rotateconv.errors import ConfigError
from rotateconv.lab.train.checkpoint import read_weights

_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict in their files
_NAMED = 5  # mismatches that an error names


def build_from(factory: str) -> nn.Module:
    """Return the net that the function "package.module:function" builds, called without arguments.

    The module is looked for where Python looks, and in the current folder.

    Raises:
        ConfigError: the name has another form, does not import, or gives no nn.Module.

    Example:
        >>> type(build_from("torchvision.models:resnet18")).__name__  # doctest: +SKIP
        'ResNet'
    """
    module_name, colon, path = factory.partition(":")
    if not (colon and module_name and path):
        raise ConfigError(f"expected package.module:function, not {factory!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
        net = found()  # type: ignore[operator]
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"cannot build a net with {factory}: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{factory} must return an nn.Module, not {type(net).__name__}")
    return net


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file, or in one of torch.save, which must load with weights_only=True.

    A state dict may also stand under the key state_dict, model_state_dict or model of what torch.save wrote, and
    its names may begin with the "module." of nn.DataParallel.

    Raises:
        ConfigError: no such file, or it holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return read_weights(path.read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # bytes of anything make the unpickler raise anything
        raise ConfigError(
            f"cannot read {path}: expected a safetensors file, or a state dict that torch.load reads with "
            f"weights_only=True ({_line(error)})"
        ) from None
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not (isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ConfigError(f"{path} holds no state dict: save model.state_dict()")
    weights = dict(found)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Put weights into a net; the names and shapes must be the net's.

    Args:
        net: changed in place.
        weights: a state dict.
        where: the weights come from, for the error.

    Raises:
        ConfigError: the first five names that are missing, unknown or of another shape.

    Example:
        >>> load_weights(nn.Linear(2, 3), {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, "old.pt")
        Traceback (most recent call last):
        rotateconv.errors.ConfigError: the weights in old.pt do not fit the net: weight is 2x2, expected 3x2
    """
    expected = net.state_dict()
    wrong = [
        f"{name} is missing, expected {_shape(tensor)}" for name, tensor in expected.items() if name not in weights
    ]
    wrong += [f"{name} is {_shape(t)}, and the net has none" for name, t in weights.items() if name not in expected]
    wrong += [
        f"{name} is {_shape(weights[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ConfigError(f"the weights in {where} do not fit the net: {'; '.join(wrong[:_NAMED])}{more}")
    net.load_state_dict(weights)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _line(error: BaseException) -> str:
    """The first line of an error's text: torch's own go on with advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
