"""The tutorial as a notebook, from its page: `make pictures`."""

import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "make_your_model_small.ipynb"

Cell = dict[str, object]


def cells(page: str) -> list[Cell]:
    r"""Return the cells of a page: its blocks of Python, and the text between them.

    Example:
        >>> [cell["cell_type"] for cell in cells("# Title\n\n```python\nprint(1)\n```\n")]
        ['markdown', 'code']
    """
    made = []
    for place, part in enumerate(re.split(r"```python\n(.*?)\n```\n", page, flags=re.DOTALL)):
        if part.strip():
            made.append(_cell("code" if place % 2 else "markdown", part.strip("\n")))
    return made


def notebook(page: str) -> str:
    """Return a notebook without outputs as JSON."""
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    # Links lead to the pages from where the notebook lies.
    text = re.sub(r"\]\((?=[\w-]+\.md)", "](../docs/", page)
    made = {"cells": cells(text), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, source: str) -> Cell:
    name = hashlib.sha256(source.encode()).hexdigest()[:8]
    cell: Cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    target.write_text(notebook(PAGE.read_text("utf-8")), "utf-8")
