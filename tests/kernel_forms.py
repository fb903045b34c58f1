"""The ways in which a kernel is made on a CPU, for the tests that take each."""

import pytest

KERNEL_FORMS = ("node in C++", "node in Python", "tensor operations")
"""The first two call the compiled library."""


def take_kernel_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels be made in one of the ways, until the patches are undone; skip the test where it cannot be had."""
    from rotateconv import native
    from rotateconv.kernels import fused_native
    from rotateconv.native import node

    if form == "node in C++":
        if node.line_kernel is None:
            pytest.skip(node.status())
        return
    for name in ("line_kernel", "line_conv2d"):
        monkeypatch.setattr(node, name, None)
    if form == "tensor operations":
        monkeypatch.setattr(fused_native, "find", lambda *arguments: None)
    elif not native.available():
        pytest.skip(native.status())
