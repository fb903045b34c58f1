"""The configuration of a training run: one flat frozen dataclass.

Every key is declared here once. Options, TOML keys, `--set`, config.json and docs/configuration.md follow from it.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from rotateconv.errors import ConfigError
from rotateconv.lab.keys import KeyValueError, one_sentence
from rotateconv.lab.parts import Architecture, Conversion, Execution, ImageSource, Optimization
from rotateconv.quantization.bits import BITS_KEYS, Bits

if TYPE_CHECKING:
    from rotateconv.nn.config import RotateConfig

PANELS = {
    "recipe": "Model",
    "convert_taps": "Conversion",
    "data": "Data",
    "optimizer": "Optimizer",
    "epochs": "Schedule",
    "label_smoothing": "Regularization and distillation",
    "qat": "Quantization",
    "precision": "Execution",
}
"""Headings of the keys, each by the first key below it."""

Part = TypeVar("Part")

# JSON and TOML have lists, Python tuples.
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
# A path is kept as text.
Place = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


SOURCE_KEYS = ("recipe", "data", "model", "conv", "width", "growth", "dropout", "factory")
"""Keys that a run has from the one that it goes on from."""

QAT_KEYS = (*BITS_KEYS, "qat_scales")
"""Keys of training with qat, none without it."""


def _bits_by_name(texts: Sequence[str], angle_bits: int = Bits().angle) -> dict[str, tuple[int, int]]:
    """Return bits of weight and angle by the patterns of layers' names, of texts such as "layer3.*=2+3".

    Args:
        texts: of which "layer3.*=2" leaves the angles as they are.
        angle_bits: of these.

    Raises:
        ConfigError: a text of another kind.

    Example:
        >>> _bits_by_name(["stages.0.*=4+5", "stages.1.*=3"])
        {'stages.0.*': (4, 5), 'stages.1.*': (3, 5)}
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r"([^=\s]+)=([0-9]+)(?:\+([0-9]+))?", text.strip(), re.ASCII)
        if match is None:
            raise ConfigError(
                f"layer_bits must be NAME=BITS or NAME=BITS+ANGLEBITS with commas between, such as layer3.*=2+3, not "
                f"{text!r}"
            )
        name, weight, angle = match.groups()
        found[name] = int(weight), angle_bits if angle is None else int(angle)
    return found


def bits_keys(bits: Bits) -> dict[str, object]:
    """Return the keys of a configuration that hold these bits.

    Example:
        >>> bits_keys(Bits(layers=(("stages.0.*", (4, 5)),)))["layer_bits"]
        ('stages.0.*=4+5',)
    """
    own = tuple(f"{name}={weight}+{angle}" for name, (weight, angle) in bits.layers)
    return {**bits.arguments, "layer_bits": own or None}


@one_sentence
@dataclass(
    frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
)
class RunConfig:
    """Everything that decides the result of a run; the run folder keeps it as `config.json`.

    Args:
        recipe: name of the preset that this configuration started from; the other keys say what they are below, and
            in `docs/configuration.md`.

    Raises:
        ConfigError: a value out of range, or a combination that has no meaning.

    Example:
        >>> config = RunConfig(conv="rotate2p", epochs=6, qat=True)
        >>> config.lr, config.bits
        (0.1, Bits(weight=4, angle=5, dense=8, levels=None, profile=None, layers=()))
    """

    recipe: str = "digits"
    """Preset to start from: resnet-cifar, densenet-cifar, densenet-svhn, modern, quick, mnist or digits; without one
    that of the data set, or quick."""

    model: str = "resnet20"
    """resnet20, 32, 44, 56 or 110, densenet40, densenet100 or densenet-bc100."""
    conv: str = "rotate4"
    """conv3x3, rotate4, rotate2, rotate2p, or a control such as rotate4-fixed."""
    width: Annotated[float, Gt(0)] = 1.0
    """Factor on the number of channels."""
    growth: Annotated[int | None, Ge(1)] = None
    """Channels that a layer of a DenseNet adds; none for its own."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of a DenseNet's activations that are dropped."""
    factory: str | None = None
    """package.module:function that builds the model instead, called without arguments."""
    source: Place | None = None
    """Trained model to start from: a run folder, or with a factory a file of weights; none for fresh weights."""

    prune: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the kernels' weights, the smallest of a trained source, that become 0 and stay so."""

    convert_taps: Literal["free", "shared", "profile"] | None = None
    """Taps of the RotateConv layers that dense convolutions become; none leaves the model as it is."""
    convert_path: Literal["circle", "square"] = "circle"
    """Path of their taps."""
    convert_angle_groups: Annotated[int | None, Ge(1)] = None
    """Groups of output channels that share angles; none for one angle per slice."""
    convert_learn_angle: bool = True
    """Learn their angles; without it, they stay as they were fitted."""
    convert_form: Literal["auto", "dense", "separable"] = "auto"
    """How layers with angle groups compute their output."""
    convert_learn_profile: bool = True
    """Learn the profiles of profile taps; without it, they stay as they were fitted."""
    convert_fit: Literal["kernels", "outputs"] = "kernels"
    """What their fit brings near: the dense kernels, or what these compute on training images, without labels."""
    convert_only: str | None = None
    """Of the convolutions to convert, names or patterns such as layer3.*, commas between; none for all."""

    data: str = "digits"
    """digits, mnist, cifar10, cifar100, svhn or folder (yours: train/CLASS/*, test/CLASS/*)."""
    data_dir: Place | None = None
    """Where the files are; for folder, the one that holds train/ and test/. Without it the variable ROTATECONV_DATA,
    or ./data."""
    image_size: Annotated[int | None, Ge(1)] = None
    """Height and width that the images of a folder are resized and cropped to."""
    svhn_extra: bool = False
    """Train on SVHN's 531,131 extra images too."""
    skip_bad_images: bool = False
    """Leave out images of a folder that do not decode."""
    max_image_pixels: Annotated[int | None, Ge(1)] = None
    """Pixels of an image of a folder above which it is refused; none for 50 million, half a gigabyte to decode."""
    mean: Numbers | None = None
    """Of each channel, of images between 0 and 1; none computes it from the images."""
    std: Numbers | None = None
    """Standard deviation of each channel, as mean."""
    augment: Literal["none", "paper", "fast"] = "none"
    """none; paper (zero padding 4, random crop, random flip) or fast (reflected borders, alternating flip)."""
    validation: bool = True
    """Hold the fixed validation split out; without it, train on it too."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """How gradients move the weights."""
    lr: Annotated[float, Gt(0)] = 0.1
    """Highest learning rate, which the schedule multiplies."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """SGD's momentum, AdamW's β₁."""
    nesterov: bool = False
    """Nesterov's form of SGD's momentum."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """For the weights; biases, norms and angles are never pulled to 0."""
    angle_lr_scale: Annotated[float, Ge(0)] = 1.0
    """Factor on the learning rate of the angles: 1 for SGD, 10 to 30 for AdamW."""
    angle_grad_scale: Annotated[float | None, Gt(0)] = None
    """Factor on the angles' gradient, 1 to switch it off; none for each layer's own."""
    angle_weight_decay: Annotated[float, Ge(0)] = 0.0
    """For the learned angles, which it pulls to 0: to show why there should be none."""
    angle_init: Literal["uniform", "axes"] = "uniform"
    """Learned angles begin anywhere, or on one of the grid's four directions."""
    profile_init: Literal["random", "bank"] = "random"
    """Profiles begin random, or as one of the four shapes of rotate2b."""

    epochs: Annotated[int, Ge(1)] = 1
    """Passes over the training images; the schedule stretches to them."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Images per optimizer step, over all processes together."""
    schedule: Literal["constant", "steps", "cosine", "one-cycle"] = "constant"
    """Course of the learning rate."""
    milestones: Numbers = (0.5, 0.75)
    """For steps: fractions of the run after which the learning rate drops."""
    gamma: Annotated[float, Ge(0), Le(1)] = 0.1
    """For steps: factor of each drop."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the run in which the learning rate first rises to lr."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the target spread evenly over the classes."""
    clip_grad_norm: Annotated[float | None, Gt(0)] = None
    """Largest 2-norm of all gradients together; none for no limit."""
    ema_decay: Annotated[float | None, Gt(0), Lt(1)] = None
    """Decay of the averaged weights that are evaluated and kept; none for the last weights."""
    teacher: Place | None = None
    """Run folder of a trained model to distil from."""
    teacher_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the teacher's term in the loss."""
    teacher_temperature: Annotated[float, Gt(0)] = 4.0
    """Temperature at which teacher and student are compared."""

    qat: bool = False
    """Train with fake-quantized numbers, as they will be packed, and keep the quantized ones."""
    weight_bits: Annotated[int | None, Ge(1), Le(8)] = None
    """Bits of a weight of a convolution in quantized training; 4."""
    angle_bits: Annotated[int | None, Ge(2), Le(8)] = None
    """Bits of an angle in quantized training; 5."""
    dense_bits: Annotated[int | None, Ge(1), Le(8)] = None
    """Bits of a weight of the stem, of 1x1 and linear layers in quantized training; 8."""
    weight_levels: Annotated[int | None, Ge(2), Le(255)] = None
    """Values of a weight in quantized training, to 2^weight_bits; an odd number has a 0; none for 2^weight_bits - 1."""
    profile_bits: Annotated[int | None, Ge(2), Le(8)] = None
    """Bits of a profile in quantized training; none for bfloat16."""
    layer_bits: Names | None = None
    """Other bits of layers in quantized training, of a weight and of an angle, by names or patterns, such as
    layer3.*=2+3,layer2.*=3+4; none for no others."""
    qat_scales: Literal["searched", "learned"] | None = None
    """Scales of the weights in quantized training: searched at every step, or learned (LSQ); searched."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """no (float32), or bf16 or fp16 autocast; angles stay float32."""
    channels_last: bool = False
    """Memory format of images and weights."""
    compile: bool = False
    """Run the model through torch.compile."""
    cuda_graph: bool | None = None
    """Capture the training step in a CUDA graph; none where it applies: a GPU, a model of ours, no fp16, compile or
    several processes."""
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    """Of initial weights, order, augmentation and dropout."""
    checkpoint_seconds: Annotated[float, Ge(0)] = 60.0
    """A checkpoint is due this long after the last one, besides after every epoch."""
    checkpoint_steps: Annotated[int, Ge(0)] = 0
    """And after every so many steps, or 0."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.milestones), (*self.milestones, 1.0), strict=True))
        if not rising:
            raise KeyValueError("milestones", f"must be rising fractions between 0 and 1, not {self.milestones}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise KeyValueError(
                "nesterov",
                f"needs optimizer=sgd with momentum above 0, not optimizer={self.optimizer} with "
                f"momentum={self.momentum:g}: set nesterov=false",
            )
        if self.svhn_extra and self.data != "svhn":
            raise KeyValueError("svhn_extra", f"belongs to data=svhn, not data={self.data}: leave it out")
        if self.skip_bad_images and self.data != "folder":
            raise KeyValueError("skip_bad_images", f"belongs to data=folder, not data={self.data}: leave it out")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std belong together: give both, or none to compute them from the images")
        if self.std is not None and min(self.std, default=1.0) <= 0:
            raise KeyValueError("std", f"must be numbers above 0, not {', '.join(f'{value:g}' for value in self.std)}")
        for field in dataclasses.fields(self):
            needs_taps = field.name.startswith("convert_") and field.name != "convert_taps"
            if needs_taps and self.convert_taps is None and getattr(self, field.name) != field.default:
                why = "says what dense convolutions become: set convert_taps too, or leave it out"
                raise KeyValueError(field.name, why)
        even = self.weight_bits == 1 or (self.weight_levels is not None and self.weight_levels % 2 == 0)
        if self.prune and (self.source is None or even):
            why = "takes weights from a trained source: set source (--source) too, or leave it out"
            zero = "needs a zero among the weights, which 1 bit and even weight_levels have not: choose others"
            raise KeyValueError("prune", zero if self.source else why)
        _ = self.rotate  # refuses options that exclude each other
        for key, default in zip(QAT_KEYS, (*Bits()[:-1], None, "searched"), strict=True):
            if self.qat and getattr(self, key) is None:
                object.__setattr__(self, key, default)
            elif not self.qat and getattr(self, key) is not None:
                raise KeyValueError(key, "is of training with qat: set qat=true (--qat) too, or leave it out")
        if self.bits is not None:
            self.bits.check()

    @property
    def images(self) -> ImageSource:
        """Which images the run is about."""
        return self._part(ImageSource)

    @property
    def architecture(self) -> Architecture:
        """How its model is built."""
        return self._part(Architecture)

    @property
    def execution(self) -> Execution:
        """How its model computes."""
        return self._part(Execution)

    @property
    def conversion(self) -> Conversion | None:
        """What dense convolutions become; None where they stay as they are."""
        return None if self.convert_taps is None else self._part(Conversion)

    @cached_property  # asked for at every step
    def optimization(self) -> Optimization:
        """How gradients move its weights."""
        return self._part(Optimization)

    def _part(self, kind: type[Part]) -> Part:
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]

    @property
    def rotate(self) -> "RotateConfig | None":
        """Options of the RotateConv layers that dense convolutions become; None where they stay as they are."""
        if self.convert_taps is None:
            return None
        from rotateconv.nn.config import RotateConfig  # loads torch

        return RotateConfig(
            self.convert_taps,
            self.convert_path,
            self.convert_angle_groups,
            self.convert_learn_angle,
            self.convert_form,
            self.convert_learn_profile,
        )

    @property
    def bits(self) -> Bits | None:
        """Bits of the numbers that the run trains for; None without `qat`."""
        if self.weight_bits is None or self.angle_bits is None or self.dense_bits is None:
            return None
        own = _bits_by_name(self.layer_bits or (), self.angle_bits)
        return Bits.of(self.weight_bits, self.angle_bits, self.dense_bits, self.weight_levels, self.profile_bits, own)


FINISHED_KEYS = (
    *(*SOURCE_KEYS, "source", "qat"),
    *(field.name for field in dataclasses.fields(RunConfig) if field.name.startswith("convert_")),
)
"""Keys that stay what they are when `rotateconv finish` goes on from a run."""
