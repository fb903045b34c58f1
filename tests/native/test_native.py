"""Where the compiled kernel comes from: built once, loaded only from the user's own folder, absent without a fuss."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rotateconv import native
from rotateconv.native import build, trust

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="compiled where files have owners")

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A user's cache that is empty, of a process that has loaded nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native._load.cache_clear()
    yield tmp_path / "cache"
    native._load.cache_clear()


def fake_compiler(folder: Path, body: str) -> str:
    """The path of a script that stands in for a compiler."""
    file = folder / "fakecc"
    file.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    file.chmod(0o755)
    return str(file)


@pytest.mark.slow
@needs_compiler
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.available()
    (file,) = (cache / "rotateconv").iterdir()  # and nothing temporary beside it
    assert native.status() == f"used: {file}, compiled at its first use"
    assert (cache / "rotateconv").stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "compile_library", lambda target: pytest.fail("compiled again"))
    native._load.cache_clear()
    assert native.available()


def test_it_can_be_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "0")
    assert not native.available()
    assert native.status() == "not used: ROTATECONV_NATIVE=0"
    assert not cache.exists()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.status() == "not used: no C compiler: cc, gcc or clang was not found"
    monkeypatch.setenv("CC", "nosuchcc -m32")
    native._load.cache_clear()
    assert native.status() == "not used: no C compiler: nosuchcc -m32 was not found"
    assert native.library() is None


def test_a_compiler_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "echo 'line.c:1: no' >&2; exit 1"))
    assert native.status().endswith("did not compile the kernel: line.c:1: no")
    assert list((cache / "rotateconv").iterdir()) == []


def test_a_compiler_that_does_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "SECONDS", 0.2)
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exec sleep 20"))
    assert native.status().endswith("did not compile the kernel within 0.2 seconds")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "compile_library", lambda target: target.write_bytes(b"no library"))
    assert native.status().startswith("not used: ")
    assert not native.available()


@pytest.mark.slow
@needs_compiler
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert f"expected version {native.VERSION} of the compiled kernel in" in native.status()


@pytest.mark.slow
@needs_compiler
def test_where_a_compiler_knows_no_clones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = build.find_compiler()[0]
    refuse = 'for flag; do [ "$flag" = -DCLONES ] && { echo "no target_clones" >&2; exit 1; }; done'
    monkeypatch.setenv("CC", fake_compiler(tmp_path, f'{refuse}; exec {compiler} "$@"'))
    build.compile_library(tmp_path / "plain.so")
    assert (tmp_path / "plain.so").stat().st_size > 0


def test_the_key_knows_compiler_and_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "true"))
    first = build.build_key()
    assert first == build.build_key()
    monkeypatch.setenv("CC", f"{tmp_path / 'fakecc'} -m32")
    second = build.build_key()
    fake_compiler(tmp_path, "true  # another")
    third = build.build_key()
    changed = tmp_path / "line_real.h"
    changed.write_text("/* changed */", "utf-8")
    monkeypatch.setattr(build, "HEADERS", (changed,))
    assert len({first, second, third, build.build_key()}) == 4


def test_folders_that_others_can_write_to_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trust.private_folder()
    folder.chmod(0o770)
    assert native.status() == f"not used: {folder} is not the user's own, or others can write to it: remove it"
    folder.chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(build.BuildError, match=f"others can write to {cache}, which holds the folder"):
        trust.private_folder()
    cache.chmod(0o1777)  # as /tmp
    assert trust.private_folder() == folder
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(build.BuildError, match="is not the user's own"):
        trust.private_folder()


def test_a_link_is_no_folder(cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (cache / "rotateconv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(build.BuildError, match="is not the user's own"):
        trust.private_folder()


@pytest.mark.slow
@needs_compiler
def test_a_file_that_others_can_write_to_is_not_loaded(cache: Path) -> None:
    assert native.available()
    (file,) = (cache / "rotateconv").iterdir()
    file.chmod(0o722)
    native._load.cache_clear()
    assert native.status() == f"not used: {file} is not the user's own, or others can write to it: remove it"


def test_a_home_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.status().startswith("not used: ")


def test_without_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getuid")
    assert native.status() == "not used: the kernel is compiled at its first use only where files have owners"


@pytest.mark.parametrize("base", ["", "relative"])
def test_a_relative_cache_is_the_home(base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert trust.private_folder() == tmp_path / ".cache" / "rotateconv"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert native.status() == "not used: no folder for the compiled kernel: no home"


@needs_compiler
@pytest.mark.slow
def test_the_wheel_has_it(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("rotateconv-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    shutil.unpack_archive(wheel, tmp_path / "unpacked", "zip")
    code = "from rotateconv import native; print(native.status())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("_line.so, compiled when the package was installed")
    pure = subprocess.run(
        [*command[:-1], str(tmp_path / "pure")],
        cwd=root,
        env={**os.environ, "CC": "nosuchcc"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert [wheel.name[-17:] for wheel in (tmp_path / "pure").glob("*.whl")] == ["-py3-none-any.whl"], pure
