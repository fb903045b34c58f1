"""`rotateconv compare`: configurations by seeds, and the table of what they reached."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rotateconv.errors import ConfigError, RunInterrupted
from rotateconv.lab.cli import options
from rotateconv.lab.keys import read_toml

EXAMPLES = options.examples(
    ("The paper's layers on the embedded digits:", "rotateconv compare"),
    (
        "On CIFAR-10, with dense nets of equal size:",
        "rotateconv compare --data cifar10 --download --equal-params --out runs/cifar10",
    ),
    ("Accuracy against bytes too:", "rotateconv compare --sizes --out runs/digits"),
    ("A study in a file, one run at a time:", "rotateconv compare --config study.toml --jobs 1"),
)
_STUDY = ("models", "convs", "seeds", "equal_params", "contrasts")
_FILES = {"table": "md", "records": "json", "picture": "png"}
_CHOSEN = {"model": "--models", "conv": "--convs", "seed": "--seeds"}


def compare(
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    image_size: options.ImageSize = None,
    svhn_extra: options.SvhnExtra = None,
    skip_bad_images: options.SkipBadImages = None,
    models: Annotated[
        str | None,
        typer.Option("--models", metavar="A,B", help="Nets, commas between; resnet20.", rich_help_panel="Study"),
    ] = None,
    convs: Annotated[
        str | None,
        typer.Option(
            "--convs",
            metavar="A,B",
            help="Convolutions, commas between; conv3x3,rotate4,rotate2,rotate2p.",
            rich_help_panel="Study",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Runs of each configuration: seeds 0, 1, ...; 3.", rich_help_panel="Study"),
    ] = None,
    equal_params: Annotated[
        bool | None,
        typer.Option(
            "--equal-params",
            help="Add the dense net narrowed to each RotateConv net's parameters.",
            rich_help_panel="Study",
        ),
    ] = None,
    sizes: Annotated[
        bool,
        typer.Option(
            "--sizes",
            help="Then compare accuracy against bytes too, of the finished runs at several bits.",
            rich_help_panel="Study",
        ),
    ] = False,
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="RUN",
            help="With --sizes: a finished run of elsewhere, such as a converted one; may be repeated.",
            rich_help_panel="Study",
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="A,B", help="With --sizes: of a weight; 32,8,6,4,3,2.", rich_help_panel="Study"),
    ] = None,
    width: options.Width = None,
    recipe: options.Recipe = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of key = value lines; may hold models, convs, seeds and equal_params.",
            rich_help_panel="Training",
        ),
    ] = None,
    set_: options.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    teacher: options.Teacher = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where runs and table go; runs/compare-DATA.", rich_help_panel="Run"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            help="Runs at a time, each with its share of the cores; one a core, or a GPU.",
            rich_help_panel="Run",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start every run again.", rich_help_panel="Run")
    ] = False,
) -> None:
    """Train nets with several seeds and compare them with the dense net of the same recipe.

    The same command goes on after Ctrl-C: finished runs are skipped. DIR gets comparison.json, .md and .png, and
    with --sizes also sizes.json, .md and .png: what each net is worth in a packed file of so many bytes.
    """
    changes = {
        "data": data,
        "data_dir": data_dir and str(data_dir),
        "image_size": image_size,
        "svhn_extra": svhn_extra,
        "skip_bad_images": skip_bad_images,
        "width": width,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "teacher": teacher,
        "precision": precision,
        "compile": compile,
    }
    study = {
        "models": _names(models),
        "convs": _names(convs),
        "seeds": seeds,
        "equal_params": equal_params,
    }
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("compare starts its own processes: run it without torchrun and choose --jobs")
    values = read_toml(config) if config is not None else {}
    from_file = {key: values.pop(key) for key in _STUDY if key in values}
    for key in (*values, *(text.partition("=")[0].strip() for text in set_ or [])):
        if key in _CHOSEN:
            raise ConfigError(f"a comparison has no {key} of its own: give {_CHOSEN[key]}")
    base = options.configure(recipe, changes, set_ or [], values)
    chosen = {**_checked(from_file), **{key: value for key, value in study.items() if value is not None}}
    folder = out if out is not None else Path("runs", f"compare-{options.data_name(base)}")
    if not sizes:
        options.refuse({"--with": with_, "--bits": bits}, "no --sizes")
    widths = _widths(bits) if sizes else None
    _compare(base, chosen, folder, jobs=jobs, overwrite=overwrite, download=download, widths=widths, others=with_ or [])


def _widths(text: str | None) -> tuple[int, ...]:
    """Return the bits of --bits."""
    from rotateconv.lab.study.sizes import BITS

    names = _names(text)
    if names is None:
        return BITS
    if not names or not all(name.isdigit() for name in names):
        raise ConfigError(f"--bits must be whole numbers with commas between, such as 32,8,4, not {text!r}")
    return tuple(map(int, names))


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the study's keys of a file, names as tuples."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("models", "convs"):
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ConfigError(f'{key} must be a list of names such as ["resnet20"], not {value!r}')
            checked[key] = tuple(value)
        elif key == "contrasts":
            from rotateconv.lab.study.plan import contrasts_from

            checked[key] = contrasts_from(value)
        else:
            kind, told = (int, "a whole number") if key == "seeds" else (bool, "true or false")
            if type(value) is not kind:
                raise ConfigError(f"{key} must be {told}, not {value!r}")
            checked[key] = value
    return checked


def _compare(
    base: Any,
    chosen: dict[str, Any],
    out: Path,
    *,
    jobs: int | None,
    overwrite: bool,
    download: bool,
    widths: tuple[int, ...] | None,
    others: list[Path],
) -> None:
    """Train and compare, and show how it goes."""
    from rotateconv.errors import FAULT
    from rotateconv.lab.cli.comparison import ComparisonProgress, show_groups, show_sizes
    from rotateconv.lab.cli.console import facts, make_console
    from rotateconv.lab.cli.loading import load_shown
    from rotateconv.lab.data.description import DataDescription
    from rotateconv.lab.exit_codes import CommandError, Failure
    from rotateconv.lab.report.comparison import write_comparison, write_sizes
    from rotateconv.lab.study import run as library
    from rotateconv.lab.study.events import RecordsChanged, StudyEvent
    from rotateconv.lab.study.plan import Study
    from rotateconv.lab.study.sizes import SizesTable, measure_sizes

    study = Study(base, **chosen)
    for model in study.models:
        for conv in study.convs:
            options.check_names(base, model=model, conv=conv)
    console = make_console()
    images = load_shown(base, console, download=download)
    data = DataDescription.of(images)
    try:
        with ComparisonProgress(console, study, data, out) as progress:

            def on_event(event: StudyEvent) -> None:
                progress(event)
                if isinstance(event, RecordsChanged):
                    write_comparison(event.records, study.contrasts, out)

            records = library.compare(study, data, out, jobs=jobs, overwrite=overwrite, on_event=on_event)
    except RunInterrupted as error:
        raise RunInterrupted(f"{error}: go on with {options.again()}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped at once: go on from the last checkpoints with {options.again()}") from None
    groups = write_comparison(records, study.contrasts, out)
    show_groups(console, groups)
    facts(console, {name: str(out / f"comparison.{end}") for name, end in _FILES.items()})
    if widths is not None:
        runs = [out / "runs" / run.name for group in groups for run in group.runs]
        table = SizesTable(images.name, tuple(measure_sizes([*runs, *others], images, widths)))
        write_sizes(table, out)
        show_sizes(console, table)
        facts(console, {name: str(out / f"sizes.{end}") for name, end in _FILES.items()})
    failed = sum(record.summary is None for record in records)
    if failed:
        message = f"{failed} of {len(records)} runs diverged: {out / 'comparison.md'} says where"
        raise CommandError(Failure(FAULT, message))
