"""The device that this process computes on: the user's, or a GPU where there is one."""

import os
import re

import torch

from rotateconv.errors import ConfigError

VARIABLE = "ROTATECONV_DEVICE"
"""Environment variable that names the device, for this process and those that it starts."""


def choose_device(name: str) -> None:
    """Let this process, and those that it starts, compute on a device: cpu, cuda, cuda:1 (the second GPU) or mps.

    ConfigError where this machine has no such device.
    """
    _check(name, "--device")
    os.environ[VARIABLE] = name


def chosen_device() -> torch.device:
    """Return the chosen device, without a choice the machine's accelerator, or else the CPU."""
    name = os.environ.get(VARIABLE)
    if name:
        _check(name, VARIABLE)
        return torch.device(name)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def is_indexed(device: torch.device) -> bool:
    """Whether a device names one GPU of several, as cuda:1 does."""
    return ":" in str(device)


def _check(name: str, called: str) -> None:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"{called} must be cpu, cuda, cuda:N or mps, not {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0" if count else "no CUDA device"
            raise ConfigError(f"{called} {name} is not there, this machine has {found}: name another one, or cpu")
        if is_indexed(device) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"{called} {name} is one, and torchrun gives each process its own: say cuda or cpu")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{called} mps is not there, this machine has no Apple GPU: name another one, or cpu")
