"""Laws of loading what a run trained."""

import json
from pathlib import Path

import pytest
import torch

from rotateconv import RotateConv2d
from rotateconv.errors import ConfigError, RunError, RunInterrupted
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.train.build import build_configured, configured_cost
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import create_run, read_config
from small import StopAt, Tiny, tiny_config

pytestmark = pytest.mark.usefixtures("tiny")


def test_angle_grad_scale_overrides_every_layers_own(data: ImageData) -> None:
    described = DataDescription.of(data)
    for scale in (1.0, 7.5):
        model = build_configured(tiny_config(conv="rotate4", angle_grad_scale=scale).architecture, described)
        assert [m.angle_grad_scale for m in model.modules() if isinstance(m, RotateConv2d)] == [scale]
    natural = build_configured(tiny_config(conv="rotate4").architecture, described).conv.angle_grad_scale
    assert natural == Tiny("rotate4", 10, 1, 1.0).conv.angle_grad_scale != 1.0


def test_angles_may_start_along_the_axes_of_the_grid(data: ImageData) -> None:
    described = DataDescription.of(data)
    layer = build_configured(tiny_config(conv="rotate4", angle_init="axes").architecture, described).conv
    quarters = layer.angle.detach() / (torch.pi / 2)
    assert layer.learn_angle
    assert set(quarters.round().flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    torch.testing.assert_close(quarters, quarters.round())
    fixed = build_configured(tiny_config(conv="rotate4-fixed", angle_init="axes").architecture, described).conv
    assert not torch.equal(fixed.angle / (torch.pi / 2), (fixed.angle / (torch.pi / 2)).round())


def test_profiles_may_start_from_the_bank(data: ImageData) -> None:
    described = DataDescription.of(data)
    learned = build_configured(tiny_config(conv="rotate2p", profile_init="bank").architecture, described).conv
    assert torch.equal(learned.profile, Tiny("rotate2b", 10, 1, 1.0).conv.profile)
    assert "profile" in dict(learned.named_parameters())


def test_load_run_of_an_unfinished_run_takes_its_checkpoint(tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunInterrupted, match="after step 5"):
        fit(tiny_config(ema_decay=0.5), run, data=data, on_event=StopAt(5))
    trained = load_run(run)
    weights = load_checkpoint(run / "checkpoints").weights["average"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items())
    assert not trained.model.training
    assert trained.data == DataDescription.of(data)
    for path in (run / "checkpoints").iterdir():
        path.rename(run / path.name)
    with pytest.raises(RunError, match="has no weights yet: resume it"):
        load_run(run)


def test_load_run_names_what_does_not_fit(tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    fit(tiny_config(epochs=1), run, data=data)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "width": 2.0}))
    with pytest.raises(
        RunError, match=r"do not fit the model: stem\.weight is 8x1x3x3, expected 16x1x3x3; .* and 4 more$"
    ):
        load_run(run)
    (run / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match=r"cannot read the weights .*: expected a safetensors file"):
        load_run(run)
    (run / "data.json").write_text('{"name": "digits"}')
    with pytest.raises(RunError, match=r"data.json: expected the key classes, found none: restore the file"):
        load_run(run)


def test_a_configuration_of_a_huge_model_takes_no_memory(tmp_path: Path, data: ImageData) -> None:
    """Its weights are not those of the model, and that is known without building it."""
    run = tmp_path / "run"
    fit(tiny_config(model="resnet20", width=0.25, epochs=1), run, data=data)
    config = json.loads((run / "config.json").read_text())
    for width, message in ((1e5, "do not fit the model"), (1e300, "asks for a model larger than any memory")):
        (run / "config.json").write_text(json.dumps({**config, "width": width}))
        with pytest.raises(RunError, match=message):
            load_run(run)
    with pytest.raises(ConfigError, match="larger than any memory"):
        configured_cost(read_config(run).architecture, DataDescription.of(data))


def test_a_folder_without_a_checkpoint_goes_on_with_no_huge_model(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(model="resnet20", width=1e5, epochs=1)
    create_run(tmp_path / "run", config, DataDescription.of(data))
    with pytest.raises(RunError, match=r"numbers, more than the 50,000,000 allowed: if you trust it, overwrite .*run"):
        fit(config, tmp_path / "run", data=data, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"std": [0.0]},
        {"mean": [0.1, 0.2]},
        {"classes": []},
        {"input_shape": [1, 0, 8]},
        {"input_shape": [1, 9999, 9999]},
    ],
)
def test_a_description_of_no_images(change: dict[str, object], tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    fit(tiny_config(epochs=1), run, data=data)
    (run / "data.json").write_text(json.dumps({**json.loads((run / "data.json").read_text()), **change}))
    with pytest.raises(RunError, match=r"data\.json describes no images: restore the file"):
        load_run(run)
