"""Pages from the runs of studies alone: nothing here trains, and no number is typed in."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rotateconv.errors import RunError, nearest
from rotateconv.lab.report.figures_runs import picture_names
from rotateconv.lab.report.figures_sizes import draw_sizes
from rotateconv.lab.report.sizes_report import markdown
from rotateconv.lab.report.statistics import Row, make_rows
from rotateconv.lab.report.tables import accuracy_table, angle_table, contrast_table, conversion_table, validation_table
from rotateconv.lab.study.conversions import ConversionRecord
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.sizes import SizesTable

Studies = Mapping[str, Sequence[RunRecord]]
Sizes = Mapping[str, SizesTable]
Conversions = Mapping[str, Sequence[ConversionRecord]]

PICTURES = "results"
"""Folder of a page's pictures, beside it."""

_BLOCK = re.compile(r"<!-- report: (?P<kind>\w+) (?P<study>[\w./-]+) -->\n.*?<!-- end -->", re.DOTALL)


def fill_page(text: str, studies: Studies, sizes: Sizes | None = None, conversions: Conversions | None = None) -> str:
    """Return a Markdown page with its blocks made anew.

    A block is what lies between `<!-- report: KIND STUDY -->` and `<!-- end -->`.

    Args:
        text: of the page; KIND is a key of `KINDS`, STUDY a study or a folder of studies.
        studies: as from `rotateconv.lab.study.records.find_studies`.
        sizes: as from `rotateconv.lab.study.records.find_sizes`, for the blocks of the kind "sizes".
        conversions: as from `rotateconv.lab.study.records.find_conversions`, for those of the kind "conversions".

    Raises:
        RunError: the page asks for a kind or a study that there is not.

    Example:
        >>> print(fill_page("<!-- report: table mnist -->\\n<!-- end -->", {"mnist": []}))
        <!-- report: table mnist -->
        Not measured yet: `rotateconv compare --config experiments/mnist/study.toml --out runs/mnist`
        <!-- end -->
    """

    def fill(block: re.Match[str]) -> str:
        kind, study = block["kind"], block["study"]
        return f"<!-- report: {kind} {study} -->\n{make_block(kind, study, studies, sizes, conversions)}\n<!-- end -->"

    return _BLOCK.sub(fill, text)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return kind and study of every block of a page."""
    return [(block["kind"], block["study"]) for block in _BLOCK.finditer(text)]


def make_block(
    kind: str, study: str, studies: Studies, sizes: Sizes | None = None, conversions: Conversions | None = None
) -> str:
    """Return the text of a block; a study without a run, or without what `compare --sizes` measures, says so."""
    kinds = (*KINDS, "pictures", "sizes", "conversions")
    if kind not in kinds:
        raise RunError(f"a page asks for {kind!r}: {nearest(kind, kinds)}")
    if kind == "conversions":
        found = (conversions or {}).get(study)
        return conversion_table(found) if found else "Not measured yet: `rotateconv convert`"
    rows = rows_of(study, studies)
    if kind == "sizes":
        measured = (sizes or {}).get(study)
        return _sizes(study, measured) if measured else "Not measured yet: `rotateconv compare --sizes`"
    if not rows:
        commands = [
            f"`rotateconv compare --config experiments/{n}/study.toml --out runs/{n}`" for n in _named(study, studies)
        ]
        return "Not measured yet: " + ", ".join(commands)
    return KINDS[kind](rows) if kind != "pictures" else _pictures(study, rows, PICTURES + "/")


def rows_of(study: str, studies: Studies) -> list[Row]:
    """Return the rows of a study, or of all studies in the folder of that name; RunError for an unknown one."""
    return make_rows([run for name in _named(study, studies) for run in studies[name]])


def to_markdown(studies: Studies, *, pictures: bool = False) -> str:
    """Return everything that is known of the studies, a section each.

    Args:
        studies: as from `rotateconv.lab.study.records.find_studies`.
        pictures: show those that `draw_study` puts into the same folder.
    """
    parts = []
    for study in studies:
        rows = rows_of(study, studies)
        kinds = ("table", "contrasts", "angles") if rows else ("table",)
        parts += [f"# {study}", *(make_block(kind, study, studies) for kind in kinds)]
        parts += [_pictures(study, rows, "")] if pictures and rows else []
    return "\n\n".join(parts) + "\n"


def draw_page_sizes(study: str, sizes: SizesTable, folder: Path) -> None:
    """Draw the picture that a block of the kind "sizes" shows, into a folder that exists.

    Args:
        study: its name, from which the file is called.
        sizes: of `rotateconv.lab.study.records.find_sizes`.
        folder: of the pictures.
    """
    draw_sizes(sizes.rows, folder / size_picture(study), sizes.dataset)


def size_picture(study: str) -> str:
    """Return the name of the picture of accuracy against bytes.

    Example:
        >>> size_picture("gpu/svhn")
        'gpu-svhn-sizes.png'
    """
    return f"{study.replace('/', '-')}-sizes.png"


def _sizes(study: str, sizes: SizesTable) -> str:
    """The table of accuracy against bytes, as `compare --sizes` shows it, and its picture."""
    table = markdown(sizes.rows, sizes.dataset).rstrip()
    return f"{table}\n\n{_image(size_picture(study), PICTURES + '/')}"


def _pictures(study: str, rows: Sequence[Row], folder: str) -> str:
    return "\n\n".join(_image(name, folder) for name in picture_names(study, rows))


def _image(name: str, folder: str) -> str:
    return f"![{name.removesuffix('.png')}]({folder}{name})"


KINDS: dict[str, Callable[[Sequence[Row]], str]] = {
    "table": accuracy_table,
    "contrasts": contrast_table,
    "validation": validation_table,
    "angles": angle_table,
}
"""What a block of a page can show of the runs of a study.

Besides there are "pictures", the files of `draw_study` in the folder `PICTURES`, "sizes", accuracy against bytes,
and "conversions", what `rotateconv convert` found.
"""


def _named(study: str, studies: Studies) -> list[str]:
    """Return the names of a study and of those in its folder."""
    names = [name for name in studies if name == study or name.startswith(f"{study}/")]
    if not names:
        raise RunError(f"there is no study {study!r}: {nearest(study, studies)}")
    return names
