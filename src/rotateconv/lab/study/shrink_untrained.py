"""What the forms of `shrink` are worth without training: fitted, quantized at the bits that fit, and recalibrated."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rotateconv.convert.convert import convert_layers
from rotateconv.convert.recalibrate import recalibrate
from rotateconv.errors import InputError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import disk_errors, write_bytes
from rotateconv.lab.study.budget import notes_bytes
from rotateconv.lab.study.events import LayerFitted, OnShrinkEvent
from rotateconv.lab.study.shrink_files import Files
from rotateconv.lab.study.shrink_record import (
    ANGLE_BITS,
    PACKED,
    WEIGHT_BITS,
    Candidate,
    CandidateForm,
    Trial,
    largest_bits,
)
from rotateconv.lab.train.build import build_configured, rotate_layers
from rotateconv.lab.train.checkpoint import weights_bytes
from rotateconv.lab.train.load import calibration_batches, evaluate_model, pack_model
from rotateconv.lab.train.pretrained import convert_source
from rotateconv.lab.train.run_folder import INITIAL
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.models.convs import find_conv
from rotateconv.nn.copying import copy_model
from rotateconv.quantization.allocate import allocate_bits
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.quantize import quantize

_ROOM = 0.95
"""Part of the budget that untrained candidates may fill: training moved a size by up to 2.5 %, either way."""
_TRIES = 4
"""Allocations of bits, until what comes out fits."""
FAR = 1.2
"""Times the budget: a form whose fewest bits take more is not fitted to images."""


@dataclass(frozen=True)
class Untrained:
    """The first rung of a search: the forms of `source` at the bits that fit in `budget`, without training.

    `folder` keeps the packed file of each, and the weights that a form was fitted with.
    """

    config: RunConfig
    source: nn.Module
    images: ImageData
    files: Files
    folder: Path
    budget: int
    dense_bits: int
    report: OnShrinkEvent

    def fitted(self, form: CandidateForm) -> Path:
        """The folder with the weights that a form was fitted with, which its runs start from."""
        return self.folder / form.name

    def packed(self, candidate: Candidate) -> Path:
        """The packed file of a candidate: bit for bit what was evaluated, should nothing that is trained be better."""
        return self.folder / f"{candidate.name}.rcp"

    def least(self, form: CandidateForm) -> Candidate:
        """The form at the fewest bits."""
        return Candidate(form, WEIGHT_BITS[0], ANGLE_BITS[0], self.dense_bits)

    def trials(self, form: CandidateForm) -> list[Trial]:
        """Convert the source, and evaluate it at the largest bits that fit; where none fit, name the smallest size."""
        data, execution = self.files.data, self.config.execution
        least = self.least(form)
        if not form.is_source and (size := self._least_size(least)) > self.budget * FAR:
            return [Trial(least, 0, size, None)]
        model = self._converted(least, "outputs")
        if not form.is_source:
            with disk_errors(self.folder):
                self.fitted(form).mkdir(exist_ok=True)
            write_bytes(self.fitted(form) / INITIAL, weights_bytes(model))
        rotates = bool(rotate_layers(model))
        weights = WEIGHT_BITS if rotates else range(1, WEIGHT_BITS[-1] + 1)
        angles = ANGLE_BITS if rotates else (Bits().angle,)
        batches = calibration_batches(model, execution, data, self.images.train)
        small: dict[tuple[int, int], tuple[nn.Module, int]] = {}

        def candidate(weight: int, angle: int) -> Candidate:
            return Candidate(form, weight, angle if rotates else None, self.dense_bits)

        def exact(weight: int, angle: int) -> int:
            if (weight, angle) not in small:
                one = candidate(weight, angle)
                quantized = quantize(model, **one.bits.arguments, calibration=batches).cpu()
                small[weight, angle] = quantized, self.files.size(quantized, one.bits, self.packed(one))
            return small[weight, angle][1]

        smallest = exact(weights[0], angles[0])
        with tempfile.TemporaryDirectory() as folder:
            overhead = smallest - self.files.pack(model, candidate(weights[0], angles[0]).bits, Path(folder, "least"))

            def fits(weight: int, angle: int) -> bool:
                # Packing takes a fraction of the time of an export, which is done only where it may fit.
                near = self.files.pack(model, candidate(weight, angle).bits, Path(folder, "near")) + overhead
                return near <= self.budget and exact(weight, angle) <= self.budget * _ROOM

            pairs = list(largest_bits(weights, angles, fits))
        if not pairs:
            pairs = [(weights[0], angles[0])]
        trials = []
        for weight, angle in pairs:
            quantized, size = small[weight, angle]
            accuracy = None
            if size <= self.budget:
                accuracy = evaluate_model(quantized, execution, data, self.images.validation).accuracy
            trials.append(Trial(candidate(weight, angle), 0, size, accuracy))
        return trials

    def by_part(self, uniform: Trial) -> Trial | None:
        """A form whose parts have bits of their own, in the same budget; None where all get the same.

        `allocate_bits` knows the bytes of the packed file alone, so what it may fill is corrected by what comes out.
        """
        candidate, target, data = uniform.candidate, self.budget * _ROOM, self.files.data
        model, bits = self._model(candidate), candidate.bits
        batches = calibration_batches(model, self.config.execution, data, self.images.train)
        recalibrate(model, batches)
        with tempfile.TemporaryDirectory() as folder:
            pack_model(model, data, Path(folder, PACKED), bits, fold_norms=True)
            room = int(Path(folder, PACKED).stat().st_size * target / (uniform.bytes or target))
        images = [next(iter(batches))[0]]
        fixed: Any = {"dense_bits": self.dense_bits, "profile_bits": bits.profile, "notes_bytes": notes_bytes(data)}
        for _ in range(_TRIES):
            try:
                found = allocate_bits(model, images, room, **fixed).bits
            except InputError:  # not even the fewest bits
                return None
            if not found.layers:
                return None
            angle = None if candidate.angle_bits is None else found.angle
            mixed = dataclasses.replace(candidate, weight_bits=found.weight, angle_bits=angle, layers=found.layers)
            quantized = quantize(model, **mixed.bits.arguments, calibration=batches).cpu()
            size = self.files.size(quantized, mixed.bits, self.packed(mixed))
            if size <= target:
                accuracy = evaluate_model(quantized, self.config.execution, data, self.images.validation).accuracy
                return Trial(mixed, 0, size, accuracy)
            room = int(room * min(0.99, target / size))
        return None

    def _model(self, candidate: Candidate) -> nn.Module:
        """The source, in the form of a candidate as it was fitted."""
        model = self._converted(candidate, "kernels")  # in a tenth of the time; the values come from the file
        if not candidate.form.is_source:
            weights = self.fitted(candidate.form) / INITIAL
            load_weights(model, read_weights_file(weights), weights)
        return model

    def _converted(self, candidate: Candidate, fit: Literal["kernels", "outputs"]) -> nn.Module:
        """A copy of the source in the form of a candidate."""
        model, form, config = copy_model(self.source), candidate.form, candidate.config(self.config, 1)
        if form.conv is not None:
            convert_layers(model, find_conv(form.conv))
            built = build_configured(config.architecture, self.files.data)  # a packed file tells how it was built
            built.load_state_dict(model.state_dict())
            return built.eval()
        if form.taps is not None:
            assert config.conversion is not None
            conversion, images = dataclasses.replace(config.conversion, convert_fit=fit), self.images.train
            on_layer = (lambda *found: self.report(LayerFitted(*found))) if fit == "outputs" else None
            convert_source(model, conversion, self.files.data, images, on_layer)
        return model

    def _least_size(self, least: Candidate) -> int:
        """Return the bytes of a form at the fewest bits."""
        model = self._converted(least, "kernels")
        with tempfile.TemporaryDirectory() as folder:
            return self.files.size(model, least.bits, Path(folder, PACKED))
