"""RotateConv2d: a convolution layer whose kernels are line segments with learned weights and angles."""

import math
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.kernels.fit import fit_line
from rotateconv.kernels.fused import fused_line_kernel, in_layout
from rotateconv.kernels.fused_native import line_conv2d
from rotateconv.kernels.line import Path, Taps, mean_gram, unit_profile
from rotateconv.kernels.separable import Form, compute_dtype, dense_kernel, grouped_conv2d, is_channels_last
from rotateconv.nn import arguments
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn._kernel_cache import open_batches, take_kernel
from rotateconv.nn.arguments import Size
from rotateconv.nn.config import RotateConfig


class RotateConv2d(ConvBase):
    """Convolution with kernels that are line segments through the center, each with an angle of its own.

    The slice of output channel o and input channel i is ``line_kernel(W[o, i], angle[o, i])`` with T = k taps::

        taps="free"     W[o,i,t] = weight[o,i,t]                T + 1 parameters per slice       rotate4 of the paper
        taps="shared"   W[o,i,t] = weight[o,i]                  2 parameters per slice           rotate2 of the paper
        taps="profile"  W[o,i,t] = weight[o,i] · profile[o,t]   2 per slice, T per channel       rotate2p

    Stands in for nn.Conv2d: the same arguments, defaults and shapes. Weights and angles are ordinary parameters,
    trained by the optimizer already there; the gradient that reaches `angle` is multiplied by the constant
    `angle_grad_scale`, because it is proportional to the weights, and with one learning rate for both the angles
    would hardly move. Set the attribute to 1.0 to switch that off; `kernel()` always has the exact gradient.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in nn.Conv2d.
        kernel_size: k, one odd number >= 3 or an equal pair.
        taps: "free", "shared" or "profile".
        path: "circle" (a tap keeps its distance to the center) or "square" (its ring of the grid).
        angle_groups: G equal groups of output channels; within one, all output channels share the angle of an
            input channel (and, with taps="profile", the profile): `angle` is (G, in/groups).
        learn_angle, learn_profile: False keeps the angles, the profiles as they are drawn; each is then a buffer.
        form: how a layer with angle_groups, taps "shared" or "profile" and groups=1 computes its output: "dense",
            by the k x k kernels; "separable", by G depthwise line filters and a pointwise convolution; "auto", by
            whichever a model of the cost says is faster. The output is the same to rounding.

    Attributes:
        config: The keywords of the call, as one value; `taps`, `path` and the others are views of it.
        weight: (out, in/groups, T), or (out, in/groups, 1) unless taps is "free".
        angle: (out, in/groups) or (G, in/groups), radians.
        profile: (out, T) or (G, in/groups, T) with taps="profile", else None.
        bias: (out) or None.
        angle_grad_scale: 1 / (expected sum of weight² at initialization over the slices that share an angle):
            the natural step along an arc, since turning a tap of weight w moves the kernel by |w| per radian.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd, or a count is not
            divisible by its groups, or form="separable" is asked of a layer without that form.

    Example:
        >>> layer = RotateConv2d(64, 128, 3, padding=1)
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 32, 32])

    Reference:
        Ma, Guo, Wang, Wang, "RotateConv: Making Asymmetric Convolutional Kernels Rotatable", ICPR 2018.
        The initialization keeps the kernel norm of He et al., "Delving Deep into Rectifiers", 2015, eq. 10.
    """

    angle: nn.Parameter | Tensor
    profile: nn.Parameter | Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        taps: Taps = "free",
        path: Path = "circle",
        angle_groups: int | None = None,
        learn_angle: bool = True,
        form: Form = "auto",
        learn_profile: bool = True,
    ) -> None:
        config = RotateConfig(taps, path, angle_groups, learn_angle, form, learn_profile)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        config.check_layer(out_channels, groups)
        self.config = config
        self.angle_grad_scale = 1 / (self._weight_variance() * self._slices_per_angle())

        size = self.kernel_size[0]
        slices = (out_channels, in_channels // groups)
        angles = slices if angle_groups is None else (angle_groups, slices[1])
        profiles = slices[:1] if angle_groups is None else angles
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self._add("weight", torch.empty(*slices, size if taps == "free" else 1, **options), True)
        self._add("angle", torch.empty(angles, **options), learn_angle)
        self._add("profile", torch.empty(*profiles, size, **options) if taps == "profile" else None, learn_profile)
        self._add("bias", torch.empty(out_channels, **options) if bias else None, True)
        self.reset_parameters()

    @classmethod
    def like(cls, conv: "nn.Conv2d | RotateConv2d", config: RotateConfig) -> "RotateConv2d":
        """A layer with a convolution's arguments and values of its own; `nearest` takes over the values too.

        Args:
            conv: An nn.Conv2d with a square odd kernel of at least 3, or a RotateConv2d with other options; it may
                be on the meta device, and the layer is then, too.
            config: The options of the layer.

        Returns:
            A layer with the convolution's arguments, device, dtype, training flag and requires_grad.

        Raises:
            TypeError: If conv is neither of the two.
            ValueError: If its kernel is not square and odd, or its channels do not fit the options.

        Example:
            >>> RotateConv2d.like(nn.Conv2d(16, 32, 3, padding=1), RotateConfig("shared")).padding
            (1, 1)
        """
        if not isinstance(conv, RotateConv2d):
            arguments.same_convolution(conv)
        layer = cls(**arguments.arguments_of(conv), **vars(config))
        for name, parameter in layer.named_parameters():
            source = conv.bias if name == "bias" else conv.weight
            parameter.requires_grad_(source is not None and source.requires_grad)
        return layer.train(conv.training)

    @classmethod
    def nearest(cls, conv: nn.Conv2d, config: RotateConfig) -> "RotateConv2d":
        """The layer nearest to a trained convolution: `from_conv`, with its options as one value.

        Example:
            >>> RotateConv2d.nearest(nn.Conv2d(16, 32, 3), RotateConfig("shared")).weight.shape
            torch.Size([32, 16, 1])
        """
        arguments.same_convolution(conv)
        if conv.weight.is_meta:
            raise InputError("expected a convolution with values, got one on the meta device: materialize it first")
        layer = cls.like(conv, config)
        layer.fit(conv.weight)
        if layer.bias is not None and conv.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(conv.bias)
        return layer

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        taps: Taps = "free",
        path: Path = "circle",
        angle_groups: int | None = None,
        learn_angle: bool = True,
        form: Form = "auto",
        learn_profile: bool = True,
    ) -> "RotateConv2d":
        """The layer nearest to a trained convolution: least squares over weights, angles and profiles.

        Args:
            conv: An nn.Conv2d with a square odd kernel of at least 3; it is not changed.
            taps, path, angle_groups, learn_angle, form, learn_profile: As in the constructor.

        Returns:
            A layer with the convolution's arguments, bias, device, dtype, training flag and requires_grad.

        Raises:
            TypeError: If conv is not an nn.Conv2d.
            ValueError: If its kernel is not square and odd, or holds NaN, or it is on the meta device.

        Example:
            >>> conv = nn.Conv2d(16, 32, 3, padding=1)
            >>> RotateConv2d.from_conv(conv, taps="shared").weight.shape
            torch.Size([32, 16, 1])
        """
        return cls.nearest(conv, RotateConfig(taps, path, angle_groups, learn_angle, form, learn_profile))

    @property
    def taps(self) -> Taps:
        """Which weights the taps have: "free", "shared" or "profile"."""
        return self.config.taps

    @property
    def path(self) -> Path:
        """What a tap moves on as the angle turns: "circle" or "square"."""
        return self.config.path

    @property
    def angle_groups(self) -> int | None:
        """Groups of output channels that share the angles."""
        return self.config.angle_groups

    @property
    def learn_angle(self) -> bool:
        """Whether the angles are parameters."""
        return self.config.learn_angle

    @property
    def learn_profile(self) -> bool:
        """Whether the profiles are parameters."""
        return self.config.learn_profile

    @property
    def form(self) -> Form:
        """How the output is computed: "auto", "dense" or "separable"."""
        return self.config.form

    def reset_parameters(self) -> None:
        """Draw new values: angles uniform over a turn, weights with the kernel norm of Kaiming-normal."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            self.weight.normal_(0, math.sqrt(self._weight_variance()))
            self.angle.uniform_(-torch.pi, torch.pi)
            if self.profile is not None:
                # Every profile on its own has the norm 1 over a turn: no channel is louder than the next.
                self.profile.copy_(unit_profile(self.profile.normal_(), self.kernel_size[0], self.path))
            self._reset_bias()

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k), with exact gradients."""
        weight = self.weight
        return self._kernel(weight, 1.0, weight.dtype, channels_last=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        padding, config, scale = self.padding_pixels, self.config, self.step_scale
        if self.padding_mode != "zeros":
            input, padding = self._padded(input)
        if config.angle_groups is not None and config.is_separable and self.groups == 1:
            weight, lines = self.weight[..., 0], self._line_filters(scale)
            return grouped_conv2d(input, weight, lines, self.bias, self.stride, padding, self.dilation, self.form)
        weight = self.weight  # once: a parametrization computes it anew each time
        if config.angle_groups is None:
            path, size, profile = config.path, self.kernel_size[0], self.profile if config.taps == "profile" else None
            shape = self.stride, padding, self.dilation, self.groups
            output = line_conv2d(input, weight, self.angle, profile, self.bias, size, path, scale, *shape)
            if output is not None:
                return output
        # Written at once as the convolution wants it: in autocast's type, and in the order of the input, which
        # `.to(memory_format=...)` cannot give to a kernel that is computed.
        dtype, last = compute_dtype(input, weight), is_channels_last(input)
        kernel = take_kernel(self, self.kernel_sources, dtype, last) if open_batches else None
        if kernel is None:
            kernel = self._kernel(weight, scale, dtype, last)
        return F.conv2d(input, kernel, self.bias, self.stride, padding, self.dilation, self.groups)

    @property
    def step_scale(self) -> float:
        """The factor on the gradient of the angles in a forward pass: `angle_grad_scale`, where they learn."""
        return self.angle_grad_scale if self.config.learn_angle else 1.0

    def kernel_sources(self) -> list[Tensor]:
        """The tensors that the kernel follows from."""
        names = ("weight", "angle", "profile") if self.config.taps == "profile" else ("weight", "angle")
        own = self._parameters
        found: list[Tensor] = [parameter for name in names if (parameter := own.get(name)) is not None]
        # Parameters as attributes would cost most of what is left of making the kernels of all layers.
        return found if len(found) == len(names) else [getattr(self, name) for name in names]

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Take the values nearest to a dense kernel: least squares over weights, angles and profiles; see ConvBase."""
        found = fit_line(self._checked(kernel), self.taps, self.path, angle_groups=self.angle_groups)
        self.weight.copy_(found.weight)
        self.angle.copy_(found.angle)
        if self.profile is not None and found.profile is not None:
            self.profile.copy_(found.profile)

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        options = self.config.to_dict()
        for name, default in (("angle_groups", None), ("learn_angle", True)):
            if options[name] == default:
                del options[name]
        return ", ".join([super().extra_repr(), *(f"{name}={value!r}" for name, value in options.items())])

    def _add(self, name: str, tensor: Tensor | None, learned: bool) -> None:
        if not learned:
            return self.register_buffer(name, tensor)
        self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    def _kernel(self, weight: Tensor, angle_grad_scale: float, dtype: torch.dtype, channels_last: bool) -> Tensor:
        config, size = self.config, self.kernel_size[0]
        path, groups = config.path, config.angle_groups
        if groups is None:
            return fused_line_kernel(
                weight,
                self.angle,
                size,
                path,
                profile=self.profile if config.taps == "profile" else None,
                angle_grad_scale=angle_grad_scale,
                dtype=dtype,
                channels_last=channels_last,
            )
        if self.taps == "free":
            weight = weight.unflatten(0, (groups, -1))  # [group, out in the group, in, tap]
            angle = self.angle[:, None].expand(weight.shape[:-1])
            kernel = fused_line_kernel(weight, angle, size, path, angle_grad_scale=angle_grad_scale).flatten(0, 1)
        else:
            kernel = dense_kernel(weight[..., 0], self._line_filters(angle_grad_scale))
        return in_layout(kernel.to(dtype), channels_last)

    def _line_filters(self, angle_grad_scale: float) -> Tensor:
        """The line filter of each group and input channel, (G, in/groups, k, k): a kernel is a multiple of it."""
        profile = torch.ones_like(self.angle)[..., None] if self.profile is None else self.profile
        return fused_line_kernel(profile, self.angle, self.kernel_size[0], self.path, angle_grad_scale=angle_grad_scale)

    def _weight_variance(self) -> float:
        """σ² such that a slice has the expected squared norm of Kaiming-normal, k² · 2 / (in/groups · k²)."""
        gram = mean_gram(self.kernel_size[0], self.path)
        norm = {"free": gram.trace().item(), "shared": gram.sum().item(), "profile": 1.0}[self.taps]
        return 2 / (self.in_channels // self.groups) / norm

    def _slices_per_angle(self) -> int:
        return 1 if self.angle_groups is None else self.out_channels // self.angle_groups


# torch.fx traces around what looks at its tensors: the layer stays traceable without being a leaf.
torch.fx.wrap("fused_line_kernel")
torch.fx.wrap("in_layout")
torch.fx.wrap("compute_dtype")
torch.fx.wrap("is_channels_last")
torch.fx.wrap("grouped_conv2d")
