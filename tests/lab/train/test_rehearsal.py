"""A user's own model: what it does works, and what it cannot do is one sentence before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from rotateconv.errors import ConfigError
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.train import trust
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_summary
from rotateconv.lab.train.weights import read_weights_file
from small import tiny_config


class Own(nn.Module):
    """A model of the user's own, of which each of the others does one thing differently."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.stem(images).relu())).relu()

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images).mean((2, 3)))


class MakesATensor(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)) + torch.arange(8.0))


class Views(Own):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).view(len(images), -1))


class Masks(Own):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)) @ self.mask.softmax(-1).T)


class KeepsExtraState(Own):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        pass


class Pools(Own):
    def __init__(self) -> None:
        super().__init__()
        self.pooled = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(self.features(images).mean((2, 3))))


class KeepsAnActivation(Own):
    def forward(self, images: Tensor) -> Tensor:
        self.activation = self.features(images)
        return self.head(self.activation.mean((2, 3)))


class SharesABuffer(Own):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.ones(16))
        self.register_buffer("part", self.whole[:8])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)) * self.part)


class HasAuxiliaryOutputs(Own):
    def forward(self, images: Tensor) -> Any:
        scores = super().forward(images)
        return (scores, scores) if self.training else scores


class Pruned(Own):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.head, "weight", 0.5)


class Leaves(Own):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("not today")


MODELS: dict[str, Callable[[], nn.Module]] = {cls.__name__: cls for cls in [Own, *Own.__subclasses__()]}


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def name(cls: str) -> str:
        monkeypatch.setitem(globals(), "made", MODELS[cls])
        return f"{__name__}:made"

    return name


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        ("Own", {}),
        ("Own", {"channels_last": True, "qat": True, "ema_decay": 0.5}),
        ("MakesATensor", {}),
        ("Views", {"channels_last": False}),
        ("Masks", {}),
        ("Pools", {"batch_size": 33}),
        ("SharesABuffer", {"qat": True}),
        ("KeepsAnActivation", {"qat": True}),
        ("Pruned", {}),
        ("Pruned", {"qat": True}),
    ],
    ids=str,
)
def test_it_trains_and_comes_back(
    tmp_path: Path, data: ImageData, named: Callable[[str], str], cls: str, changes: dict[str, Any]
) -> None:
    config = tiny_config(factory=named(cls), epochs=1, **changes)
    summary = fit(config, tmp_path / "run", data=data)
    assert read_summary(tmp_path / "run") == summary
    assert (summary.multiply_adds is None) == (cls == "MakesATensor")
    assert sum(p.numel() for p in load_run(tmp_path / "run").model.parameters()) > 0


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        ("Views", {"channels_last": True}, r"cannot train: view size is not compatible .*; it may need channels_last="),
        ("KeepsExtraState", {}, r"cannot be saved: its state has '_extra_state', a dict, where .* can be kept$"),
        (
            "Pools",
            {"batch_size": 25},
            r"cannot train: .*; the last batch of an epoch of 101 images has a single one",
        ),
        ("HasAuxiliaryOutputs", {}, r"must give a tensor of \(2, 10\) in training mode too, not a tuple: let the"),
        ("Leaves", {}, r"not today"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_said_before_anything_is_written(
    tmp_path: Path,
    data: ImageData,
    named: Callable[[str], str],
    cls: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tiny_config(factory=named(cls), **changes), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_leaves_no_trace(tmp_path: Path, data: ImageData, named: Callable[[str], str]) -> None:
    from rotateconv.lab.train import fit as training

    config = tiny_config(factory=named("Own"), dropout=0.0)
    first = fit(config, tmp_path / "first", data=data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "rehearse", lambda state: None)
        second = fit(config, tmp_path / "second", data=data)
    assert first.weights_sha256 == second.weights_sha256
    assert trust.is_allowed(config.factory)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_read_by_the_names_of_the_model_itself(tmp_path: Path, prefix: str, suffix: str) -> None:
    weights = Own().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {**wrapped, "n_averaged": torch.tensor(3)}}, file)
    else:
        save_file(wrapped, file, metadata={"format": "pt"})
    assert read_weights_file(file).keys() == weights.keys()
