"""What the README says is run: its Python examples, its parameter table, its commands' options."""

import re
from pathlib import Path

import pytest

from rotateconv import build_model

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def parameters(model: str, conv: str) -> int:
    return sum(parameter.numel() for parameter in build_model(model, conv).parameters())


@pytest.mark.slow
def test_examples_run_in_the_order_in_which_they_stand() -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(examples) >= 2
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)


def test_the_parameter_table_is_right() -> None:
    table = re.search(r"<!-- parameters -->\n(.*?)<!-- /parameters -->", README, flags=re.DOTALL)
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines()]
    assert len(rows) >= 7
    for model, *counts in rows:
        for conv, count in zip(head[1:], counts, strict=True):
            assert int(count.replace(",", "")) == parameters(model, conv), (model, conv)
