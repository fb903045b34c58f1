"""Fixtures: for every test a fixed seed and global state that it cannot leave changed, and pictures to look into."""

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rotateconv.lab.data.sets import ImageData

_places = itertools.count()


@pytest.fixture(autouse=True)
def fixed_state() -> Iterator[None]:
    """Seed torch, take one thread (the test processes share the cores), and restore what the test changed."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def no_folder_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of modules, too, neither read nor write what the user who runs the tests has named before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "configuration"))
        yield


@pytest.fixture(autouse=True)
def own_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes what another test has named before."""
    # A name alone: to make thousands of folders, and to look each time for the next free one, takes half a minute.
    folder = tmp_path_factory.getbasetemp() / "configuration" / str(next(_places))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Among the models, `small.Tiny` as "tiny"."""
    from rotateconv.models import MODELS
    from small import Tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", Tiny)
        yield


@pytest.fixture(scope="module")
def data() -> "ImageData":
    """A hundred digits and a few to test on."""
    from small import small_digits

    return small_digits()


@pytest.fixture(params=["compiled", "tensor operations"])
def each_kernel_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test twice: with the compiled kernel, where there is one, and without."""
    from rotateconv import native
    from rotateconv.kernels import fused_native

    form: str = request.param
    if form == "tensor operations":
        monkeypatch.setattr(fused_native, "find", lambda *arguments: None)
    elif not native.available():
        pytest.skip(native.status())
    return form


@pytest.fixture
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's convolutions in float32, not in TF32, whose 11 bits would hide a wrong kernel."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def triton_device(exact_float32: None) -> Iterator[None]:
    """New tensors where Triton runs: on the CPU in its interpreter, else on a GPU."""
    with torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"):
        yield


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> "list[Axes]":
    """The axes of every picture that is drawn."""
    from matplotlib.figure import Figure

    seen: list[Axes] = []
    save = Figure.savefig

    def remember(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        seen.extend(self.axes)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen
