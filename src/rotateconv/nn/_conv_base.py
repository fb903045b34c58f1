"""What convolutions with a computed kernel share: nn.Conv2d's arguments, checked once, and what follows from them."""

import math

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rotateconv.errors import InputError
from rotateconv.kernels.fused import in_layout
from rotateconv.kernels.separable import is_channels_last
from rotateconv.nn import arguments
from rotateconv.nn.arguments import Size


class ConvBase(nn.Module):
    """nn.Conv2d's attributes for a square odd kernel; the parameters and the kernel are the subclass's.

    Attributes:
        padding: As it was given, "same" and "valid" too.
        padding_pixels: (height, width) of the padding on each side.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size | str,
        dilation: Size,
        groups: int,
        padding_mode: str,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        size = arguments.square_kernel_size(kernel_size)
        self.in_channels = arguments.positive("in_channels", in_channels)
        self.out_channels = arguments.positive("out_channels", out_channels)
        self.groups = arguments.positive("groups", groups)
        arguments.divides("groups", groups, in_channels=in_channels, out_channels=out_channels)
        arguments.check_padding_mode(padding_mode)
        arguments.check_dtype(dtype)
        self.kernel_size = (size, size)
        self.stride = arguments.pair("stride", stride, least=1)
        self.dilation = arguments.pair("dilation", dilation, least=1)
        self.padding_pixels = arguments.padding_pair(padding, size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else self.padding_pixels
        self.padding_mode = padding_mode

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k)."""
        raise NotImplementedError

    def fit(self, kernel: Tensor) -> None:
        """Take the values whose kernel is nearest to a dense one, in place.

        Args:
            kernel: (out, in/groups, n, n), finite, with n = k or an odd number below, which lies in the middle.

        Raises:
            ValueError: If it has another shape, or is not finite.
        """
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        input, padding = self._padded(input)
        return F.conv2d(input, self.kernel(), self.bias, self.stride, padding, self.dilation, self.groups)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """A new nn.Conv2d with the same output: the layer for inference. A kernel has k² numbers in it again.

        Returns:
            The convolution, with every argument, the device, dtype, training flag and requires_grad carried over.
        """
        conv = nn.utils.skip_init(nn.Conv2d, **arguments.arguments_of(self))
        conv.weight.copy_(self.kernel()).requires_grad_(_is_trained(self, "weight"))
        if self.bias is not None:
            conv.bias.copy_(self.bias).requires_grad_(_is_trained(self, "bias"))
        return conv.train(self.training)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        shown += [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(shown + ([] if self.bias is not None else ["bias=False"]))

    def _add_parameters(self, bias: bool, **parameters: Tensor) -> None:
        """Register parameters without values, and the bias behind them."""
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))
        weight = parameters["weight"]
        self.register_parameter("bias", nn.Parameter(weight.new_empty(self.out_channels)) if bias else None)

    def _checked(self, kernel: Tensor) -> Tensor:
        """A dense kernel that `fit` is given, in the layer's own size and type."""
        own, fan = self.kernel_size[0], self.in_channels // self.groups
        more = own - kernel.shape[-1]
        if kernel.shape != (self.out_channels, fan, own - more, own - more) or more < 0 or more % 2:
            raise InputError(
                f"expected a kernel of {self.out_channels} x {fan} slices of {own} x {own} or fewer, "
                f"got {' x '.join(map(str, kernel.shape))}"
            )
        if not kernel.isfinite().all():
            raise InputError(f"kernel must be finite, got {int((~kernel.isfinite()).sum())} NaN or infinite values")
        return F.pad(kernel.detach().to(self.weight), (more // 2,) * 4)

    def _reset_bias(self) -> None:
        """Draw the bias as nn.Conv2d does."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_channels // self.groups * self.kernel_size[0] ** 2)
            self.bias.uniform_(-bound, bound)

    def _padded(self, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input with the padding that F.conv2d does not know, and the zeros that are left for it to add."""
        if self.padding_mode == "zeros":
            return input, self.padding_pixels
        height, width = self.padding_pixels
        padded = F.pad(input, (width, width, height, height), mode=self.padding_mode)
        return in_layout(padded, is_channels_last(input)), (0, 0)  # "circular" loses the layout


def _is_trained(layer: nn.Module, name: str) -> bool:
    """Whether a tensor of a layer is trained, also where a parametrization such as spectral_norm computes it."""
    if parametrize.is_parametrized(layer, name):
        originals = layer.get_submodule(f"parametrizations.{name}")
        return any(parameter.requires_grad for parameter in originals.parameters())
    return bool(getattr(layer, name).requires_grad)


# torch.fx traces around what looks at its tensors: the layers stay traceable without being leaves.
torch.fx.wrap("in_layout")
torch.fx.wrap("is_channels_last")
