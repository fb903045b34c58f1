"""A plain-text table: a head, the rows, and a last row of totals."""

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """Columns aligned under each other, with a rule below the first row and one above the last.

    Args:
        rows: The head, the rows and the totals, each with as many cells.
        right: The columns that are aligned to the right.

    Returns:
        The lines, without blanks at their ends.

    Example:
        >>> print(text_table([("layer", "n"), ("conv", "12"), ("all", "12")], right=[1]))
        layer   n
        ---------
        conv   12
        ---------
        all    12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
