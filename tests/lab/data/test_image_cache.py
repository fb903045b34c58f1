"""The cache of an image folder: when it is used, when it is built again, and where it lies."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from image_folders import check_holds, forbid_decoding, held, on_disk
from rotateconv.lab.data import folder as image_folder
from rotateconv.lab.data import image_cache, load_data


def test_a_second_load_comes_from_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data("folder", root)
    assert sorted(path.name for path in (root / ".rotateconv").iterdir()) == ["full.key", "full.safetensors"]
    forbid_decoding(monkeypatch)
    second = load_data("folder", root)
    check_holds(second, root)
    assert first.mean == second.mean


@pytest.mark.parametrize("change", ["content", "content with its time kept", "new file", "lost file", "renamed file"])
def test_changed_files_are_decoded_again(root: Path, change: str) -> None:
    load_data("folder", root)
    path = root / "train" / "cat" / "0.png"
    if change == "content":
        Image.new("RGB", (6, 5), (1, 2, 3)).save(path)
    elif change == "content with its time kept":  # as rsync -t and tar do
        before = path.stat()
        data = bytearray(path.read_bytes())
        other = np.asarray(Image.open(path)).copy()
        other[0, 0] ^= 1
        for level in range(10):
            stream = io.BytesIO()
            Image.fromarray(other).save(stream, "png", compress_level=level)
            if len(stream.getvalue()) <= len(data):
                break
        path.write_bytes(stream.getvalue().ljust(len(data), b"\0"))  # what follows the end of a PNG is not read
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
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
    assert len(list((root / ".rotateconv").iterdir())) == 2  # what is out of date is replaced


def test_files_that_were_only_touched_or_copied_are_not_decoded_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_data("folder", root)
    os.utime(root / "train" / "cat" / "0.png", (1, 1))
    copy = tmp_path / "copy" / "pictures"
    shutil.copytree(root, copy)
    forbid_decoding(monkeypatch)
    for folder in (root, copy):
        check_holds(load_data("folder", folder), folder)
    monkeypatch.setattr(image_folder, "_content", lambda *_: pytest.fail("read again"))
    check_holds(load_data("folder", copy), copy)  # looked at once


def test_a_pipe_in_the_place_of_the_cache_is_not_waited_for(root: Path) -> None:
    (root / ".rotateconv").mkdir()
    for name in ("full.safetensors", "full.key"):
        os.mkfifo(root / ".rotateconv" / name)
    check_holds(load_data("folder", root), root)


def test_a_user_without_a_home_folder_has_a_cache_beside_the_images(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    load_data("folder", root)
    assert (root / ".rotateconv" / "full.safetensors").is_file()


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
