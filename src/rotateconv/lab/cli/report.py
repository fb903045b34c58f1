"""`rotateconv report`: tables, pictures and pages from finished runs and committed records."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv._files import check_target
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.console import facts, make_console, say

EXAMPLES = options.examples(
    ("Tables and pictures of a comparison:", "rotateconv report runs/demo --out runs/demo/report"),
    ("A run as one page of HTML, its kernels turning:", "rotateconv report runs/digits --html digits.html"),
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
    out: Annotated[Path | None, options.value("--out", "FOLDER", "Where report.md and its pictures go.")] = None,
    format: Annotated[str, options.value("--format", "png,svg,pdf", "With --out: files of each picture.")] = "png",
    page: Annotated[
        list[Path] | None,
        options.value("--page", "FILE", "Make the blocks of this Markdown page anew; may be repeated."),
    ] = None,
    html: Annotated[
        Path | None,
        options.value(
            "--html", "FILE", "One page of HTML that needs nothing beside it, of a single run or comparison."
        ),
    ] = None,
    records: Annotated[str | None, Parameter(name="--records", show=False)] = None,
    analysis: Annotated[bool, Parameter(name="--analysis", show=False, negative=())] = False,
) -> None:
    """Show what runs found: accuracies over seeds, differences to the dense model, who loses, how angles moved.

    Without --out, --page and --html the tables are printed. Nothing is trained.
    """
    if records is not None:
        raise ConfigError("report writes no record: say rotateconv record DIR... --out FILE")
    if analysis:
        raise ConfigError("report analyses no angles: say rotateconv analyse RUN..., then report them")
    kinds = format.split(",")
    if foreign := [kind for kind in kinds if kind not in ("png", "svg", "pdf")]:
        raise ConfigError(f"--format takes png, svg and pdf, several with commas between, not {foreign[0]!r}")
    if format != "png" and out is None:
        raise ConfigError("--format has no meaning without --out, the folder of the pictures: leave it out")
    if html is not None:
        check_target(html)
        if len(folders) != 1:
            raise ConfigError(f"--html is the page of one run or comparison, not of {len(folders)}: name one folder")

    from rotateconv.lab.files import write_bytes
    from rotateconv.lab.report.page import to_markdown
    from rotateconv.lab.report.published import find_published
    from rotateconv.lab.report.write import fill_file, write_report
    from rotateconv.lab.study.study_record import find_studies

    console = make_console()
    studies, published = find_studies(folders), find_published(folders)
    written: dict[str, str] = {}
    if out is not None:
        written["report"] = str(write_report(studies, out, published, kinds))
    for file in page or []:
        fill_file(file, studies, published)
    if page:
        written["pages"] = ", ".join(map(str, page))
    if html is not None:
        write_bytes(html, _page(folders[0]).encode())
        written["page"] = str(html)
    if written:
        facts(console, written)
    else:
        say(console, to_markdown(studies).rstrip())


def _page(folder: Path) -> str:
    """Return the page of a run, or of a comparison with the first run of each of its groups."""
    from rotateconv.lab.report.html import comparison_page, run_page
    from rotateconv.lab.report.statistics import make_groups
    from rotateconv.lab.study.run_details import read_details
    from rotateconv.lab.study.study_record import read_comparison

    if (folder / "config.json").is_file():
        return run_page(read_details(folder))
    if not (folder / "runs").is_dir():
        raise RunError(
            f"{folder} is no run and no comparison: a page with kernels needs the weights, so give --html one"
        )
    study = read_comparison(folder)
    groups = make_groups(study.runs)
    first = [read_details(folder / "runs" / group.runs[0].name) for group in groups if group.runs]
    if not first:
        raise RunError(f"no run of {folder} is finished: a page shows what runs found")
    return comparison_page(folder.resolve().name, groups, study.contrasts, first)
