"""The readers of rotateconv, each with a file to change: what comes out of any file is a result or one sentence."""

import functools
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from forging import joined, split
from fuzz.mutations import change_bytes, change_json, change_safetensors, change_value
from rotateconv import build_model, load_packed, pack
from rotateconv.lab.config import make_config
from rotateconv.lab.study.study_record import find_studies, read_run
from rotateconv.lab.train import trust
from rotateconv.lab.train.build_state import build_state, start_accelerator
from rotateconv.lab.train.checkpoint import MANIFEST, load_checkpoint, weights_bytes
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import keep_records, read_config, read_description, read_environment, read_records
from rotateconv.lab.train.saved_state import restore_state, save_state
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.quantization.pack import describe_packed
from small import small_digits, tiny_config

ROOT = Path(__file__).parents[1]
RUN = ROOT / "fixtures" / "run-folder"
PACKED = sorted(path for path in (ROOT / "fixtures" / "packed").glob("*.rcp") if path.stem != "own-model")


@dataclass(frozen=True)
class Target:
    """A reader: `prepare` makes a folder, `change` changes a file in it, `read` reads it."""

    prepare: Callable[[Path], None]
    change: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]


def _changed(name: str, change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    def apply(folder: Path, rng: random.Random) -> None:
        original = folder / f"{name}.original"
        if not original.exists():
            shutil.copy(folder / name, original)
        (folder / name).write_bytes(change(original.read_bytes(), rng))

    return apply


def _json_changed(data: bytes, rng: random.Random) -> bytes:
    return change_json(data.decode(), rng)


def _lines_changed(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = change_json(lines[place].decode(), rng)
    if rng.random() < 0.2:
        lines.insert(place, rng.choice(lines))
    return b"\n".join(lines) + rng.choice((b"\n", b""))


def _run_folder(folder: Path) -> None:
    shutil.copytree(RUN, folder, dirs_exist_ok=True)


# ---------------------------------------------------------------------------------------------- packed files


def _pick_packed(folder: Path) -> None:
    for path in PACKED:
        shutil.copy(path, folder / path.name)
    pack(build_model("densenet40", "rotate2p", growth=2), folder / "small.rcp", classes=list("abcdefghij"))


def _change_packed(folder: Path, rng: random.Random) -> None:
    header, body = split(rng.choice(sorted(folder.glob("*.rcp"))).read_bytes())
    match rng.randrange(4):
        case 0:
            body = change_bytes(body, rng)[: len(body)].ljust(len(body), b"\0")
        case 1:
            header = json.loads(json.dumps(change_value(header, rng)))
        case _:
            metadata = header["__metadata__"]
            metadata["description"] = change_json(metadata["description"], rng).decode(errors="replace")
    try:
        data = joined(header, body)
    except (TypeError, KeyError):
        data = json.dumps(header).encode()
    (folder / "changed").write_bytes(data)


def _read_packed(folder: Path) -> None:
    describe_packed(folder / "changed")
    model = load_packed(folder / "changed", fused=True)
    assert all(tensor.isfinite().all() for tensor in model.parameters())


# ---------------------------------------------------------------------------------------------- checkpoints


@functools.cache
def _state(folder: Path):  # type: ignore[no-untyped-def]
    config = tiny_config(model="resnet20", width=0.25, epochs=1, ema_decay=0.5)
    return build_state(config, start_accelerator(config.precision), small_digits(64, 8, 8), folder)


def _checkpoint(folder: Path) -> None:
    path = save_state(_state(folder))
    assert path is not None
    path.rename(folder / "whole")
    shutil.copy(RUN / "metrics.jsonl", folder)


def _change_checkpoint(folder: Path, rng: random.Random) -> None:
    target = folder / "checkpoints" / "000001"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "whole", target)
    name = rng.choice((MANIFEST, "state.pt", "state.pt", "state.pt", "model.safetensors", "average.safetensors"))
    data = (target / name).read_bytes()
    if name == MANIFEST:
        (target / name).write_bytes(change_json(data.decode(), rng))
        return
    if name == "state.pt" and rng.random() < 0.8:
        value = torch.load(io.BytesIO(data), weights_only=True)
        buffer = io.BytesIO()
        torch.save(change_value(value, rng), buffer)
        data = buffer.getvalue()
    else:
        data = change_bytes(data, rng) if name == "state.pt" else change_safetensors(data, rng)
    (target / name).write_bytes(data)
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["sha256"][name], manifest["bytes"][name] = hashlib.sha256(data).hexdigest(), len(data)
    (target / MANIFEST).write_text(json.dumps(manifest))


def _read_checkpoint(folder: Path) -> None:
    found = load_checkpoint(folder / "checkpoints")
    if found is not None:
        restore_state(_state(folder), found)


# ---------------------------------------------------------------------------------------------- the others


def _read_run(folder: Path) -> None:
    read_run(folder)
    find_studies([folder])


def _read_metrics(folder: Path) -> None:
    records = read_records(folder)
    keep_records(folder, len(records))


def _records(folder: Path) -> None:
    source = min((ROOT.parent / "experiments").rglob("records.jsonl"), key=lambda path: path.stat().st_size)
    shutil.copy(source, folder / "records.jsonl")


def _hub(folder: Path) -> None:
    from rotateconv.hub import RotateConvNet

    RotateConvNet(
        "resnet20", "rotate2p", width=0.25, classes=list("abcdefghij"), mean=[0.5], std=[0.5]
    ).save_pretrained(folder)


def _read_hub(folder: Path) -> None:
    from rotateconv.hub import RotateConvNet

    RotateConvNet.from_pretrained(folder)


def _weights(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(weights_bytes(build_model("resnet20", width=0.25)))
    torch.save({"state_dict": build_model("resnet20", width=0.25).state_dict()}, folder / "weights.pt")


def _read_safetensors(folder: Path) -> None:
    load_weights(build_model("resnet20", width=0.25), read_weights_file(folder / "weights.safetensors"), folder)


def _trusted(folder: Path) -> None:
    (folder / "trusted.json").write_text('[["mine:net", "/tmp"], ["torchvision.models:resnet18", "/"]]')


def _read_trusted(folder: Path) -> None:
    record, trust._record = trust._record, lambda: folder / "trusted.json"
    try:
        assert not trust.is_allowed("os:fork")
    finally:
        trust._record = record


def _toml(folder: Path) -> None:
    (folder / "study.toml").write_text('model = "resnet20"\nepochs = 3\nlr = 0.1\nconvert_taps = "free"\nqat = false\n')


TARGETS: dict[str, Target] = {
    "packed file": Target(_pick_packed, _change_packed, _read_packed),
    "checkpoint": Target(_checkpoint, _change_checkpoint, _read_checkpoint),
    "config.json": Target(_run_folder, _changed("config.json", _json_changed), lambda f: (read_config(f), load_run(f))),
    "data.json": Target(
        _run_folder,
        _changed("data.json", _json_changed),
        lambda f: (read_description(f), load_run(f)),
    ),
    "environment.json": Target(_run_folder, _changed("environment.json", _json_changed), read_environment),
    "metrics.jsonl": Target(_run_folder, _changed("metrics.jsonl", _lines_changed), _read_metrics),
    "summary.json": Target(_run_folder, _changed("summary.json", _json_changed), lambda f: (_read_run(f), load_run(f))),
    "analysis.json": Target(_run_folder, _changed("analysis.json", _json_changed), _read_run),
    "run weights": Target(_run_folder, _changed("model.safetensors", change_safetensors), load_run),
    "safetensors": Target(_weights, _changed("weights.safetensors", change_safetensors), _read_safetensors),
    "state dict": Target(_weights, _changed("weights.pt", change_bytes), lambda f: read_weights_file(f / "weights.pt")),
    "records.jsonl": Target(_records, _changed("records.jsonl", _lines_changed), lambda f: find_studies([f])),
    "hub config": Target(_hub, _changed("config.json", _json_changed), _read_hub),
    "hub weights": Target(_hub, _changed("model.safetensors", change_safetensors), _read_hub),
    "trusted.json": Target(_trusted, _changed("trusted.json", _json_changed), _read_trusted),
    "configuration": Target(_toml, _changed("study.toml", change_bytes), lambda f: make_config(file=f / "study.toml")),
}
