"""Bits by part of a model: few where they cost least, so that its packed file has so many bytes."""

import itertools
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.copying import copy_model
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.pack import pack
from rotateconv.quantization.pack_file import read_packed
from rotateconv.quantization.quantize import Entry, entries, quantize_in_place

STEPS = ((1, 3), (2, 3), (2, 4), (3, 4), (4, 5), (5, 6), (6, 7))
"""Bits of a weight and of an angle that a part of a model may have."""

_MOST_PARTS = 4
"""Parts that are told apart: all combinations of their bits are looked at."""

Step = tuple[int, int]
Part = tuple[str, ...]


@dataclass(frozen=True)
class Allocation:
    """Bits for the parts of a model.

    Attributes:
        bits: As `quantize` and `pack` take them (`bits.arguments`).
        bytes: Of the packed file, its norms folded, if all codes are equally frequent: of a trained model it is hardly
            smaller.
        divergence: What quantizing each part alone changes, added up: the mean Kullback-Leibler divergence of the
            predictions of the float model, in nats.
    """

    bits: Bits
    bytes: int
    divergence: float


@torch.no_grad()
def allocate_bits(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    budget: int,
    *,
    dense_bits: int = 8,
    profile_bits: int | None = None,
    notes_bytes: int = 0,
) -> Allocation:
    """The bits of weights and angles, for each part of a model, with which its packed file fits into a budget.

    Parts are the children of the model that hold its convolutions, such as layer1 to layer4. Each alone is quantized
    to each of `STEPS`; of all combinations whose file fits, that with the least sum of divergences is taken

        Σ_part  mean_image  Σ_class  p · log(p / p_part)

    where p are the probabilities of the float model: that parts do not act on each other is an approximation. Weights
    of shared and profile taps, and of codebooks, have 2^bits levels, none of them 0.

    Args:
        model: In float32, with class scores as its output; not changed.
        batches: A few hundred images as the model takes them, as of `recalibrate`.
        budget: Bytes of the packed file with its norms folded.
        dense_bits, profile_bits: As in quantize, for the whole model.
        notes_bytes: Of what `pack` will be given to note in the file, such as the names of classes.

    Raises:
        ValueError: If no layer of the model has `weight_bits`, there is no image, or nothing fits.

    Example:
        >>> from rotateconv.models import build_model
        >>> found = allocate_bits(build_model("resnet20", "rotate2p"), [torch.randn(8, 3, 32, 32)], 26_000)
        >>> found.bytes <= 26_000, found.bits.levels == 2**found.bits.weight
        (True, True)

    Reference:
        Dong, Yao, Gholami, Mahoney, Keutzer, "HAWQ", ICCV 2019, section 3, allocates bits by what each part costs.
    """
    model = copy_model(model).eval()
    images = [batch if isinstance(batch, Tensor) else batch[0] for batch in batches]
    if not sum(map(len, images)):
        raise InputError("allocate_bits needs images: what fewer bits cost is measured on them")
    rotated = [module for module in model.modules() if isinstance(module, RotateConv2d)]
    single = [*rotated, *(module for module in model.modules() if isinstance(module, CodebookConv2d))]
    even = bool(single) and all(layer.taps != "free" for layer in rotated)
    steps = STEPS if rotated else tuple(dict(STEPS).items())  # without angles, those that differ in the weight

    def bits_of(chosen: Sequence[Step], parts: Sequence[Part]) -> Bits:
        weight, angle = max(chosen, key=chosen.count)
        own = [(part, step) for part, step in zip(parts, chosen, strict=True) if step != (weight, angle)]
        layers = {pattern: step for part, step in own for pattern in part}
        return Bits.of(weight, angle, dense_bits, 2**weight if even else None, profile_bits, layers)

    parts = _parts(model)
    exact = torch.cat([model(batch).log_softmax(1) for batch in images])
    divergence: dict[tuple[Part, Step], float] = {}
    coded: dict[tuple[Part, Step], float] = {}
    for part, step in itertools.product(parts, steps):
        only = Bits.of(*steps[-1], dense_bits, None, profile_bits, dict.fromkeys(part, step))
        only = only._replace(levels=2**only.weight if even else None)
        tensors = [entry for entry in entries(model, only) if entry.own_bits]
        coded[part, step] = sum(entry.bits * entry.tensor.numel() for entry in tensors) / 8
        divergence[part, step] = _divergence(model, tensors, images, exact)

    def total(chosen: Sequence[Step], of: Mapping[tuple[Part, Step], float]) -> float:
        return sum(of[part, step] for part, step in zip(parts, chosen, strict=True))

    choices = sorted(itertools.product(steps, repeat=len(parts)), key=lambda chosen: total(chosen, divergence))

    @cache
    def size(chosen: tuple[Step, ...]) -> int:
        """As if no code were rarer than another: so it is, nearly, after a training with these bits."""
        # The other streams grew by 0.7 % while a ResNet-20 was trained with its bits.
        rest = math.ceil(1.02 * _other_bytes(model, bits_of(chosen, parts)))
        return math.ceil(total(chosen, coded)) + rest + notes_bytes

    least = size(choices[0]) - total(choices[0], coded) - 1  # beside the codes: other bits in a part take some more
    for chosen in choices:
        if total(chosen, coded) + least <= budget and (found := size(chosen)) <= budget:
            return Allocation(bits_of(chosen, parts), found, total(chosen, divergence))
    smallest = size(min(choices, key=lambda chosen: total(chosen, coded)))
    raise InputError(f"nothing fits in {budget:,} bytes: with the fewest bits the file has {smallest:,}")


def _parts(model: nn.Module) -> list[tuple[str, ...]]:
    """The patterns of the names of the layers of each part; a part of a long chain has several."""
    names = [entry.name for entry in entries(model, Bits()) if entry.kind in ("weight", "codebook")]
    layers = [name.rpartition(".")[0].split(".") for name in names]
    if not layers:
        raise InputError("allocate_bits needs convolutions that weight_bits are for: those beyond 1x1, but the first")
    depth = 1
    while len({tuple(layer[:depth]) for layer in layers}) == 1 and depth < max(map(len, layers)):
        depth += 1
    patterns = [".".join(layer[:depth]) + (".*" if len(layer) > depth else "") for layer in layers]
    children = list(dict.fromkeys(patterns))
    size = -(-len(children) // _MOST_PARTS)
    return [tuple(children[start : start + size]) for start in range(0, len(children), size)]


def _divergence(model: nn.Module, tensors: list[Entry], images: list[Tensor], exact: Tensor) -> float:
    """What quantizing some tensors changes, in nats; they are put back."""
    kept = [entry.tensor.clone() for entry in tensors]
    quantize_in_place(tensors)
    found = torch.cat([model(batch).log_softmax(1) for batch in images])
    for entry, value in zip(tensors, kept, strict=True):
        entry.tensor.copy_(value)
    return float((exact.exp() * (exact - found)).sum(1).mean())


def _other_bytes(model: nn.Module, bits: Bits) -> int:
    """What the packed file holds beside the codes of weights and angles."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.rotateconv")
        pack(model, file, fold_norms=True, **bits.arguments)
        codes = read_packed(file).data.items()
        return file.stat().st_size - sum(len(data) for name, data in codes if name.startswith(("weight", "angle")))
