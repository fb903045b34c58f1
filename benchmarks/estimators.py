"""Other ways to train quantized angles: what each is worth beside the plain way.

    python benchmarks/estimators.py --source runs/bytes/f-conv3x3-x1-s0 --data-dir DATA --work runs/estimators
    python benchmarks/estimators.py --work runs/estimators --record experiments/bytes/estimators.json

Each variant is the same command, `rotateconv convert SOURCE --taps profile --qat`, with one thing exchanged:

    plain       the straight-through estimator of rotateconv: the nearest angle forward, its gradient to the exact one
    annealed    θ + α (Q(θ) - θ), where α grows from 0 to 1 in the first 70 % of the steps
    frozen      layer by layer, from the first: between 20 and 80 % of the steps its angles become Q(θ) for good
    offset      the grid of an output channel's angles may lie anywhere: one of 16 offsets, of the least squared error

No file holds an offset, so it counts as two bytes.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.lab.cli import run
from rotateconv.lab.train import build_state, train_state
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_records, read_summary
from rotateconv.quantization import qat
from rotateconv.quantization.pack import pack
from rotateconv.quantization.primitives import decode_angle, encode_angle
from rotateconv.quantization.quantize import Entry, entries, quantize

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
        return [entry for entry in entries(self.model, self.bits) if entry.kind == "angle"]

    def exchange(self, time: float) -> object:
        """Change the quantized angles of a pass."""

    def settle(self, exact: object) -> None:
        """Change the exact ones behind it."""


class FromExact(Plain):
    """Knows the exact angles of a pass."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.exact = [entry.tensor.detach().clone() for entry in self.angles()]
        with super().__call__():
            yield


class Annealed(FromExact):
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


class Offset(FromExact):
    @torch.no_grad()
    def exchange(self, time: float) -> None:
        for entry, exact in zip(self.angles(), self.exact, strict=True):
            entry.tensor.copy_(nearest_with_offset(exact, entry.bits, entry.period))


VARIANTS = {"plain": Plain, "annealed": Annealed, "frozen": Frozen, "offset": Offset}


@torch.no_grad()
def quantize_with_offset(model: nn.Module, *args: int, **options: object) -> nn.Module:
    """As `quantize`, with angles on grids of their own."""
    quantized = quantize(model, *args, **options)
    bits = options["angle_bits"]
    for ours, exact in zip(rotate_layers(quantized).values(), rotate_layers(model).values(), strict=True):
        ours.angle.copy_(nearest_with_offset(exact.angle, bits, 2 * math.pi))
    return quantized


def use(variant: str) -> None:
    """Exchange what the variant has otherwise, in every module that knows it."""
    kind = VARIANTS[variant]
    build_state.QuantizedTraining = kind
    train_state.quantize = quantize_with_offset if variant == "offset" else quantize


def bytes_of(model: nn.Module, variant: str, bits: dict[str, Any]) -> int:
    """Bytes of the model's packed file, and two for each offset, which no file can hold."""
    with tempfile.NamedTemporaryFile(suffix=".rcp") as file:
        pack(quantize(model, **bits), file.name, fold_norms=True, **bits)
        size = Path(file.name).stat().st_size
    return size + (2 * sum(len(layer.angle) for layer in rotate_layers(model).values()) if variant == "offset" else 0)


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
