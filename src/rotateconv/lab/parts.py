"""Parts of a run's configuration, each what one room needs of it; `RunConfig` has them as properties.

The fields are the keys of the same name, and described there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rotateconv.nn.config import RotateConfig


@dataclass(frozen=True)
class ImageSource:
    """Which images a run is about; two runs with the same one load the same images."""

    data: str
    data_dir: str | None
    image_size: int | None
    svhn_extra: bool
    skip_bad_images: bool
    max_image_pixels: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


@dataclass(frozen=True)
class Architecture:
    """How a run's model is built, with fresh weights."""

    factory: str | None
    model: str
    conv: str
    width: float
    growth: int | None
    dropout: float
    rotate: "RotateConfig | None"
    convert_only: str | None
    angle_grad_scale: float | None
    angle_init: Literal["uniform", "axes"]
    profile_init: Literal["random", "bank"]


@dataclass(frozen=True)
class Execution:
    """How a run's model computes, and which of the training images it is calibrated on."""

    precision: Literal["no", "bf16", "fp16"]
    channels_last: bool
    seed: int


@dataclass(frozen=True)
class Conversion:
    """What the convolutions of a trained model become."""

    rotate: "RotateConfig"
    convert_fit: Literal["kernels", "outputs"]
    convert_only: str | None
    angle_grad_scale: float | None
    execution: Execution


@dataclass(frozen=True)
class Optimization:
    """How gradients move the weights, and how fast."""

    optimizer: Literal["sgd", "adamw"]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    angle_lr_scale: float
    angle_weight_decay: float
    schedule: Literal["constant", "steps", "cosine", "one-cycle"]
    milestones: tuple[float, ...]
    gamma: float
    warmup: float
