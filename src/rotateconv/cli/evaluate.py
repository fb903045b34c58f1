"""`rotateconv evaluate`."""

EXAMPLES = ""


def evaluate() -> None:
    """Placeholder."""
