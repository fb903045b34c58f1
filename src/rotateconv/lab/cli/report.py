"""`rotateconv report`: tables, pictures and pages from finished runs and committed records; nothing is trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.cli import options

if TYPE_CHECKING:
    from rotateconv.lab.report.page import Conversions, Sizes, Studies

EXAMPLES = options.examples(
    ("Tables and pictures of a comparison:", "rotateconv report runs/demo --out runs/demo/report"),
    (
        "From a study's runs to its record, a few kilobytes to commit:",
        "rotateconv report runs/digits --records experiments/digits/records.jsonl",
    ),
    (
        "More seeds of it, from runs on another machine:",
        "rotateconv report runs/more --records experiments/digits/records.jsonl --add",
    ),
    ("The tables of a page made anew from all records:", "rotateconv report experiments --page docs/results.md"),
    (
        "How far the angles of a run moved, and what shuffling them costs:",
        "rotateconv report runs/demo/runs/resnet20-rotate4-seed0 --analysis",
    ),
)


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Run folders, comparisons, or folders with records of studies in them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where report.md and its pictures go.")
    ] = None,
    page: Annotated[
        list[Path] | None,
        typer.Option("--page", metavar="FILE", help="Make the blocks of this Markdown page anew; may be repeated."),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            "--records",
            metavar="FILE",
            help="Write what all the runs found into this record of a study; sizes and conversions beside it.",
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="With --records: keep its runs and sizes too, but for those of the same names.",
        ),
    ] = False,
    analysis: Annotated[
        bool,
        typer.Option("--analysis", help="First write analysis.json into the run folders: angles, packed size."),
    ] = False,
    data_dir: options.DataDir = None,
    draws: Annotated[int, typer.Option("--draws", help="Shuffles of each layer's angles, for --analysis.")] = 3,
) -> None:
    """Show what runs found: accuracies over seeds, differences to the dense net, who loses, how angles moved.

    Without --out, --page, --records and --analysis the tables are printed.
    """
    from rotateconv.lab.cli.console import facts, make_console, say
    from rotateconv.lab.report.page import to_markdown
    from rotateconv.lab.study.records import find_conversions, find_sizes, find_studies

    if draws < 1:
        raise ConfigError(f"--draws must be 1 or more, not {draws}")
    if data_dir is not None and not analysis:
        raise ConfigError("--data-dir has no meaning without --analysis, which evaluates nets: leave it out")
    if add and records is None:
        raise ConfigError("--add has no meaning without --records, the file that keeps its runs: leave it out")
    console = make_console()
    if analysis:
        from rotateconv.lab.cli.analysis import analyse_all

        analyse_all(folders, data_dir, draws, console)
    studies = find_studies(folders)
    sizes, conversions = find_sizes(folders), find_conversions(folders)
    written: dict[str, str] = {}
    if records is not None:
        written |= _write_records(studies, sizes, conversions, records, add)
    if out is not None:
        _write_report(studies, out)
        written["report"] = str(out / "report.md")
    for file in page or []:
        _fill(file, studies, sizes, conversions)
    if page:
        written["pages"] = ", ".join(map(str, page))
    if written:
        facts(console, written)
    elif not analysis:
        say(console, to_markdown(studies).rstrip())


def _write_records(
    studies: "Studies", sizes: "Sizes", conversions: "Conversions", file: Path, add: bool
) -> dict[str, str]:
    """Write the record of a study, and sizes and conversions beside it, and return what was written where.

    With `add` runs and sizes join those there; conversions stay as they are.
    """
    from rotateconv.lab.plain import to_json
    from rotateconv.lab.study.records import CONVERSIONS, SIZES, add_runs, find_sizes, write_study
    from rotateconv.lab.train.run_folder import write_bytes

    runs = [run for found in studies.values() for run in found]
    if len(sizes) > 1:
        raise RunError(f"one study has one {SIZES}, found those of {', '.join(sizes)}: record them apart")
    measured = next(iter(sizes.values()), None)
    if add and measured is not None:
        there = find_sizes([file.parent]).get(file.parent.resolve().name)
        measured = measured if there is None else there.merged(measured)
    beside = {
        SIZES: measured.to_json() if measured is not None else [],
        CONVERSIONS: [to_json(one) for found in conversions.values() for one in found if not add],
    }
    write_study(add_runs(runs, file) if add else runs, file)
    written = {"records": str(file)}
    for name, values in beside.items():
        if values:
            write_bytes(file.with_name(name), (json.dumps(values, indent=1) + "\n").encode())
            written[name.removesuffix(".json")] = str(file.with_name(name))
    return written


def _write_report(studies: "Studies", out: Path) -> None:
    """Write report.md and the pictures that it shows."""
    from rotateconv.lab.report.figures_runs import draw_study
    from rotateconv.lab.report.page import rows_of, to_markdown
    from rotateconv.lab.train.run_folder import disk_errors, write_bytes

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for study, runs in studies.items():
        if runs:
            draw_study(study, rows_of(study, studies), out)
    write_bytes(out / "report.md", to_markdown(studies, pictures=True).encode())


def _fill(page: Path, studies: "Studies", sizes: "Sizes", conversions: "Conversions") -> None:
    """Make the blocks of a page anew, and draw the pictures that it shows into the folder beside it."""
    from rotateconv.lab.report.figures_runs import draw_study
    from rotateconv.lab.report.page import PICTURES, blocks, draw_page_sizes, fill_page, rows_of
    from rotateconv.lab.train.run_folder import disk_errors, write_bytes

    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot read {page}: {error.strerror}") from None
    filled = fill_page(text, studies, sizes, conversions)
    folder = page.parent / PICTURES
    for kind, study in blocks(text):
        rows = rows_of(study, studies) if kind == "pictures" else []
        measured = sizes.get(study) if kind == "sizes" else None
        if rows or measured:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if rows:
            draw_study(study, rows, folder)
        if measured:
            draw_page_sizes(study, measured, folder)
    write_bytes(page, filled.encode())
