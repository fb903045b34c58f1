"""`rotateconv analyse`: what the angles of finished runs did, and what shuffling them costs."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.cli.shared import keys, options
from rotateconv.lab.cli.shared.console import make_console, say
from rotateconv.lab.naming import layers_label
from rotateconv.lab.plain import to_json

EXAMPLES = options.examples(
    (
        "How far the angles of a run moved, and what shuffling them costs:",
        "rotateconv analyse runs/demo/runs/resnet20-rotate4-seed0",
    ),
    ("Of all runs of a comparison:", "rotateconv analyse runs/demo"),
)


def analyse(
    folders: Annotated[list[Path], Parameter(name="DIR", help="Run folders and comparisons.", show_default=False)],
    /,
    *,
    data_dir: keys.DataDir = None,
    draws: Annotated[int, options.value("--draws", "INTEGER", "Shuffles of each layer's angles.")] = 3,
    device: options.Device = None,
) -> None:
    """Write analysis.json into every finished run folder, confusion.png, and analysis.png where there are angles."""
    if draws < 1:
        raise ConfigError(f"--draws must be 1 or more, not {draws}")
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.files import write_json
    from rotateconv.lab.report.colors import layers_color
    from rotateconv.lab.report.run_figures import draw_angles, draw_confusion
    from rotateconv.lab.study.angles import analyse as analysis
    from rotateconv.lab.train.run_folder import ANALYSIS, read_config, read_description, read_summary

    options.use_device(device)
    console = make_console()
    runs = [run for folder in folders for run in _finished(folder)]
    if not runs:
        named = ", ".join(map(str, folders))
        raise RunError(f"there is no finished run in {named}: name its folder, or that of a comparison")
    images = {}
    for run in runs:
        config = read_config(run)
        if data_dir is not None:
            config = dataclasses.replace(config, data_dir=str(data_dir))
        source = config.images
        if source not in images:
            images[source] = load_shown(source, console)
        found = analysis(run, images[source], draws)
        write_json(run / ANALYSIS, to_json(found))
        if (counts := read_summary(run).test_confusion) is not None:
            title = f"{run.name}: the test images"
            draw_confusion(counts, read_description(run).classes, run / "confusion.png", title)
        message = f"packed {found.packed.bytes:,} bytes, {found.packed.validation_accuracy:.2f} %"
        if found.angles is not None:
            color = layers_color(layers_label(config))
            draw_angles(found, run / "analysis.png", title=run.name, color=color)
            together = found.angles.all
            message += f", moved {together.movement.mean:.3f} rad, shuffled {together.shuffled.mean:.2f} %"
        say(console, f"{run.name}: validation accuracy {found.validation_accuracy:.2f} %, {message}")


def _finished(folder: Path) -> list[Path]:
    if (folder / "summary.json").is_file():
        return [folder]
    return sorted(path.parent for path in (folder / "runs").glob("*/summary.json"))
