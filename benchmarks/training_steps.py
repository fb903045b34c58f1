"""A training step of ResNet-20 by batch and precision: the dense model, and layers that each make their own kernels.

    taskset -c 1 python benchmarks/training_steps.py benchmarks/training-steps.json
    ROTATECONV_NATIVE=c taskset -c 1 python benchmarks/training_steps.py benchmarks/training-steps-python-node.json
    taskset -c 1 python benchmarks/training_steps.py benchmarks/training-steps-others.json \\
        --convs rotate2p-g4,mask4,codebook16

One thread, and its own CPU time: what else runs beside it takes turns, and does not count. The second is without the
node in C++, the third of other layers, at batch 32. Also compiled, with --compiled.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from rotateconv.kernels.fused_native import how_kernels_are_made
from rotateconv.lab.bench.cases import PRECISIONS, UNBATCHED, Case
from rotateconv.lab.bench.forms import build_forms
from rotateconv.lab.bench.timing import Spread, measure, ratio
from rotateconv.lab.train.environment import Environment
from rotateconv.lab.train.process_memory import keep_freed_memory
from rotateconv.native import node

FORMS = ("conv3x3", f"rotate4{UNBATCHED}", f"rotate2p{UNBATCHED}", "rotate4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON to write")
    parser.add_argument("--seconds", type=float, default=7.0, help="for each form, about")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, at batch 64")
    parser.add_argument("--convs", type=lambda text: text.split(","), help="other layers, at batch 32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    node.wait()
    rows: list[dict[str, Any]] = []
    here = Environment.now()
    forms, batches = FORMS, (32, 64, 128)
    if options.convs:
        forms, batches = ("conv3x3", *(f"{name}{UNBATCHED}" for name in options.convs)), (32,)
    elif options.compiled:
        forms, batches = FORMS[:2], (64,)
    for dtype, batch in product(reversed(PRECISIONS), batches):
        case = Case("model", forms, "step", batch, dtype, options.compiled, model="resnet20")
        times = measure(build_forms(case, "cpu"), seconds=options.seconds, clock=time.process_time)
        for form in forms:
            spread, relative = Spread.of(times[form]), ratio(times, form, forms[0])
            row = {**asdict(case), "form": form, "baseline": forms[0], "rounds": len(times[form])}
            rows.append({**row, "seconds": asdict(spread), "ratio": asdict(relative)})
            found = f"{relative.median:.3f} ({relative.low:.3f} to {relative.high:.3f}), {len(times[form])} rounds"
            print(f"{case.name}, {dtype}: {form}: {1000 * spread.median:.1f} ms, {found}", flush=True)
        environment = {**asdict(here), "load_average": os.getloadavg(), "clock": "CPU time of one thread"}
        environment["kernels"] = how_kernels_are_made()
        record = {"schema": 1, "environment": environment, "rows": rows}
        options.file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
