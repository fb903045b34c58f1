"""The densely connected networks for small images of Huang et al. 2017, plain and with bottlenecks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.models.convs import Convolution, dense, find_conv
from rotateconv.models.lookup import scaled
from rotateconv.nn import arguments

GROWTH = 12  # channels that each layer adds, in most of the paper's models and in all of ours


class DenseNet(nn.Module):
    """A stem, three dense blocks with two transitions between them, the global average, a linear layer.

    Every layer reads all the channels before it in its block and adds `growth` of its own::

        x ← [x, conv3x3(relu(norm(x)))]                                  plain, depth = 3n + 4
        x ← [x, conv3x3(relu(norm(conv1x1(relu(norm(x))))))]             bottleneck, depth = 6n + 4
        transition: average2x2(conv1x1(relu(norm(x)))), to ⌊compression · channels⌋ channels

    The stem, with 16 channels (2 · growth with a bottleneck), and the 1x1 convolutions are dense; every other
    3x3 convolution is made by `conv`. None has a bias, because a batch norm follows each.

    Args:
        depth: 40 and 100 in the paper.
        conv, num_classes, in_channels: As in `build_model`.
        width: Factor on the growth rate: round(growth · width) channels per layer.
        growth: Channels that each layer adds at width 1.
        dropout: Share of the values dropped after every convolution but the stem (the paper: 0.2 without data
            augmentation).
        bottleneck: Whether a 1x1 convolution to 4 · growth channels comes before each 3x3 one.
        compression: Share of the channels that a transition keeps, in (0, 1].

    Raises:
        ValueError: If depth does not fit, conv is an unknown name, or a size or share is out of its range.

    Example:
        >>> DenseNet(40, conv="rotate4")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Reference:
        Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017.
    """

    def __init__(
        self,
        depth: int,
        conv: str | Convolution = "rotate4",
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        *,
        growth: int = GROWTH,
        dropout: float = 0.0,
        bottleneck: bool = False,
        compression: float = 1.0,
    ) -> None:
        super().__init__()
        arguments.positive("in_channels", in_channels)
        arguments.positive("num_classes", num_classes)
        arguments.positive("growth", growth)
        step = 6 if bottleneck else 3  # convolutions that one more layer in each block adds
        layers, rest = divmod(depth - 4, step)
        if layers < 1 or rest:
            raise InputError(f"depth of this DenseNet must be {step}n + 4, such as 40 or 100, got {depth}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {dropout}")
        if not 0 < compression <= 1:
            raise InputError(f"compression must be in (0, 1], got {compression}")
        make_conv = find_conv(conv)
        growth = scaled(growth, width, "channels per layer")

        channels = 2 * growth if bottleneck else 16
        self.stem = dense(in_channels, channels, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for block in range(3):
            if block > 0:
                kept = int(compression * channels)
                self.blocks.append(Transition(channels, kept, dropout))
                channels = kept
            for _ in range(layers):
                self.blocks.append(DenseLayer(make_conv, channels, growth, dropout, bottleneck))
                channels += growth
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The scores (N, num_classes) of images (N, in_channels, H, W)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.classifier(features.mean((-2, -1)))
        return logits


class DenseLayer(nn.Sequential):
    """[x, new channels made from x]: norm, relu, convolution, once or (with a bottleneck) twice."""

    def __init__(self, conv: Convolution, in_channels: int, growth: int, dropout: float, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            between = 4 * growth
            _append(self, in_channels, dense(in_channels, between, 1, bias=False), dropout)
            in_channels = between
        _append(self, in_channels, conv(in_channels, growth, 3, padding=1, bias=False), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The input (N, C, H, W) with its new channels behind it, (N, C + growth, H, W)."""
        new: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.cat((x, new), 1)


class Transition(nn.Sequential):
    """Norm, relu, 1x1 convolution, 2x2 average: half the rows and columns."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        _append(self, in_channels, dense(in_channels, out_channels, 1, bias=False), dropout)
        self.append(nn.AvgPool2d(2))


def _append(layers: nn.Sequential, in_channels: int, conv: nn.Module, dropout: float) -> None:
    """The paper's unit: norm, relu, convolution and, if there is any, dropout."""
    layers.append(nn.BatchNorm2d(in_channels)).append(nn.ReLU()).append(conv)
    if dropout > 0:
        layers.append(nn.Dropout(dropout))
