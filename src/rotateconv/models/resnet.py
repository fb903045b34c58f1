"""The residual networks for small images of He et al. 2015, section 4.2, with shortcut option A."""

import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.models.convs import Convolution, dense, find_conv
from rotateconv.models.lookup import scaled
from rotateconv.nn import arguments

BASE_CHANNELS = 16  # of the first stage at width 1; the stages have 1, 2 and 4 times as many


class ResNet(nn.Module):
    """A stem, three stages of n two-convolution blocks, the global average, a linear layer: depth = 6n + 2.

    ::

        (N, in_channels, H, W) -> (N, c, H, W) -> (N, 2c, H/2, W/2) -> (N, 4c, H/4, W/4) -> (N, num_classes)
        c = round(16 · width)

    The stem is a dense 3x3 convolution; every other 3x3 convolution is made by `conv`. None has a bias,
    because a batch norm follows each.

    Args:
        depth: 6n + 2: 20, 32, 44, 56 and 110 in the paper.
        conv, num_classes, in_channels: As in `build_model`.
        width: Factor on the number of channels of every stage.

    Raises:
        ValueError: If depth is not 6n + 2, conv is an unknown name, or a size is not positive.

    Example:
        >>> import torch
        >>> ResNet(20, conv="rotate4")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Reference:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    def __init__(
        self,
        depth: int,
        conv: str | Convolution = "rotate4",
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        arguments.positive("in_channels", in_channels)
        arguments.positive("num_classes", num_classes)
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth of a ResNet must be 6n + 2 with n >= 1, such as 20 or 56, got {depth}")
        make_conv = find_conv(conv)
        channels = scaled(BASE_CHANNELS, width, "channels in the first stage")
        self.stem = dense(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stages = nn.Sequential()
        inputs = channels
        for stage in range(3):
            blocks = nn.Sequential()
            for block in range((depth - 2) // 6):
                outputs = channels * 2**stage
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(make_conv, inputs, outputs, stride))
                inputs = outputs
            self.stages.append(blocks)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The scores (N, num_classes) of images (N, in_channels, H, W)."""
        features = self.stages(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.classifier(features.mean((-2, -1)))
        return logits


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))): the basic block of He et al. 2015."""

    def __init__(self, conv: Convolution, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else ShortcutA(out_channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ShortcutA(nn.Module):
    """Option A: every `stride`-th row and column, then channels of zeros at the end. No parameters."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, in + extra_channels, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """The arguments of the call that builds this module."""
        return f"{self.extra_channels}, {self.stride}"
