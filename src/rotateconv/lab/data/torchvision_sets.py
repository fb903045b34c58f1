"""MNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision's readers, downloads and checksums."""

import http.client
import socket
import urllib.error
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rotateconv.errors import DataError, needing, on_one_line
from rotateconv.lab.data.image_data import ImageData, Split, build_data

# torchvision checks only the archives of MNIST, never the four files it reads; these are the official ones.
MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
DIGITS = tuple(str(digit) for digit in range(10))
# A network that swallows packets would otherwise hold a download for minutes.
SILENCE = 30.0  # seconds without a byte
_NETWORK = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)


def load_mnist(folder: Path, *, download: bool) -> ImageData:
    """MNIST, 1 x 28 x 28, from `folder`/MNIST/raw; a tenth of the training set validates."""
    reader = _reader("MNIST")
    files = {Path("MNIST", "raw", name): checksum for name, checksum in MNIST_FILES.items()}

    with _one_sentence("mnist", folder, files, reader.mirrors, download):
        sets = [reader(folder, train=train, download=download) for train in (True, False)]
        _check_files("mnist", folder, files)
    train, test = (Split(part.data.unsqueeze(1), part.targets) for part in sets)
    return build_data("mnist", DIGITS, train, test, flip=False)


def load_cifar10(folder: Path, *, download: bool) -> ImageData:
    """CIFAR-10, 3 x 32 x 32, from `folder`/cifar-10-batches-py; 5,000 training images validate."""
    return _load_cifar("cifar10", "CIFAR10", folder, download)


def load_cifar100(folder: Path, *, download: bool) -> ImageData:
    """CIFAR-100 (fine labels), 3 x 32 x 32, from `folder`/cifar-100-python; 5,000 training images validate."""
    return _load_cifar("cifar100", "CIFAR100", folder, download)


def load_svhn(folder: Path, *, download: bool, svhn_extra: bool) -> ImageData:
    """SVHN, 3 x 32 x 32, from `folder`/*_32x32.mat; 6,000 training images validate."""
    reader = _reader("SVHN")
    names = ("test", "train", "extra") if svhn_extra else ("test", "train")
    listed = [reader.split_list[name] for name in names]
    files = {Path(file): checksum for _, file, checksum in listed}
    with _one_sentence("svhn", folder, files, [url for url, _, _ in listed], download):
        sets = [reader(folder, split=name, download=download) for name in names]
    # A file of one image has its label as a number, not as an array.
    test, *training = [Split(torch.tensor(part.data), torch.tensor(part.labels).view(-1)) for part in sets]
    train = Split(torch.cat([part.images for part in training]), torch.cat([part.labels for part in training]))
    return build_data("svhn", DIGITS, train, test, flip=False, most_validation=6_000)


def _load_cifar(name: str, class_name: str, folder: Path, download: bool) -> ImageData:
    reader = _reader(class_name)
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = {Path(reader.base_folder, file): checksum for file, checksum in listed}

    # torchvision forgets the file of the class names when it decides whether there is anything to fetch.
    class WithNames(reader):  # type: ignore[misc, valid-type]
        def _check_integrity(self) -> bool:
            return not any(_faults(folder, files))

    with _one_sentence(name, folder, files, [reader.url], download):
        sets = [WithNames(folder, train=train, download=download) for train in (True, False)]
    train, test = (
        Split(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),  # [N, 3, 32, 32]
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in sets
    )
    return build_data(name, tuple(sets[0].classes), train, test, flip=True, most_validation=5_000)


def _reader(class_name: str) -> Any:
    with needing("lab", "this data set needs torchvision, which does not import", DataError):
        from torchvision import datasets
    return getattr(datasets, class_name)


@contextmanager
def _one_sentence(
    name: str, folder: Path, files: dict[Path, str], sources: list[str], download: bool
) -> Iterator[None]:
    """Turn what torchvision raises into a DataError; `files` are the checksums of what it needs, by path."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    failed = f"the download of {name} from {' or '.join(sources)} failed"
    remedy = f"check the network, or put {_listed(files)} into {folder.absolute()} by hand"
    try:
        yield
    except DataError:
        raise
    except _NETWORK as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the answer of the server open
        raise DataError(f"{failed} ({on_one_line(error)}): {remedy}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot read or write in {folder.absolute()} ({error})") from None
    except Exception as error:  # on a damaged file, whatever its reader happens to trip over
        if download and _faults(folder, files)[0]:
            raise DataError(f"{failed} ({on_one_line(error)}): {remedy}") from None
        _check_files(name, folder, files)
        raise
    finally:
        socket.setdefaulttimeout(before)


def _check_files(name: str, folder: Path, files: dict[Path, str]) -> None:
    missing, damaged = _faults(folder, files)
    if missing:
        raise DataError(
            f"{name} is not in {folder.absolute()}: {_listed(missing)} missing; "
            "fetch it with --download or name another folder with --data-dir"
        )
    if damaged:
        raise DataError(
            f"{folder / damaged[0]} is damaged: its checksum is not the official {files[damaged[0]]}; "
            "delete it and fetch it again with --download"
        )


def _faults(folder: Path, files: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """(missing, damaged) ones of `files`."""
    from torchvision.datasets.utils import check_integrity

    missing = [path for path in files if not (folder / path).is_file()]
    present = [path for path in files if path not in missing]
    return missing, [path for path in present if not check_integrity(folder / path, files[path])]


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)
