"""A model without values: its modules and the sizes of its tensors, for the price of neither memory nor time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def outlined() -> Iterator[None]:
    """Build what is built in here on the meta device, without drawing the values that nobody sees.

    The first draw on the meta device imports a second's worth of torch.

    Example:
        >>> with outlined():
        ...     layer = torch.nn.Linear(10**6, 10**6)
        >>> layer.weight.numel(), layer.weight.device.type
        (1000000000000, 'meta')
    """
    with torch.device("meta"), _NoValues():
        yield


class _NoValues(TorchFunctionMode):
    """Leaves out every method that writes into a tensor: `normal_`, `copy_` and so on."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        writes = name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "detach_")
        if writes and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
