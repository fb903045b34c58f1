"""What `rotateconv shrink` tries and what it found: candidates, trials and shrink.json, as frozen dataclasses."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.naming import counted
from rotateconv.lab.plain import Plain
from rotateconv.lab.run_config import bits_keys
from rotateconv.lab.table import Table
from rotateconv.quantization.bits import Bits

RECORD, TABLE, ONNX, PACKED = "shrink.json", "shrink.md", "model.onnx", "model.rcp"
"""What a search leaves in its folder: what was tried, and the files of the winner."""

Count = Literal["onnx", "rcp"]
"""The file whose bytes count: the compact ONNX file or the packed one."""

WEIGHT_BITS, ANGLE_BITS = range(2, 9), range(3, 6)
"""Bits that are tried; a model without RotateConv layers is also tried with 1, the binary weights of XNOR-Net."""


@dataclass(frozen=True)
class CandidateForm(Plain):
    """What the convolutions of the source become.

    Attributes:
        taps: Of their RotateConv layers; None for no such layers.
        path, angle_groups: As of RotateConv2d.
        conv: Layers of another kind, in `CONVS`; None with `taps`, and for the model as it is.
    """

    taps: Literal["free", "shared", "profile"] | None = None
    path: Literal["circle", "square"] = "circle"
    angle_groups: int | None = None
    conv: Literal["codebook16"] | None = None

    @property
    def is_source(self) -> bool:
        """Whether the model stays as it is."""
        return self.taps is None and self.conv is None

    @property
    def name(self) -> str:
        """What it is called, also in the names of folders.

        Example:
            >>> CandidateForm().name, CandidateForm("free", "square").name, CandidateForm("shared", angle_groups=4).name
            ('as-it-is', 'free-square', 'shared-g4')
        """
        if self.taps is None:
            return self.conv or "as-it-is"
        groups = "" if self.angle_groups is None else f"-g{self.angle_groups}"
        return f"{self.taps}{'' if self.path == 'circle' else f'-{self.path}'}{groups}"


_TAPS: tuple[Literal["profile", "shared", "free"], ...] = ("profile", "shared", "free")
_PATHS: tuple[Literal["circle", "square"], ...] = ("circle", "square")
FORMS = (
    CandidateForm(),
    *(CandidateForm(taps, path) for taps in _TAPS for path in _PATHS),
    *(CandidateForm(taps, angle_groups=groups) for taps in _TAPS for groups in (4, 1)),
    CandidateForm(conv="codebook16"),
)
"""How a model of dense convolutions is tried: as it is and as kernel codebooks, the honest rivals, and as lines."""


@dataclass(frozen=True)
class Candidate(Plain):
    """A form at so many bits of a weight, an angle (None where there is none), and stem, 1x1 and linear layers.

    Attributes:
        form, weight_bits, angle_bits, dense_bits: Of all layers but `layers`.
        layers: Patterns of the names of layers with other bits of a weight and an angle.
    """

    form: CandidateForm
    weight_bits: int
    angle_bits: int | None
    dense_bits: int
    layers: tuple[tuple[str, tuple[int, int]], ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        angle = "" if self.angle_bits is None else f"-a{self.angle_bits}"
        return f"{self.form.name}-w{self.weight_bits}{angle}{'-by-part' if self.layers else ''}"

    @property
    def described(self) -> str:
        """Its name, and the bits that parts have of their own.

        Example:
            >>> Candidate(CandidateForm("profile"), 2, 3, 8, (("layer1.*", (4, 5)),)).described
            'profile-w2-a3-by-part (layer1.* 4 + 5)'
        """
        own = [f"{layer} {w}" + ("" if self.angle_bits is None else f" + {a}") for layer, (w, a) in self.layers]
        return f"{self.name} ({', '.join(own)})" if own else self.name

    @property
    def bits(self) -> Bits:
        """Of the file. One weight for a slice has levels without a zero, which would drop the slice with its angle.

        Profiles of 6 bits are as accurate as those of bfloat16: a ResNet-20 of 3 + 4 bits had 80.3 % on the validation
        images of cifar10-jpeg with either, in 32.8 and in 33.9 KB, and 80.0 % with 5 bits.
        """
        one = (self.form.taps in ("shared", "profile") or self.form.conv is not None) and self.weight_bits < 8
        angle = Bits().angle if self.angle_bits is None else self.angle_bits
        levels, profile = 2**self.weight_bits if one else None, 6 if self.form.taps == "profile" else None
        return Bits(self.weight_bits, angle, self.dense_bits, levels, profile, self.layers)

    def config(self, base: RunConfig, epochs: int) -> RunConfig:
        """Return the run that trains it, starting from the source of `base`, with quantized numbers from its start."""
        form = self.form
        rotate = {
            "convert_taps": form.taps,
            "convert_path": form.path,
            "convert_angle_groups": form.angle_groups,
            "convert_fit": "outputs",
        }
        layers = rotate if form.taps is not None else {} if form.conv is None else {"conv": form.conv}
        return changed(base, {**layers, **bits_keys(self.bits), "qat": True, "epochs": epochs})


@dataclass(frozen=True)
class Trial(Plain):
    """What was found of a candidate in a rung of the search.

    Attributes:
        candidate: That was tried.
        epochs: Of its training; 0 where it was only fitted, quantized and recalibrated.
        bytes: Of its file, of the kind that counts; None where there is none.
        accuracy: On the validation split in percent; None for a file over the budget of a model that was not trained.
        note: Why there is no result.
    """

    candidate: Candidate
    epochs: int
    bytes: int | None
    accuracy: float | None
    note: str | None = None


@dataclass(frozen=True)
class Winner(Plain):
    """What was written.

    Attributes:
        name, epochs: Of its trial.
        onnx_bytes, packed_bytes: Of the two files; None where the model cannot be exported and the packed file counts.
        validation_accuracy, test_accuracy: In percent; the test split is evaluated for nothing else.
    """

    name: str
    epochs: int
    onnx_bytes: int | None
    packed_bytes: int
    validation_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class ShrinkRecord(Plain):
    """What `rotateconv shrink` found: shrink.json.

    Attributes:
        source: Run folder or file of weights of the trained model.
        model: Its name, or the function that builds it.
        dataset: That it was trained on.
        budget: Bytes that the file may have.
        count: Which file that is.
        source_bytes, source_accuracy: Of the source in its own precision; on the validation split in percent.
        trials: All that was tried, rung by rung.
        winner: What was written; None while the search goes on, or where nothing fits.
    """

    source: str
    model: str
    dataset: str
    budget: int
    count: Count
    source_bytes: int
    source_accuracy: float
    trials: tuple[Trial, ...] = ()
    winner: Winner | None = None

    @property
    def known(self) -> dict[tuple[Candidate, int], Trial]:
        """The trials by their candidate and epochs."""
        return {(trial.candidate, trial.epochs): trial for trial in self.trials}


def largest_bits(
    weights: Sequence[int], angles: Sequence[int], fits: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of bits that fit and that no larger pair that fits contains: more bits of one form are better.

    The bits to choose from are rising; where so many of a weight and of an angle fit, fewer of both must fit too.

    Example:
        >>> list(largest_bits(range(2, 9), range(3, 6), lambda weight, angle: weight + angle <= 9))
        [(6, 3), (5, 4), (4, 5)]
    """
    found: list[tuple[int, int]] = []
    top = weights[-1]
    for angle in angles:
        weight = next((bits for bits in reversed(weights) if bits <= top and fits(bits, angle)), None)
        if weight is None:
            break
        if found and weight == top:
            found.pop()
        found.append((weight, angle))
        top = weight
    yield from found


def best(trials: Sequence[Trial], budget: int, count: int | None = None) -> list[Trial]:
    """Return the trials in the budget, the most accurate on the validation split first, the smaller of equal ones."""
    fitting = [t for t in trials if t.accuracy is not None and t.bytes is not None and t.bytes <= budget]
    return sorted(fitting, key=lambda t: (-(t.accuracy or 0.0), t.bytes or 0, -t.epochs))[:count]


def survivors(trials: Sequence[Trial], budget: int) -> list[Candidate]:
    """Return who is trained after the first rung: the best third of the forms, or three, and the model as it is.

    Each form has one candidate, its best bits. Untrained, few bits of a dense kernel look worse than they train.
    """
    forms: dict[CandidateForm, Trial] = {}
    for trial in best(trials, budget):
        forms.setdefault(trial.candidate.form, trial)
    ranked = list(forms.values())
    kept = ranked[: max(3, math.ceil(len(ranked) / 3))]
    kept += [trial for trial in ranked[len(kept) :] if trial.candidate.form.is_source]
    return [trial.candidate for trial in kept]


def markdown(record: ShrinkRecord) -> str:
    """Return shrink.md: what was written, then all that was tried."""
    kinds = {"onnx": "compact ONNX", "rcp": "packed"}
    lines = [
        f"**{record.model} on {record.dataset} in {record.budget:,} bytes of {kinds[record.count]} file**",
        "",
        f"The source, {record.source_bytes:,} bytes, has {record.source_accuracy:.2f} % on the validation split.",
    ]
    if (winner := record.winner) is not None:
        onnx = "" if winner.onnx_bytes is None else f"model.onnx of {winner.onnx_bytes:,} bytes, "
        lines += [
            f"Written: {winner.name}, {onnx}model.rcp of {winner.packed_bytes:,} bytes; "
            f"{winner.validation_accuracy:.2f} % on the validation split, {winner.test_accuracy:.2f} % on the test "
            "split, which nothing else was evaluated on."
        ]
    rows = []
    for trial in record.trials:
        training = counted(trial.epochs, "epoch") if trial.epochs else "none"
        size = "-" if trial.bytes is None else f"{trial.bytes:,}"
        rows.append((trial.candidate.described, training, size, result(trial, record.budget)))
    table = Table(("candidate", "training", "bytes", "validation accuracy %"), tuple(rows), 2)
    return "\n".join([*lines, "", table.markdown(), ""])


def result(trial: Trial, budget: int) -> str:
    """Return what came of a trial, in a few words."""
    if trial.note is not None:
        return trial.note.replace("|", "/")
    if trial.accuracy is None:
        return "over the budget"
    over = trial.bytes is None or trial.bytes > budget
    return f"{trial.accuracy:.2f}{', over the budget' if over else ''}"
