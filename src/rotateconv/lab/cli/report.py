"""`rotateconv report`: tables, pictures and pages from finished runs and committed records."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.cli import options

EXAMPLES = options.examples(
    ("Tables and pictures of a comparison:", "rotateconv report runs/demo --out runs/demo/report"),
    ("The tables of a page made anew from all records:", "rotateconv report experiments --page docs/results.md"),
)
Folders = Annotated[
    list[Path],
    Parameter(
        name="DIR", help="Run folders, comparisons, or folders with records of studies in them.", show_default=False
    ),
]


def report(
    folders: Folders,
    /,
    *,
    out: Annotated[
        Path | None, Parameter(name="--out", metavar="FOLDER", help="Where report.md and its pictures go.")
    ] = None,
    svg: Annotated[bool, options.switch("--svg", "With --out: pictures as SVG, not PNG.")] = False,
    page: Annotated[
        list[Path] | None,
        Parameter(name="--page", metavar="FILE", help="Make the blocks of this Markdown page anew; may be repeated."),
    ] = None,
    records: Annotated[str | None, Parameter(name="--records", show=False)] = None,
    analysis: Annotated[bool, Parameter(name="--analysis", show=False, negative=())] = False,
) -> None:
    """Show what runs found: accuracies over seeds, differences to the dense model, who loses, how angles moved.

    Without --out and --page the tables are printed. Nothing is trained.
    """
    if records is not None:
        raise ConfigError("report writes no record: say rotateconv record DIR... --out FILE")
    if analysis:
        raise ConfigError("report analyses no angles: say rotateconv analyse RUN..., then report them")
    if svg and out is None:
        raise ConfigError("--svg has no meaning without --out, the folder of the pictures: leave it out")
    from rotateconv.lab.cli.console import facts, make_console, say
    from rotateconv.lab.report.page import to_markdown
    from rotateconv.lab.report.published import find_published
    from rotateconv.lab.report.write import fill_file, write_report
    from rotateconv.lab.study.records import find_studies

    console = make_console()
    studies, published = find_studies(folders), find_published(folders)
    written: dict[str, str] = {}
    if out is not None:
        written["report"] = str(write_report(studies, out, published, "svg" if svg else "png"))
    for file in page or []:
        fill_file(file, studies, published)
    if page:
        written["pages"] = ", ".join(map(str, page))
    if written:
        facts(console, written)
    else:
        say(console, to_markdown(studies).rstrip())
