"""Fixtures: for every test a fixed seed and global state that it cannot leave changed, and pictures to look into."""

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from kernel_forms import KERNEL_FORMS, take_kernel_form

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


@pytest.fixture(autouse=True, scope="session")
def node_in_cpp() -> None:
    """Kernels as in a training that has gone on for half a minute: by the node in C++, where that can be had."""
    from rotateconv.native import node

    node.wait()


@pytest.fixture(params=KERNEL_FORMS)
def each_kernel_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test once for each way in which kernels are made on a CPU."""
    form: str = request.param
    take_kernel_form(form, monkeypatch)
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
