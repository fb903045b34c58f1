"""The same last step for every model: from its trained float weights to few bits, with any model as the teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.run_config import FINISHED_KEYS, bits_keys
from rotateconv.lab.study.budget import within_budget
from rotateconv.lab.study.convert import fine_tuning
from rotateconv.lab.train.events import OnEvent
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import SUMMARY, read_config
from rotateconv.lab.train.run_results import RunSummary
from rotateconv.quantization.bits import Bits


def finishing(
    source: str | Path, changes: Mapping[str, object] | None = None, called: Mapping[str, str] | None = None
) -> RunConfig:
    """Return the recipe of `finish`: that of the run, as `fine_tuning` has it, with quantized numbers from its start.

    Raises:
        RunError: no run folder, or a run that is not finished.
        ConfigError: a run that is quantized already, a key that stays, or a value that a key cannot have.
    """
    run = Path(source)
    if run.is_file():
        raise ConfigError(f"{source} is a file: finish takes the folder of a run, as rotateconv train makes it")
    config = read_config(run)
    if kept := sorted(set(FINISHED_KEYS) & set(changes or {})):
        raise ConfigError(f"{kept[0]} stays what it is in {source}: leave it out")
    if config.qat:
        before = config.source if config.source is not None and not Path(config.source).is_file() else None
        raise ConfigError(
            f"{source} was trained with quantized numbers already: give a run without qat"
            + (f", such as the one that it went on from, {before}" if before is not None else "")
        )
    if not (run / SUMMARY).is_file():
        raise RunError(f"{source} is not finished: go on with rotateconv train --resume {source}")
    return changed(fine_tuning(config, str(source)), {"qat": True, **(changes or {})}, called)


def finish(
    source: str | Path,
    out: str | Path,
    *,
    weight_bits: int = 4,
    angle_bits: int = 5,
    weight_levels: int | None = None,
    profile_bits: int | None = None,
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
    dense_bits: int = 8,
    budget: int | None = None,
    teacher: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    data: ImageData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
) -> RunSummary:
    """Train a finished float run on to few bits, into the run folder `out`, and return what it found, quantized.

    The model has quantized numbers from the first step. It learns from the images and from a teacher, with half the
    epochs and the learning rate of its own recipe and one fall of the learning rate: the same help for whatever
    layers the model has, so that sizes can be compared.

    Args:
        source: folder of a finished run without `qat`; not changed.
        out: the new run folder, which names its source and keeps the weights that it began with.
        weight_bits, angle_bits, weight_levels, profile_bits, layer_bits, dense_bits: as in `rotateconv.quantize`.
        budget: bytes of the packed file, in place of bits of weights and angles: `allocate_bits` chooses them for each
            part of the model on training images.
        teacher: folder of the run to learn from; None for `source` itself.
        changes: other keys of the configuration, such as `epochs` and `lr`.
        data, resume, overwrite, on_event: as in `rotateconv.lab.fit`.

    Raises:
        RunInterrupted: asked to stop; saved.
        RunError: `source` or the teacher is no finished run, or `out` holds another.
        ConfigError: `source` is quantized already, or a value cannot be.

    Example:
        >>> import tempfile
        >>> from rotateconv.lab.config import make_config
        >>> config = make_config("digits", overrides=["epochs=2", "width=0.25"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = fit(config, f"{folder}/float")
        ...     summary = finish(f"{folder}/float", f"{folder}/small", weight_bits=3, angle_bits=4)
        ...     kept = read_config(Path(folder, "small"))
        >>> summary.steps, kept.bits, kept.lr
        (21, Bits(weight=3, angle=4, dense=8, levels=None, profile=None, layers=()), 0.1)
    """
    bits = bits_keys(Bits.of(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits))
    named = {} if teacher is None else {"teacher": str(teacher)}
    config = finishing(source, {**bits, **named, **(changes or {})})
    if budget is not None:
        if (weight_bits, angle_bits, weight_levels, layer_bits) != (4, 5, None, None):
            raise ConfigError("budget chooses the bits of weights and angles: leave these out, or budget")
        data = data or load_images(config.images)
        config, _ = within_budget(config, data, budget)
    return fit(config, out, data=data, resume=resume, overwrite=overwrite, on_event=on_event)
