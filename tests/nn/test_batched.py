"""Kernels made at once: the numbers and gradients of layers that make their own, and never a stale kernel."""

from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from kernel_forms import take_kernel_form
from layers import FORMS, SIZES, forward, image_for
from registries import each_conv
from rotateconv import RotateConv2d, batched_kernels, build_model

Found = list[Tensor]


@pytest.fixture(autouse=True)
def made_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the node in C++, with which layers make their own, unless the test is of every form."""
    if "each_kernel_form" not in request.fixturenames:
        take_kernel_form("node in Python", monkeypatch)


def run(model: nn.Module, images: Tensor, *, batched: bool) -> Found:
    """Output and gradients of a forward and a backward pass."""
    model.zero_grad()
    output = forward(model, images, batched)
    output.square().sum().backward()
    return [
        output.detach(),
        *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
    ]


def assert_same(found: Found, expected: Found, tolerance: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        scale = max(1e-12, other.abs().max().item())
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * scale, check_stride=False)


def line_nodes(output: Tensor) -> int:
    """How many nodes of the graph make kernels."""
    seen, ahead = set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [next_node for next_node, _ in node.next_functions]
    return sum("LineKernel" in node.name() for node in seen)


def two_layers(**options: object) -> nn.Sequential:
    layers = [RotateConv2d(2, 4, padding=1, **options), nn.ReLU(), RotateConv2d(4, 2, padding=1, **options)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 2, 7, 8, dtype=torch.float64)


@each_conv
def test_gives_the_numbers_of_the_model_alone(conv: str) -> None:
    model = build_model("resnet20", conv, width=0.25).double()
    batch = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_same(run(model, batch, batched=True), run(model, batch, batched=False))


def test_sorts_unlike_layers() -> None:
    layers: list[nn.Module] = []
    for form in FORMS:
        for size in SIZES:
            layers.append(RotateConv2d(2, 2, size, padding=size // 2, **form))
    layers.insert(3, RotateConv2d(2, 2, padding=1, groups=2, learn_angle=False))
    layers.insert(7, RotateConv2d(2, 2, padding="same", dilation=2, padding_mode="reflect", path="square"))
    model = nn.Sequential(*layers).double()
    model[5].angle_grad_scale, model[8].angle_grad_scale = 1, 0.25  # set by hand, one of them as an int
    batch = image_for(2, dtype=torch.float64)
    assert_same(run(model, batch, batched=True), run(model, batch, batched=False))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 8.0)])
def test_makes_the_kernels_of_all_layers_by_one_node(images: Tensor, scales: tuple[float, float]) -> None:
    model = two_layers()
    model[0].angle_grad_scale, model[2].angle_grad_scale = scales
    assert line_nodes(model(images)) == 2
    with batched_kernels(model):
        assert line_nodes(model(images)) == 1
        assert line_nodes(model(images)) == 2  # the second pass makes its own
    assert line_nodes(model(images)) == 2


def change_weight(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[2].weight.mul_(2)


def change_angle(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].angle.add_(1)


def change_profile(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].profile.add_(1)


def replace_weight(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))


def step(model: nn.Sequential) -> None:
    model(torch.randn(1, 2, 5, 5, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()


@pytest.mark.parametrize("change", [change_weight, change_angle, change_profile, replace_weight, step])
def test_never_uses_a_kernel_of_other_parameters(images: Tensor, change: Callable[[nn.Sequential], None]) -> None:
    model = two_layers(taps="profile")
    with batched_kernels(model):
        change(model)
        found = model(images)
    torch.testing.assert_close(found, model(images))


def test_parameters_that_are_lent_count(images: Tensor) -> None:
    model = two_layers()
    lent = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    with batched_kernels(model):
        found = torch.func.functional_call(model, lent, (images,))
    torch.testing.assert_close(found, torch.func.functional_call(model, lent, (images,)))


def test_kernels_made_without_gradients_are_not_trained_on(images: Tensor) -> None:
    model = two_layers()
    with torch.no_grad():
        context = batched_kernels(model)
        context.__enter__()
    output = model(images)
    context.__exit__(None, None, None)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.inference_mode(), batched_kernels(model):
        inside = model(images)
    torch.testing.assert_close(inside, output.detach())


def test_an_inner_context_leaves_the_outer_one_as_it_was(images: Tensor) -> None:
    outer, inner = two_layers(), two_layers()
    with batched_kernels(outer):
        with batched_kernels(inner):
            assert line_nodes(inner(images)) == 1
        with pytest.raises(ZeroDivisionError), batched_kernels(inner):
            raise ZeroDivisionError
        assert line_nodes(outer(images)) == 1


def test_under_autocast_the_kernels_have_its_type(images: Tensor) -> None:
    model = two_layers().float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images.float())
        with batched_kernels(model):
            found = model(images.float())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    with batched_kernels(model), torch.autocast("cpu", torch.bfloat16):  # made before the type was known
        torch.testing.assert_close(model(images.float()), expected)


@pytest.mark.slow
def test_a_compiled_model_makes_its_own(images: Tensor) -> None:
    model = two_layers()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with batched_kernels(model):
        torch.testing.assert_close(compiled(images), model(images))


def test_second_derivatives(images: Tensor) -> None:
    model = two_layers()

    def second(batched: bool) -> Found:
        images.requires_grad_()
        output = forward(model, images, batched)
        (first,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), list(model.parameters()), allow_unused=True))

    pairs = zip(second(True), second(False), strict=True)
    assert_same(*map(list, zip(*[(mine, other) for mine, other in pairs if other is not None], strict=True)))


def test_a_model_without_such_layers_is_left_alone(images: Tensor) -> None:
    model = nn.Conv2d(2, 2, 3).double()
    with batched_kernels(model):
        torch.testing.assert_close(model(images), model(images))


# What a context over a whole model must not change: who learns, what a backward pass costs, which graph is whose.


def gradients_of(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.usefixtures("each_kernel_form")
@pytest.mark.parametrize("frozen", [(0,), (2,), (0, 2)])
def test_frozen_layers_cost_no_gradient(images: Tensor, frozen: tuple[int, ...]) -> None:
    model = two_layers()
    for index in frozen:
        model[index].requires_grad_(False)
    with batched_kernels(model):
        output = model(images.requires_grad_())
    assert line_nodes(output) == 2 - len(frozen)
    output.square().sum().backward()
    found = gradients_of(model)
    run(model, images, batched=False)
    for mine, other in zip(found, gradients_of(model), strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.allclose(mine, other, atol=1e-10)


@pytest.mark.usefixtures("each_kernel_form")
def test_a_layer_that_is_not_used_has_no_gradient(images: Tensor) -> None:
    model = two_layers()
    with batched_kernels(model):
        output = model[0](images)
    output.sum().backward()
    assert all(parameter.grad is None for parameter in model[2].parameters())
    assert all(parameter.grad is not None for parameter in model[0].parameters())


@pytest.mark.usefixtures("each_kernel_form")
def test_losses_of_different_layers_each_run_backward(images: Tensor) -> None:
    model = nn.ModuleList([RotateConv2d(2, 4), RotateConv2d(2, 3)]).double()
    with batched_kernels(model):
        one, other = (layer(images).square().sum() for layer in model)
    one.backward()
    assert model[1].weight.grad is None
    other.backward()
    found = gradients_of(model)
    model.zero_grad()
    sum(layer(images).square().sum() for layer in model).backward()
    for mine, wanted in zip(found, gradients_of(model), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.usefixtures("each_kernel_form")
def test_parameters_that_were_changed_before_backward_are_refused(images: Tensor) -> None:
    model = two_layers()
    with batched_kernels(model):
        loss = model(images).sum()
    change_weight(model)
    with pytest.raises(RuntimeError, match=r"modified by an in-?place operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts(images: Tensor, reentrant: bool) -> None:
    model = two_layers()

    def part(batch: Tensor) -> Tensor:
        return model[0](batch)

    with batched_kernels(model):
        middle = torch.utils.checkpoint.checkpoint(part, images.requires_grad_(), use_reentrant=reentrant)
        output = model[2](model[1](middle))
    output.square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    assert_same(found, run(model, images, batched=False)[1:])


def test_what_is_written_through_data_before_the_forward_pass_counts(images: Tensor) -> None:
    model = two_layers()
    with batched_kernels(model):
        model[0].weight.data.mul_(3)
        nn.utils.vector_to_parameters(
            2 * nn.utils.parameters_to_vector(model.parameters()).detach(), model.parameters()
        )
        found = model(images)
    torch.testing.assert_close(found, model(images))


def test_parametrized_layers_make_their_own(images: Tensor) -> None:
    """A spectral norm takes one step of its power method a forward pass, as in nn.Conv2d, not two."""
    torch.manual_seed(1)
    model = two_layers()
    nn.utils.parametrizations.spectral_norm(model[0], "weight")
    calls: list[int] = []
    model[0].parametrizations["weight"][0].register_forward_hook(lambda *_: calls.append(1))
    model(images)
    assert len(calls) == 1
    with batched_kernels(model):
        model(images)
    assert len(calls) == 2


def test_kernels_lie_as_the_convolutions_read_them(images: Tensor, each_kernel_form: str) -> None:
    seen: list[Tensor] = []
    model, convolve = two_layers(), torch.nn.functional.conv2d
    for order in (torch.channels_last, torch.contiguous_format):
        batch = images.to(memory_format=order)
        with batched_kernels(model), pytest.MonkeyPatch.context() as patched:
            patched.setattr("torch.nn.functional.conv2d", lambda x, k, *a: (seen.append(k), convolve(x, k, *a))[1])
            model(batch)
    if each_kernel_form == "node in C++":  # the convolution is within
        assert seen == []
        return
    orders = (True, True, False, False) if each_kernel_form == "node in Python" else (False,) * 4
    assert [kernel.stride(1) == 1 for kernel in seen] == list(orders)


def test_with_the_node_in_cpp_each_layer_makes_its_own(images: Tensor, each_kernel_form: str) -> None:
    """As fast as at once, and the gradients of a layer do not wait for those of all."""
    model = two_layers()
    with batched_kernels(model):
        output = model(images)
    assert line_nodes(output) == (2 if each_kernel_form == "node in C++" else 1)


def test_contexts_that_are_left_out_of_order(images: Tensor) -> None:
    model = two_layers()
    outer, inner = batched_kernels(model), batched_kernels(model)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert line_nodes(model(images)) == 2  # nothing is left set


@pytest.mark.slow
def test_a_compiled_model_makes_nothing_ahead(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from rotateconv.nn import batched

    model = two_layers()
    monkeypatch.setattr(batched, "_make", lambda *_: pytest.fail("kernels were made for nobody"))
    with batched_kernels(model):
        torch.compile(model, backend="aot_eager")(images)


@pytest.mark.usefixtures("each_kernel_form")
def test_second_derivatives_of_the_parameters(images: Tensor) -> None:
    model = two_layers()

    def penalty(batched: bool) -> list[Tensor]:
        model.zero_grad()
        loss = forward(model, images, batched).square().sum()
        slopes = torch.autograd.grad(loss, [model[0].weight, model[0].angle], create_graph=True)
        sum(slope.square().sum() for slope in slopes).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    assert_same(penalty(True), penalty(False), 1e-8)
