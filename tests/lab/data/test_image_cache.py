"""The cache of an image folder: when it is used, when it is built again, and where it lies."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from image_folders import check_holds, forbid_decoding, held, on_disk, write_folder
from rotateconv.lab.data import image_cache, load_data


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures")


def test_a_second_load_comes_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data("folder", root)
    assert [path.name for path in (root / ".rotateconv").iterdir()] == ["full.safetensors"]
    forbid_decoding(monkeypatch)
    second = load_data("folder", root)
    check_holds(second, root)
    assert first.mean == second.mean


@pytest.mark.parametrize("change", ["content", "time", "new file", "lost file", "renamed file"])
def test_changed_files_are_decoded_again(root: Path, change: str) -> None:
    load_data("folder", root)
    path = root / "train" / "cat" / "0.png"
    if change == "content":
        Image.new("RGB", (6, 5), (1, 2, 3)).save(path)
    elif change == "time":
        size = path.stat().st_size
        path.write_bytes((root / "train" / "cat" / "0.png").read_bytes())
        os.utime(path, (1, 1))
        assert path.stat().st_size == size
    elif change == "new file":
        Image.new("RGB", (6, 5), (1, 2, 3)).save(path.with_name("9.png"))
    elif change == "lost file":
        path.unlink()
    else:
        path.rename(root / "train" / "apple" / "cat.png")
    calls: list[int] = []
    data = load_data("folder", root, progress=lambda done, total: calls.append(done))
    assert calls
    for split in ("train", "test"):
        assert held(data, split) == on_disk(root, split)
    assert len(list((root / ".rotateconv").iterdir())) == 1  # what is out of date is replaced


@pytest.mark.parametrize("damage", ["empty", "cut off", "a bit of the images", "text", "another file"])
def test_a_damaged_cache_is_built_again(root: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_data("folder", root)
    cache = root / ".rotateconv" / "full.safetensors"
    content = cache.read_bytes()
    if damage == "another file":
        save_file({"weight": torch.zeros(3)}, cache)
    else:
        flipped = content[:-300] + bytes([content[-300] ^ 1]) + content[-299:]
        cache.write_bytes(
            {"empty": b"", "cut off": content[:-7], "a bit of the images": flipped, "text": b"no cache"}[damage]
        )
    check_holds(load_data("folder", root), root)
    forbid_decoding(monkeypatch)
    check_holds(load_data("folder", root), root)


def test_the_cache_of_another_version_is_built_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_data("folder", root)
    monkeypatch.setattr(image_cache, "VERSION", "next-")
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded again"):
        load_data("folder", root)


def test_the_cache_of_a_folder_that_cannot_be_written_is_the_user_s(
    root: Path, own_user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / ".rotateconv").write_text("in the way")
    load_data("folder", root)
    assert len(list(own_user_cache.glob("rotateconv/*/full.safetensors"))) == 1
    forbid_decoding(monkeypatch)
    check_holds(load_data("folder", root), root)


def test_a_cache_that_cannot_be_kept_anywhere_is_a_warning(root: Path, own_user_cache: Path) -> None:
    (root / ".rotateconv").write_text("in the way")
    own_user_cache.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot keep the decoded images for the next run"):
        data = load_data("folder", root)
    check_holds(data, root)


def test_a_full_disk_leaves_no_half_cache(root: Path, own_user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache, "save_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        check_holds(load_data("folder", root), root)
    assert not list(root.glob(".rotateconv/*"))
    assert not list(own_user_cache.glob("rotateconv/*/*"))
