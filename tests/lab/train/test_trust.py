"""A file's word never has code run: what a user named before, in this folder, is the only exception."""

import json
import os
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.train import trust


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.chdir(tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process begins."""
    monkeypatch.setattr(trust, "_allowed", set())


def test_what_the_user_named_is_known_to_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"config.json wants to import and call 'mine:net', which runs that code: if it"):
        trust.check("mine:net", Path("run", "config.json"))
    trust.allow("mine:net")
    trust.allow("other:net")
    forget(monkeypatch)
    trust.check("mine:net", Path("run", "config.json"))
    trust.check("other:net", Path("run", "config.json"))
    with pytest.raises(RunError, match="'os:fork'"):
        trust.check("os:fork", Path("run", "config.json"))


def test_it_holds_in_the_folder_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust.allow("mine:net")
    (tmp_path / "stranger").mkdir()
    monkeypatch.chdir(tmp_path / "stranger")
    assert not trust.is_allowed("mine:net")  # another module of that name may lie here


@pytest.mark.parametrize("record", ["", "[" * 100_000, "{}", "[[1, 2]]", '["mine:net"]', "5"])
def test_a_record_of_anything_allows_nothing(record: str) -> None:
    path = Path(os.environ["XDG_CONFIG_HOME"], "rotateconv", "trusted.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record)
    assert not trust.is_allowed("mine:net")
    trust.allow("mine:net")
    assert json.loads(path.read_text()) == [["mine:net", str(Path.cwd())]]


def test_a_user_without_a_home_folder_is_asked_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    trust.allow("mine:net")
    assert trust.is_allowed("mine:net")
    forget(monkeypatch)
    assert not trust.is_allowed("mine:net")
