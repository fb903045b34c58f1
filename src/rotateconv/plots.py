"""Pictures of a comparison, from its rows alone."""

import io
from collections.abc import Sequence
from pathlib import Path

from rotateconv.runs import Record, write_bytes


def draw_comparison(rows: Sequence[Record], path: str | Path) -> None:
    """Placeholder."""
