"""Image folders: what is decoded, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from image_folders import CLASSES, check_holds, forbid_decoding, held, refusal
from rotateconv.lab.data import load_data
from rotateconv.lab.data.decode import decode_image

REAL = os.environ.get("ROTATECONV_DATA")


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
    names = (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini")
    for hidden in (root / "train" / ".DS_Store", *(root / "train" / "cat" / name for name in names)):
        hidden.write_text("no image")
    for hidden in (root / "train" / ".git", root / "train" / "cat" / ".git"):
        hidden.mkdir()
        (hidden / "file").write_text("no image")
    inner = root / "train" / "cat" / "more" / "inside"
    inner.mkdir(parents=True)
    shutil.move(root / "train" / "cat" / "3.png", inner / "3.png")
    with pytest.warns(UserWarning, match=r"left out 5 hidden files \(train/cat/.* and 2 more\)"):
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
    assert f"image_size (--image-size) must be at least 1 pixel, got {size}" in refusal(root, image_size=size)


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


RAMP = np.linspace(0, 255, 30).reshape(5, 6).round().astype(np.uint8)


@pytest.mark.parametrize("image_size", [None, 5])
@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "pgm"])
def test_sixteen_bits_are_scaled_and_not_cut_off(root: Path, kind: str, image_size: int | None) -> None:
    (root / "test" / "bird" / "0.png").unlink()
    path = root / "test" / "bird" / f"0.{kind.split()[-1]}"
    wide = RAMP.astype(np.uint16) * 257
    if kind == "pgm":
        path.write_bytes(b"P5 6 5 65535\n" + wide.astype(">u2").tobytes())
    elif kind == "big-endian tif":
        Image.frombytes("I;16B", (6, 5), wide.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(wide).save(path)
    found = decode_image(path, image_size)
    eight = np.dstack([RAMP] * 3)
    expected = eight if image_size is None else np.asarray(ImageOps.fit(Image.fromarray(eight), (5, 5), 2))
    assert np.array_equal(found, expected)
    load_data("folder", root, image_size=image_size)


@pytest.mark.parametrize(
    ("numbers", "kind"), [(RAMP.astype(np.int32) * 257, "32-bit integers"), (RAMP / np.float32(255), "floating-point")]
)
def test_numbers_of_an_unknown_range_are_refused(root: Path, numbers: np.ndarray, kind: str) -> None:
    Image.fromarray(numbers).save(root / "test" / "bird" / "9.tif")
    message = refusal(root)
    assert f"bird/9.tif holds {kind}" in message
    assert message.endswith("whose range the file does not say: convert it to 8 or 16 bits")


EXIFS = {
    "empty": b"Exif\0\0",
    "garbage": b"Exif\0\0" + bytes(range(40)),
    "a reference to nowhere": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\xff\x7f\x10\0\0\0\0\0\0\0",
    "an unknown type": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x4d\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("exif", EXIFS, ids=str)
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_broken_exif_beside_whole_pixels_is_passed_over(tmp_path: Path, suffix: str, exif: str) -> None:
    path, plain = tmp_path / f"broken.{suffix}", tmp_path / f"plain.{suffix}"
    picture = Image.fromarray(np.dstack([RAMP] * 3))
    picture.save(path, exif=EXIFS[exif])
    picture.save(plain)
    found = decode_image(path)
    assert found is not None
    assert np.array_equal(found, decode_image(plain))


@pytest.mark.slow
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(root: Path) -> None:
    Image.new("1", (9000, 9000)).save(root / "test" / "bird" / "9.png")
    message = refusal(root, image_size=4)
    assert "bird/9.png has 81,000,000 pixels, more than the 50,000,000 allowed: make it smaller" in message
    data = load_data("folder", root, image_size=4, max_image_pixels=81_000_000)
    assert len(data.test) == 7


def test_a_pipe_among_the_images_is_refused(root: Path) -> None:
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert "train/cat/pipe.png is a pipe or a device and no image: remove it" in refusal(root)


def test_a_loop_of_links_is_one_short_sentence(root: Path) -> None:
    (root / "train" / "cat" / "again").symlink_to(root / "train", target_is_directory=True)
    message = refusal(root)
    assert message.endswith("is a link to a folder that it is in: remove it")
    assert len(message) < 300


def test_folders_in_folders_in_folders_are_read(root: Path) -> None:
    cat, name = root / "train" / "cat", "d/" * 25
    here, inner = Path.cwd(), cat
    try:
        for _ in range(60):  # a system takes no path as long as all of them
            os.chdir(inner)
            Path(name).mkdir(parents=True)
            inner = Path(name)
        os.chdir(here)
        check_holds(load_data("folder", root), root)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(cat / "d")], check=True)  # Python's own removal is recursive
