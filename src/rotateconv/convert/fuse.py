"""A model for inference: its computed kernels written out as nn.Conv2d, batch norms folded into them."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rotateconv.convert.module_swap import has_hooks
from rotateconv.errors import InputError
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.copying import copy_model

WRAPPERS = (DataParallel, DistributedDataParallel)
"""Of a whole model, which is their `module`."""


def fuse(model: nn.Module, fold_batchnorm: bool = False) -> nn.Module:
    """A copy of a model in which every RotateConv2d is the nn.Conv2d with the same output.

    So is every other layer of this library that computes its kernel: MaskedConv2d, CodebookConv2d, OuterConv2d.

    With `fold_batchnorm`, a batch norm that takes nothing but the output of a convolution is folded into it::

        K'[o] = γ[o] / √(var[o] + ε) · K[o],    bias'[o] = γ[o] / √(var[o] + ε) · (bias[o] - mean[o]) + β[o]

    The convolution then has a bias, the norm becomes nn.Identity; the class of the model and the names of its
    modules stay. Such pairs are found by tracing `forward` with torch.fx; where the output of the convolution
    goes elsewhere too, or one of the two is called twice, both stay as they are.

    Args:
        model: Not changed. If it is a RotateConv2d itself, the copy is an nn.Conv2d.
        fold_batchnorm: Fold batch norms that follow a convolution; only in eval mode, which has fixed statistics.

    Returns:
        The copy, with the devices, dtypes and training flags of the model; tied modules stay tied.

    Raises:
        ValueError: If a RotateConv2d has hooks, which its convolution would not have; with fold_batchnorm, if
            a part of the model is in training mode, or torch.fx cannot trace it.

    Example:
        >>> from rotateconv import RotateConv2d
        >>> model = nn.Sequential(RotateConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fuse(model, fold_batchnorm=True)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3.2.
    """
    for name, module in model.named_modules():
        if isinstance(module, ConvBase) and has_hooks(module):
            raise InputError(
                f"{name or 'the model'} has hooks that its fused convolution would lose: remove them first"
            )
        if fold_batchnorm and module.training and not isinstance(module, WRAPPERS):
            raise InputError(
                f"fold_batchnorm needs a model in eval mode, and {name or 'this one'} is in training mode: "
                "call model.eval() first"
            )

    new: dict[nn.Module, nn.Module] = {
        module: module.fuse() for module in model.modules() if isinstance(module, ConvBase)
    }
    if fold_batchnorm:
        # forward() is traced on a copy of its own, because it may leave something behind in its module.
        for conv_name, norm_name in _conv_norm_pairs(_copy(model, new)):
            conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
            folded: nn.Conv2d = fuse_conv_bn_eval(new.get(conv, conv), norm)  # type: ignore[type-var,arg-type,assignment]
            assert folded.bias is not None
            folded.bias.requires_grad_(folded.weight.requires_grad)  # a bias that is new would not be trained
            new[conv] = folded
            new[norm] = nn.Identity().eval()
    return _copy(model, new)


@torch.no_grad()
def fold_statistics(model: nn.Module) -> None:
    """Give every batch norm with statistics the mean 0 and the variance 1, and the weight and bias of the same output.

    ::

        γ'[c] = γ[c] · √((1 + ε) / (var[c] + ε)),      β'[c] = β[c] - γ[c] · mean[c] / √(var[c] + ε)

    In evaluation mode the model computes the same, with half as many numbers that are not 0 or 1. Norms without weight
    and bias stay as they are; training goes on from another place than before.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None and module.affine:
            assert module.running_mean is not None
            slope = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
            module.bias.sub_((slope * module.running_mean.double()).to(module.bias.dtype))
            module.weight.copy_(slope * (1 + module.eps) ** 0.5)
            module.running_mean.zero_()
            module.running_var.fill_(1)


def _copy(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy with `new[module]` wherever `module` is referred to; what is replaced is not copied."""
    return copy_model(model, {id(module): replacement for module, replacement in new.items()})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What has no children hides no convolution, and often has branches that cannot be traced.
        return not m._modules or super().is_leaf_module(m, module_qualified_name)


def _conv_norm_pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of every convolution and the batch norm that can be folded into it."""
    prefix = ""
    while isinstance(model, WRAPPERS):  # which torch.fx cannot trace
        model, prefix = model.module, f"{prefix}module."
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever forward() raises when it is given a proxy
        raise InputError(
            f"fold_batchnorm needs a model that torch.fx can trace, and tracing {type(model).__name__} ended in "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}; "
            "leave fold_batchnorm out"
        ) from error

    uses: Counter[str] = Counter()
    for node in nodes:
        if node.op == "call_module":
            uses[str(node.target)] += 1
        elif node.op == "get_attr":  # forward() reads a parameter of the module
            uses[str(node.target).rpartition(".")[0]] += 1

    modules = dict(model.named_modules())
    for node in nodes:
        if node.op == "call_module" and len(node.users) == 1:
            (user,) = node.users
            if user.op == "call_module" and user.args == (node,) and not user.kwargs:
                conv, norm = str(node.target), str(user.target)
                if uses[conv] == uses[norm] == 1 and _foldable(modules[conv], modules[norm]):
                    yield prefix + conv, prefix + norm


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Exact types only: a subclass may compute something else."""
    return (
        type(conv) is nn.Conv2d
        and type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and norm.running_mean is not None  # otherwise it takes the statistics of the batch, in eval mode too
        and not has_hooks(conv)
        and not has_hooks(norm)
    )
