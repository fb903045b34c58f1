"""What the layer must reach: a ratio of times or memories for each target, and what a record says about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from rotateconv.lab.bench.cases import PRECISIONS, UNBATCHED, Case
from rotateconv.lab.bench.record import LostRow, Row, TargetRow

Quantity = Literal["ratio", "speedup", "peak_ratio"]


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        case: what is timed.
        form: of the case, compared with its first form.
        quantity: "ratio", its time over the first form's; "speedup", the first form's over its own; "peak_ratio",
            its peak memory over the first form's.
        least, most: the bounds; either may be None.
    """

    case: Case
    form: str
    quantity: Quantity
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        """The bounds in words.

        Example:
            >>> targets("cpu")[0].wanted
            'at most 1.03'
        """
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    def reached(self, value: float) -> bool:
        """Whether a measured value lies within the bounds."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def targets(device: str = "cpu") -> list[Target]:
    """The targets for a CPU or a GPU."""
    gpu = device == "cuda"
    model_forms = ("conv3x3", "rotate4", f"rotate4{UNBATCHED}")
    trained = model_forms[1 if gpu else 2]  # on a CPU as the layer is, in no context
    found = []
    for dtype, batch in product(PRECISIONS, (512,) if gpu else (32, 64, 128)):
        forms = model_forms[: 2 if gpu and dtype == "bfloat16" else 3]
        case = Case("model", forms, "step", batch, dtype, model="resnet20")
        found.append(Target(case, trained, "ratio", most=1.08 if gpu else 1.03))
        if batch >= 128:
            found.append(Target(case, "rotate4", "peak_ratio", most=1.02))
    for dtype in PRECISIONS:
        case = Case("model", model_forms[:2], "step", 512 if gpu else 128, dtype, True, "resnet20")
        found.append(Target(case, "rotate4", "ratio", most=1.02 if gpu else 1.03))
        forms = model_forms[: 2 if gpu and dtype == "bfloat16" else 3]
        case = Case("model", forms, "step", 64, dtype, False, "densenet40")
        found.append(Target(case, trained, "ratio", most=1.08 if gpu else 1.04))
    # Within a CUDA graph, as training runs there by default.
    for (model, batch), dtype in product((("resnet20", 128), ("resnet20", 512), ("densenet40", 64)), PRECISIONS):
        if gpu:
            case = Case("model", model_forms[:2], "captured step", batch, dtype, False, model)
            found.append(Target(case, "rotate4", "ratio", most=1.04))
    kernel = Case("kernel", ("plain", "fused"), "forward+backward", 512)
    found.append(Target(kernel, "fused", "ratio", most=0.1 if gpu else 0.35))
    # At least half of the memory's bandwidth: a copy of as many bytes as have to be read and written.
    found.append(Target(replace(kernel, forms=("copy", "fused")), "fused", "ratio", most=2.0))
    fused = Case("fused model", ("conv3x3", "rotate4"), "forward", 128, model="resnet20")
    found.append(Target(fused, "rotate4", "ratio", least=0.98, most=1.02))
    for channels, size in () if gpu else ((128, 28), (256, 14)):  # on a GPU the dense form is the one that is used
        forms = ("nn.Conv2d", "rotate2p-g1", "rotate2p-g4")
        inference = Case("layer", forms, "forward", 32, channels=channels, size=size)
        found.append(Target(inference, "rotate2p-g1", "speedup", least=4))
        found.append(Target(inference, "rotate2p-g4", "speedup", least=2))
        training = Case("layer", forms, "step", 32, channels=channels, size=size)
        found.append(Target(training, "rotate2p-g1", "speedup", least=2.5))
        found.append(Target(training, "rotate2p-g4", "speedup", least=1.3))
    for channels, size in ((16, 32), (64, 8)):
        for peer in ("deform_conv2d", "DCLS"):
            case = Case("layer", (peer, "rotate4"), "step", 16, channels=channels, size=size)
            found.append(Target(case, "rotate4", "ratio", most=1.0))
    return found


def judge(target: Target, rows: Sequence[Row | LostRow]) -> TargetRow:
    """A target with what was measured: value, low, high and reached, all None where nothing was."""
    case, form = target.case, target.form
    value = low = high = None
    for row in rows:
        # Without its first form, a peer that is not installed, a case was measured against the next one.
        if isinstance(row, Row) and (row.case, row.form, row.baseline) == (case, form, case.forms[0]):
            value, low, high = {
                "ratio": (row.ratio, row.ratio_low, row.ratio_high),
                "speedup": (1 / row.ratio, 1 / row.ratio_high, 1 / row.ratio_low),
                "peak_ratio": (row.peak_ratio,) * 3,
            }[target.quantity]
            break
    reached = None if value is None else target.reached(value)
    return TargetRow(case, form, case.forms[0], target.quantity, target.wanted, value, low, high, reached)
