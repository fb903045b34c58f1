"""Fits the costs by which form="auto" chooses on a CPU, and says how much the choice still loses at worst.

    taskset -c 1 python benchmarks/separable.py build/separable.json           # on an idle machine: half an hour
    python benchmarks/separable.py build/separable.json --fit                  # of a record, without timing

The same command goes on where it stopped.

Every layer of a grid is timed in both forms, in turn; the constants are those of a small grid with the least mean loss
over the worst tenth of the layers. A loss is the time of the chosen form over that of the faster one, less 1.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from rotateconv import RotateConv2d
from rotateconv.kernels import separable

CHANNELS, SIZES, GROUPS, KERNELS = (16, 32, 64, 128, 256), (7, 14, 28, 56), (1, 2, 4), (3, 5, 7)
BATCH = 4
ADD, MAP, POINT, CALL, MAKE = (
    (2, 4, 6, 9, 15, 30, 60),
    (30, 40, 60, 90, 150, 300, 540),
    (1.2, 1.5, 2.0, 2.5, 3.5, 4.5),
    (5e5, 1e6, 2e6, 4e6),
    (0, 100, 220, 520),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("dense", "separable")
Case = dict[str, Any]


def cases(tiny: bool) -> list[Case]:
    """Return what is timed: kernels of 3 at every size, larger ones at one."""
    keys = ("channels", "size", "groups", "kernel", "mode", "dtype", "channels_last")
    every = product(CHANNELS, SIZES, GROUPS, KERNELS, ("inference", "training"), DTYPES, (True, False))
    found = [dict(zip(keys, values, strict=True)) for values in every]
    found = [case for case in found if case["kernel"] == 3 or case["size"] == 14]
    return [case for case in found if case["channels"] == 16 and case["size"] == 7] if tiny else found


def timed(case: Case, seconds: float) -> Case:
    """Return the case with the median times of both forms, in seconds."""
    torch.manual_seed(0)
    training, channels = case["mode"] == "training", case["channels"]
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    images = torch.randn(BATCH, channels, case["size"], case["size"]).contiguous(memory_format=layout)
    images.requires_grad_(training)
    options: dict[str, Any] = {"taps": "profile", "angle_groups": case["groups"], "padding": case["kernel"] // 2}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    layers = {form: RotateConv2d(channels, channels, case["kernel"], form=form, **options) for form in times}

    def run(form: str) -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", enabled=case["dtype"] == "bfloat16"):
            output = layers[form](images)
        if training:
            output.sum().backward()

    for form in times:
        run(form)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["dense"]) < 3:
        for form in times:
            start = time.process_time()
            run(form)
            times[form].append(time.process_time() - start)
    return {**case, **{form: statistics.median(values) for form, values in times.items()}}


def losses(rows: list[Case]) -> list[float]:
    """Return what `prefers_separable` loses in each case, by the costs that it has."""
    found = []
    for row in rows:
        chosen = separable.prefers_separable(
            row["channels"],
            row["channels"],
            row["kernel"],
            row["groups"],
            BATCH * row["size"] ** 2,
            training=row["mode"] == "training",
            dtype=DTYPES[row["dtype"]],
        )
        found.append(row["separable" if chosen else "dense"] / min(row["dense"], row["separable"]) - 1)
    return found


def fit(rows: list[Case], mode: str, dtype: str) -> None:
    """Print what the present costs lose, and the best of the grid, for one mode and type."""
    rows = [row for row in rows if (row["mode"], row["dtype"]) == (mode, dtype)]
    key, now = (mode, DTYPES[dtype]), losses(rows)
    before, found = separable._COSTS[key], {}
    for values in (before, *product(ADD, MAP, POINT, CALL, MAKE)):  # of equally good ones the present costs
        separable._COSTS[key] = separable._Costs(*map(float, values))
        these = sorted(losses(rows))
        # Not by the worst alone, which is one doubtful time.
        score = statistics.mean(these[-max(1, len(these) // 10) :]), statistics.mean(these)
        found.setdefault(score, (separable._COSTS[key], these))
    separable._COSTS[key] = before
    print(f"{mode}, {dtype}, {len(rows)} layers:")
    for name, (costs, these) in (("in use", (before, now)), ("best of the grid", min(found.items())[1])):
        tenth = statistics.quantiles(these, n=10)[-1] if len(these) > 1 else these[0]
        print(
            f"    {name} {tuple(costs)}: loses {statistics.mean(these):.1%} on average, "
            f"{tenth:.0%} at the worst tenth, {max(these):.0%} at worst"
        )


def main() -> int:
    """Time and fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="JSON file of the times")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--fit", action="store_true", help="time nothing, fit a record")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer")
    parser.add_argument("--tiny", action="store_true", help="the smallest layers only, to try the script")
    arguments = parser.parse_args()
    if not arguments.fit:
        torch.set_num_threads(1)
        rows = json.loads(arguments.record.read_text()) if arguments.record.exists() else []
        done = [{key: row[key] for key in row if key not in FORMS} for row in rows]
        for case in cases(arguments.tiny):
            if case["dtype"] in arguments.dtypes and case not in done:
                rows.append(timed(case, arguments.seconds))
                arguments.record.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    rows = json.loads(arguments.record.read_text())
    for mode, dtype in product(("inference", "training"), arguments.dtypes):
        fit(rows, mode, dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
