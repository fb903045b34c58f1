"""Weights from anybody's file, and put into a model, whose names and shapes they must have."""

import contextlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rotateconv._files import read_regular
from rotateconv.errors import ConfigError
from rotateconv.lab.train.checkpoint import LARGEST, read_pickled, read_weights

_NAMED = 5  # mismatches that an error names
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict in their files
_WRAPPERS = ({"module"}, {"_orig_mod"})  # of DataParallel and DistributedDataParallel, and of torch.compile


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a safetensors file, or in one of torch.save, which must load with weights_only=True.

    A state dict may also stand under the key state_dict, model_state_dict or model of what torch.save wrote, and
    its names may begin with the "module." of nn.DataParallel and the "_orig_mod." of torch.compile; AveragedModel's
    counter is left out.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _without_wrappers(read_weights(read_regular(path, LARGEST)))
        data = read_regular(path, LARGEST)
        _refuse_compressed(data, path)
        found = read_pickled(data)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # bytes of anything make the unpickler raise anything
        raise ConfigError(
            f"cannot read {path}: expected a safetensors file, or a state dict that torch.load reads with "
            f"weights_only=True{_reason(error)}"
        ) from None
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not (isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ConfigError(f"{path} holds no state dict: save model.state_dict()")
    return _without_wrappers(found)


def _reason(error: Exception) -> str:
    """What stands in a file beside tensors; torch's own words advise to run the code in it."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "; it asks for far more memory than a file of its size holds"
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"; it holds a {found[1]}: save model.state_dict()" if found else ""


def _refuse_compressed(data: bytes, path: Path) -> None:
    """Raise ConfigError for an archive that is larger than its file: torch writes none, and reads any."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ConfigError(f"{path} is a compressed archive, which torch.save does not write: save the weights anew")


def _without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict by the names of the model itself, without those of what it was wrapped in."""
    names = {name: name for name in weights if name != "n_averaged"}  # AveragedModel's counter
    while {short.partition(".")[0] for short in names.values()} in _WRAPPERS:
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return {short: weights[name] for name, short in names.items()}


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
