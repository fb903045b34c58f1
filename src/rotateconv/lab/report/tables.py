"""Markdown tables of a study's rows: accuracies, settings, who loses against whom, angles."""

import statistics
from collections.abc import Sequence
from itertools import pairwise

from rotateconv.lab.report.statistics import Contrast, Row, Spread, contrast, contrasts, dense_of
from rotateconv.lab.study.angles import RunAnalysis
from rotateconv.lab.study.conversions import ConversionRecord

CAPTION = (
    "Percent, mean ± standard deviation (n - 1) over seeds, of the net after the last epoch. Differences are in "
    "points, ± the standard error √(s₁²/n₁ + s₂²/n₂), unpaired."
)
_ANGLES = (
    "Validation accuracy of the model as trained, with the angles of all layers permuted over their slices, with those "
    "of one layer permuted, and from the packed file (4-bit weights, 5-bit angles, not calibrated). The mean of cos 4θ "
    "is 1 for filters along rows and columns and -1 along diagonals; its deviation is that under the uniform law."
)


def accuracy_table(rows: Sequence[Row]) -> str:
    """Test accuracies, each with its difference to the dense net of the same model, recipe and setting."""
    several, packed = any(row.setting for row in rows), any(_packed(row) != "-" for row in rows)
    head = ["model", "conv", *(["setting"] if several else []), "parameters", *(["packed bytes"] if packed else [])]
    head += ["test accuracy %", "difference to dense", "n"]
    lines = []
    for row in rows:
        one = contrast(row, dense_of(row, rows))
        setting = [row.setting or "as the recipe"] if several else []
        sizes = [_number(row.parameters), *([_packed(row)] if packed else [])]
        lines.append([row.model, row.label, *setting, *sizes, _spread(row.accuracy), _difference(one), _count(row)])
    left = 3 if several else 2
    return "\n\n".join([_protocol(rows), _table(head, lines, left), CAPTION, *_failures(rows), *_moves(rows)])


def validation_table(rows: Sequence[Row]) -> str:
    """Validation accuracies, best first for each net: what settings are chosen by, the test set left alone."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.model, row.label, -row.validation.mean if row.validation else 0.0)):
        lines.append([row.model, row.label, row.setting or "as the recipe", _spread(row.validation), _count(row)])
    table = _table(["model", "conv", "setting", "validation accuracy %", "n"], lines, 3)
    return "\n\n".join([_protocol(rows), table, *_failures(rows), *_moves(rows)])


def contrast_table(rows: Sequence[Row]) -> str:
    """Who loses against whom, and by how much: losses first."""
    found = contrasts(rows)
    if not found:
        return "No net with learned angles stands beside another one."
    several = any(row.setting for row in rows)
    lines = []
    for one in found:
        setting = [one.row.setting or "as the recipe"] if several else []
        against = one.other.label + (f" (dense net of {one.row.label}'s size)" if one.other.equal_to else "")
        lines.append([one.row.model, one.row.label, against, *setting, one.verdict, _difference(one)])
    head = ["model", "conv", "against", *(["setting"] if several else []), "verdict", "difference, points"]
    rule = "Decided is what lies beyond two standard errors."
    return "\n\n".join([_table(head, lines, 4 + several), rule])


def angle_table(rows: Sequence[Row]) -> str:
    """How far the angles of each net moved, and, where runs were analysed, how they lie and what shuffling costs."""
    found = [row for row in rows if row.runs and row.curve("angle_movement_mean")]
    if not found:
        return "No net here has angles."
    lines = []
    for row in found:
        mean, largest = row.curve("angle_movement_mean")[-1], row.curve("angle_movement_max")[-1]
        if largest.mean > 0:  # angles that are not learned stay
            setting = f" ({row.setting})" if row.setting else ""
            lines.append([row.model, row.label + setting, f"{mean.mean:.3f}", f"{largest.mean:.2f}", _count(row)])
    head = ["model", "conv", "mean movement, rad", "largest movement, rad", "n"]
    parts = [_table(head, lines, 2)]
    analysed = [(row, [a for run in row.runs if (a := run.analysis) and a.angles]) for row in found]
    lines = [_shuffle_line(row, analyses) for row, analyses in analysed if analyses]
    if lines:
        head = ["model", "conv", "layer that loses most", "validation %", "all shuffled", "that layer shuffled"]
        head += ["packed", "cos 4θ before", "cos 4θ after", "its deviation", "n"]
        seen = any(analysis.validation_seen for _, analyses in analysed for analysis in analyses)
        parts += [_table(head, lines, 3), _ANGLES + (" The validation images were trained on too." if seen else "")]
    return "\n\n".join(parts)


def _shuffle_line(row: Row, analyses: Sequence[RunAnalysis]) -> list[str]:
    """A row's cells, means over its analysed runs."""
    mean = statistics.fmean
    angles = [analysis.angles for analysis in analyses if analysis.angles is not None]
    layers = zip(*(found.layers for found in angles), strict=True)
    kept = {same[0].name: mean(layer.shuffled.mean for layer in same) for same in layers}
    worst = min(kept, key=kept.__getitem__)
    return [
        *(row.model, row.label, worst),
        f"{mean(a.validation_accuracy for a in analyses):.2f}",
        f"{mean(a.all.shuffled.mean for a in angles):.2f}",
        f"{kept[worst]:.2f}",
        f"{mean(a.packed.validation_accuracy for a in analyses):.2f}",
        f"{mean(a.all.before.axes for a in angles):+.4f}",
        f"{mean(a.all.after.axes for a in angles):+.4f}",
        f"{(2 * angles[0].all.slices) ** -0.5:.4f}",
        f"{len(analyses)}",
    ]


def _protocol(rows: Sequence[Row]) -> str:
    """The recipe and the machine of a table, in one line."""
    runs = [run for row in rows for run in (*row.runs, *row.failed)]
    first = runs[0]
    recipes = {f"recipe {run.config.recipe}, {run.config.epochs} epochs" for run in runs}
    machines: dict[str, None] = {}
    versions: dict[str, None] = {}
    commits: dict[str, None] = {}
    for run in runs:
        for stage in run.environment.stages:
            machines[stage.environment.hardware] = None
            versions[f"torch {stage.environment.versions.get('torch')}"] = None
            commits[str(stage.environment.commit)[:12]] = None
    held = "" if first.config.validation else "; the validation images were trained on too"
    data = ", ".join(dict.fromkeys(run.data.name for run in runs))
    made = f"{' and '.join(machines)}; {' and '.join(versions)}; commit {' and '.join(commits)}"
    return f"**{data}**, {' and '.join(sorted(recipes))}{held}. {made}."


def _moves(rows: Sequence[Row]) -> list[str]:
    told = []
    for row, run in [(one, run) for one in rows for run in one.runs]:
        for before, after in pairwise(run.environment.stages):
            if before.environment.hardware != after.environment.hardware:
                where = f"step {after.step:,} of {run.result.steps:,} on {after.environment.hardware}"
                told.append(f"- {row.model}, {row.label}, seed {run.config.seed}: from {where}")
    return ["\n".join(["Finished on another machine:", "", *told])] if told else []


def _failures(rows: Sequence[Row]) -> list[str]:
    failed = [(row, run) for row in rows for run in row.failed]
    told = [f"- {row.model}, {row.label}, seed {run.config.seed}: {run.failed}" for row, run in failed]
    return ["\n".join(["Without a result:", "", *told])] if told else []


def _packed(row: Row) -> str:
    sizes = [run.analysis.packed.bytes for run in row.runs if run.analysis]
    return f"{sum(sizes) / len(sizes):,.0f}" if sizes else "-"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"


def _difference(one: Contrast | None) -> str:
    if one is None:
        return "-"
    value = round(one.difference, 2) + 0.0  # no "-0.00"
    return f"{value:+.2f}" if one.error is None else f"{value:+.2f} ± {one.error:.2f}"


def _count(row: Row) -> str:
    return f"{len(row.runs)}" if not row.failed else f"{len(row.runs)} of {len(row.runs) + len(row.failed)}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first columns are words and whose others are numbers."""
    rule = "| " + " | ".join(["---"] * left + ["---:"] * (len(head) - left)) + " |"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def conversion_table(conversions: Sequence[ConversionRecord]) -> str:
    """A row for each trained net that was converted: test accuracy of it, of the fit, and after fine-tuning."""
    words = ("data", "net", "taps", "bits", "parameters", "trained", "fitted", "calibrated")
    head = (*words, "fine-tuned", "difference", "epochs")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | --- | --- |" + " ---: |" * (len(head) - 4)]
    for row in conversions:
        test = row.test_accuracy
        gained = round(test.fine_tuned - test.source, 2) + 0.0
        cells = (
            row.dataset,
            row.model,
            row.taps,
            "float32" if row.bits is None else str(row.bits[0]),
            f"{row.parameters_before:,} to {row.parameters_after:,}",
            *(
                "-" if value is None else f"{value:.2f}"
                for value in (test.source, test.fitted, test.calibrated, test.fine_tuned)
            ),
            f"**{gained:+.2f}**" if gained < 0 else f"{gained:+.2f}",
            str(row.epochs),
        )
        lines.append("| " + " | ".join(cells) + " |")
    caption = (
        "Test accuracy in percent, one run each: of the trained dense net, of the lines fitted to it, of the "
        "same with the statistics of its norms measured again on training images without labels (`recalibrate`), and "
        "after the epochs of fine-tuning with the dense net as the teacher, which the dense net did not get; a loss is "
        "in bold."
    )
    return "\n".join([*lines, "", caption])
