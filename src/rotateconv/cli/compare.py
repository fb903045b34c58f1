"""`rotateconv compare`."""

EXAMPLES = ""


def compare() -> None:
    """Placeholder."""
