"""The part of `rotateconv report` that computes: what the angles of finished runs did."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from rotateconv.errors import RunError
from rotateconv.lab.cli.console import say
from rotateconv.lab.cli.loading import load_shown
from rotateconv.lab.data.images import images_key
from rotateconv.lab.plain import to_json
from rotateconv.lab.report.figures import draw_angles
from rotateconv.lab.study.angles import analyse
from rotateconv.lab.train.run_folder import ANALYSIS, read_config, write_json


def analyse_all(folders: Iterable[Path], data_dir: Path | None, draws: int, console: Console) -> None:
    """Write analysis.json into every finished run folder, and analysis.png where its net has angles.

    Args:
        folders: run folders and comparisons.
        data_dir: where the images lie now; None for where the run found them.
        draws: shuffles of each layer.
        console: for a line a run.

    Raises:
        RunError: no finished run among them.
    """
    runs = [run for folder in folders for run in _finished(folder)]
    if not runs:
        raise RunError("--analysis needs a finished run: name its folder, or that of a comparison")
    images = {}
    for run in runs:
        config = read_config(run)
        if data_dir is not None:
            config = dataclasses.replace(config, data_dir=str(data_dir))
        key = images_key(config)
        if key not in images:
            images[key] = load_shown(config, console)
        found = analyse(run, images[key], draws)
        write_json(run / ANALYSIS, to_json(found))
        told = f"packed {found.packed.bytes:,} bytes, {found.packed.validation_accuracy:.2f} %"
        if found.angles is not None:
            draw_angles(found, run / "analysis.png", title=run.name)
            together = found.angles.all
            told += f", moved {together.movement.mean:.3f} rad, shuffled {together.shuffled.mean:.2f} %"
        say(console, f"{run.name}: validation accuracy {found.validation_accuracy:.2f} %, {told}")


def _finished(folder: Path) -> list[Path]:
    if (folder / "summary.json").is_file():
        return [folder]
    return sorted(path.parent for path in (folder / "runs").glob("*/summary.json"))
