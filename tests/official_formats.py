"""Tiny MNIST, CIFAR and SVHN in their official file formats, their checksums in place, and a server."""

import gzip
import hashlib
import http.server
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor
from torchvision import datasets

from rotateconv.lab.data import torchvision_sets

TRAIN_COUNT, TEST_COUNT, EXTRA_COUNT = 40, 12, 8


@dataclass(frozen=True)
class Official:
    """What was written.

    Args:
        images: (N, C, H, W), uint8, by the name of the split.
        labels: (N,), int64, by the name of the split.
        files: every file that is read.
        downloads: a folder of what the official server holds.
    """

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    files: list[Path]
    downloads: Path


def write_official(name: str, root: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Official:
    """Write the set `name` below `root` and its downloads below `downloads`, and expect these checksums."""
    downloads.mkdir(parents=True)
    classes, shape = {"mnist": (10, (1, 28, 28)), "cifar100": (100, (3, 32, 32))}.get(name, (10, (3, 32, 32)))
    generator = torch.Generator().manual_seed(5)
    images, labels = {}, {}
    for split, count in (("train", TRAIN_COUNT), ("test", TEST_COUNT), ("extra", EXTRA_COUNT)):
        images[split] = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
        labels[split] = torch.randint(0, classes, (count,), generator=generator)
    write = {"mnist": _write_mnist, "cifar10": _write_cifar, "cifar100": _write_cifar, "svhn": _write_svhn}[name]
    files = write(name, root, downloads, images, labels, monkeypatch)
    return Official(images, labels, files, downloads)


def point_at(name: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision download the set `name` from `address`, which ends with a slash."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    if name == "mnist":
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    elif name == "svhn":
        moved = {split: [address + file, file, md5] for split, (_, file, md5) in datasets.SVHN.split_list.items()}
        monkeypatch.setattr(datasets.SVHN, "split_list", moved)
    else:
        reader = getattr(datasets, name.upper())
        monkeypatch.setattr(reader, "url", address + reader.filename)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of an HTTP server on this machine that hands out the files of `folder`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # so that closing waits for them

        def handle_error(self, *args: object) -> None:
            """Say nothing: a client that has seen enough hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _write_mnist(name, root, downloads, images, labels, monkeypatch):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = len(labels[split])
        for file, header, values in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">4i", 2051, count, 28, 28), images[split]),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">2i", 2049, count), labels[split].to(torch.uint8)),
        ):
            files.append(raw / file)
            files[-1].write_bytes(header + values.numpy().tobytes())
            (downloads / f"{file}.gz").write_bytes(gzip.compress(files[-1].read_bytes()))
    monkeypatch.setattr(torchvision_sets, "MNIST_FILES", {file.name: md5(file) for file in files})
    packed = [(f"{file.name}.gz", md5(downloads / f"{file.name}.gz")) for file in files]
    monkeypatch.setattr(datasets.MNIST, "resources", packed)
    return files


def _write_cifar(name, root, downloads, images, labels, monkeypatch):
    reader = getattr(datasets, name.upper())
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if name == "cifar10" else "fine_labels"
    lists = []
    for split, entries in (("train", reader.train_list), ("test", reader.test_list)):
        entries_now = []
        parts = zip(images[split].chunk(len(entries)), labels[split].chunk(len(entries)), strict=True)
        for (file, _), (pixels, numbers) in zip(entries, parts, strict=True):
            rows = pixels.reshape(len(pixels), -1).numpy()  # 1,024 red, 1,024 green, 1,024 blue values an image
            (folder / file).write_bytes(pickle.dumps({"data": rows, label_key: numbers.tolist()}, protocol=2))
            entries_now.append([file, md5(folder / file)])
        lists.append(entries_now)
    names = [f"class {number}" for number in range(10 if name == "cifar10" else 100)]
    meta = folder / reader.meta["filename"]
    meta.write_bytes(pickle.dumps({reader.meta["key"]: names}, protocol=2))
    with tarfile.open(downloads / reader.filename, "w:gz") as archive:
        archive.add(folder, reader.base_folder)
    monkeypatch.setattr(reader, "train_list", lists[0])
    monkeypatch.setattr(reader, "test_list", lists[1])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(meta)})
    monkeypatch.setattr(reader, "tgz_md5", md5(downloads / reader.filename))
    return [folder / file for file, _ in (*lists[0], *lists[1])] + [meta]


def _write_svhn(name, root, downloads, images, labels, monkeypatch):
    root.mkdir(parents=True)
    entries, files = {}, []
    for split, (url, file, _) in datasets.SVHN.split_list.items():
        numbers = labels[split].numpy().astype(np.uint8).reshape(-1, 1)
        content = {
            "X": images[split].permute(2, 3, 1, 0).numpy(),  # [32, 32, 3, N]
            "y": np.where(numbers == 0, 10, numbers).astype(np.uint8),
        }
        scipy.io.savemat(root / file, content, format="5")
        (downloads / file).write_bytes((root / file).read_bytes())
        entries[split] = [url, file, md5(root / file)]
        files.append(root / file)
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    return files
