"""What a comparison and its sizes leave beside their runs: JSON for programs, Markdown and a picture for people."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rotateconv.lab.files import write_bytes
from rotateconv.lab.report.figures import draw_parameters, draw_sizes
from rotateconv.lab.report.page import accuracy_text, contrast_text, sizes_text
from rotateconv.lab.report.statistics import Group, contrast, dense_of, make_groups
from rotateconv.lab.report.tables import COMPARISON
from rotateconv.lab.sample import Sample
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.sizes import SizesTable
from rotateconv.lab.study.study_record import ComparisonRow


def write_comparison(runs: Sequence[RunRecord], controls: Mapping[str, Sequence[str]], out: Path) -> list[Group]:
    """Write comparison.json, comparison.md and comparison.png, and return the groups of their rows.

    The runs are in `out`/runs, as far as they are done; without any nothing is written. `controls` are as
    `Study.contrasts`.
    """
    groups = make_groups(runs)
    if groups:
        own = [() if group.equal_to else controls.get(group.layers, ()) for group in groups]
        rows = [dataclasses.asdict(_row(group, groups, names)) for group, names in zip(groups, own, strict=True)]
        write_bytes(out / "comparison.json", (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())
        text = f"{accuracy_text(groups, COMPARISON)}\n\n{contrast_text(groups, controls)}\n"
        write_bytes(out / "comparison.md", text.encode())
        draw_parameters(groups, out / "comparison.png")
    return groups


def write_sizes(table: SizesTable, out: Path) -> None:
    """Write sizes.json, sizes.md and sizes.png in `out`."""
    write_bytes(out / "sizes.json", (json.dumps(table.to_json(), indent=2, allow_nan=False) + "\n").encode())
    write_bytes(out / "sizes.md", f"{sizes_text(table)}\n".encode())
    draw_sizes(table, out / "sizes.png")


def _row(group: Group, groups: Sequence[Group], controls: Sequence[str]) -> ComparisonRow:
    first = (*group.runs, *group.failed)[0]
    stages = [stage.environment for run in group.runs for stage in run.environment.stages]
    against = contrast(group, dense_of(group, groups))
    accuracy = group.accuracy or Sample(())
    return ComparisonRow(
        model=group.model,
        conv=group.config.conv,
        width=group.config.width,
        equal_to=group.equal_to,
        label=group.label,
        dataset=first.data.name,
        recipe=group.config.recipe,
        epochs=group.config.epochs,
        parameters=group.parameters,
        multiply_adds=group.runs[0].result.multiply_adds if group.runs else None,
        accuracy_mean=accuracy.mean if group.accuracy else None,
        accuracy_std=accuracy.std,
        n=accuracy.n,
        seeds=tuple(run.config.seed for run in group.runs),
        accuracies=accuracy.values,
        validation_accuracies=tuple(run.curves.validation_accuracy[-1] for run in group.runs),
        difference=None if against is None else against.difference,
        difference_interval=None if against is None else against.interval,
        p_value=None if against is None else against.p_value,
        seconds_per_epoch=group.seconds_per_epoch,
        runs=tuple(f"runs/{run.name}" for run in group.runs),
        failed={run.config.seed: run.failed or "" for run in group.failed},
        machines=tuple(dict.fromkeys(stage.hardware for stage in stages)),
        versions={"python": stages[0].python, **stages[0].versions} if stages else {},
        controls=tuple(controls),
        names={run.config.seed: run.name for run in (*group.runs, *group.failed)},
    )
