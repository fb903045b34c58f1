"""Other ways to train quantized angles, and bits that differ by layer: what each is worth beside the plain way.

    python benchmarks/estimators.py --source runs/bytes/f-conv3x3-x1-s0 --data-dir DATA --work runs/estimators
    python benchmarks/estimators.py --work runs/estimators --record experiments/bytes/estimators.json

Each variant is the same command, `rotateconv convert SOURCE --taps profile --qat`, with one thing exchanged:

    plain       the straight-through estimator of rotateconv: the nearest angle forward, its gradient to the exact one
    annealed    θ + α (Q(θ) - θ), where α grows from 0 to 1 in the first 70 % of the steps
    frozen      layer by layer, from the first: between 20 and 80 % of the steps its angles become Q(θ) for good
    offset      the grid of an output channel's angles may lie anywhere: one of 16 offsets, of the least squared error
    mixed       4 levels and 3-bit angles in the last stage, which has three quarters of the slices; 16 and 5 before

No file holds an offset or bits by layer: the bytes of these two are computed, 2 for an offset and the bits themselves.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rotateconv.lab.cli import run
from rotateconv.lab.train import build_state, train_state
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_records, read_summary
from rotateconv.quantization import qat, quantize
from rotateconv.quantization.bits import levels_of
from rotateconv.quantization.pack import pack
from rotateconv.quantization.primitives import decode_angle, encode_angle
from rotateconv.quantization.quantize import Entry

MIXED = {"stages.0.": (4, 5), "stages.1.": (4, 5)}
"""Bits of weights and angles of what begins so."""

COMMAND = ("--taps=profile", "--qat", "--epochs=3", "--weight-bits=2", "--weight-levels=4", "--angle-bits=3")
"""Options of `rotateconv convert`."""

STEPS = 3 * 352
"""Of three epochs of 45,000 images."""

OFFSETS = 16
"""Of a grid of angles, in a step of it."""


class Plain(qat.QuantizedTraining):
    """As it is; counts its passes."""

    passes = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with super().__call__():
            exact = self.exchange(self.passes / STEPS)
            yield
        self.settle(exact)
        self.passes += 1

    def angles(self) -> list[Entry]:
        return [entry for entry in quantize.entries(self.model, self.bits) if entry.kind == "angle"]

    def exchange(self, time: float) -> object:
        """Change the quantized angles of a pass."""

    def settle(self, exact: object) -> None:
        """Change the exact ones behind it."""


class Annealed(Plain):
    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.exact = [entry.tensor.detach().clone() for entry in self.angles()]
        with super().__call__():
            yield

    @torch.no_grad()
    def exchange(self, time: float) -> None:
        share = min(1.0, time / 0.7)
        for entry, exact in zip(self.angles(), self.exact, strict=True):
            # The nearest equal direction: a whole period more or less is the same one.
            turned = (entry.tensor - exact + entry.period / 2).remainder(entry.period) - entry.period / 2
            entry.tensor.copy_(exact + share * turned)


class Frozen(Plain):
    @torch.no_grad()
    def exchange(self, time: float) -> list[tuple[Tensor, Tensor]]:
        angles = self.angles()
        still = [entry for n, entry in enumerate(angles) if time >= 0.2 + 0.6 * n / len(angles)]
        return [(entry.tensor, entry.tensor.clone()) for entry in still]

    @torch.no_grad()
    def settle(self, exact: list[tuple[Tensor, Tensor]]) -> None:
        for tensor, value in exact:
            tensor.copy_(value)
            tensor.grad = None  # an optimizer leaves it alone, momentum and all


def nearest_with_offset(angle: Tensor, bits: int, period: float) -> Tensor:
    """The angles on the grid of their output channel (row) that has the least squared error."""
    step = period / 2**bits
    offsets = torch.arange(OFFSETS, device=angle.device)[:, None, None] * (step / OFFSETS)
    found = decode_angle(encode_angle(angle - offsets, bits, period), bits, period) + offsets  # [offset, out, in]
    error = ((found - angle + period / 2).remainder(period) - period / 2).square().sum(-1)
    return found.gather(0, error.argmin(0)[None, :, None].expand_as(found[:1]))[0].to(angle.dtype)


class Offset(Plain):
    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.exact = [entry.tensor.detach().clone() for entry in self.angles()]
        with super().__call__():
            yield

    @torch.no_grad()
    def exchange(self, time: float) -> None:
        for entry, exact in zip(self.angles(), self.exact, strict=True):
            entry.tensor.copy_(nearest_with_offset(exact, entry.bits, entry.period))


class Mixed(Plain):
    pass


VARIANTS = {"plain": Plain, "annealed": Annealed, "frozen": Frozen, "offset": Offset, "mixed": Mixed}
_entries, _quantize = quantize.entries, quantize.quantize


def mixed_entries(model: nn.Module, bits: qat.Bits) -> list[Entry]:
    """As `entries`, with the bits of MIXED."""
    found = []
    for entry in _entries(model, bits):
        own = next((own for start, own in MIXED.items() if entry.name.startswith(start)), None)
        if own is not None and entry.kind == "weight":
            entry = replace(entry, bits=own[0], levels=2 ** own[0] if entry.levels % 2 == 0 else levels_of(own[0]))
        elif own is not None and entry.kind == "angle":
            entry = replace(entry, bits=own[1])
        found.append(entry)
    return found


@torch.no_grad()
def quantize_with_offset(model: nn.Module, *args: int, **options: object) -> nn.Module:
    """As `quantize`, with angles on grids of their own."""
    quantized = _quantize(model, *args, **options)
    bits = options["angle_bits"]
    for ours, exact in zip(train_state.angles(quantized), train_state.angles(model), strict=True):
        ours.copy_(nearest_with_offset(exact, bits, 2 * math.pi))
    return quantized


def use(variant: str) -> None:
    """Exchange what the variant has otherwise, in every module that knows it."""
    kind = VARIANTS[variant]
    build_state.QuantizedTraining = kind
    train_state.quantize = quantize_with_offset if variant == "offset" else _quantize
    found = mixed_entries if variant == "mixed" else _entries
    quantize.entries = qat.entries = found


def bytes_of(model: nn.Module, variant: str, bits: dict[str, int | None]) -> int:
    """Bytes of the model's packed file; where no file can hold it, of what it would take."""
    quantize.entries = qat.entries = _entries
    plain = _quantize(model, **bits)
    with tempfile.NamedTemporaryFile(suffix=".rcp") as file:
        pack(plain, file.name, fold_norms=True, **bits)
        size = Path(file.name).stat().st_size
    more = 0
    if variant == "offset":
        more = 16 * sum(len(angle) for angle in train_state.angles(model))
    elif variant == "mixed":
        ours, theirs = mixed_entries(model, qat.Bits(**short(bits))), _entries(model, qat.Bits(**short(bits)))
        more = sum((a.bits - b.bits) * a.tensor.numel() for a, b in zip(ours, theirs, strict=True))
    return size + more // 8


def short(bits: dict[str, int | None]) -> dict[str, int | None]:
    """The keys of `Bits`."""
    return dict(zip(qat.Bits._fields, bits.values(), strict=True))


def measure_all() -> None:
    """Train one variant after the other; each leaves a run folder and a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a trained dense run, which is also the teacher")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--record", type=Path, help="write what the finished runs found to this file, and stop")
    given = parser.parse_args()
    if given.record is not None:  # the folders of the runs say with what they were made
        rows = [json.loads(path.read_text()) for path in sorted(given.work.glob("*.result.json"))]
        given.record.write_text(json.dumps(rows, indent=1) + "\n")
        return
    torch.set_num_threads(1)
    label = "".join(f"-{word.replace('=', '-')}" for word in given.set)
    for variant in given.variants.split(","):
        out = given.work / f"{variant}{label}-{given.source.name}"
        result = out.with_suffix(".result.json")
        if result.exists():
            continue
        use(variant)
        options = [word for key in given.set for word in ("--set", key)]
        command = ["convert", str(given.source), "--teacher", str(given.source), "--out", str(out), *COMMAND, *options]
        if run([*command, "--data-dir", str(given.data_dir)]):
            raise SystemExit(f"{variant} was not finished")
        trained, summary = load_run(out), read_summary(out)
        row = {
            "variant": variant,
            "source": given.source.name,
            "set": given.set,
            "validation": read_records(out)[-1].validation_accuracy,
            "test": summary.test_accuracy,
            "bytes": bytes_of(trained.model, variant, trained.config.bits.arguments),
        }
        result.write_text(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    measure_all()
