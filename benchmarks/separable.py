"""Fits the costs by which form="auto" chooses on a CPU, and says how much the choice still loses at worst.

    taskset -c 1 python benchmarks/separable.py build/separable.json           # on an idle machine: a quarter hour
    python benchmarks/separable.py build/separable.json --fit                  # of a record, without timing

The same command goes on where it stopped.

Every layer of a grid is timed in both forms, in turn, and layers of other sizes too. A loss is the time of the chosen
form over that of the faster one, less 1. The costs are fitted on all of them; what those of the grid alone lose on the
others says how well they do where nothing was timed.
"""

import argparse
import json
import operator
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import differential_evolution

from rotateconv import RotateConv2d
from rotateconv.kernels import separable

CHANNELS, GROUPS, KERNELS = (16, 32, 64, 128, 256), (1, 2, 4), (3, 5, 7)
SIZES = ((4, 7), (4, 14), (4, 28), (4, 56), (64, 28))
"""Images and their height; larger kernels are timed at the second."""
HELD_OUT = {"channels": (24, 48, 96, 192), "sizes": ((16, 16), (32, 32)), "kernels": (3, 5)}
BOUNDS = ((0.3, 150), (1e-3, 4000), (1, 1500), (0.3, 6), (1e4, 3e7), (1e-3, 2000), (1e-3, 2000), (1e-3, 5))
"""Of the costs, in their order."""
DOUBT = 0.02
"""By how much the costs of two forms differ where one is chosen three times in four; a fit must bear it."""
SEARCHES, STEPS = 4, 800
"""For costs, each from others; steps of 320 costs at a time."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("dense", "separable")
Case = dict[str, Any]


def cases(tiny: bool) -> list[Case]:
    """Return what is timed: kernels of 3 at every size, larger ones at one; then the layers that are held out."""
    keys = ("held_out", "channels", "size", "groups", "kernel", "mode", "dtype", "channels_last")
    rest = (GROUPS, KERNELS, ("inference", "training"), DTYPES, (True, False))
    every = [dict(zip(keys, values, strict=True)) for values in product((False,), CHANNELS, SIZES, *rest)]
    found = [case for case in every if case["kernel"] == 3 or case["size"] == SIZES[1]]
    new = product((True,), HELD_OUT["channels"], HELD_OUT["sizes"], GROUPS, HELD_OUT["kernels"], *rest[2:])
    found += [dict(zip(keys, values, strict=True)) for values in new]
    for case in found:
        case["batch"], case["size"] = case["size"]
    return [case for case in found if case["channels"] == 16 and case["size"] == 7] if tiny else found


def timed(case: Case, seconds: float) -> Case:
    """Return the case with the median times of both forms, in seconds."""
    torch.manual_seed(0)
    training, channels = case["mode"] == "training", case["channels"]
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    images = torch.randn(case["batch"], channels, case["size"], case["size"]).contiguous(memory_format=layout)
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
    return {**case, **{form: float(f"{statistics.median(values):.4g}") for form, values in times.items()}}


def losses(rows: list[Case], costs: separable._Costs, doubt: float = 1e-9) -> Any:
    """Return what the choice by these costs loses in each case; of arrays of costs, a column for each of them.

    With `doubt`, the choice is drawn, the more evenly the nearer the costs of the forms are to each other: a law that
    chooses well by a hair's breadth loses then.
    """
    number = {key: np.array([[float(row[key])] for row in rows]) for key in (*FORMS, "channels", "kernel", "groups")}
    share = np.array([[1 / (row["batch"] * row["size"] ** 2)] for row in rows])
    channels = number["channels"]
    dense, other = costs.of_forms(channels, channels, number["kernel"], number["groups"], share)
    chosen = 1 / (1 + np.exp(np.clip(np.log(other / dense) / doubt, -50, 50)))
    best = np.minimum(number["dense"], number["separable"])
    return (chosen * number["separable"] + (1 - chosen) * number["dense"]) / best - 1


def best_costs(rows: list[Case]) -> separable._Costs:
    """Return the costs with the least losses: the worst one, the worst twentieth and the mean count."""

    def score(exponents: Any) -> Any:
        lost = np.sort(losses(rows, separable._Costs(*np.exp(exponents)), DOUBT), axis=0)
        return 4 * lost[-1] + 2 * lost[-(len(lost) // 20 + 1) :].mean(0) + 3 * lost.mean(0)

    found = min((_searched(score, seed) for seed in range(SEARCHES)), key=operator.attrgetter("fun"))
    return separable._Costs(*(float(f"{value:.3g}") for value in np.exp(found.x)))


def _searched(score: Any, seed: int) -> Any:
    options: dict[str, Any] = {"vectorized": True, "updating": "deferred", "polish": False, "tol": 0, "rng": seed}
    return differential_evolution(score, np.log(BOUNDS), popsize=40, maxiter=STEPS, **options)


def fit(rows: list[Case], mode: str, dtype: str, last: bool) -> None:
    """Print what the present costs lose in one mode, type and order, the best, and the best of the grid alone."""
    rows = [row for row in rows if (row["mode"], row["dtype"], row["channels_last"]) == (mode, dtype, last)]
    grid, other = ([row for row in rows if row["held_out"] == value] for value in (False, True))
    order = "channels-last" if last else "contiguous"
    print(f"{mode}, {dtype}, {order}, {len(grid)} layers of the grid and {len(other)} others:")
    present = separable._COSTS[mode, DTYPES[dtype], last]
    for name, costs in (
        ("in use", present),
        ("best", best_costs(rows)),
        ("best of the grid", best_costs(grid)),
    ):
        print(f"    {name} {tuple(costs)}")
        for which, these in (("the grid", grid), ("the others", other)):
            if these:
                lost = losses(these, costs)
                worst = these[int(lost.argmax())]
                where = {key: worst[key] for key in ("channels", "batch", "size", "groups", "kernel")}
                print(
                    f"        {which}: loses {lost.mean():.1%} on average, {np.quantile(lost, 0.9):.0%} at the worst "
                    f"tenth, {lost.max():.0%} at worst {where}"
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
                arguments.record.write_text(
                    "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n"
                )
    rows = json.loads(arguments.record.read_text())
    for kind in product(("inference", "training"), arguments.dtypes, (True, False)):
        fit(rows, *kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
