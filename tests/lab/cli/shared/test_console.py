"""What commands print fits where it is printed."""

import io

import pytest

from rotateconv.lab.cli.shared.console import make_console, show_table
from rotateconv.lab.table import Table

HEAD = ("conv", "parameters", "multiply-adds", "test accuracy %", "difference to dense", "s/epoch")
ROWS = (
    ("conv3x3 x0.25", "17,254", "0.16 M", "11.70 ± 3.94", "-", "0.187"),
    ("rotate2p x0.25", "4,766", "0.16 M", "8.64 ± 1.97", "-3.06 [-22.34, +16.22]", "0.267"),
)


@pytest.mark.parametrize("width", [76, 80, 90, 160])
def test_no_number_loses_its_end_where_room_is_short(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    printed = io.StringIO()
    show_table(make_console(printed), Table(HEAD, ROWS, 1))
    lines = printed.getvalue().splitlines()
    words = " ".join(lines).split()
    assert max(map(len, lines)) <= width
    assert all(word in words for row in ROWS for cell in row for word in cell.split())
    assert any(ROWS[1][0] in line for line in lines)
    assert any(ROWS[1][4] in line for line in lines) == (width >= 90)
