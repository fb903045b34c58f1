"""The committed pages about keys and commands are those of the code."""

import runpy
from pathlib import Path

import pytest

from rotateconv.lab.config import RunConfig
from rotateconv.lab.keys import fields_of

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = runpy.run_path(str(ROOT / "tools" / "reference.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "make reference"


def test_every_key_has_a_row() -> None:
    page = PAGES["configuration.md"]()
    assert [key for key in fields_of(RunConfig) if f"\n| `{key} = " not in page] == []
