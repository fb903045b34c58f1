"""Modules of a model replaced in place, wherever they are registered; and what such a replacement would lose."""

from collections.abc import Mapping

from torch import nn


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put `new[module]` wherever `module` is registered below `model`, so that tied modules stay tied.

    Example:
        >>> relu = nn.ReLU()
        >>> model = nn.Sequential(relu, nn.Sequential(relu))
        >>> replace_modules(model, {relu: nn.GELU()})
        >>> model[0] is model[1][0], model[0]
        (True, GELU(approximate='none'))
    """
    for parent in list(model.modules()):
        # Not named_children(), which leaves out the second name of a tied module.
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]


def has_hooks(module: nn.Module) -> bool:
    """Whether something is hooked into this module or its tensors that a replacement would not have.

    Older forms of weight norm, spectral norm and pruning compute the weight in such a hook.
    """
    return (
        "forward" in vars(module)  # replaced on this one module
        # A hook that concerns the loading of a state dict alone computes nothing that would be lost; torch's
        # own remove_parametrizations leaves one behind.
        or any(
            hooks for name, hooks in vars(module).items() if name.endswith("_hooks") and "load_state_dict" not in name
        )
        or any(tensor._backward_hooks for tensor in module.parameters())
    )
