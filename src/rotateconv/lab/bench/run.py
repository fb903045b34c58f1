"""A run of the bench: cases in, one record out."""

import dataclasses
import gc
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from rotateconv.kernels.fused_native import how_kernels_are_made
from rotateconv.lab.bench.cases import PRECISIONS, Case
from rotateconv.lab.bench.forms import build_forms
from rotateconv.lab.bench.record import SCHEMA, BenchRecord, Conditions, LostRow, Row
from rotateconv.lab.bench.targets import Target, judge
from rotateconv.lab.bench.timing import Spread, matrix_rate, measure, multiply_adds, peak_memory, ratio
from rotateconv.lab.train.environment import Environment
from rotateconv.native import node


def run_bench(
    cases: Sequence[Case],
    targets: Sequence[Target] = (),
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    on_case: Callable[[Case, list[Row | LostRow], BenchRecord], None] | None = None,
) -> BenchRecord:
    """Time cases, and those of targets, and judge the targets; BenchError where a form differs from the plain one.

    On a CPU with the node in C++, which is compiled first where it has not been.
    A case is timed once, whatever else needs it; `seconds` are for each form of each, about. `on_case` is called with
    every case, its rows, and the record so far.

    Returns:
        The record, with a row for each form of each case, and one without times for a case that does not fit into the
        memory.
    """
    rates: dict[str, float] = dict.fromkeys(PRECISIONS, 0.0)
    rows: list[Row | LostRow] = []
    environment = Environment.now()
    if device == "cpu":
        node.wait()  # what a training has that goes on for more than half a minute
    for case in dict.fromkeys([*cases, *(target.case for target in targets)]):
        # The best of all: a rate taken while something else ran would make every share too large.
        rates[case.dtype] = max(rates[case.dtype], matrix_rate(getattr(torch, case.dtype), device))
        new = _time(case, device, seconds)
        rows += new
        if on_case is not None:
            on_case(case, new, _record(environment, device, rates, rows, targets))
        gc.collect()  # compiled modules refer to themselves
    return _record(environment, device, rates, rows, targets)


def _record(
    environment: Environment,
    device: str,
    rates: Mapping[str, float],
    rows: Sequence[Row | LostRow],
    targets: Sequence[Target],
) -> BenchRecord:
    """What was found so far, with the time and the load of this moment."""
    shared = [
        dataclasses.replace(row, share_of_matrix_rate=row.multiply_adds / row.seconds / rates[row.case.dtype])
        if isinstance(row, Row) and row.multiply_adds is not None
        else row
        for row in rows
    ]
    here = dataclasses.asdict(environment)
    here["command"] = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])  # without the path to the program
    conditions = Conditions(
        **here,
        device=device,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        # Threads of other work that wait for the same cores make every time here a doubtful one.
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
        kernels=how_kernels_are_made() if device == "cpu" else None,
    )
    return BenchRecord(SCHEMA, conditions, dict(rates), tuple(shared), tuple(judge(target, rows) for target in targets))


def _time(case: Case, device: str, seconds: float) -> list[Row | LostRow]:
    try:
        works = build_forms(case, device)
        times = measure(works, seconds=seconds, device=device)
        peaks = {form: peak_memory(work, device) for form, work in works.items()}
    except torch.OutOfMemoryError:
        return [LostRow(case, "out of memory")]
    baseline = next(iter(works))
    rows: list[Row | LostRow] = []
    for form, work in works.items():
        spread, relative = Spread.of(times[form]), ratio(times, form, baseline)
        # A compiled function hides its operations from the counter, and so does a graph.
        hidden = case.compiled or case.kind == "kernel" or case.mode == "captured step"
        operations = None if hidden else multiply_adds(work)
        row = Row(
            case=case,
            form=form,
            baseline=baseline,
            seconds=spread.median,
            seconds_low=spread.low,
            seconds_high=spread.high,
            rounds=len(times[form]),
            ratio=relative.median,
            ratio_low=relative.low,
            ratio_high=relative.high,
            multiply_adds=operations,
            share_of_matrix_rate=None,
            peak_bytes=peaks[form],
            peak_ratio=peaks[form] / max(1, peaks[baseline]),
        )
        rows.append(row)
    return rows
