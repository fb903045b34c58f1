"""The option --budget: bytes of a file, and what cannot be said beside them."""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared.console import say


def bytes_in(text: str) -> int:
    """Return the bytes in a text; KB and MB are thousands, KiB and MiB powers of two. ConfigError for other texts.

    Example:
        >>> [bytes_in(text) for text in ("40KB", "40 kB", "40000", "0.1MB", "1KiB")]
        [40000, 40000, 40000, 100000, 1024]
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(?:(k|m)(i?)b|b)?", text.strip(), re.IGNORECASE)
    size = 0.0
    if found is not None:
        power = {None: 0, "k": 1, "m": 2}[found[2].lower() if found[2] else None]
        size = float(found[1]) * (1024 if found[3] else 1000) ** power
    if not 1 <= size < 2**53:
        raise ConfigError(f"--budget must be a number of bytes such as 40KB, 40000 or 0.1MB, not {text!r}")
    return int(size)


def refuse_bits(values: Mapping[str, object], called: Mapping[str, str]) -> None:
    """Raise ConfigError where bits are given that a budget decides."""
    for key in ("weight_bits", "angle_bits", "weight_levels", "layer_bits"):
        if values.get(key) is not None:
            raise ConfigError(f"--budget chooses the bits: leave {called.get(key, key)} out, or --budget")


def tell_size(console: Console, run: Path, budget: int) -> None:
    """Print the bytes of the packed file of a finished run that was trained for so many."""
    from rotateconv.lab.train.load import load_run, pack_model
    from rotateconv.quantization.bits import Bits

    trained = load_run(run)
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.rcp")
        pack_model(trained.model, trained.data, file, trained.config.bits or Bits(), fold_norms=True)
        size = file.stat().st_size
    say(console, f"{size:,} of {budget:,} bytes, as rotateconv pack --fold-norms writes it")
