"""The bits of quantized training that a budget of bytes leaves, part by part of a model."""

import json

from torch import nn

from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.run_config import bits_keys
from rotateconv.lab.train.load import calibration_batches
from rotateconv.lab.train.pretrained import load_source
from rotateconv.quantization.allocate import Allocation, allocate_bits
from rotateconv.quantization.bits import Bits


def within_budget(
    config: RunConfig, images: ImageData, budget: int, model: nn.Module | None = None
) -> tuple[RunConfig, Allocation]:
    """Return a recipe with the bits, part by part of the model, with which its packed file fits into a budget.

    Args:
        config: With a source and `qat`, and no other bits than `dense_bits` and `profile_bits`.
        images: That the model was trained on.
        budget: In bytes, of the file of `rotateconv pack --fold-norms`.
        model: Before its training with quantized numbers; None for the source as it is.

    Raises:
        InputError: Nothing fits.
    """
    dense = config.dense_bits or Bits().dense
    data = DataDescription.of(images)
    if model is None:
        model = load_source(str(config.source), config.factory, data)
    drawn = calibration_batches(model, config.execution, data, images.train)
    notes = notes_bytes(data)
    found = allocate_bits(model, drawn, budget, dense_bits=dense, profile_bits=config.profile_bits, notes_bytes=notes)
    return changed(config, bits_keys(found.bits)), found


def notes_bytes(data: DataDescription) -> int:
    """Return the bytes of what a packed file notes of the data: a text in its JSON."""
    return len(json.dumps(json.dumps(data.about)))
