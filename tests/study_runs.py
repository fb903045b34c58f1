"""Finished runs without training: the files of a run and of a comparison, as far as a report reads them."""

import json
import math
from pathlib import Path
from typing import Any

from rotateconv.lab.config import RunConfig, make_config, to_json
from rotateconv.lab.train.run_folder import Record

SIZES = {"conv3x3": 269_722, "rotate4": 121_242, "rotate2": 61_850, "rotate2p": 63_866, "rotate4-fixed": 91_258}


UNIFORM = {"kuiper": 0.02, "probability": 0.4, "axes": 0.001}


CROWDED = {"kuiper": 0.31, "probability": 1e-9, "axes": 0.2}


def write_run(folder: Path, config: RunConfig, accuracy: float, **summary: Any) -> None:
    """A finished run's files, as far as a report reads them."""
    folder.mkdir(parents=True)
    learned = config.conv.startswith("rotate") and "fixed" not in config.conv
    values = {
        "recipe": config.recipe,
        "conv": config.conv,
        "parameters": SIZES[config.conv] if config.width == 1 else round(SIZES[config.conv] * config.width**2),
        "steps": 2000,
        "test_accuracy": accuracy,
        "test_confusion": [[1, 2], [3, 4]],
        "last": {"angle_movement_mean": 0.1},
        "data": {},
        **summary,
    }
    lines = [
        {
            "epoch": epoch,
            "train_loss": 1.23456789 / epoch,
            "validation_accuracy": accuracy - 2 + epoch if config.validation else None,
            "angle_movement_mean": 0.1 * epoch if learned else None,
            "angle_movement_max": 0.7 * epoch if learned else None,
        }
        for epoch in (1, 2)
    ]
    machine = {"command": "python /home/somebody/x", "platform": "Linux-1"}
    machine |= {"cpu": "a processor", "cpu_capability": "AVX2", "threads": 1}
    files = {
        "summary.json": json.dumps(values),
        "environment.json": json.dumps({**machine, "commit": "0123456789abcdef", "versions": {"torch": "2"}}),
        "data.json": json.dumps({"name": "digits", "classes": ["0", "1"]}),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "config.json": to_json(config),
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


def analysis_of(rejected: bool) -> Record:
    after = CROWDED if rejected else UNIFORM
    layer = {"slices": 50, "movement": {"mean": 0.3, "max": 2.0}, "before": UNIFORM, "after": after}
    layers = [
        {"name": f"stages.{i}", **layer, "shuffled": {"mean": 80.0 + i, "std": 0.5, "draws": 3}} for i in (2, 0, 1)
    ]
    together = {**layer, "shuffled": {"mean": 12.5, "std": 1.0, "draws": 3}}
    together["histogram"] = {"before": [1, 2, 3, 4], "after": [4, 3, 2, 1]}
    angles = {"period": math.pi, "layers": layers, "all": together}
    packed = {"bytes": 50_000, "validation_accuracy": 89.5}
    return {"validation_accuracy": 90.0, "validation_seen": False, "packed": packed, "angles": angles}
