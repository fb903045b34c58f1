"""Text in rows and columns, which Markdown and a terminal show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Text in rows.

    Attributes:
        head: Of the columns.
        rows: As many cells each.
        left: The first so many columns are words, the others numbers.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        rule = ["---"] * self.left + ["---:"] * (len(self.head) - self.left)
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows))
