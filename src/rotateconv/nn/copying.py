"""A copy of a model that also works where its modules keep tensors of a computation that is still alive."""

import copy

from torch import Tensor, nn


def copy_model(model: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """Return a deep copy of a model, in which tensors that the model computed and kept are cut from their graph.

    An activation that a forward pass keeps on its module, and the weight that an older weight norm or pruning
    computes, belong to a graph, and torch copies no such tensor.

    Args:
        model: To be copied.
        memo: What is put in the place of other objects, by their id, as for `copy.deepcopy`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.kept = layer.weight * 2
        >>> copy_model(layer).kept.requires_grad
        False
    """
    kept = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    return copy.deepcopy(model, {**kept, **(memo or {})})
