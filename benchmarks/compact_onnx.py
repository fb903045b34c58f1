"""Sizes, opening and run times of compact ONNX files beside packed and dense ones: the tables of docs/compact-onnx.md.

    python benchmarks/compact_onnx.py            # the record and the page anew
    python benchmarks/compact_onnx.py FOLDER     # with the files kept there: a stopped run goes on
    python benchmarks/compact_onnx.py --page     # the page from the record

Models have weights at random and norms with the statistics, scales and shifts of a trained one. Times are the CPU time
of one thread, medians of interleaved rounds: what else runs on the machine takes turns, and does not count.
"""

import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from rotateconv import build_model, export_onnx, pack, quantize
from rotateconv._files import atomic_write
from rotateconv.lab.bench.timing import Spread, measure, ratio
from rotateconv.lab.report.blocks import fill_blocks
from rotateconv.lab.train.environment import Environment

ROOT = Path(__file__).parent.parent
RECORD, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs" / "compact-onnx.md"
SIZE = (3, 32, 32)
BITS = ((4, 4), (3, 4), (2, 3), (8, 8))
OTHERS = ("rotate2p-g4", "rotate4-g4", "separable", "mask4", "pattern4", "codebook16", "outer", "lowrank4")
CASES = (
    *product(["resnet20"], ["rotate2p", "rotate4"], BITS),
    *product(["resnet20"], ["rotate2", "conv3x3"], BITS[::2]),
    *product(["resnet20"], OTHERS, BITS[:1]),
    *product(["resnet20"], ["rotate2p-g4", "rotate4-g4"], BITS[2:3]),
    ("resnet20", "line", (8, 8)),
    *product(["densenet40"], ["rotate2p", "conv3x3"], BITS[::2]),
)


def lively(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.momentum = 1.0
        model.train()(torch.randn(16, *SIZE))
    return model.eval()


def opened(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def write(name: str, conv: str, bits: tuple[int, int], folder: Path) -> None:
    """Write the files of a case, images, and what the quantized model makes of them."""
    torch.manual_seed(0)
    model = lively(build_model(name, conv))
    about: dict[str, Any] = {
        "input_size": SIZE,
        "classes": [f"class {number}" for number in range(10)],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    widths = {"weight_bits": bits[0], "angle_bits": bits[1]}
    folder.mkdir()
    pack(model, folder / "rcp", **widths, **about)
    export_onnx(model, folder / "compact", compact=True, **widths, **about)
    quantized, images = quantize(model, **widths), torch.randn(16, *SIZE)
    export_onnx(quantized, folder / "dense", **about)
    with torch.no_grad():
        np.savez(folder / "outputs.npz", images=images.numpy(), expected=quantized(images).numpy())


def row(name: str, conv: str, bits: tuple[int, int], folder: Path, seconds: float) -> dict[str, Any]:
    """What the files of a case take."""
    outputs = np.load(folder / "outputs.npz")
    sessions = {key: opened(folder / key) for key in ("compact", "dense")}
    runs = {key: (lambda one=one: one.run(None, {"images": outputs["images"]})[0]) for key, one in sessions.items()}
    found, expected = runs["compact"](), outputs["expected"]
    runs["dense"]()
    clock = time.process_time
    opening = measure({key: lambda key=key: opened(folder / key) for key in runs}, seconds=seconds, clock=clock)
    running = measure(runs, seconds=seconds, clock=clock)
    sizes = {key: (folder / key).stat().st_size for key in ("rcp", "compact", "dense")}
    return {
        "model": name,
        "conv": conv,
        "bits": list(bits),
        "bytes": sizes | {"dense_gzip": len(gzip.compress((folder / "dense").read_bytes(), 9, mtime=0))},
        "opening_seconds": {key: asdict(Spread.of(times)) for key, times in opening.items()},
        "run_ratio": asdict(ratio(running, "compact", "dense")),
        "difference": float(abs(found - expected).max() / abs(expected).max()),
    }


def table(record: dict[str, Any], asked: str) -> str:
    if asked == "machine":
        at = record["environment"]
        return (
            f"ONNX Runtime {record['onnxruntime']}, PyTorch {at['versions']['torch']}, {at['cpu']}, one thread, "
            f"load average {at['load_average'][0]:.0f}."
        )
    if asked == "sizes":
        lines = ["| model | bits | `.rcp` | compact | ratio | dense | its gzip |", f"| --- | --- |{' ---: |' * 5}"]
    else:
        lines = ["| model | bits | opens, ms | dense, ms | run time | difference |", "| --- | --- |" + " ---: |" * 4]
    for found in record["rows"]:
        cells = [f"{found['model']} {found['conv']}", " + ".join(map(str, found["bits"]))]
        if asked == "sizes":
            size = found["bytes"]
            over = size["compact"] / size["rcp"]
            cells += [
                *(f"{size[key]:,}" for key in ("rcp", "compact")),
                f"**{over:.2f}**" if over > 1.25 else f"{over:.2f}",
            ]
            cells += [f"{size[key]:,}" for key in ("dense", "dense_gzip")]
        elif "run_ratio" not in found:
            continue
        else:
            opening, run = found["opening_seconds"], found["run_ratio"]
            cells += [f"{1000 * opening[key]['median']:.0f}" for key in ("compact", "dense")]
            cells += [f"{run['median']:.2f} ({run['low']:.2f} to {run['high']:.2f})", f"{found['difference']:.0e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def runtimes_table(record: dict[str, Any]) -> str:
    """What every runtime does with the files: the worst of them."""
    lines = [
        "| runtime | files | import and first opening, ms of CPU time | largest difference |",
        "| --- | --- | ---: | ---: |",
    ]
    for package in dict.fromkeys((row["package"], row.get("version", "")) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["package"], row.get("version", "")) == package]
        name, files = " ".join(package).strip(), ", ".join(row["conv"] for row in rows)
        failed = next((row["failed"] for row in rows if "failed" in row), None)
        if failed:
            lines.append(f"| {name} | {files} | | {failed} |")
        else:
            opening, difference = (max(row[key] for row in rows) for key in ("opening_seconds", "difference"))
            lines.append(f"| {name} | {files} | {1000 * opening:.0f} | {difference:.0e} |")
    return "\n".join(lines)


def fill(text: str) -> str:
    record, runtimes = (
        json.loads(path.read_text("utf-8")) for path in (RECORD, RECORD.with_name("onnx_runtimes.json"))
    )
    return fill_blocks(
        text, "compact", lambda asked: runtimes_table(runtimes) if asked == "runtimes" else table(record, asked)
    )


def fill_page() -> None:
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")


def main(folder: Path, seconds: float = 0.7) -> None:
    """Write the files that are not in the folder yet, then measure all."""
    torch.set_num_threads(1)
    places = {case: folder / "-".join((*case[:2], *map(str, case[2]))) for case in CASES}
    for case, place in places.items():
        if not (place / "outputs.npz").exists():
            shutil.rmtree(place, ignore_errors=True)
            write(*case, place)
    rows = [row(*case, place, seconds) for case, place in places.items()]
    environment = {**asdict(Environment.now()), "load_average": os.getloadavg()}
    record = {"schema": 1, "environment": environment, "onnxruntime": onnxruntime.__version__, "rows": rows}
    with atomic_write(RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if "--page" not in sys.argv:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(*sys.argv[1:2] or [temporary]))
    fill_page()
