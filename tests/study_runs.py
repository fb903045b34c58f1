"""Finished runs without training: the files of a run and of a comparison, as far as a report reads them."""

import json
import math
from pathlib import Path
from typing import Any

from rotateconv.lab import config as configuration
from rotateconv.lab.config import RunConfig, make_config
from rotateconv.lab.plain import to_json
from rotateconv.lab.study.angles import (
    Alignment,
    AngleAnalysis,
    Histogram,
    LayerAngles,
    Movement,
    PackedResult,
    RunAnalysis,
    Shuffled,
)

SIZES = {"conv3x3": 269_722, "rotate4": 121_242, "rotate2": 61_850, "rotate2p": 63_866, "rotate4-fixed": 91_258}


def write_run(folder: Path, config: RunConfig, accuracy: float, **summary: Any) -> None:
    """A finished run's files, as far as a report reads them."""
    folder.mkdir(parents=True)
    learned = config.conv.startswith("rotate") and "fixed" not in config.conv
    values = {
        "parameters": round(SIZES.get(config.conv, 62_000) * (1 if config.width == 1 else config.width**2)),
        **{"steps": 2000, "multiply_adds": 2_516_608, "test_loss": 0.5, "test_accuracy": accuracy},
        **{"test_class_accuracy": {"0": accuracy, "1": None}, "best_epoch": None, "best_validation_accuracy": None},
        **{"seconds": 60.0, "seconds_per_epoch": 3.0, "images_per_second": 400.0, "peak_memory_bytes": 2**30},
        "test_confusion": [[1, 2], [3, 4]],
        **summary,
    }
    lines = [
        {
            **{"epoch": epoch, "step": 1000 * epoch, "train_loss": 1.23456789 / epoch, "train_accuracy": 50.0},
            **{"validation_loss": 0.5, "learning_rates": {"weights": 0.1}, "seconds": 3.0, "validation_seconds": 0.5},
            **{"images_per_second": 400.0, "peak_memory_bytes": 2**30, "peak_gpu_memory_bytes": None},
            "validation_accuracy": accuracy - 2 + epoch if config.validation else None,
            "angle_movement_mean": 0.1 * epoch if learned else None,
            "angle_movement_max": 0.7 * epoch if learned else None,
            "angle_movement_layers": [0.1 * epoch] * 3 if learned else None,
        }
        for epoch in (1, 2)
    ]
    machine: dict[str, Any] = {"command": "python /home/somebody/x", "platform": "Linux-1"}
    machine |= {"cpu": "a processor", "cpu_capability": "AVX2", "threads": 1, "python": "3", "memory_bytes": 2**30}
    machine |= {"physical_cores": 1, "logical_cores": 2, "gpu": None, "gpu_count": 0, "cuda": None}
    data: dict[str, Any] = {
        "name": "digits",
        "classes": ["0", "1"],
        "mean": [0.5],
        "std": [0.5],
        "input_shape": [1, 8, 8],
    }
    data |= {"flip": False, "train": 100, "validation": 20, "test": 30}
    files = {
        "summary.json": json.dumps(values),
        "environment.json": json.dumps({**machine, "commit": "0123456789abcdef", "versions": {"torch": "2"}}),
        "data.json": json.dumps(data),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "config.json": configuration.to_json(config),
    }
    for name, text in files.items():
        (folder / name).write_text(text)


ACCURACIES = {
    ("conv3x3", 1.0): (90.0, 91.0, 92.0),
    ("rotate4", 1.0): (90.5, 91.0, 91.5),
    ("conv3x3", 0.6875): (89.0, 89.1, 89.2),
    ("rotate2", 1.0): (70.0, 72.0, 74.0),
    ("rotate4-fixed", 1.0): (88.0, 88.2, 88.4),
}


def write_comparison(out: Path) -> Path:
    """A comparison's folder at `out`, with a run that diverged."""
    for (conv, width), accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"resnet20-{conv}{'' if width == 1 else f'-w{width:g}'}-seed{seed}"
            changes = {"conv": conv, "width": width, "seed": seed, "data_dir": "/home/somebody"}
            write_run(out / "runs" / name, make_config("digits", changes=changes), accuracy)
    wild = out / "runs" / "resnet20-rotate2p-seed0"
    write_run(wild, make_config("digits", changes={"conv": "rotate2p"}), 0.0)
    (wild / "summary.json").unlink()
    base = {"model": "resnet20", "width": 1.0, "equal_to": None, "failed": {}, "seeds": [0, 1, 2]}
    rows = [
        {**base, "conv": "conv3x3", "width": 0.6875, "equal_to": "rotate4"},
        {**base, "conv": "rotate2p", "seeds": [], "failed": {"0": "the loss became NaN; the last is /home/somebody"}},
    ]
    (out / "comparison.json").write_text(json.dumps(rows))
    return out


def analysis_of(crowded: bool, seen: bool = False) -> RunAnalysis:
    """What the analysis of a run of three layers may have found; crowded: its angles gathered along the axes."""

    def layer(accuracy: float, std: float, **changes: Any) -> LayerAngles:
        after = Alignment(0.2 if crowded else 0.001)
        return LayerAngles(50, Movement(0.3, 2.0), Alignment(0.001), after, Shuffled(accuracy, std, 3), **changes)

    layers = tuple(layer(80.0 + number, 0.5, name=f"stages.{number}") for number in (2, 0, 1))
    together = layer(12.5, 1.0, histogram=Histogram((1, 2, 3, 4), (4, 3, 2, 1)))
    return RunAnalysis(90.0, seen, PackedResult(50_000, 89.5), AngleAnalysis(math.pi, layers, together))


def write_analysis(run: Path, analysis: RunAnalysis) -> None:
    """Put an analysis into a run's folder."""
    (run / "analysis.json").write_text(json.dumps(to_json(analysis)))
