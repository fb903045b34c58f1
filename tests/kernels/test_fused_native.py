"""The compiled kernel against the tensor operations: the same numbers to rounding, whatever it is given."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernel_forms import KERNEL_FORMS, take_kernel_form
from rotateconv import RotateConv2d, native
from rotateconv.kernels import fused_native
from rotateconv.kernels.fused import fused_line_kernel
from rotateconv.native import node

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())

REAL = (torch.float32, torch.float64)
TYPES = (*REAL, torch.bfloat16, torch.float16)
PATHS = ("circle", "square")


@pytest.fixture(autouse=True, scope="module", params=KERNEL_FORMS[:2])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """All tests for each node that calls the library."""
    with pytest.MonkeyPatch.context() as patched:
        take_kernel_form(request.param, patched)
        yield request.param


def by_tensors(function: Callable[[], Any]) -> Any:
    """What the function returns where there is no compiled kernel."""
    with pytest.MonkeyPatch.context() as patched:
        take_kernel_form("tensor operations", patched)
        return function()


def kernel_and_gradients(weight: Tensor, angle: Tensor, grad: Tensor, **options: Any) -> tuple[Tensor, ...]:
    weight, angle = weight.detach().requires_grad_(), angle.detach().requires_grad_()
    kernel = fused_line_kernel(weight, angle, grad.shape[-1], **options)
    return kernel.detach(), *torch.autograd.grad(kernel, (weight, angle), grad)


def assert_the_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], exactness: float) -> None:
    """NaN and infinities in the same places, and else the same numbers for their size."""
    for mine, other in zip(found, expected, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        mine, other = mine.double(), other.double()
        finite = other[other.isfinite()]
        size = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
        torch.testing.assert_close(mine, other, rtol=0, atol=exactness * size, equal_nan=True)


def in_memory(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another place: every second of more, in reverse order of dimensions, or off a word."""
    if layout == "strided":
        return torch.stack([tensor, tensor + 1], -1)[..., 0]
    if layout == "transposed":
        return tensor.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "unaligned":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor.clone()


def off_the_kinks(angle: Tensor, size: int, path: str, exactness: float) -> Tensor:
    """0.3 in place of the angles at which rounding decides on which side of a grid line some tap falls.

    There the derivative jumps, by up to the root of the rounding error where the tap only touches the line.
    """
    sin, cos = angle.double().sin(), angle.double().cos()
    if path == "square":  # its larger coordinate is a whole number everywhere and has no speed
        sin = cos = torch.minimum(sin.abs(), cos.abs()) / torch.maximum(sin.abs(), cos.abs())
    places = torch.stack([t * place for t in range(1, size // 2 + 1) for place in (sin, cos)])
    return torch.where(((places - places.round()).abs() < exactness).any(0), 0.3, angle)


shapes = st.sampled_from([(), (0,), (1,), (67,), (3, 5), (1, 130), (70, 2), (0, 4), (4, 0), (2, 3, 4), (2, 64)])
layouts = st.sampled_from(["plain", "strided", "transposed", "unaligned"])


@settings(max_examples=300, deadline=None)
@given(
    shape=shapes,
    size=st.sampled_from([3, 5, 7, 9, 13]),
    shared=st.booleans(),
    path=st.sampled_from(PATHS),
    types=st.tuples(*[st.sampled_from(TYPES)] * 3),
    last=st.booleans(),
    layout=st.tuples(layouts, layouts, layouts),
    reach=st.sampled_from([1.0, 4.0, 1e4, 1e8]),
    scale=st.sampled_from([1.0, 0.37]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_tensor_operations(
    shape: tuple[int, ...],
    size: int,
    shared: bool,
    path: Any,
    types: tuple[torch.dtype, ...],
    last: bool,
    layout: tuple[str, str, str],
    reach: float,
    scale: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    assume(not (types[1] == torch.float16 and reach > 1e4))
    weight = in_memory(draw(*shape, 1 if shared else size).to(types[0]), layout[0])
    angle = (reach * draw(*shape)).to(types[1])
    angle = off_the_kinks(angle, size, path, 64 * torch.finfo(torch.promote_types(types[1], torch.float32)).eps)
    angle = in_memory(angle, layout[1]) if angle.dim() else angle
    grad = in_memory(draw(*shape, size, size).to(types[2]), layout[2])
    options = {"path": path, "dtype": types[2], "channels_last": last, "angle_grad_scale": scale}
    found = kernel_and_gradients(weight, angle, grad, **options)
    expected = by_tensors(lambda: kernel_and_gradients(weight, angle, grad, **options))
    # Of the coarsest type on the way: what is rounded once may fall to either side.
    coarsest = max(torch.finfo(type_).eps for type_ in types)
    assert_the_same(found, expected, (40 if coarsest < 1e-3 else 2) * coarsest)
    order = torch.channels_last if last and len(shape) == 2 else torch.contiguous_format
    assert found[0].is_contiguous(memory_format=order)


@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([3, 5, 7]),
    shared=st.booleans(),
    path=st.sampled_from(PATHS),
    dtype=st.sampled_from(REAL),
    eighths=st.lists(st.integers(-40, 40), min_size=1, max_size=70),
)
def test_on_the_kinks(size: int, shared: bool, path: Any, dtype: torch.dtype, eighths: list[int]) -> None:
    """At multiples of 45° the gradients are the mean of both sides in either."""
    angle = torch.tensor(eighths, dtype=dtype) * (torch.pi / 4)
    if path == "square":  # at odd multiples of 45° rounding decides on the side of the corner
        angle = torch.tensor(eighths, dtype=dtype) * (torch.pi / 2)
    # Far from 0 the type has no multiple of 90° within the four units that count as exact.
    angle = angle[angle.abs() < 7]
    weight = torch.randn(len(angle), 1 if shared else size, dtype=dtype)
    grad = torch.randn(len(angle), size, size, dtype=dtype)
    found = kernel_and_gradients(weight, angle, grad, path=path)
    expected = by_tensors(lambda: kernel_and_gradients(weight, angle, grad, path=path))
    assert_the_same(found, expected, 100 * torch.finfo(dtype).eps)


special = st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e-30, 1e-42, float("nan"), float("inf"), -float("inf")])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    size=st.sampled_from([3, 5]),
    path=st.sampled_from(PATHS),
    numbers=st.lists(special, min_size=5, max_size=5),
    angle=st.one_of(special, st.floats(-7, 7, width=32)),
    grads=st.lists(special, min_size=25, max_size=25),
    type_=st.sampled_from(TYPES),
)
def test_values_that_are_no_numbers(
    size: int, path: Any, numbers: list[float], angle: float, grads: list[float], type_: torch.dtype
) -> None:
    """NaN and infinities, and what overflows, are where the tensor operations have them."""
    weight, angles = torch.tensor([numbers[:size]]), torch.tensor([angle])
    kernel, *_ = kernel_and_gradients(weight, angles, torch.zeros(1, size, size, dtype=type_), path=path, dtype=type_)
    expected, *_ = by_tensors(
        lambda: kernel_and_gradients(weight, angles, torch.zeros(1, size, size, dtype=type_), path=path, dtype=type_)
    )
    assert_the_same((kernel,), (expected,), max(1e-6, 2 * torch.finfo(type_).eps))
    # Gradients: whether a sum that overflows on its way is infinite or NaN depends on its order, that it is no number
    # does not.
    grad = torch.tensor(grads[: size * size]).view(1, size, size)
    assume(not (grad.abs() > 1e20).any() or grad.isfinite().all())
    found = kernel_and_gradients(weight, angles, grad, path=path)[1:]
    expected_grads = by_tensors(lambda: kernel_and_gradients(weight, angles, grad, path=path))[1:]
    for mine, other in zip(found, expected_grads, strict=True):
        assert torch.equal(mine.isfinite(), other.isfinite())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(3, 50_000), (50_000, 3), (1, 150_000), (0, 3)])
def test_threads_change_no_digit(shape: tuple[int, int], last: bool) -> None:
    weight, angle, grad = torch.randn(*shape, 3), torch.randn(shape), torch.randn(*shape, 3, 3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(kernel_and_gradients(weight, angle, grad, channels_last=last))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision_is_rounded_as_torch_does(type_: torch.dtype) -> None:
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(type_).float()
    between = (numbers[:-1].double() + numbers[1:].double()).float() / 2
    near = torch.cat([numbers, between, between.nextafter(between + 1), between.nextafter(between - 1), numbers * 1.3])
    # The center of a kernel whose other taps are 0 is the weight itself.
    weight = torch.stack([torch.zeros_like(near), near, torch.zeros_like(near)], -1)
    kernel = fused_line_kernel(weight, torch.zeros(len(near)), dtype=type_)
    torch.testing.assert_close(kernel[:, 1, 1], near.to(type_), rtol=0, atol=0, equal_nan=True)
    grad = torch.zeros(len(numbers), 3, 3, dtype=type_)
    grad[:, 1, 1] = numbers.to(type_)
    arguments = torch.zeros(len(numbers), 3), torch.zeros(len(numbers)), grad
    found = kernel_and_gradients(*arguments, dtype=type_)[1][:, 1]
    torch.testing.assert_close(found, numbers, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
@pytest.mark.parametrize(("size", "path"), [(3, "circle"), (5, "square")])
def test_only_what_requires_grad_gets_one(needed: tuple[bool, bool], size: int, path: Any) -> None:
    weight, angle, grad = torch.randn(4, 6, size), torch.randn(4, 6), torch.randn(4, 6, size, size)
    _, *both = kernel_and_gradients(weight, angle, grad, path=path)
    tensors = [tensor.clone().requires_grad_(need) for tensor, need in zip((weight, angle), needed, strict=True)]
    fused_line_kernel(*tensors, size, path).backward(grad)
    for tensor, need, expected in zip(tensors, needed, both, strict=True):
        assert torch.equal(tensor.grad, expected) if need else tensor.grad is None


def test_views_that_negate() -> None:
    numbers = torch.view_as_complex(torch.randn(4, 3, 2)).conj().imag
    assert numbers.is_neg()
    assert torch.equal(fused_line_kernel(numbers, numbers[:, 0]), fused_line_kernel(+numbers, +numbers[:, 0]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, form: str) -> list[str]:
    """The calls of the library; those in C++ are seen of the forward pass alone."""
    made: list[str] = []
    if form == "node in C++":
        in_cpp = node.line_kernel
        assert in_cpp is not None

        def count_kernels(*arguments: Any) -> Any:
            kernel = in_cpp(*arguments)
            if kernel is not None:
                made.append("forward")
            return kernel

        monkeypatch.setattr(node, "line_kernel", count_kernels)
    for name in ("forward", "backward"):
        computes = getattr(fused_native, name)

        def count(*arguments: Any, name: str = name, real: Any = computes) -> Any:
            made.append(name)
            return real(*arguments)

        monkeypatch.setattr(fused_native, name, count)
    return made


def test_it_is_what_computes(calls: list[str], form: str) -> None:
    kernel_and_gradients(torch.randn(4, 3), torch.randn(4), torch.randn(4, 3, 3))
    assert calls == (["forward"] if form == "node in C++" else ["forward", "backward"])


@pytest.mark.filterwarnings("ignore:`?torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_it_stays_out_of_the_way(calls: list[str]) -> None:
    """Of modes, transforms, tracers and compilers, which see the tensor operations; and of kernels without end."""
    weight, angle = torch.randn(4, 3), torch.randn(4)
    expected = fused_line_kernel(weight, angle)
    calls.clear()
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        torch.testing.assert_close(fused_line_kernel(weight, angle), expected)
    assert "aten.sin.default" in seen
    torch.testing.assert_close(torch.vmap(fused_line_kernel)(weight, angle), expected)
    traced = torch.jit.trace(fused_line_kernel, (weight, angle), check_trace=False)
    torch.testing.assert_close(traced(-weight, angle), -expected)
    calls.clear()  # what a tracer cannot look into it calls again
    compiled = torch.compile(fused_line_kernel, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight, angle), expected)
    assert fused_line_kernel(weight.to("meta"), angle.to("meta")).is_meta
    assert fused_line_kernel(torch.randn(2, 65), torch.randn(2), 65).shape == (2, 65, 65)
    assert calls == []


def test_the_largest_kernel(calls: list[str]) -> None:
    assert native.library().rotateconv_largest() == fused_native.LARGEST  # type: ignore[union-attr]
    size = fused_native.LARGEST
    arguments = torch.randn(5, size), torch.randn(5), torch.randn(5, size, size)
    found = kernel_and_gradients(*arguments)
    assert "forward" in calls
    assert_the_same(found, by_tensors(lambda: kernel_and_gradients(*arguments)), 1e-4)


@settings(max_examples=100, deadline=None)
@given(
    shape=shapes,
    size=st.sampled_from([3, 5, 9]),
    shared=st.booleans(),
    path=st.sampled_from(PATHS),
    source=st.sampled_from(REAL),
    dtype=st.sampled_from((None, *TYPES)),
    last=st.booleans(),
    layout=st.tuples(layouts, layouts, layouts),
    seed=st.integers(0, 10**6),
)
def test_both_nodes_give_the_same_digits(
    form: str,
    shape: tuple[int, ...],
    size: int,
    shared: bool,
    path: Any,
    source: torch.dtype,
    dtype: torch.dtype | None,
    last: bool,
    layout: tuple[str, str, str],
    seed: int,
) -> None:
    """A training may go over from one to the other."""
    if form != "node in C++":
        pytest.skip("compared once")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, place: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=source)
        return in_memory(tensor, layout[place]) if tensor.dim() else tensor

    weight, angle = draw(*shape, 1 if shared else size, place=0), 4 * draw(*shape, place=1)
    grad = draw(*shape, size, size, place=2).to(source if dtype is None else dtype)
    options = {"path": path, "dtype": dtype, "channels_last": last, "angle_grad_scale": 0.37}
    found = kernel_and_gradients(weight, angle, grad, **options)
    with pytest.MonkeyPatch.context() as patched:
        take_kernel_form("node in Python", patched)
        expected = kernel_and_gradients(weight, angle, grad, **options)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
        assert mine.is_contiguous() == other.is_contiguous()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("options", [{}, {"taps": "profile"}, {"bias": False, "stride": 2, "dilation": 2, "groups": 2}])
def test_the_convolution_in_one_call(form: str, options: dict[str, Any], last: bool, autocast: bool) -> None:
    """The same digits as by the kernel and F.conv2d, and the same order in memory."""
    if form != "node in C++":
        pytest.skip("it is in C++ alone")
    layer = RotateConv2d(4, 6, 5, padding=2, **options)
    images = torch.randn(3, 4, 9, 9).to(memory_format=torch.channels_last if last else torch.contiguous_format)

    def step() -> list[Tensor]:
        layer.zero_grad()
        mine = images.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = layer(mine)
        output.float().square().sum().backward()
        return [output, mine.grad, *(parameter.grad for parameter in layer.parameters())]

    found = step()
    with pytest.MonkeyPatch.context() as patched:
        take_kernel_form("node in Python", patched)
        expected = step()
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
        assert (mine.dtype, mine.stride()) == (other.dtype, other.stride())


def test_a_mode_of_functions_sees_the_convolution() -> None:
    seen: list[str] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    layer, images = RotateConv2d(2, 3), torch.randn(1, 2, 5, 5)
    with Watch():
        output = layer(images)
    assert "conv2d" in seen
    assert torch.equal(output, layer(images))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer(reentrant: bool) -> None:
    layer, images = RotateConv2d(2, 3), torch.randn(1, 2, 5, 5, requires_grad=True)
    layer(images).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    checkpoint(layer, images, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(mine.grad, other) for mine, other in zip(layer.parameters(), expected, strict=True))


def test_a_batch_of_gradients_and_a_directional_derivative() -> None:
    weight, angle = torch.randn(3, 3).requires_grad_(), torch.randn(3).requires_grad_()
    kernel, grads = fused_line_kernel(weight, angle), torch.randn(4, 3, 3, 3)
    together = torch.autograd.grad(kernel, (weight, angle), grads, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(kernel, (weight, angle), grad, retain_graph=True) for grad in grads]
    for found, expected in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight.detach(), torch.ones(3, 3))
        derivative = forward_ad.unpack_dual(fused_line_kernel(dual, angle.detach())).tangent
    # Linear in the weights: in the direction of ones it is the kernel of ones.
    torch.testing.assert_close(derivative, fused_line_kernel(torch.ones(3, 3), angle.detach()))


def test_weights_that_changed_before_the_backward_pass_are_refused() -> None:
    weight, angle = torch.randn(3, 3).requires_grad_(), torch.randn(3)
    kernel = fused_line_kernel(weight, angle)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kernel.sum().backward()


def profiled(
    weight: Tensor, angle: Tensor, profile: Tensor, grad: Tensor, needed: tuple[bool, ...] = (True,) * 3, **options: Any
) -> tuple[Tensor, ...]:
    """The kernels of weights times profiles, and the gradients that are needed."""
    own = [tensor.detach().requires_grad_(need) for tensor, need in zip((weight, angle, profile), needed, strict=True)]
    kernel = fused_line_kernel(own[0], own[1], grad.shape[-1], profile=own[2], **options)
    kernel.backward(grad)
    assert [tensor.grad is not None for tensor in own] == list(needed)
    return kernel.detach(), *(tensor.grad for tensor in own if tensor.grad is not None)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from([(3, 5), (1, 130), (70, 2), (0, 4), (4, 0), (2, 64), (1, 1), (5, 200)]),
    size=st.sampled_from([3, 5, 7, 13]),
    path=st.sampled_from(PATHS),
    source=st.sampled_from(REAL),
    dtype=st.sampled_from(TYPES),
    last=st.booleans(),
    layout=layouts,
    needed=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    seed=st.integers(0, 10**6),
)
def test_profiles(
    form: str,
    shape: tuple[int, int],
    size: int,
    path: Any,
    source: torch.dtype,
    dtype: torch.dtype,
    last: bool,
    layout: str,
    needed: tuple[bool, ...],
    seed: int,
) -> None:
    """Weights times profiles, by the library or before it: the same kernels and gradients; by both nodes, digits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=source)

    angle = off_the_kinks(4 * draw(*shape), size, path, 64 * torch.finfo(torch.float32).eps)
    arguments = draw(*shape, 1), angle, in_memory(draw(shape[0], size), layout), draw(*shape, size, size).to(dtype)
    options = {"path": path, "dtype": dtype, "channels_last": last, "angle_grad_scale": 0.37}
    found = profiled(*arguments, needed, **options)
    expected = by_tensors(lambda: profiled(*arguments, needed, **options))
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(source).eps)
    assert_the_same(found, expected, (40 if coarsest < 1e-3 else 2) * coarsest * max(1, shape[1]) ** 0.5)
    if form == "node in C++":
        with pytest.MonkeyPatch.context() as patched:
            take_kernel_form("node in Python", patched)
            assert all(map(torch.equal, found, profiled(*arguments, needed, **options)))


@pytest.mark.parametrize("shape", [(3, 50_000), (50_000, 3), (1, 150_000)])
def test_threads_change_no_digit_of_a_profile(shape: tuple[int, int]) -> None:
    arguments = torch.randn(*shape, 1), torch.randn(shape), torch.randn(shape[0], 3), torch.randn(*shape, 3, 3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(profiled(*arguments))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_second_derivatives_of_profiles() -> None:
    weight, angle, profile = torch.randn(2, 3, 1), torch.randn(2, 3), torch.randn(2, 3)
    inputs = [tensor.double().requires_grad_() for tensor in (weight, angle, profile)]

    def kernel(weight: Tensor, angle: Tensor, profile: Tensor) -> Tensor:
        return fused_line_kernel(weight, angle, profile=profile)

    assert torch.autograd.gradcheck(kernel, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(kernel, inputs)


@pytest.mark.parametrize("profile", [torch.zeros(3, 3), torch.zeros(2, 5), torch.zeros(3)])
def test_profiles_of_another_shape_are_refused(profile: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected weights \(out, in, 1\) and a profile \(out, 3\), got"):
        fused_line_kernel(torch.randn(2, 3, 1), torch.randn(2, 3), profile=profile)


@pytest.mark.parametrize("shared", [False, True])
def test_hooks_that_keep_saved_tensors_in_another_form(shared: bool) -> None:
    """Strided, or in another type: what the node reads from memory is what they hold."""
    weight, angle = torch.randn(4, 5, 1 if shared else 3).requires_grad_(), torch.randn(4, 5).requires_grad_()
    profile = torch.randn(4, 3).requires_grad_() if shared else None
    sources = [source for source in (weight, angle, profile) if source is not None]
    grad = torch.randn(4, 5, 3, 3)
    expected = torch.autograd.grad(fused_line_kernel(weight, angle, profile=profile), sources, grad)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor + 1], -1)[..., 0]

    for unpack in (strided, torch.Tensor.double):
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, unpack):
            kernel = fused_line_kernel(weight, angle, profile=profile)
        found = torch.autograd.grad(kernel, sources, grad)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)


def test_inference_mode() -> None:
    layer, images = RotateConv2d(2, 3), torch.randn(1, 2, 5, 5)
    expected = layer(images).detach()
    with torch.inference_mode():
        assert torch.equal(layer(images), expected)
        made_within = RotateConv2d(2, 3)
        assert made_within(images).shape == expected.shape


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_hooks_that_give_saved_tensors_back_in_another_size_are_refused() -> None:
    """And nothing beyond them is read or written."""
    layer, images = RotateConv2d(3, 4), torch.randn(2, 3, 6, 6)
    for change in (lambda t: t.repeat(50, *[1] * (t.dim() - 1)), lambda t: t[:2], lambda t: t.to("meta")):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t, change=change: change(t) if t.dim() in (2, 3) else t
        ):
            output = layer(images)
        with pytest.raises((RuntimeError, ValueError)):
            output.sum().backward()


def test_weights_whose_memory_was_freed_are_refused() -> None:
    for name in ("weight", "angle", "profile"):
        layer = RotateConv2d(3, 4, taps="profile")
        getattr(layer, name).untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="not allocated"):
            layer(torch.randn(2, 3, 6, 6))


def test_a_direction_in_the_backward_pass() -> None:
    """Forward over reverse: the derivative of the gradient is not lost."""
    layer, images = RotateConv2d(3, 4), torch.randn(2, 3, 6, 6)
    output = layer(images)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2.0))
        (found,) = torch.autograd.grad(output, layer.weight, grad)
        value, tangent = forward_ad.unpack_dual(found)
    torch.testing.assert_close(tangent, 2 * value)
