"""`rotateconv info`."""

EXAMPLES = ""


def info() -> None:
    """Placeholder."""
