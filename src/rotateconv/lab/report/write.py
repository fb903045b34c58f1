"""What `rotateconv report` writes: a report with its pictures, the blocks of a page, the record of a study."""

import json
from collections.abc import Sequence
from pathlib import Path

from rotateconv.errors import RunError
from rotateconv.lab.files import make_folder, write_bytes
from rotateconv.lab.plain import to_json
from rotateconv.lab.report.blocks import read_page
from rotateconv.lab.report.figures import draw_study
from rotateconv.lab.report.page import PICTURES, Studies, make_page, to_markdown
from rotateconv.lab.report.published import Published
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.study.study_record import (
    CONVERSIONS,
    SIZES,
    add_runs,
    read_conversions,
    read_sizes,
    write_study,
)


def write_report(
    studies: Studies, out: Path, published: Sequence[Published] = (), kinds: Sequence[str] = ("png",)
) -> Path:
    """Write report.md and its pictures, of each kind of png, svg and pdf, into a folder, and return its path.

    The report shows the first of the kinds that is no PDF.
    """
    make_folder(out)
    for study, found in studies.items():
        for kind in kinds if found.runs else ():
            draw_study(study, make_groups(found.runs), out, published, kind)
    shown = next((kind for kind in kinds if kind != "pdf"), "pdf")
    write_bytes(out / "report.md", to_markdown(studies, pictures=True).replace(".png)", f".{shown})").encode())
    return out / "report.md"


def fill_file(page: Path, studies: Studies, published: Sequence[Published] = ()) -> None:
    """Make the blocks of a page anew, and draw the pictures that it shows into the folder `PICTURES` beside it."""
    text, made = make_page(read_page(page), studies)
    for block in made:
        if block.pictures:
            make_folder(page.parent / PICTURES)
            block.draw(page.parent / PICTURES, published)
    write_bytes(page, text.encode())


def write_records(studies: Studies, file: Path, *, add: bool = False) -> list[Path]:
    """Write what studies found into one record, sizes and conversions beside it, and return the files.

    Args:
        studies: As from `rotateconv.lab.study.study_record.find_studies`.
        file: The record, records.jsonl.
        add: Runs and sizes join those that are there, and conversions stay as they are.

    Raises:
        RunError: Nothing to write, or a file beside the record would be replaced that is none of its kind.
    """
    runs = [run for found in studies.values() for run in found.runs]
    measured = {name: found.sizes for name, found in studies.items() if found.sizes}
    if len(measured) > 1:
        raise RunError(f"one study has one {SIZES}, found those of {', '.join(measured)}: record them apart")
    sizes = next(iter(measured.values()), None)
    there = read_sizes(file.parent) if add else None
    if sizes is not None and there is not None:
        sizes = there.merged(sizes)
    beside = {
        SIZES: sizes.to_json() if sizes is not None else [],
        CONVERSIONS: [to_json(one) for found in studies.values() for one in found.conversions if not add],
    }
    for name, values in beside.items():
        if values and not _is_ours(file.with_name(name)):
            raise RunError(
                f"{file.with_name(name)} would be replaced and is not what rotateconv record writes there: move it, or "
                "choose another --out"
            )
    write_study(add_runs(runs, file) if add else runs, file)
    written = [file]
    for name, values in beside.items():
        if values:
            write_bytes(file.with_name(name), (json.dumps(values, indent=1) + "\n").encode())
            written.append(file.with_name(name))
    return written


def _is_ours(file: Path) -> bool:
    """Whether a file beside a record is what `write_records` makes there, or not there at all."""
    try:
        {SIZES: read_sizes, CONVERSIONS: read_conversions}[file.name](file.parent)
    except RunError:
        return False
    return True
