"""Laws of checkpoints: exact, the last two kept, whole or absent at whatever moment a process dies."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from rotateconv import RotateConv2d
from rotateconv.errors import RunError
from rotateconv.lab.train import checkpoint
from rotateconv.lab.train import run_folder as runs
from rotateconv.lab.train.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    read_weights,
    save_checkpoint,
    weights_bytes,
)


class Tied(nn.Module):
    """Two names for one weight, a scalar buffer, an empty buffer and a channels-last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = RotateConv2d(3, 4).to(memory_format=torch.channels_last)
        self.dense = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.embedding, self.output = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.output.weight = self.embedding.weight
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("void", torch.empty(0))


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.randint(9, tensor.shape))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_weights_round_trip_exactly_and_stay_tied() -> None:
    model = Tied()
    randomise(model)
    data = weights_bytes(model)
    assert_equal(read_weights(data), dict(model.state_dict()))
    fresh = Tied()
    fresh.load_state_dict(read_weights(data))
    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))
    assert fresh.output.weight is fresh.embedding.weight


def test_a_tied_weight_is_stored_once() -> None:
    tied, untied = Tied(), Tied()
    untied.output.weight = nn.Parameter(untied.output.weight.detach().clone())
    assert 60 < len(weights_bytes(untied)) - len(weights_bytes(tied)) < 160  # 80 bytes, and the header's lines


def test_safetensors_reads_the_weights_too(tmp_path: Path) -> None:
    from safetensors.torch import load_model

    model, fresh = Tied(), Tied()
    randomise(model)
    (tmp_path / "model.safetensors").write_bytes(weights_bytes(model))
    load_model(fresh, tmp_path / "model.safetensors")
    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    "data",
    [b"", b"no weights", b"\xff" * 100, weights_bytes(nn.Linear(2, 2))[:-1]],
    ids=["empty", "text", "no length", "cut off"],
)
def test_foreign_weights_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected a safetensors file, but"):
        read_weights(data)


def trained() -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, {"step": 7, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "loader": None}


def test_state_round_trips_exactly(tmp_path: Path) -> None:
    model, state = trained()
    path = save_checkpoint(tmp_path, {"model": model, "average": nn.Linear(1, 1)}, state)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.path, found.damaged) == (path, ())
    assert found.weights.keys() == {"model", "average"}
    assert_equal(found.weights["model"], dict(model.state_dict()))
    assert torch.equal(found.state["rng"], state["rng"])
    assert found.state["step"] == 7
    moments = found.state["optimizer"]["state"][0]
    assert all(torch.equal(moments[key], value) for key, value in state["optimizer"]["state"][0].items())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, {"model": nn.Linear(1, 1)}, {"step": step})
        assert len(list_checkpoints(tmp_path)) == min(step + 1, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000004", "000005"]
    assert load_checkpoint(tmp_path).state == {"step": 4}


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoints") is None


class Killed(BaseException):
    """The process ends here."""


def die_before_change(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Let the disk take `last` changes more; at the next one the process dies, and cleans up nothing."""
    left = last

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(*args, **options)

        return call

    for owner, name in [
        *((Path, method) for method in ("open", "replace", "unlink", "mkdir", "rmdir")),
        (runs.os, "fsync"),
        (checkpoint.tempfile, "mkdtemp"),
    ]:
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))


def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, finished = nn.Linear(2, 2), []
    for changes in range(100):
        folder = tmp_path / str(changes)
        for step in (1, 2):
            save_checkpoint(folder, {"model": model}, {"step": step})
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            die_before_change(patch, changes)
            save_checkpoint(folder, {"model": model}, {"step": 3})
            finished.append(changes)
        found = load_checkpoint(folder)
        assert found is not None
        assert found.damaged == ()
        assert found.state["step"] in ((3,) if finished else (2, 3))
        save_checkpoint(folder, {"model": model}, {"step": 4})
        assert load_checkpoint(folder).state["step"] == 4
        if finished:
            break
    assert finished[0] > 10  # three files and a folder are more than ten changes, and each was the last once


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "removed":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[:-3])
        case "longer":
            path.write_bytes(data + b"\0")
        case "flipped":
            middle = len(data) // 2
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :])


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["removed", "empty", "cut", "longer", "flipped"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, how: str) -> None:
    older = save_checkpoint(tmp_path, {"model": nn.Linear(2, 2)}, {"step": 1})
    newer = save_checkpoint(tmp_path, {"model": nn.Linear(2, 2)}, {"step": 2})
    damage(newer / name, how)
    found = load_checkpoint(tmp_path)
    assert found.path == older
    assert found.state == {"step": 1}
    assert found.damaged == (newer,)
    shutil.rmtree(older)
    with pytest.raises(RunError, match=r"every checkpoint in .* is damaged: overwrite the run to start again"):
        load_checkpoint(tmp_path)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("a checkpoint ran code",)


@pytest.mark.parametrize("raw", [False, True])
def test_loading_never_runs_code(tmp_path: Path, raw: bool) -> None:
    path = save_checkpoint(tmp_path, {"model": nn.Linear(2, 2)}, {"step": 1})
    buffer = io.BytesIO()
    if raw:
        pickle.dump(Payload(), buffer, protocol=2)
    else:
        torch.save(Payload(), buffer)
    (path / "state.pt").write_bytes(buffer.getvalue())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"every checkpoint in .* is damaged"):
        load_checkpoint(tmp_path)


def saved(folder: Path) -> Path:
    """A checkpoint of a small layer."""
    return save_checkpoint(folder, {"model": nn.Linear(2, 2)}, {"step": 1})


def test_folders_of_others_are_never_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder)
    kept = {folder / name / "thesis.txt" for name in ("2019", "2020", "9999", "0000001", ".000009.tmp")}
    for file in kept:
        file.parent.mkdir()
        file.write_text("ten years of work")
    mixed = folder / "000002"
    shutil.copytree(folder / "000001", mixed)
    (mixed / "thesis.txt").write_text("in a checkpoint")
    for _ in range(5):
        saved(folder)
    checkpoint.remove_checkpoints(folder)
    assert all(file.read_text() == "ten years of work" for file in kept)
    assert [path.name for path in mixed.iterdir()] == ["thesis.txt"]
    assert not list(folder.glob("00000[3-9]"))


def test_a_link_in_the_place_of_the_checkpoints_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for _ in range(2):
        saved(elsewhere)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    for action in (load_checkpoint, saved, checkpoint.remove_checkpoints):
        with pytest.raises(RunError, match="checkpoints is a link, and checkpoints are kept in the run folder itself"):
            action(tmp_path / "run" / "checkpoints")
    assert len(list_checkpoints(elsewhere)) == 2


def test_a_checkpoint_that_is_a_link_is_neither_read_nor_removed(tmp_path: Path) -> None:
    target = saved(tmp_path / "elsewhere")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "000001").symlink_to(target)
    assert list_checkpoints(folder) == []
    for _ in range(4):
        saved(folder)
    assert load_checkpoint(tmp_path / "elsewhere") is not None


@pytest.mark.parametrize("kind", ["/dev/zero", "fifo", "link", "../000001/model.safetensors", "sparse", "wrong size"])
def test_a_manifest_that_names_no_file_of_its_own_is_damage(tmp_path: Path, kind: str) -> None:
    saved(tmp_path)
    path = saved(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    weights = path / "model.safetensors"
    if kind == "fifo":
        weights.unlink()
        os.mkfifo(weights)
    elif kind == "link":
        weights.unlink()
        weights.symlink_to(tmp_path / "000001" / "model.safetensors")
    elif kind == "sparse":
        with weights.open("r+b") as file:
            file.truncate(2**40)
        manifest["bytes"]["model.safetensors"] = 2**40
    elif kind == "wrong size":
        manifest["bytes"]["model.safetensors"] += 1
    else:
        manifest["sha256"][kind] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.path.name, found.damaged) == ("000001", (path,))


@pytest.mark.parametrize(
    "manifest", ["[" * 100_000, "{}", "[]", '{"sha256": 5}', '{"sha256": {"state.pt": 5}}', '{"sha256": {}}']
)
def test_a_manifest_of_anything_is_damage(tmp_path: Path, manifest: str) -> None:
    saved(tmp_path)
    (saved(tmp_path) / "manifest.json").write_text(manifest)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.path.name == "000001"


def test_checkpoints_of_before_sizes_were_stated_load(tmp_path: Path) -> None:
    path = saved(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["bytes"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_a_safetensors_file_of_anybody_is_read(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(2), "bias": torch.zeros(2)}
    data = safetensors.torch.save(tensors, metadata={"format": "pt", "author": "weight of the world", "bias": "weight"})
    assert_equal(read_weights(data), tensors)
    assert_equal(read_weights(safetensors.torch.save(tensors)), tensors)
