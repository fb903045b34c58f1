"""The parts of a Markdown page that are made from records: what lies between two comments of HTML."""

import re
from collections.abc import Callable
from pathlib import Path

from rotateconv.errors import RunError


def read_page(page: Path) -> str:
    """Return the text of a page; RunError where it cannot be read."""
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot read {page}: {error.strerror}") from None


def blocks(text: str, word: str) -> list[str]:
    """Return what the blocks of a page ask for.

    Example:
        >>> blocks("<!-- report: table digits -->\\n<!-- end -->", "report")
        ['table digits']
    """
    return [match["asked"] for match in _pattern(word).finditer(text)]


def fill_blocks(text: str, word: str, make: Callable[[str], str]) -> str:
    """Return a page with its blocks made anew; a block is what lies between `<!-- WORD: ASKED -->` and `<!-- end -->`.

    Example:
        >>> print(fill_blocks("<!-- shout: hello -->\\nold\\n<!-- end -->", "shout", str.upper))
        <!-- shout: hello -->
        HELLO
        <!-- end -->
    """

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {word}: {match['asked']} -->\n{make(match['asked'])}\n<!-- end -->"

    return _pattern(word).sub(fill, text)


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {word}: (?P<asked>[\w ./-]+) -->\n.*?<!-- end -->", re.DOTALL)
