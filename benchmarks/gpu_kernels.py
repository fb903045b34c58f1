"""Microseconds on a GPU for making the kernels of a whole model, forward, and backward with it.

    python benchmarks/gpu_kernels.py kernels.json

Captured in a CUDA graph, as training runs there by default, it is what the GPU takes; in eager mode it is mostly what
Python takes to ask for it. The median of five means.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch

from rotateconv import build_model
from rotateconv.lab.bench.forms import captured
from rotateconv.lab.train.environment import Environment
from rotateconv.nn.batched import _kernels
from rotateconv.nn.conv import RotateConv2d


def microseconds(work: Callable[[], object], calls: int) -> float:
    """Return what a call takes, by the GPU's own clock."""
    means = []
    for _ in range(6):  # the first warms up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        means.append(1e3 * start.elapsed_time(end) / calls)
    return sorted(means[1:])[2]


def main(file: Path) -> None:
    """Time every model and kind of taps, in float32 and bfloat16."""
    rows = []
    for name, conv, low in product(("resnet20", "densenet40"), ("rotate4", "rotate2p", "rotate2"), (False, True)):
        model = build_model(name, conv).cuda().to(memory_format=torch.channels_last)
        layers = {layer: layer.kernel_sources() for layer in model.modules() if isinstance(layer, RotateConv2d)}
        sources = [source for some in layers.values() for source in some]

        def forward(layers=layers, low: bool = low) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
            with torch.autocast("cuda", torch.bfloat16, enabled=low):
                return _kernels(layers, True)

        grads = [torch.randn_like(kernel) for kernel in forward()]

        def both(forward=forward, sources=sources, grads=grads) -> None:  # type: ignore[no-untyped-def]
            torch.autograd.grad(forward(), sources, grads)

        row = {"model": name, "conv": conv, "dtype": "bfloat16" if low else "float32", "layers": len(layers)}
        for key, work in (("forward", forward), ("forward+backward", both)):
            row[f"{key}, captured, us"] = round(microseconds(captured(work), 200), 1)
        row["forward+backward, eager, us"] = round(microseconds(both, 50), 1)
        print(row, flush=True)
        rows.append(row)
    file.write_text(json.dumps({"environment": asdict(Environment.now()), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
