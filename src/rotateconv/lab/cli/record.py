"""`rotateconv record`: what the runs of a study found, in a file of a few kilobytes to commit."""

from pathlib import Path
from typing import Annotated

from rotateconv._files import check_target
from rotateconv.lab.cli.report import Folders
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.console import facts, make_console

EXAMPLES = options.examples(
    (
        "From a study's runs to its record, a few kilobytes to commit:",
        "rotateconv record runs/digits --out experiments/digits/records.jsonl",
    ),
    (
        "More seeds of it, from runs on another machine:",
        "rotateconv record runs/more --out experiments/digits/records.jsonl --add",
    ),
)


def record(
    folders: Folders,
    /,
    *,
    out: Annotated[Path, options.value("--out", "FILE", "The record of a study; sizes and conversions go beside it.")],
    add: Annotated[
        bool, options.switch("--add", "Keep its runs and sizes too, but for those of the same names.")
    ] = False,
) -> None:
    """Write what all runs of a study found into one record; report makes tables and pages from it."""
    from rotateconv.lab.report.write import write_records
    from rotateconv.lab.study.study_record import find_studies

    check_target(out)
    files = write_records(find_studies(folders), out, add=add)
    facts(make_console(), {file.name.partition(".")[0]: str(file) for file in files})
