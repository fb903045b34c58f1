"""What is timed: layers, whole models, fused models and the kernel alone, and the sweeps made of them."""

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from rotateconv.lab.plain import Plain

Kind = Literal["layer", "model", "fused model", "kernel"]
Mode = Literal["forward", "forward+backward", "step", "captured step"]
Precision = Literal["float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
_PEERS = ("depthwise-separable", "1x1", "deform_conv2d", "DCLS")
LAYER_FORMS = ("nn.Conv2d", "rotate4", "rotate2", "rotate2p", "rotate2p-g1", "rotate2p-g4", *_PEERS)
UNBATCHED = ", layer by layer"
"""Ends the name of a model's form whose layers each make their own kernels, without `batched_kernels`."""
MODEL_FORMS = ("conv3x3", "rotate4", f"rotate4{UNBATCHED}", "rotate2", "rotate2p", "rotate2p-g4")

# A layer's forward pass in a sweep: the smallest are all overhead, the largest take minutes with the slow peers.
_MOST_MULTIPLY_ADDS = 2e10
_MOST_NUMBERS = 1e8  # of its input and output


@dataclass(frozen=True)
class Case(Plain):
    """One row of a comparison: several forms of the same work, timed together.

    Attributes:
        kind: "layer", "model", "fused model" (batch norms folded, for inference) or "kernel" (no convolution).
        forms: names of `bench.forms`; the others are compared with the first.
        mode: "forward" without gradients, "forward+backward", "step": that and the optimizer's, or "captured step":
            the same in a CUDA graph.
        dtype: "bfloat16" is autocast over float32 parameters, as in training.
        compiled: with torch.compile.
        model: its name, of a model.
        channels, size, kernel_size, stride: of a layer from `channels` to `channels` on size x size pixels.
        batch: images; slices' side of a kernel, batch x batch of them.
    """

    kind: Kind
    forms: tuple[str, ...]
    mode: Mode
    batch: int
    dtype: Precision = "float32"
    compiled: bool = False
    model: str = ""
    channels: int = 0
    size: int = 32
    kernel_size: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """What is timed, without mode and dtype."""
        if self.kind == "kernel":
            return f"line_kernel of {self.batch} x {self.batch} slices"
        if self.kind == "layer":
            kernel = (
                "" if (self.kernel_size, self.stride) == (3, 1) else f", k {self.kernel_size}, stride {self.stride}"
            )
            return f"{self.channels} -> {self.channels} at {self.size} x {self.size}, batch {self.batch}{kernel}"
        return f"{self.model}{', fused' if self.kind == 'fused model' else ''}, batch {self.batch}"

    @property
    def how(self) -> str:
        """How it is timed."""
        return f"{self.mode}, {self.dtype}{', compiled' if self.compiled else ''}"


def quick_cases() -> list[Case]:
    """A few minutes on two cores: the sizes of the models' layers, and one model."""
    ours = tuple(form for form in LAYER_FORMS if form != "deform_conv2d")
    cases = [
        Case("layer", forms, mode, batch, dtype, channels=channels, size=size)
        for (channels, size, batch, forms) in (
            (16, 32, 32, LAYER_FORMS),
            (64, 8, 32, ours),
            (128, 28, 8, ours),
            (256, 14, 8, ours),
        )
        for mode, dtype in _modes()
    ]
    cases += [Case("kernel", ("plain", "fused"), "forward+backward", 512)]
    forms = ("conv3x3", "rotate4", "rotate2p-g4")
    cases += [Case("model", forms, mode, 32, dtype, model="resnet20") for mode, dtype in _modes()]
    return [*cases, Case("fused model", ("conv3x3", "rotate4"), "forward", 32, model="resnet20")]


def full_cases(device: str = "cpu") -> list[Case]:
    """The sweep over sizes, kernels, strides, precisions and compilation: hours on two cores."""
    cases = []
    for channels, size, batch in product((16, 64, 256, 1024), (4, 8, 16, 32, 64), (1, 8, 64, 512)):
        if _is_too_large(channels, size, batch):
            continue
        for mode, dtype in _modes(("forward", "forward+backward", "step")):
            cases.append(Case("layer", LAYER_FORMS, mode, batch, dtype, channels=channels, size=size))
    for (kernel_size, stride), (mode, dtype) in product(((5, 1), (7, 1), (3, 2)), _modes()):
        shape: dict[str, Any] = {"channels": 64, "size": 16, "kernel_size": kernel_size, "stride": stride}
        cases.append(Case("layer", LAYER_FORMS, mode, 32, dtype, **shape))
    for compiled, (mode, dtype) in product((False, True), _modes()):
        forms = tuple(form for form in MODEL_FORMS if not (compiled and form.endswith(UNBATCHED)))
        for model, batch in (("resnet20", 128), ("densenet40", 64)):
            batch *= 4 if device == "cuda" else 1
            cases.append(Case("model", forms, mode, batch, dtype, compiled, model))
    cases += [
        Case("kernel", ("plain", "fused"), mode, side) for mode in ("forward", "forward+backward") for side in (64, 512)
    ]
    cases += [
        Case("fused model", ("conv3x3", "rotate4"), "forward", batch, compiled=compiled, model="resnet20")
        for compiled, batch in product((False, True), (1, 128))
    ]
    return cases


def _modes(modes: tuple[Mode, ...] = ("forward", "step")) -> list[tuple[Mode, Precision]]:
    return list(product(modes, PRECISIONS))


def _is_too_large(channels: int, size: int, batch: int) -> bool:
    positions = batch * size * size
    return positions * channels**2 * 9 > _MOST_MULTIPLY_ADDS or 2 * positions * channels > _MOST_NUMBERS
