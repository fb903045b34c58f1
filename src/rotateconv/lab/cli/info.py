"""`rotateconv info`: what a model consists of and costs, or what a run found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from rotateconv.errors import ConfigError, nearest
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.console import duration, facts, make_console, show_table
from rotateconv.lab.config import RunConfig
from rotateconv.lab.naming import counted, model_name
from rotateconv.lab.table import Table

if TYPE_CHECKING:
    from rotateconv.cost import ModelCost

EXAMPLES = options.examples(
    ("A model, layer by layer:", "rotateconv info resnet20 --conv rotate2p"),
    ("The totals for images of another size:", "rotateconv info densenet40 --input 3x64x64 --no-layers"),
    ("A run:", "rotateconv info runs/digits-resnet20-rotate4-seed0"),
)


def info(
    subject: Annotated[
        str, Parameter(name="MODEL_OR_RUN", help="Name of a model, or a run folder.", show_default=False)
    ],
    /,
    *,
    conv: Annotated[str, options.value(("--conv", "--convs"), "NAME", "Convolution of the model.")] = "rotate4",
    width: Annotated[float, options.value("--width", "NUMBER", "Factor on its channels.")] = 1.0,
    classes: Annotated[int, options.value("--classes", "INTEGER", "Its outputs.")] = 10,
    input: Annotated[str, options.value("--input", "CxHxW", "Channels, height and width of an image.")] = "3x32x32",
    layers: Annotated[
        bool, Parameter(name="--layers", show_default=False, help="One row per layer, or the totals alone.")
    ] = True,
) -> None:
    """Show a model's layers, parameters and multiply-adds, or the summary of a run.

    The options describe a model that is given by name; a run knows its own.
    """
    from rotateconv.cost import cost
    from rotateconv.lab.train.run_folder import read_config
    from rotateconv.models import MODELS, build_model

    console = make_console()
    if subject in MODELS:
        size = _input_size(input)
        model = build_model(subject, conv, num_classes=classes, in_channels=size[0], width=width)
        title = model_name(RunConfig(model=subject, conv=conv, width=width))
        _show_cost(console, title, cost(model, size), layers)
        return
    run = Path(subject)
    if not (run / "config.json").is_file():
        if run.exists() or "/" in subject:
            read_config(run, trusting=True)  # says what is wrong with it
        raise ConfigError(f"{subject!r} is neither a run folder nor a model: {nearest(subject, MODELS)}")
    _show_run(console, run, layers)


def _input_size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input must be channels x height x width such as 3x32x32, not {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width


def _show_run(console: Console, run: Path, layers: bool) -> None:
    """Print how a run was made and what it found, then its model."""
    from rotateconv.lab.cli.shared.progress import data_line, recipe_line
    from rotateconv.lab.train.build import configured_cost
    from rotateconv.lab.train.run_folder import (
        SUMMARY,
        read_config,
        read_description,
        read_environment,
        read_records,
        read_summary,
    )

    config = read_config(run)
    data = read_description(run)
    environment = read_environment(run)
    records = read_records(run)
    where = ", then ".join(dict.fromkeys(stage.environment.hardware for stage in environment.stages))
    finished = (run / SUMMARY).is_file()
    rows = {
        "run": str(run),
        "recipe": recipe_line(config),
        "data": data_line(data),
        "machine": f"{where}; torch {environment.began.versions.get('torch')}",
        "command": str(environment.began.command),
        "state": f"{'finished' if finished else 'not finished'}, {len(records)} of {counted(config.epochs, 'epoch')}",
    }
    if records:
        last = records[-1]
        rows["training"] = f"loss {last.train_loss:.4f}, accuracy {last.train_accuracy:.2f} %"
        if last.validation_accuracy is not None:
            rows["validation"] = f"loss {last.validation_loss:.4f}, accuracy {last.validation_accuracy:.2f} %"
        if last.angle_movement_mean is not None:
            mean, most = last.angle_movement_mean, last.angle_movement_max
            rows["angles"] = f"moved {mean:.3f} rad on average, {most:.3f} at most"
    if finished:
        summary = read_summary(run)
        if summary.keeps_fitted:
            rows["kept"] = "the fitted model, recalibrated; training, validation and angles are of the last epoch's"
        rows["test"] = f"loss {summary.test_loss:.4f}, accuracy {summary.test_accuracy:.2f} %"
        each = f"{summary.seconds_per_epoch:.3g} s an epoch, {summary.images_per_second:,.0f} images/s"
        rows["time"] = f"{duration(summary.seconds)}, {each}"
    facts(console, rows)
    _show_cost(console, model_name(config), configured_cost(config.architecture, data), layers)


def _show_cost(console: Console, title: str, found: "ModelCost", layers: bool) -> None:
    """Print what a model costs for one image."""
    from rotateconv import native
    from rotateconv.cost import number_text
    from rotateconv.native import node

    shape = " x ".join(map(str, found.input_size))
    if layers:
        counts = ("" if row.multiply_adds == 0 else number_text(row.multiply_adds) for row in found.rows)
        rows = [
            (row.name, row.kind, f"{row.parameters:,}", count) for row, count in zip(found.rows, counts, strict=True)
        ]
        table = Table(("layer", "kind", "parameters", "multiply-adds"), tuple(rows), 2)
        show_table(console, table, f"{title}, {shape}", fold=True)
    facts(
        console,
        {
            "model": f"{title}, one image of {shape}",
            "parameters": f"{found.parameters:,} ({found.bytes:,} bytes with buffers)",
            "fused": f"{found.fused_parameters:,} parameters ({found.fused_bytes:,} bytes) as nn.Conv2d",
            "multiply-adds": f"{number_text(found.multiply_adds)} per image",
            "kernels": f"{found.kernel_multiply_adds:,} multiply-adds per training step to build them",
            "compiled": f"{native.status()} (kernels on a CPU)",
            "in C++": f"{node.status()} (their node of the graph)",
        },
    )
