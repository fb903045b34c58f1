"""`rotateconv report`: tables, pictures and pages from finished runs and committed records; nothing is trained."""

from pathlib import Path
from typing import Annotated

import typer

from rotateconv.errors import ConfigError
from rotateconv.lab.cli import options

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
    svg: Annotated[bool, typer.Option("--svg", help="With --out: pictures as SVG, not PNG.")] = False,
    draws: Annotated[int, typer.Option("--draws", help="Shuffles of each layer's angles, for --analysis.")] = 3,
) -> None:
    """Show what runs found: accuracies over seeds, differences to the dense net, who loses, how angles moved.

    Without --out, --page, --records and --analysis the tables are printed.
    """
    from rotateconv.lab.cli.console import facts, make_console, say
    from rotateconv.lab.report.page import to_markdown
    from rotateconv.lab.report.published import find_published
    from rotateconv.lab.report.write import fill_file, write_records, write_report
    from rotateconv.lab.study.records import find_studies

    if draws < 1:
        raise ConfigError(f"--draws must be 1 or more, not {draws}")
    if data_dir is not None and not analysis:
        raise ConfigError("--data-dir has no meaning without --analysis, which evaluates models: leave it out")
    if add and records is None:
        raise ConfigError("--add has no meaning without --records, the file that keeps its runs: leave it out")
    if svg and out is None:
        raise ConfigError("--svg has no meaning without --out, the folder of the pictures: leave it out")
    console = make_console()
    if analysis:
        from rotateconv.lab.cli.analysis import analyse_all

        analyse_all(folders, data_dir, draws, console)
    studies, published = find_studies(folders), find_published(folders)
    written: dict[str, str] = {}
    if records is not None:
        written |= {file.name.partition(".")[0]: str(file) for file in write_records(studies, records, add=add)}
    if out is not None:
        written["report"] = str(write_report(studies, out, published, "svg" if svg else "png"))
    for file in page or []:
        fill_file(file, studies, published)
    if page:
        written["pages"] = ", ".join(map(str, page))
    if written:
        facts(console, written)
    elif not analysis:
        say(console, to_markdown(studies).rstrip())
