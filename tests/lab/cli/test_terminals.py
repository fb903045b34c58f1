"""What is printed: names as they are, on any terminal, also where nobody reads."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from commands import invoke
from rotateconv import build_model, pack
from rotateconv.lab.cli.shared.console import facts, make_console, say
from rotateconv.lab.train.run_folder import read_summary

NAMES = [
    "[unknown]",
    "[red]dog[/red]",
    ":dog:",
    "a\x1b[2Jb",
    "caf\u00e9 \u732b",
    "x\u202ey",
    "[/]",
    "\\[bold]",
    "\x9b5n",
]
NAMES += ["z"]
SMALL = ["--model", "resnet20", "--width", "0.125", "--epochs", "1"]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(build_model("resnet20", width=0.25), tmp_path / "model.rcp", classes=NAMES)
    return tmp_path / "model.rcp"


def program(*words: object, encoding: str = "utf-8", **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rotateconv", *map(str, words)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        encoding=encoding,
        timeout=300,
        **options,
    )


def test_names_are_printed_literally(packed: Path) -> None:
    printed = invoke(["unpack", packed]).stdout
    for name in ("[unknown]", "[red]dog[/red]", ":dog:", "caf\u00e9 \u732b", "[/]", "\\[bold]"):
        assert name in printed
    assert "a\\x1b[2Jb" in printed
    assert "x\\u202ey" in printed
    assert not {"\x1b", "\x9b", "\u202e"} & set(printed)


def test_cells_and_titles_are_printed_literally() -> None:
    console = make_console(file := io.StringIO())
    table = Table(title="[red]a\x1bb")
    table.add_column("[x]")
    table.add_row("[unknown] :dog: \x07")
    console.print(table)
    facts(console, {"[bold]": "[dim]\x1b"})
    say(console, "[/nothing]")
    printed = file.getvalue()
    for text in ("[red]a\\x1bb", "[x]", "[unknown] :dog: \\x07", "[bold]", "[dim]\\x1b", "[/nothing]"):
        assert text in printed


def test_an_error_prints_no_commands() -> None:
    assert "\x1b" not in invoke(["info", "a\x1b[2Jb/c"]).stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_encoding(encoding: str, packed: Path) -> None:
    done = program("unpack", packed, encoding=encoding, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u732b" in done.stdout
    assert "[unknown]" in done.stdout


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program("train", *SMALL, "--out", tmp_path / "run", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_summary(tmp_path / "run").test_accuracy > 0
    done = program("evaluate", tmp_path / "run", encoding="ascii", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


@pytest.mark.slow
def test_a_closed_stdout(packed: Path) -> None:
    words = f"{sys.executable} -m rotateconv unpack {packed} >&-"
    done = subprocess.run(["sh", "-c", words], stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
