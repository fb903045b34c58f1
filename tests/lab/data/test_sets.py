"""Data sets by name: the split that is held out, the constants, the digits, and what is refused."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets as sklearn_datasets

from rotateconv.errors import DataError
from rotateconv.lab.data import DATASETS, Split, load_data
from rotateconv.lab.data.image_data import build_data, channel_statistics, hold_out


def split_of(labels: list[int] | torch.Tensor, size: int = 1) -> Split:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Split(torch.zeros(len(labels), 1, size, size, dtype=torch.uint8), labels)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data())
def test_hold_out_takes_of_each_class_its_share(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))
    classes = torch.tensor(labels)
    kept, held = hold_out(classes, count)
    assert len(held) == count
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs(int((classes[held] == label).sum()) - share) < 1


def test_hold_out_is_the_same_for_everybody() -> None:
    # On every machine, with every release of torch: written down from torch 2.15.
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = hold_out(labels, 10)[1]
    torch.manual_seed(2)
    assert torch.equal(hold_out(labels, 10)[1], first)
    assert first.tolist() == [2, 15, 39, 41, 60, 66, 74, 83, 97, 98]


def test_hold_out_is_no_pattern() -> None:
    held = hold_out(torch.zeros(10_000, dtype=torch.int64), 1_000)[1]
    assert len(held.diff().unique()) > 20
    # The mean place of 1,000 of 10,000, within 5 standard deviations.
    assert abs(held.double().mean() - 5_000) < 5 * 2_887 / 1_000**0.5


@pytest.mark.parametrize(
    ("count", "most", "validation"),
    [(50_000, 5_000, 5_000), (73_257, 6_000, 6_000), (604_388, 6_000, 6_000), (60_000, None, 6_000), (50, 5_000, 5)],
)
def test_sizes_of_the_validation_split(count: int, most: int | None, validation: int) -> None:
    data = build_data(
        "set", tuple("0123456789"), split_of(torch.arange(count) % 10), split_of([0]), flip=False, most_validation=most
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (count - validation, validation, 1)
    per_class = data.validation.labels.bincount(minlength=10)
    assert per_class.max() - per_class.min() <= 1


def test_constants_are_those_of_the_training_split_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 4, 5), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 3
    data = build_data(
        "set", ("a", "b"), Split(images, torch.arange(40) % 2), Split(images[:2], torch.tensor([0, 1])), flip=True
    )
    pixels = data.train.images.double() / 255
    for channel in range(3):
        assert data.mean[channel] == pytest.approx(float(pixels[:, channel].mean()), abs=1e-12)
        assert data.std[channel] == pytest.approx(float(pixels[:, channel].std(correction=0)), abs=1e-12)
    assert channel_statistics(images)[0] != data.mean


def test_constants_do_not_depend_on_the_threads() -> None:
    images = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    torch.set_num_threads(1)
    one = channel_statistics(images)
    torch.set_num_threads(3)
    assert channel_statistics(images) == one


def test_a_constant_channel_can_be_divided_by() -> None:
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_given_constants_replace_those_of_the_training_split() -> None:
    measured, data = load_data("digits"), load_data("digits", mean=[0.25], std=torch.tensor([2.0]).tolist())
    assert (data.mean, data.std) == ((0.25,), (2.0,))
    assert measured.mean != data.mean
    assert torch.equal(data.train.images, measured.train.images)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], None, "mean and std belong together: give both, or none to compute them"),
        (None, [0.5], "mean and std belong together"),
        ([125.3], [0.2], r"mean \(--mean\) must be numbers from 0 to 1, 1 being the brightest pixel, not 125.3$"),
        ([-0.1], [0.2], r"must be numbers from 0 to 1, .*, not -0.1$"),
        ([math.nan], [0.2], r"must be numbers from 0 to 1, .*, not nan$"),
        ([0.5], [0.0], r"expected standard deviations above 0 and finite, got \(0.0,\)"),
        ([0.5], [-1.0], "expected standard deviations above 0 and finite"),
        ([0.5], [math.inf], "expected standard deviations above 0 and finite"),
        ([0.5], [math.nan], "expected standard deviations above 0 and finite"),
        ([0.5] * 3, [0.2] * 3, "images of 1 channels need 1 means and standard deviations, got 3 and 3"),
        ([0.5], [0.2] * 3, "images of 1 channels need 1 means and standard deviations, got 1 and 3"),
        ([], [], "images of 1 channels need 1 means and standard deviations, got 0 and 0"),
    ],
)
def test_constants_that_are_none_are_refused(mean: list[float] | None, std: list[float] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data("digits", mean=mean, std=std)


def test_wrong_constants_are_refused_before_anything_is_read() -> None:
    with pytest.raises(DataError, match="expected standard deviations above 0"):
        load_data("folder", "nowhere", mean=[0.5] * 3, std=[0.0] * 3)


def test_digits_are_those_of_scikit_learn() -> None:
    data = load_data("digits")
    bunch = sklearn_datasets.load_digits()
    written = sorted(
        (tuple(image.ravel().astype(int)), int(label)) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    read = sorted(
        (tuple(np.round(image.numpy().ravel().astype(float) * 16 / 255).astype(int)), int(label))
        for split in (data.train, data.validation, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert read == written
    assert (len(data.train), len(data.validation), len(data.test)) == (1_295, 143, 359)
    assert data.train.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    assert data.classes == tuple("0123456789")
    assert (data.name, data.flip) == ("digits", False)
    for split in (data.validation, data.test):
        share = bunch.target.size / len(split)
        for digit in range(10):
            assert abs(int((split.labels == digit).sum()) - int((bunch.target == digit).sum()) / share) < 2


def test_digits_are_the_same_at_every_call() -> None:
    first, again = load_data("digits"), load_data("digits", download=True)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(first, split).images, getattr(again, split).images)
        assert torch.equal(getattr(first, split).labels, getattr(again, split).labels)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn, which does not import .*pip install"):
        load_data("digits")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DataError, match="unknown data set 'cifra10': did you mean 'cifar10' or"):
        load_data("cifra10")
    with pytest.raises(DataError, match=r"unknown data set 'imagenet': choose from digits, mnist, .*, folder"):
        load_data("imagenet")


OPTIONS = {"download": True, "image_size": 32, "svhn_extra": True, "skip_bad_images": True}
TAKEN = {
    **{name: {"download"} for name in ("digits", "mnist", "cifar10", "cifar100")},
    "svhn": {"download", "svhn_extra"},
    "folder": {"image_size", "skip_bad_images"},
}
REFUSED = [(name, option) for name in DATASETS for option in OPTIONS if option not in TAKEN[name]]


def test_some_options_are_refused() -> None:
    assert len(REFUSED) == 16


@pytest.mark.parametrize(("name", "option"), REFUSED)
def test_an_option_without_meaning_is_refused(name: str, option: str) -> None:
    flag = option.replace("_", "-")
    with pytest.raises(DataError, match=rf"{option} \(--{flag}\) has no meaning for the data set {name}"):
        load_data(name, "nowhere", **{option: OPTIONS[option]})


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_where_data_are_looked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROTATECONV_DATA", str(tmp_path / "named"))
    with pytest.raises(DataError, match=f"in {tmp_path}/given"):
        load_data(name, tmp_path / "given")
    with pytest.raises(DataError, match=f"in {tmp_path}/named"):
        load_data(name)
    monkeypatch.delenv("ROTATECONV_DATA")
    with pytest.raises(DataError, match=f"in {tmp_path}/data"):
        load_data(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=f"in {tmp_path}/home/sets"):
        load_data(name, "~/sets")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "expected images of dtype uint8 .* torch.float32"),
        (
            torch.zeros(2, 3, 3, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            r"got torch.uint8 and \(2, 3, 3\)",
        ),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"expected 2 labels .* \(3,\)"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "2 labels of dtype int64, got torch.float32"),
    ],
)
def test_a_split_of_another_form_is_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (split_of([0]), split_of([0]), "at least 2 training images and 1 test image, got 1 and 1"),
        (split_of([0, 1]), split_of([]), "at least 2 training images and 1 test image, got 2 and 0"),
        (split_of([0, 2]), split_of([0]), r"expected training labels in 0..1 for 2 classes, got 0..2"),
        (split_of([0, 1]), split_of([-1]), r"expected test labels in 0..1 for 2 classes, got -1..-1"),
        (split_of([0, 1]), split_of([0], 2), r"shape \(1, 1, 1\) and test images \(1, 2, 2\)"),
    ],
)
def test_data_that_do_not_agree_are_refused(train: Split, test: Split, message: str) -> None:
    with pytest.raises(DataError, match=f"^set: .*{message}"):
        build_data("set", ("a", "b"), train, test, flip=False)
