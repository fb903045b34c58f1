"""What a page shows of a run: kernels that go from the start to the end, and files of the bytes that it names."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from rotateconv.errors import RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.study.angles import starting_model
from rotateconv.lab.study.run_details import FRAMES, moved_layer, read_details, short_way
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run, pack_model
from rotateconv.nn.conv import RotateConv2d
from rotateconv.quantization.bits import Bits
from small import small_digits

RUN = Path(__file__).parents[2] / "fixtures" / "run-folder"

LAYERS = [
    {"taps": "free"},
    {"taps": "profile"},
    {"taps": "shared", "kernel_size": 5},
    {"taps": "free", "angle_groups": 2},
    {"taps": "profile", "angle_groups": 2, "path": "square"},
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_first_frame_is_the_start_and_the_last_the_end(options: dict[str, object]) -> None:
    start, end = (RotateConv2d(3, 8, **{"kernel_size": 3, **options}) for _ in range(2))  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in end.state_dict().items()}
    found = moved_layer("a", start, end)
    size = end.kernel_size[0]
    frames = torch.frombuffer(bytearray(found.frames), dtype=torch.int8).view(FRAMES, len(found.shown), size, size)
    for frame, layer in ((frames[0], start), (frames[-1], end)):
        expected = torch.stack([layer.kernel()[place] for place in found.shown])
        scale = expected.abs().max() / frame.abs().max()  # of the layer: 127 is the largest number of all frames
        assert (frame * scale - expected).abs().max() < 0.02 * expected.abs().max()
    norms = end.kernel().flatten(2).norm(dim=2)
    assert norms[found.shown[0]] == norms.max()
    for (first, last), (out, column) in zip(found.turns, found.shown, strict=True):
        row = out if end.angle_groups is None else out // 4
        assert last == pytest.approx(end.angle[row, column].item(), abs=1e-6)
        assert math.cos(first) == pytest.approx(start.angle[row, column].cos().item(), abs=1e-5)
        assert abs(last - first) <= math.pi + 1e-6
    assert sum(found.after) == sum(found.before or ()) == found.angles == end.angle.numel()
    assert found.period == (math.pi if options["taps"] == "shared" else 2 * math.pi)
    assert all(torch.equal(value, before[key]) for key, value in end.state_dict().items())


def test_a_layer_without_a_known_start_has_one_frame() -> None:
    found = moved_layer("a", None, RotateConv2d(2, 2, 3))
    assert len(found.frames) == 4 * 9
    assert (found.before, found.moved) == (None, None)
    assert all(first == last for first, last in found.turns)


def test_angles_go_the_short_way_round() -> None:
    assert short_way(torch.tensor([0.1, 2 * math.pi + 0.1, -6.0])).tolist() == pytest.approx(
        [0.1, 0.1, 2 * math.pi - 6], abs=1e-6
    )


@pytest.mark.slow
def test_the_details_of_a_run_folder(tmp_path: Path) -> None:
    found = read_details(RUN)
    trained = load_run(RUN)
    start = starting_model(trained.config, trained.data)
    names = [name for name, module in start.named_modules() if isinstance(module, RotateConv2d)]
    assert [layer.name for layer in found.layers] == names
    assert found.start == ""
    recorded = found.record.curves.angle_movement_layers[-1]
    assert recorded is not None
    assert [layer.moved for layer in found.layers] == pytest.approx(list(recorded), rel=1e-3)
    assert found.confusion is not None
    assert sum(map(sum, found.confusion)) == trained.data.test
    assert found.command is not None
    assert found.command.startswith("rotateconv train")
    pack_model(trained.model, trained.data, tmp_path / "file", Bits())
    sizes = {size.form.partition(",")[0]: size.bytes for size in found.sizes}
    assert sizes["packed"] == (tmp_path / "file").stat().st_size
    assert sizes["as trained"] < sizes["dense: every kernel written out"]


@pytest.mark.slow
def test_a_dense_model_is_not_written_out_twice(tmp_path: Path) -> None:
    config = make_config("digits", changes={"conv": "conv3x3", "width": 0.25, "epochs": 1})
    fit(config, tmp_path / "run", data=small_digits())
    names = [size.form.partition(",")[0] for size in read_details(tmp_path / "run").sizes]
    assert names == ["as trained", "packed", "compact ONNX"]


@pytest.mark.slow
def test_a_start_that_does_not_follow_from_the_seed_is_not_shown(tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "seed": 7}))
    found = read_details(run)
    assert "moved by" in found.start
    assert {layer.before for layer in found.layers} == {None}


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run")
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished: resume it, or leave it out"):
        read_details(run)
