"""MNIST, CIFAR and SVHN from tiny official files: what is read, what is refused, and the downloads."""

import gc
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from official_formats import EXTRA_COUNT, TEST_COUNT, TRAIN_COUNT, Official, point_at, serve, write_official
from rotateconv.errors import DataError
from rotateconv.lab.data import DATASETS, ImageData, load_data, torchvision_sets

NAMES = [name for name in DATASETS if name not in ("digits", "folder")]
REAL = os.environ.get("ROTATECONV_DATA")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def official(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Official:
    return write_official(name, tmp_path / "root", tmp_path / "downloads", monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def refusal(name: str, root: Path, **options: bool) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(DataError) as caught:
        load_data(name, root, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def check_holds(data: ImageData, official: Official, *training: str) -> None:
    """Every written image is in its split once, with its label."""
    written = {
        image.numpy().tobytes(): int(label)
        for split in training
        for image, label in zip(official.images[split], official.labels[split], strict=True)
    }
    read = {
        image.numpy().tobytes(): int(label)
        for split in (data.train, data.validation)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert read == written
    assert len(data.train) + len(data.validation) == len(written)
    assert torch.equal(data.test.images, official.images["test"])
    assert torch.equal(data.test.labels, official.labels["test"])


def test_there_are_four_of_them() -> None:
    assert NAMES == ["mnist", "cifar10", "cifar100", "svhn"]


def test_official_files_are_read_whole(name: str, official: Official, root: Path) -> None:
    data = load_data(name, root)
    check_holds(data, official, "train")
    assert (len(data.train), len(data.validation), len(data.test)) == (TRAIN_COUNT * 9 // 10, 4, TEST_COUNT)
    assert data.name == name
    assert len(data.classes) == (100 if name == "cifar100" else 10)
    assert data.flip == name.startswith("cifar")
    assert len(data.mean) == len(data.std) == data.train.images.shape[1]


def test_class_names_of_cifar_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official("cifar10", tmp_path / "root", tmp_path / "downloads", monkeypatch)
    assert load_data("cifar10", tmp_path / "root").classes == tuple(f"class {number}" for number in range(10))


def test_svhn_extra_joins_the_training_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = write_official("svhn", tmp_path / "root", tmp_path / "downloads", monkeypatch)
    data = load_data("svhn", tmp_path / "root", svhn_extra=True)
    check_holds(data, official, "train", "extra")
    assert len(data.train) + len(data.validation) == TRAIN_COUNT + EXTRA_COUNT


def test_svhn_of_one_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("official_formats.TEST_COUNT", 1)
    official = write_official("svhn", tmp_path / "root", tmp_path / "downloads", monkeypatch)
    check_holds(load_data("svhn", tmp_path / "root"), official, "train")


def test_each_missing_file_is_named_with_the_folder_and_the_flags(name: str, official: Official, root: Path) -> None:
    options = {"svhn_extra": True} if name == "svhn" else {}
    for file in official.files:
        aside = file.rename(file.with_suffix(".aside"))
        message = refusal(name, root, **options)
        assert f"{name} is not in {root}" in message
        assert str(file.relative_to(root)) in message
        assert "--download" in message
        assert "--data-dir" in message
        aside.rename(file)


@pytest.mark.parametrize("damage", ["flip a bit", "cut off", "empty"])
@pytest.mark.parametrize("download", [False, True])
def test_each_damaged_file_is_refused(
    name: str, official: Official, root: Path, damage: str, download: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(name, "http://127.0.0.1:9/", monkeypatch)
    options = {"svhn_extra": True} if name == "svhn" else {}
    for file in official.files:
        content = file.read_bytes()
        last = bytes([content[-1] ^ 1])
        file.write_bytes({"flip a bit": content[:-1] + last, "cut off": content[:-9], "empty": b""}[damage])
        message = refusal(name, root, download=download, **options)
        if download and name != "mnist":  # torchvision tries to fetch these again
            assert f"the download of {name} from" in message
        else:
            assert f"{file} is damaged" in message
        file.write_bytes(content)


def test_downloads_are_unpacked_and_read(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root)
    with serve(official.downloads) as address:
        point_at(name, address, monkeypatch)
        data = load_data(name, root, download=True)
    check_holds(data, official, "train")
    check_holds(load_data(name, root, download=True), official, "train")  # nothing is left to fetch


def test_each_missing_file_is_downloaded_again(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"svhn_extra": True} if name == "svhn" else {}
    with serve(official.downloads) as address:
        point_at(name, address, monkeypatch)
        for file in official.files:
            content = file.read_bytes()
            file.unlink()
            load_data(name, root, download=True, **options)
            assert file.read_bytes() == content


def test_a_download_with_another_checksum_is_refused(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root)
    for file in official.downloads.iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with serve(official.downloads) as address:
        point_at(name, address, monkeypatch)
        message = refusal(name, root, download=True)
    assert f"the download of {name} from {address}" in message


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # torchvision's MNIST leaves a refused answer open
def test_a_file_that_the_server_lacks(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root)
    for file in official.downloads.iterdir():
        file.unlink()
    with serve(official.downloads) as address:
        point_at(name, address, monkeypatch)
        message = refusal(name, root, download=True)
    assert f"the download of {name} from {address}" in message
    assert "404" in message
    gc.collect()  # while that warning is ignored


def test_an_unreachable_server(name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root)
    with serve(official.downloads) as address:
        point_at(name, address, monkeypatch)
    message = refusal(name, root, download=True)  # the server is gone
    assert f"the download of {name} from {address}" in message
    assert "check the network" in message
    assert str(root) in message


def test_a_server_that_never_answers(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root)
    monkeypatch.setattr(torchvision_sets, "SILENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(name, f"http://127.0.0.1:{silent.getsockname()[1]}/", monkeypatch)
        assert "timed out" in refusal(name, root, download=True)
    assert socket.getdefaulttimeout() is None


def test_a_full_disk(name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    reader = getattr(datasets, name.upper())
    monkeypatch.setattr(reader, "download", full)
    assert f"cannot read or write in {root} ([Errno 28]" in refusal(name, root, download=True)


def test_what_is_not_the_fault_of_the_files_stays_as_it_is(
    name: str, official: Official, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: object, **kwargs: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(getattr(datasets, name.upper()), "__init__", fault)
    with pytest.raises(KeyError, match="ours"):
        load_data(name, root)


def test_without_torchvision(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "needs torchvision" in refusal(name, root)


@pytest.mark.skipif(not REAL, reason="ROTATECONV_DATA names no folder with real data")
def test_real_mnist() -> None:
    if not Path(str(REAL), "MNIST").is_dir():
        pytest.skip("no MNIST in ROTATECONV_DATA")
    data = load_data("mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.mean[0] == pytest.approx(0.1307, abs=1e-3)
    assert data.std[0] == pytest.approx(0.3081, abs=1e-3)
