"""The Triton kernels: their numbers in Triton's interpreter and on a GPU, and that they compile for one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rotateconv.kernels import fused
from triton_tests import run_triton_tests

triton = pytest.importorskip("triton", reason="Triton is not installed")


FILES = ["triton_numbers.py", "triton_batch_numbers.py"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_numbers_in_the_interpreter(file: str) -> None:
    run_triton_tests(file, interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("file", FILES)
def test_numbers_on_a_gpu(file: str) -> None:
    run_triton_tests(file, interpret=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("name", "size", "shared", "square"),
    [
        ("_forward", 3, False, False),
        ("_backward", 5, True, True),
        ("_forward_batch", 3, False, False),
        ("_backward_batch", 5, False, True),
        ("_sum_rows", 3, False, False),
    ],
)
def test_compiles_for_a_gpu(
    name: str, size: int, shared: bool, square: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rotateconv.kernels import fused_triton, fused_triton_batch

    if "nvidia" not in backends:
        pytest.skip("this Triton is built without NVIDIA's compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fused_triton if hasattr(fused_triton, name) else fused_triton_batch, name)
    options = fused_triton.compile_options(size, shared, square, torch.float32)
    if "batch" in name:
        types_ = triton.language.float32
        options |= {"PROFILE": "back" in name, "LAST": True, "WEIGHT": types_, "ANGLE": types_}
    if name == "_sum_rows":
        options = {"SIZE": size, "BLOCK": 128}
    pointers = {
        **{"rows": "*i64", "parts": "*fp32", "sums": "*fp32"},
        "table": "*i64",
        "blocks": "*i32",
        "scales": "*fp32",
        "grad_profile": "*fp32",
        "kernels": "*bf16",
        "grad": "*bf16",
        **dict.fromkeys(("weight", "angle", "grad_weight", "grad_angle"), "*fp32"),
    }
    types: dict[str, Any] = {**dict.fromkeys(function.arg_names, "i32"), **pointers, "scale": "fp32"}
    types |= dict.fromkeys(options, "constexpr")
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, options)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    assert "sin.approx" not in compiled.asm["ptx"]  # good to 2e-6 of a whole turn only, and no better far from 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("taps", ["free", "profile"])
def test_a_second_launch_is_the_first(taps: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Triton compiled is given what Triton itself had given it: by a driver that notes its launches."""
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from rotateconv.kernels import fused_triton_batch
    from rotateconv.kernels.batch_options import BatchOptions

    if "nvidia" not in backends:
        pytest.skip("this Triton is built without NVIDIA's compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches: list[tuple[object, ...]] = []
    utils = SimpleNamespace(
        load_binary=lambda name, *_: (None, name, 32, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 1 << 17},
    )
    notes = SimpleNamespace(
        utils=utils,
        launcher_cls=lambda *_: lambda *arguments: launches.append(arguments),
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: "none",
        get_current_stream=lambda _: 7,
    )
    monkeypatch.setattr(driver, "_active", notes)
    by_triton: list[object] = []
    for kernel in (fused_triton_batch._forward_batch, fused_triton_batch._backward_batch, fused_triton_batch._sum_rows):
        run = kernel.run
        monkeypatch.setattr(kernel, "run", lambda *a, run=run, **k: (by_triton.append(1), run(*a, **k))[1])
    shapes = [(4, 3), (2, 4)]
    sources = [torch.randn(*shape, 3 if taps == "free" else 1) for shape in shapes] + [torch.randn(s) for s in shapes]
    sources += [torch.randn(out, 3) for out, _ in shapes] if taps == "profile" else []
    options = BatchOptions(3, "circle", torch.bfloat16, True, (1.0, 2.0))
    for _ in range(2):
        kernels = fused_triton_batch.line_kernels_forward(sources, options)
        fused_triton_batch.line_kernels_backward(sources, kernels, options)
    count = 3 if taps == "profile" else 2
    assert (len(by_triton), len(launches)) == (count, 2 * count)

    def seen(argument: object) -> object:
        return (argument.shape, argument.dtype) if isinstance(argument, torch.Tensor) else argument

    for first, second in zip(launches[:count], launches[count:], strict=True):
        # All but a profiler's: programs, stream, kernel and its metadata; then the arguments.
        assert [*map(seen, first[:6] + first[9:])] == [*map(seen, second[:6] + second[9:])]


def test_without_triton_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_on_gpu", lambda angle: True)
    weight, angle = torch.randn(4, 3, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    expected = fused.line_kernel(weight, angle)
    for error in (ImportError, RuntimeError):

        class Missing:
            def find_spec(self, name: str, *_: Any, error: type[Exception] = error) -> None:
                if name == "rotateconv.kernels.fused_triton":
                    raise error("no driver")

        fused._import_fused_triton.cache_clear()
        monkeypatch.delitem(sys.modules, "rotateconv.kernels.fused_triton", raising=False)
        monkeypatch.delattr("rotateconv.kernels.fused_triton", raising=False)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
            found = fused.fused_line_kernel(weight, angle)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            for mine, other in zip(
                torch.autograd.grad(found.sum(), (weight, angle)),
                torch.autograd.grad(expected.sum(), (weight, angle), retain_graph=True),
                strict=True,
            ):
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
            assert fused._import_fused_triton() is None
    fused._import_fused_triton.cache_clear()
