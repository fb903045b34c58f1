"""Pages from the runs of studies alone: nothing here trains, and no number is typed in."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rotateconv.errors import RunError, nearest
from rotateconv.lab.naming import counted, model_name
from rotateconv.lab.report.blocks import fill_blocks
from rotateconv.lab.report.canvas import picture_name
from rotateconv.lab.report.figures import draw_sizes, draw_study, picture_names
from rotateconv.lab.report.frontier import draw_frontier, make_points, points_table, rivalries, rivalry_table
from rotateconv.lab.report.published import Published
from rotateconv.lab.report.statistics import LEVEL, Group, dense_of, make_groups, same_size
from rotateconv.lab.report.tables import (
    STUDY,
    SUMMARY,
    Column,
    contrast_table,
    conversion_table,
    group_table,
    movement_table,
    shuffle_table,
    sizes_table,
    validation_table,
)
from rotateconv.lab.study.sizes import SizesTable
from rotateconv.lab.study.study_record import StudyRecord

Studies = Mapping[str, StudyRecord]

PICTURES = "results"
"""Folder of a page's pictures, beside it."""

_ROWS = 12  # of a table that a page shows open
_TABLE = re.compile(r"^\|.*(?:\n\|.*)+", re.MULTILINE)

_CONTRASTS = (
    "Differences in points, with 95 % confidence intervals and p-values by Welch's t-test. A verdict needs a p-value "
    f"below {LEVEL:g} after Benjamini and Hochberg's correction over this table: one in twenty of its verdicts may be "
    "false."
)
_ANGLES = (
    "Validation accuracy of the model as trained, with the angles of all layers permuted over their slices, with those "
    "of one layer permuted, and from the packed file (4-bit weights, 5-bit angles, not calibrated). The mean of cos 4θ "
    "is 1 for filters along rows and columns and -1 along diagonals; its deviation is that under the uniform law."
)
_FITTED = "The fitted model was kept, so no angle of it moved; `rotateconv analyse` shows how they lie."
SIZES_CAPTION = (
    "Bytes are of the packed file (32: of the float32 numbers), accuracy of the model with those numbers on the test "
    "split, mean ± standard deviation over n runs. Models that were not trained with quantized numbers are packed with "
    "`--calibrate`. The last column is the accuracy above that of the dense models at the same bytes, read off the "
    "line through the best of them (bytes on a logarithmic scale); none of that size: -."
)
_RIVALRIES = (
    "For each budget the model of a family with the best validation accuracy among those whose packed file is not "
    "larger; one of several seeds before one of a single seed. A budget without a row has the pair of the one before "
    "it. Test accuracies in percent, differences in points with 95 % confidence intervals by Welch's t-test. A verdict "
    f"needs a p-value below {LEVEL:g} after Benjamini and Hochberg's correction over this table."
)
_FRONTIER = (
    "Accuracies in percent, mean ± standard deviation (n - 1) over seeds; bits of a weight and, behind the plus, of an "
    "angle. Minutes are of the epochs with quantized numbers alone, at the speed of the "
    "fastest of all seeds, since the machine did other work too."
)
_CONVERSIONS = (
    "Test accuracy in percent, one run each: of the trained dense model, of the RotateConv layers fitted to it, of the "
    "same with the statistics of its norms recalibrated on training images without labels (`recalibrate`), and after "
    "the epochs of fine-tuning with the dense model as the teacher, which the dense model did not get; a loss is in "
    "bold."
)


@dataclass(frozen=True)
class Block:
    """What a page shows of a study: a text, the names of the pictures in it, and what draws them into a folder."""

    text: str
    pictures: Sequence[str] = ()
    draw: Callable[[Path, Sequence[Published]], object] = lambda folder, published: None


def fill_page(text: str, studies: Studies) -> str:
    """Return a Markdown page with its blocks made anew: `<!-- report: KIND STUDY -->` to `<!-- end -->`.

    A long table is closed behind one line that opens it.

    Args:
        text: Of the page; KIND is a key of `KINDS`, STUDY a study or a folder of studies.
        studies: As from `rotateconv.lab.study.study_record.find_studies`.

    Raises:
        RunError: The page asks for a kind or a study that there is not.

    Example:
        >>> from rotateconv.lab.study.study_record import StudyRecord
        >>> print(fill_page("<!-- report: table mnist -->\\n<!-- end -->", {"mnist": StudyRecord()}))
        <!-- report: table mnist -->
        Not measured yet: `rotateconv compare --config experiments/mnist/study.toml --out runs/mnist`
        <!-- end -->
    """
    return make_page(text, studies)[0]


def make_page(text: str, studies: Studies) -> tuple[str, list[Block]]:
    """Return a page as `fill_page` does, and its blocks, each made once."""
    made: list[Block] = []

    def make(asked: str) -> str:
        made.append(make_block(*asked_for(asked), studies))
        return _TABLE.sub(_folded, made[-1].text)

    return fill_blocks(text, "report", make), made


def _folded(table: re.Match[str]) -> str:
    """Return a table of Markdown as GitHub and the site close it, where it is long."""
    head, _, *rows = table[0].splitlines()
    if len(rows) <= _ROWS:
        return table[0]
    about = f"{len(rows)} rows: {' · '.join(cell.strip() for cell in head.strip('|').split('|'))}"
    return f'<details markdown="1">\n<summary>{about}</summary>\n\n{table[0]}\n\n</details>'


def asked_for(asked: str) -> tuple[str, str]:
    """Return kind and study of what a block asks for."""
    kind, _, study = asked.partition(" ")
    return kind, study


def make_block(kind: str, study: str, studies: Studies, folder: str = f"{PICTURES}/") -> Block:
    """Return a block; a study that lacks what it shows says so."""
    if kind not in KINDS:
        raise RunError(f"a page asks for {kind!r}: {nearest(kind, KINDS)}")
    found = gathered(study, studies)
    if kind == "conversions":
        return _conversions(found) if found.conversions else _missing("rotateconv convert")
    if kind == "sizes":
        return _sizes(study, found.sizes, folder) if found.sizes else _missing("rotateconv compare --sizes")
    groups = make_groups(found.runs)
    if kind == "frontier":
        return _frontier(study, found, groups, folder) if found.files else _missing("python benchmarks/bytes.py")
    if not found.runs:
        names = _named(study, studies)
        return _missing(*(f"rotateconv compare --config experiments/{n}/study.toml --out runs/{n}" for n in names))
    if kind == "pictures":
        shown = picture_names(study, groups)
        text = "\n\n".join(_image(name, folder) for name in shown)
        return Block(text, shown, lambda folder, published: draw_study(study, groups, folder, published))
    return Block(_TEXTS[kind](found, groups))


def _missing(*commands: str) -> Block:
    return Block("Not measured yet: " + ", ".join(f"`{command}`" for command in commands))


def gathered(study: str, studies: Studies) -> StudyRecord:
    """Return a study, or all studies in the folder of that name as one; RunError for an unknown one."""
    found = [studies[name] for name in _named(study, studies)]
    return StudyRecord(
        runs=tuple(run for one in found for run in one.runs),
        contrasts={conv: others for one in found for conv, others in one.contrasts.items()},
        sizes=found[0].sizes,
        conversions=tuple(conversion for one in found for conversion in one.conversions),
        files={name: size for one in found for name, size in one.files.items()},
    )


def to_markdown(studies: Studies, *, pictures: bool = False) -> str:
    """Return everything that is known of the studies, a section each."""
    parts = []
    for study, found in studies.items():
        kinds = ("table", "contrasts", "angles", *(["pictures"] if pictures else [])) if found.runs else ("table",)
        parts += [f"# {study}", *(make_block(kind, study, studies, folder="").text for kind in kinds)]
    return "\n\n".join(parts) + "\n"


def accuracy_text(groups: Sequence[Group], columns: Sequence[Column] = STUDY) -> str:
    """Return the table of test accuracies between what it was made with and what it leaves out."""
    table = group_table(groups, columns).markdown()
    return "\n\n".join([protocol(groups), table, caption(groups), *_failures(groups), *_moves(groups)])


def caption(groups: Sequence[Group]) -> str:
    """Return what the accuracies and differences of a table are, and of which models."""
    model, fitted = "the model after the last epoch", "the model that was fitted and recalibrated"
    kept = [(group, sum(run.result.keeps_fitted for run in group.runs)) for group in groups if group.keeps_fitted]
    if kept and all(run.result.keeps_fitted for group in groups for run in group.runs):
        model = f"{fitted}, which was kept"
    elif kept:
        names = "; ".join(f"{group.model}, {group.label}: {fits} of {len(group.runs)}" for group, fits in kept)
        model += f", or of {fitted} where this was kept ({names})"
    return (
        f"Percent, mean ± standard deviation (n - 1) over seeds, of {model}. Differences are in points, with their "
        "95 % confidence interval by Welch's t-test."
    )


def contrast_text(groups: Sequence[Group], controls: Mapping[str, Sequence[str]]) -> str:
    """Return the table of contrasts, and what a verdict needs."""
    table = contrast_table(groups, controls)
    if table is None:
        return (
            "A verdict compares a model with learned angles with a control, or with a dense one of full width, its own "
            "width or its size: no such two are here."
        )
    return f"{table.markdown()}\n\n{_CONTRASTS}"


def sizes_text(table: SizesTable) -> str:
    """Return accuracy against bytes as Markdown."""
    title = f"**{table.dataset}: accuracy against bytes**"
    return f"{title}\n\n{sizes_table(table.rows).markdown()}\n\n{SIZES_CAPTION}"


def protocol(groups: Sequence[Group]) -> str:
    """Return data, recipe, machine, versions and commit of a table, in one line."""
    runs = [run for group in groups for run in (*group.runs, *group.failed)]
    stages = [stage.environment for run in runs for stage in run.environment.stages]
    recipes = {f"recipe {run.config.recipe}, {counted(run.config.epochs, 'epoch')}" for run in runs}
    hardware = _joined(stage.hardware for stage in stages)
    versions = _joined(f"torch {stage.versions.get('torch')}" for stage in stages)
    known = [_short(stage.commit) for stage in stages if stage.commit is not None]
    commits = _joined([*known, "unknown"] if 0 < len(known) < len(stages) else known)
    held = "" if runs[0].config.validation else "; the validation images were trained on too"
    data = ", ".join(dict.fromkeys(run.data.name for run in runs))
    made = f"{hardware}; {versions}{f'; commit {commits}' if commits else ''}"
    return f"**{data}**, {' and '.join(sorted(recipes))}{held}. {made}."


def _short(commit: str) -> str:
    """Return a commit with twelve digits, and that files differed from it."""
    name, dash, suffix = commit.partition("-")
    return f"{name[:12]}{dash}{suffix}"


def _joined(names: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def _summary(found: StudyRecord, groups: Sequence[Group]) -> str:
    """The dense model, the two that matter, and the dense model of the smaller one's size."""

    def matters(group: Group) -> bool:
        dense = dense_of(group, groups)
        if group.dense:
            return dense is None
        same = dense is None or dense.config.width == group.config.width
        return same and group.layers in ("rotate4", "rotate2p")

    chosen = [group for group in groups if matters(group)]
    narrowed = [same_size(group, groups) for group in chosen if group.layers == "rotate2p"]
    rows = [*chosen, *(group for group in narrowed if group is not None)]
    return f"{protocol(rows)}\n\n{group_table(rows, SUMMARY).markdown()}"


def _validations(found: StudyRecord, groups: Sequence[Group]) -> str:
    table = validation_table(groups).markdown()
    return "\n\n".join([protocol(groups), table, *_failures(groups), *_moves(groups)])


def _angles(found: StudyRecord, groups: Sequence[Group]) -> str:
    """How far the angles of each model moved, and, where runs were analysed, how they lie and what shuffling costs."""
    tables = [table for table in (movement_table(groups), shuffle_table(groups)) if table is not None]
    if not tables:
        return _FITTED if any(group.keeps_fitted for group in groups) else "No model here has angles."
    parts = [table.markdown() for table in tables]
    analyses = [run.analysis for group in groups for run in group.runs if run.analysis and run.analysis.angles]
    if analyses:
        seen = any(analysis.validation_seen for analysis in analyses)
        parts.append(_ANGLES + (" The validation images were trained on too." if seen else ""))
    return "\n\n".join(parts)


def _sizes(study: str, sizes: SizesTable, folder: str) -> Block:
    name = picture_name(study, "sizes")
    text = f"{sizes_text(sizes)}\n\n{_image(name, folder)}"
    return Block(text, [name], lambda folder, _: draw_sizes(sizes, folder / name))


def _frontier(study: str, found: StudyRecord, groups: Sequence[Group], folder: str) -> Block:
    points, name = make_points(groups, found.files), picture_name(study, "frontier")
    parts = [protocol([point.group for point in points]), _image(name, folder)]
    rivals = rivalries(points)
    if rivals:
        parts += [rivalry_table(rivals).markdown(), _RIVALRIES]
    text = "\n\n".join([*parts, points_table(points).markdown(), _FRONTIER, *_failures(groups)])
    return Block(text, [name], lambda folder, _: draw_frontier(points, folder / name))


def _conversions(found: StudyRecord) -> Block:
    return Block(f"{conversion_table(found.conversions).markdown()}\n\n{_CONVERSIONS}")


def _failures(groups: Sequence[Group]) -> list[str]:
    lines = [
        f"- {model_name(run.config)}, seed {run.config.seed}: {run.failed}" for group in groups for run in group.failed
    ]
    return ["\n".join(["Without a result:", "", *lines])] if lines else []


def _moves(groups: Sequence[Group]) -> list[str]:
    lines = []
    for run in (run for group in groups for run in group.runs):
        for before, after in pairwise(run.environment.stages):
            if before.environment.hardware != after.environment.hardware:
                where = f"step {after.step:,} of {run.result.steps:,} on {after.environment.hardware}"
                lines.append(f"- {model_name(run.config)}, seed {run.config.seed}: from {where}")
    return ["\n".join(["Finished on another machine:", "", *lines])] if lines else []


def _image(name: str, folder: str) -> str:
    return f"![{name.rpartition('.')[0]}]({folder}{name})"


def _named(study: str, studies: Studies) -> list[str]:
    """Return the names of a study and of those in its folder."""
    names = [name for name in studies if name == study or name.startswith(f"{study}/")]
    if not names:
        raise RunError(f"there is no study {study!r}: {nearest(study, studies)}")
    return names


_TEXTS: dict[str, Callable[[StudyRecord, Sequence[Group]], str]] = {
    "table": lambda _, groups: accuracy_text(groups),
    "summary": _summary,
    "contrasts": lambda found, groups: contrast_text(groups, found.contrasts),
    "validation": _validations,
    "angles": _angles,
}
KINDS = (*_TEXTS, "pictures", "sizes", "conversions", "frontier")
"""What a block of a page can show of a study: texts about its runs, the files of `draw_study` in the folder `PICTURES`,
accuracy against bytes, after training and with it, and what `rotateconv convert` found."""
