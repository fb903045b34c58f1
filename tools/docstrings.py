"""What the reference pages read otherwise than the docstrings are written: a griffe extension."""

import re
from typing import Any

import griffe

# Arguments that share a line, "path, size: as in line_kernel", with the lines that continue it.
_SHARED = re.compile(r"^( +)((?:\w+,\s+)+\w+):( .*|)((?:\n\1 +\S.*)*)", flags=re.MULTILINE)


def as_markdown(text: str) -> str:
    r"""Return a docstring in the words of griffe's parser and of Markdown.

    Example:
        >>> print(as_markdown("With::\n\n    x\n\nArgs:\n    a, b: Numbers.\n\nExample:\n    >>> f()"))
        With:
        <BLANKLINE>
            x
        <BLANKLINE>
        Args:
            a: Numbers.
            b: Numbers.
        <BLANKLINE>
        Examples:
            >>> f()
    """
    text = re.sub(r"^Example:", "Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return _SHARED.sub(lambda m: "\n".join(f"{m[1]}{name}:{m[3]}{m[4]}" for name in re.split(r",\s+", m[2])), text)


class Docstrings(griffe.Extension):
    """Applies `as_markdown` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring before anything parses it."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
