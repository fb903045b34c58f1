"""Image folders: what is decoded, and what is refused."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import CLASSES, check_holds, forbid_decoding, held, refusal, write_folder
from rotateconv.lab.data import load_data

REAL = os.environ.get("ROTATECONV_DATA")


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures")


def test_every_image_is_read_with_its_class(root: Path) -> None:
    data = load_data("folder", root)
    check_holds(data, root)
    assert (len(data.train), len(data.validation), len(data.test)) == (11, 1, 6)
    assert data.train.images.shape[1:] == (3, 5, 6)
    assert (data.name, data.classes, data.flip) == ("pictures", CLASSES, True)
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_name_is_that_of_the_folder_however_it_is_given(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert load_data("folder", ".").name == "pictures"
    assert load_data("folder", f"{root}/train/..").name == "pictures"


def test_hidden_files_are_left_out_and_folders_in_classes_are_read(root: Path) -> None:
    for hidden in (root / "train" / ".DS_Store", root / "train" / "cat" / ".DS_Store"):
        hidden.write_text("no image")
    for hidden in (root / "train" / ".git", root / "train" / "cat" / ".git"):
        hidden.mkdir()
        (hidden / "file").write_text("no image")
    inner = root / "train" / "cat" / "more" / "inside"
    inner.mkdir(parents=True)
    shutil.move(root / "train" / "cat" / "3.png", inner / "3.png")
    data = load_data("folder", root)
    (inner / "3.png").rename(root / "train" / "cat" / "3.png")
    check_holds(data, root)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_picture_becomes_rgb(root: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    image = Image.open(root / "test" / "bird" / "0.png").convert(mode)
    (root / "test" / "bird" / "0.png").unlink()
    path = root / "test" / "bird" / f"0.{suffix}"
    image.save(path)
    data = load_data("folder", root)
    expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert torch.equal(data.test.images[2], torch.tensor(expected))


def test_the_middle_is_kept_and_resized(root: Path) -> None:
    shutil.rmtree(root / "test" / "cat")
    (root / "test" / "cat").mkdir()
    thirds = np.zeros((40, 120, 3), dtype=np.uint8)
    thirds[:, 40:80] = (10, 200, 30)
    Image.fromarray(thirds).save(root / "test" / "cat" / "wide.png")
    Image.fromarray(thirds.transpose(1, 0, 2)).save(root / "test" / "cat" / "tall.png")
    # A JPEG large enough to be decoded at a fraction of its size.
    large = Image.fromarray(thirds).resize((1200, 400), Image.Resampling.NEAREST)
    large.save(root / "test" / "cat" / "wide.jpg", quality=95)
    data = load_data("folder", root, image_size=16)
    assert data.train.images.shape[1:] == (3, 16, 16)
    middle = torch.tensor([10, 200, 30]).view(3, 1, 1)
    for image, allowed in zip(data.test.images[-3:], (0, 4, 0), strict=True):  # tall.png, wide.jpg, wide.png
        assert (image[:, 1:-1, 1:-1].int() - middle).abs().max() <= allowed


@pytest.mark.parametrize("times", [1, 2, 3, 8, 30])
def test_a_large_jpeg_decoded_at_a_fraction_of_its_size_is_the_same_picture(root: Path, times: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    path = root / "test" / "cat" / "1.png"
    path.unlink()
    path = path.with_suffix(".jpg")
    enlarged = Image.fromarray(pixels).resize((20 * times, 20 * times), Image.Resampling.BICUBIC)
    enlarged.save(path, quality=95, subsampling=0)
    whole = Image.open(path).convert("RGB").resize((20, 20), Image.Resampling.BILINEAR)
    expected = torch.tensor(np.asarray(whole)).permute(2, 0, 1)
    found = load_data("folder", root, image_size=20).test.images[-1]
    difference = (found.int() - expected.int()).abs().double().mean()
    assert difference <= (0 if times == 1 else 4)


@pytest.mark.parametrize("image_size", [None, 6])
def test_photographs_are_read_as_viewers_show_them(image_size: int | None, root: Path) -> None:
    path = root / "train" / "apple" / "0.png"
    with Image.open(path) as image:
        upright = image.convert("RGB").resize((6, 6))
    for other in root.rglob("*.png"):  # all of one size
        with Image.open(other) as image:
            image.convert("RGB").resize((6, 6)).save(other)
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # what a camera on its side stores
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    turned.save(path, exif=exif)
    data = load_data("folder", root, image_size=image_size)
    expected = np.asarray(upright).transpose(2, 0, 1).tobytes()
    assert held(data, "train")[expected] == "apple"


def test_images_of_the_wanted_size_are_not_touched(root: Path) -> None:
    for path in root.glob("*/*/*.png"):
        Image.open(path).crop((0, 0, 5, 5)).save(path)
    check_holds(load_data("folder", root, image_size=5), root)


def test_sizes_are_cached_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (4, 8):
        load_data("folder", root, image_size=size)
    forbid_decoding(monkeypatch)
    for size in (4, 8):
        assert load_data("folder", root, image_size=size).test.images.shape[2:] == (size, size)


def test_different_sizes_need_an_image_size(root: Path) -> None:
    Image.new("RGB", (9, 7)).save(root / "test" / "bird" / "1.png")
    message = refusal(root)
    assert "such as 6 x 5 and, in test/bird/1.png, 9 x 7 pixels" in message
    assert "--image-size" in message
    assert load_data("folder", root, image_size=8).test.images.shape == (6, 3, 8, 8)


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_image_size_is_refused(root: Path, size: int) -> None:
    assert f"--image-size must be at least 1 pixel, got {size}" in refusal(root, image_size=size)


def test_images_that_do_not_decode_are_counted_named_and_refused(root: Path) -> None:
    whole = (root / "train" / "apple" / "0.png").read_bytes()
    (root / "train" / "apple" / "0.png").write_bytes(whole[:60])
    (root / "train" / "bird" / "notes.txt").write_text("no image")
    (root / "test" / "cat" / "1.png").write_bytes(b"")
    message = refusal(root)
    assert "3 of 19 files (train/apple/0.png, train/bird/notes.txt, test/cat/1.png) do not decode" in message
    assert "--skip-bad-images" in message
    for number in range(2, 9):
        (root / "train" / "cat" / f"{number}.txt").write_text("no image")
    assert "10 of 26 files (train/apple/0.png, train/bird/notes.txt, train/cat/2.txt and 7 more)" in refusal(root)


def test_bad_images_are_skipped_with_a_warning_every_time_and_never_silently(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad in ("train/apple/5.png", "train/bird/5.png", "test/cat/5.png"):
        (root / bad).write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"skipped 3 of 21 files \(train/apple/5.png, .*\) that do not decode"):
        data = load_data("folder", root, skip_bad_images=True)
    assert "3 of 21 files" in refusal(root)  # although the good ones are cached
    forbid_decoding(monkeypatch)
    with pytest.warns(UserWarning, match="skipped 3 of 21 files"):
        again = load_data("folder", root, skip_bad_images=True)
    for bad in ("train/apple/5.png", "train/bird/5.png", "test/cat/5.png"):
        (root / bad).unlink()
    for read in (data, again):
        check_holds(read, root)
        assert read.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_class_without_a_good_image_is_refused(root: Path) -> None:
    for path in root.glob("test/bird/*"):
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped 2 of 18 files"):
        assert "no image of bird in test decodes" in refusal(root, skip_bad_images=True)


def test_a_folder_without_a_good_image_is_refused(root: Path) -> None:
    for path in root.glob("*/*/*"):
        path.write_bytes(b"no image")
    assert f"none of the 18 files in {root} decodes as an image" in refusal(root, skip_bad_images=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_missing_is_named(root: Path, split: str) -> None:
    shutil.rmtree(root / split / "bird")
    other = {"train": "train has 2 classes and test 3", "test": "train has 3 classes and test 2"}[split]
    assert f"{other}, and bird only in one of them" in refusal(root)
    (root / split / "bird").mkdir()
    assert f"the class folder {root / split / 'bird'} is empty" in refusal(root)
    shutil.rmtree(root / split)
    (root / split).mkdir()
    assert f"no class folder in {root / split}" in refusal(root)
    (root / split).rmdir()
    message = refusal(root)
    assert f"no folder '{split}' in {root}" in message
    assert "--data-dir" in message


def test_a_link_to_nowhere_is_refused(root: Path) -> None:
    (root / "train" / "cat" / "link.png").symlink_to(root / "nowhere.png")
    assert f"cannot read {root}/train/cat/link.png: No such file" in refusal(root)


def test_without_pillow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "image folders need Pillow and NumPy" in refusal(root)


def test_progress_counts_up_to_all_images_and_is_silent_on_a_cached_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rotateconv.lab.data.decode.CHUNK", 4)
    calls: list[tuple[int, int]] = []
    load_data("folder", root, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 18), (8, 18), (12, 18), (16, 18), (18, 18)]
    load_data("folder", root, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 5


def test_an_error_in_progress_stops_the_decoding(root: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_data("folder", root, progress=stop)
    assert not list(root.glob(".rotateconv/*"))


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="ROTATECONV_DATA names no folder with real data")
def test_real_cifar10_as_a_folder() -> None:
    root = Path(str(REAL), "cifar10-jpeg")
    if not root.is_dir():
        pytest.skip("no cifar10-jpeg in ROTATECONV_DATA")
    data = load_data("folder", root)
    assert data.name == "cifar10-jpeg"
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.validation.labels.bincount().tolist() == [500] * 10
    assert data.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=1e-3)
    assert data.std == pytest.approx((0.2452, 0.2428, 0.2606), abs=1e-3)
