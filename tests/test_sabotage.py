"""One-line sabotages of the layer, each of which must break a test: that is what the tests are for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import rotateconv

TESTS = Path(__file__).parent
PACKAGE = Path(rotateconv.__file__).parent


class Sabotage(NamedTuple):
    """A line of a file of the package, what it is replaced by, and a quick test that must then fail."""

    file: str
    old: str
    new: str
    test: str


LAYER = "test_conv.py::test_equals_the_slow_twin[3-{}-taps={},path={},angle_groups={}]"
PLAIN = LAYER.format("(2, 4)-default", "free", "circle", None)

SABOTAGES = {
    "sin and cos swapped": Sabotage(
        "kernel.py",
        "row, col = -angle.sin(), angle.cos()",
        "row, col = -angle.cos(), angle.sin()",
        "test_kernel.py::test_equals_the_slow_twin[3-circle]",
    ),
    "clockwise": Sabotage(
        "kernel.py",
        "row, col = -angle.sin(), angle.cos()",
        "row, col = angle.sin(), angle.cos()",
        "test_kernel.py::test_equals_the_slow_twin[3-circle]",
    ),
    "rho dropped": Sabotage(
        "kernel.py",
        "return row / radius, col / radius",
        "return row, col",
        "test_kernel.py::test_equals_the_slow_twin[3-square]",
    ),
    "hat not cut off": Sabotage(
        "kernel.py",
        "return torch.maximum(1 - distance.abs(), distance.new_zeros(()))",
        "return 1 - distance.abs()",
        "test_kernel.py::test_equals_the_slow_twin[3-circle]",
    ),
    "slope of one side at a kink": Sabotage(
        "kernel.py",
        "return torch.maximum(1 - distance.abs(), distance.new_zeros(()))",
        "return (1 - distance.abs()).clamp(min=0)",
        "test_kernel.py::test_slope_at_a_kink_is_the_mean_of_both_sides[3-circle]",
    ),
    "angle detached in the formula": Sabotage(
        "kernel.py",
        "splat = _splat(angle.to(dtype), kernel_size, path)",
        "splat = _splat(angle.detach().to(dtype), kernel_size, path)",
        "test_kernel.py::test_gradcheck_and_gradgradcheck[3-circle]",
    ),
    "angle detached in the layer": Sabotage(
        "ops.py",
        "return [even - odd, cc, even + odd], turn",
        "return [even - odd, cc, even + odd], 0 * turn",
        "test_conv_torch.py::test_angle_gradient_is_scaled_and_nothing_else[taps=free,path=circle,angle_groups=None-True]",
    ),
    "one end of the line forgotten": Sabotage(
        "ops.py", "mine, others = tap * share, other * other_share", "mine, others = tap * share, 0 * other", PLAIN
    ),
    "one end of the line on the square forgotten": Sabotage(
        "ops.py",
        "out.addcmul_((rows * taps[half - t]).unsqueeze(1), cols)",
        "pass",
        LAYER.format("(2, 4)-default", "free", "square", None),
    ),
    "angle gradient not scaled": Sabotage(
        "conv.py",
        "scale = self.angle_grad_scale if self.learn_angle else 1.0",
        "scale = 1.0",
        "test_conv_torch.py::test_angle_gradient_is_scaled_and_nothing_else[taps=free,path=circle,angle_groups=None-True]",
    ),
    "dilation ignored": Sabotage(
        "conv.py",
        "return F.conv2d(input, kernel, self.bias, self.stride, padding, self.dilation, self.groups)",
        "return F.conv2d(input, kernel, self.bias, self.stride, padding, 1, self.groups)",
        LAYER.format("(2, 4)-padding=(1, 3),dilation=(1, 2)", "free", "circle", None),
    ),
    "padding of a mode turned by 90 degrees": Sabotage(
        "conv.py",
        "(width, width, height, height)",
        "(height, height, width, width)",
        LAYER.format("(2, 2)-padding=(2, 3),padding_mode=reflect", "free", "circle", None),
    ),
    "dilation left out of padding='same'": Sabotage(
        "arguments.py",
        "return half * dilation[0], half * dilation[1]",
        "return half, half",
        LAYER.format("(2, 2)-padding=same,dilation=2", "free", "circle", None),
    ),
    "profile ignored": Sabotage(
        "batched.py",
        "return layer.weight if layer.profile is None else layer.weight * layer.profile[:, None]",
        "return layer.weight",
        LAYER.format("(2, 4)-default", "profile", "circle", None),
    ),
    "fuse drops padding_mode": Sabotage(
        "conv.py",
        "            self.padding_mode,\n            device=self.weight.device,",
        "            device=self.weight.device,",
        "test_conv_fuse.py::test_fuse_gives_the_same_output[(2, 2)-padding=(2, 3),padding_mode=circular"
        "-taps=free,path=circle,angle_groups=None]",
    ),
    "fuse drops the training flag": Sabotage(
        "conv.py",
        "return conv.train(self.training)",
        "return conv",
        "test_conv_fuse.py::test_fuse_is_a_copy_with_every_flag",
    ),
    "from_conv drops the bias": Sabotage(
        "conv.py",
        "layer.bias.copy_(conv.bias)",
        "pass",
        "test_conv_fuse.py::test_from_conv_carries_flags_and_leaves_the_convolution",
    ),
    "gain of shared taps as of free ones": Sabotage(
        "conv.py",
        '"shared": gram.sum().item()',
        '"shared": gram.trace().item()',
        "test_init.py::test_expected_squared_norm_of_a_slice[3-taps=shared,path=circle,angle_groups=None]",
    ),
    "fixed angles not saved": Sabotage(
        "conv.py",
        "self.register_buffer(name, tensor)",
        "self.register_buffer(name, tensor, persistent=False)",
        "test_conv_torch.py::test_state_dict_is_the_same_in_every_mode[taps=free,path=circle,angle_groups=None]",
    ),
    "a kernel of weights that have changed since": Sabotage(
        "batched.py",
        "mine._version == version",
        "mine is not None",
        "test_batched.py::test_never_uses_a_kernel_of_other_parameters[change_weight]",
    ),
    "padding='same' with a stride": Sabotage(
        "arguments.py", "if stride != (1, 1):", "if stride == (0, 0):", "test_arguments.py::test_refused"
    ),
    "no refinement of the angle": Sabotage(
        "search.py",
        "    return best\n\n\ndef _climb",
        "    return angle\n\n\ndef _climb",
        "test_fit.py::test_gives_back_line_segments[3-circle-free-torch.float32-1e-06]",
    ),
    "a quarter of the turn searched": Sabotage(
        "fit.py",
        "grid_angles(bundles.device)[: GRID // 2]",
        "grid_angles(bundles.device)[: GRID // 4]",
        "test_fit.py::test_gives_back_line_segments[3-circle-free-torch.float32-1e-06]",
    ),
    "no check for NaN": Sabotage(
        "fit.py", "if not kernel.isfinite().all():", "if kernel.dim() == 0:", "test_fit.py::test_not_finite"
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_the_sabotaged_line_is_there_once(name: str) -> None:
    sabotage = SABOTAGES[name]
    assert (PACKAGE / sabotage.file).read_text("utf-8").count(sabotage.old) == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")
def test_every_sabotage_breaks_its_test(tmp_path: Path) -> None:
    jobs: dict[str, tuple[str, list[str]]] = {}

    def add(name: str, tests: list[str]) -> Path:
        folder = tmp_path / str(len(jobs))
        shutil.copytree(PACKAGE, folder / "rotateconv", ignore=shutil.ignore_patterns("__pycache__"))
        jobs[name] = (str(folder), [str(TESTS / test) for test in tests])
        return folder / "rotateconv"

    add("", sorted({sabotage.test for sabotage in SABOTAGES.values()}))  # nothing changed: all of them pass
    for name, sabotage in SABOTAGES.items():
        path = add(name, [sabotage.test]) / sabotage.file
        path.write_text(path.read_text("utf-8").replace(sabotage.old, sabotage.new), "utf-8")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    command = [
        sys.executable,
        str(TESTS / "sabotage_worker.py"),
        str(tmp_path / "jobs.json"),
        str(tmp_path / "codes.json"),
    ]
    log = tmp_path / "log"
    with log.open("w") as output:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **threads}, check=True)
    codes = json.loads((tmp_path / "codes.json").read_text("utf-8"))
    text = log.read_text("utf-8")
    assert codes.pop("") == pytest.ExitCode.OK, text
    survived = {name: code for name, code in codes.items() if code != pytest.ExitCode.TESTS_FAILED}
    assert survived == {}, text
