"""The table of a comparison: rows from run folders, as JSON, Markdown and a picture."""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rotateconv.lab.config import RunConfig
from rotateconv.lab.report.figures import draw_comparison
from rotateconv.lab.train.environment import Environment
from rotateconv.lab.train.run_folder import (
    SUMMARY,
    Record,
    read_environment,
    read_json,
    read_records,
    read_summary,
    write_bytes,
)
from rotateconv.lab.train.run_results import RunSummary

BASELINE = "conv3x3"
"""The dense convolution that the others are compared with."""

CAPTION = (
    "Test accuracy in percent, mean ± standard deviation (n - 1) over seeds, of the net after the last epoch. "
    "The difference, in points, is to the dense net of the same model and recipe; its standard error is "
    "√(s₁²/n₁ + s₂²/n₂), unpaired. Multiply-adds are of one image; seconds an epoch are medians."
)


@dataclass(frozen=True)
class Entry:
    """A row of the table before its runs.

    Args:
        config: of the runs; the seed is set later.
        equal_to: the convolution that the narrowed dense net is as large as, or None.
    """

    config: RunConfig
    equal_to: str | None = None

    def run(self, seed: int) -> str:
        """Return the name of a run's folder."""
        width = "" if self.config.width == 1 else f"-w{self.config.width:g}"
        return f"{self.config.model}-{self.config.conv}{width}-seed{seed}"


def write_comparison(entries: Sequence[Entry], seeds: int, out: Path, failed: Mapping[str, str]) -> list[Record]:
    """Write comparison.json, comparison.md and comparison.png as far as runs are done, and return the rows.

    Args:
        entries: the table's rows.
        seeds: runs of each.
        out: folder of the comparison; its runs are in `out`/runs.
        failed: why runs have no result, by name.

    Raises:
        RunError: a record is damaged, or the disk takes nothing more.
    """
    rows = [_row(entry, seeds, out, failed) for entry in entries]
    rows = [row for row in rows if row["n"] or row["failed"]]
    baselines = {row["model"]: row for row in rows if row["conv"] == BASELINE and row["equal_to"] is None}
    for row in rows:
        row.update(_difference(row, baselines.get(row["model"])))
    if rows:
        write_bytes(out / "comparison.json", (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())
        write_bytes(out / "comparison.md", markdown(rows).encode())
        draw_comparison(rows, out / "comparison.png")
    return rows


def read_rows(path: str | Path) -> list[Record]:
    """Return the rows of a comparison.json."""
    rows: list[Record] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def markdown(rows: Sequence[Record]) -> str:
    """Return the rows as a table in Markdown, with the recipe above and the caption below."""
    head = ("model", "conv", "parameters", "multiply-adds", "test accuracy %", "difference", "n", "s/epoch")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    first = rows[0]
    versions = first["versions"]
    machines = " and ".join(dict.fromkeys(name for row in rows for name in row["machines"]))
    title = f"{first['dataset']}, recipe {first['recipe']}, {first['epochs']} epochs"
    made = f" {machines}; torch {versions.get('torch')}, rotateconv {versions.get('rotateconv')}." if machines else ""
    failures = [f"- {row['label']}, seed {seed}: {why}" for row in rows for seed, why in row["failed"].items()]
    told = ["", "Without a result:", *failures] if failures else []
    return "\n".join([f"**{title}**", "", *lines, "", f"{CAPTION}{made}", *told]) + "\n"


def cells(row: Record) -> tuple[str, ...]:
    """Return a row's cells as people read them."""
    mean, std, seconds = row["accuracy_mean"], row["accuracy_std"], row["seconds_per_epoch"]
    difference, error = row["difference"], row["difference_standard_error"]
    if difference is not None:
        difference = round(difference, 2) + 0.0  # no "-0.00"
    accuracy = "diverged" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    told = "-" if difference is None else f"{difference:+.2f}" if error is None else f"{difference:+.2f} ± {error:.2f}"
    count = f"{row['n']}" if not row["failed"] else f"{row['n']} of {row['n'] + len(row['failed'])}"
    return (
        row["model"],
        row["label"],
        _known(row["parameters"]),
        "-" if row["multiply_adds"] is None else f"{row['multiply_adds'] / 1e6:,.2f} M",
        accuracy,
        told,
        count,
        "-" if seconds is None else f"{seconds:.3g}",
    )


def _known(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _row(entry: Entry, seeds: int, out: Path, failed: Mapping[str, str]) -> Record:
    """Return what the finished runs of a configuration found."""
    summaries: dict[int, RunSummary] = {}
    validations: list[float | None] = []
    environments: list[Environment] = []  # of the runs, in all their stages
    for seed in range(seeds):
        folder = out / "runs" / entry.run(seed)
        if (folder / SUMMARY).is_file() and (folder / "config.json").is_file():
            summaries[seed] = read_summary(folder)
            validations.append(read_records(folder)[-1].validation_accuracy)
            environments += [stage.environment for stage in read_environment(folder).stages]
    found = list(summaries.values())
    dataset = next(
        (read_json(out / "runs" / entry.run(seed) / "data.json")["name"] for seed in summaries), entry.config.data
    )
    environment = dataclasses.asdict(environments[0]) if environments else {}
    accuracies = [summary.test_accuracy for summary in found]
    config = entry.config
    return {
        "model": config.model,
        "conv": config.conv,
        "width": config.width,
        "equal_to": entry.equal_to,
        "label": config.conv if config.width == 1 else f"{config.conv} x{config.width:.2f}",
        "dataset": str(dataset),
        "recipe": config.recipe,
        "epochs": config.epochs,
        "parameters": found[0].parameters if found else None,
        "multiply_adds": found[0].multiply_adds if found else None,
        "accuracy_mean": statistics.fmean(accuracies) if accuracies else None,
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "n": len(accuracies),
        "seeds": list(summaries),
        "accuracies": accuracies,
        "validation_accuracies": validations,
        "validation_accuracy_mean": _mean(validations),
        "seconds_per_epoch": statistics.median(s.seconds_per_epoch for s in found) if found else None,
        "runs": [os.path.join("runs", entry.run(seed)) for seed in summaries],  # noqa: PTH118
        "failed": {str(seed): failed[entry.run(seed)] for seed in range(seeds) if entry.run(seed) in failed},
        "hardware": {key: environment.get(key) for key in ("cpu", "physical_cores", "logical_cores", "threads", "gpu")},
        "machines": list(dict.fromkeys(found.hardware for found in environments)),
        "versions": {"python": environment.get("python"), **environment.get("versions", {})},
    }


def _difference(row: Record, baseline: Record | None) -> Record:
    """Return the difference to the dense net in points, and its standard error √(s₁²/n₁ + s₂²/n₂)."""
    nothing = {"difference": None, "difference_standard_error": None}
    if baseline is None or baseline is row or row["accuracy_mean"] is None or baseline["accuracy_mean"] is None:
        return nothing
    difference = row["accuracy_mean"] - baseline["accuracy_mean"]
    if row["accuracy_std"] is None or baseline["accuracy_std"] is None:
        return {**nothing, "difference": difference}
    error = math.sqrt(sum(r["accuracy_std"] ** 2 / r["n"] for r in (row, baseline)))
    return {"difference": difference, "difference_standard_error": error}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
