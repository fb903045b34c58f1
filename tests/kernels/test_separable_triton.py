"""The Triton line filters: their numbers in Triton's interpreter and on a GPU, and that they compile for one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from triton_tests import run_triton_tests

triton = pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.slow
def test_numbers_in_the_interpreter() -> None:
    run_triton_tests("triton_separable_numbers.py", interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_numbers_on_a_gpu() -> None:
    run_triton_tests("triton_separable_numbers.py", interpret=False)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("name", "groups", "size", "last"), [("_filter", 4, 3, True), ("_filter_back", 3, 5, False)])
def test_compiles_for_a_gpu(
    name: str, groups: int, size: int, last: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rotateconv.kernels import separable_triton

    if "nvidia" not in backends:
        pytest.skip("this Triton is built without NVIDIA's compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(separable_triton, name)
    options = separable_triton.compile_options(groups, size, last)
    types: dict[str, Any] = {**dict.fromkeys(function.arg_names, "i32"), **dict.fromkeys(options, "constexpr")}
    types |= {key: "*bf16" for key in types if key in ("input", "lines", "out", "grad", "to_input")}
    source = ASTSource(function, {key: types[key] for key in function.arg_names}, options)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
