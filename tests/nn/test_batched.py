"""Kernels made at once: the numbers and gradients of layers that make their own, and never a stale kernel."""

from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from layers import FORMS, SIZES, forward, image_for
from rotateconv import CONVS, RotateConv2d, batched_kernels, build_model

Found = list[Tensor]


def run(net: nn.Module, images: Tensor, *, batched: bool) -> Found:
    """Output and gradients of a forward and a backward pass."""
    net.zero_grad()
    output = forward(net, images, batched)
    output.square().sum().backward()
    return [output.detach(), *(parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None)]


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


@pytest.mark.parametrize("conv", CONVS)
def test_gives_the_numbers_of_the_net_alone(conv: str) -> None:
    net = build_model("resnet20", conv, width=0.25).double()
    batch = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_same(run(net, batch, batched=True), run(net, batch, batched=False))


def test_sorts_unlike_layers() -> None:
    layers: list[nn.Module] = []
    for form in FORMS:
        for size in SIZES:
            layers.append(RotateConv2d(2, 2, size, padding=size // 2, **form))
    layers.insert(3, RotateConv2d(2, 2, padding=1, groups=2, learn_angle=False))
    layers.insert(7, RotateConv2d(2, 2, padding="same", dilation=2, padding_mode="reflect", path="square"))
    net = nn.Sequential(*layers).double()
    net[5].angle_grad_scale, net[8].angle_grad_scale = 1, 0.25  # set by hand, one of them as an int
    batch = image_for(2, dtype=torch.float64)
    assert_same(run(net, batch, batched=True), run(net, batch, batched=False))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 8.0)])
def test_makes_the_kernels_of_all_layers_by_one_node(images: Tensor, scales: tuple[float, float]) -> None:
    net = two_layers()
    net[0].angle_grad_scale, net[2].angle_grad_scale = scales
    assert line_nodes(net(images)) == 2
    with batched_kernels(net):
        assert line_nodes(net(images)) == 1
        assert line_nodes(net(images)) == 2  # the second pass makes its own
    assert line_nodes(net(images)) == 2


def change_weight(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[2].weight.mul_(2)


def change_angle(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].angle.add_(1)


def change_profile(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].profile.add_(1)


def replace_weight(net: nn.Sequential) -> None:
    net[0].weight = nn.Parameter(torch.randn_like(net[0].weight))


def step(net: nn.Sequential) -> None:
    net(torch.randn(1, 2, 5, 5, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.5).step()


@pytest.mark.parametrize("change", [change_weight, change_angle, change_profile, replace_weight, step])
def test_never_uses_a_kernel_of_other_parameters(images: Tensor, change: Callable[[nn.Sequential], None]) -> None:
    net = two_layers(taps="profile")
    with batched_kernels(net):
        change(net)
        found = net(images)
    torch.testing.assert_close(found, net(images))


def test_parameters_that_are_lent_count(images: Tensor) -> None:
    net = two_layers()
    lent = {name: torch.randn_like(parameter) for name, parameter in net.named_parameters()}
    with batched_kernels(net):
        found = torch.func.functional_call(net, lent, (images,))
    torch.testing.assert_close(found, torch.func.functional_call(net, lent, (images,)))


def test_kernels_made_without_gradients_are_not_trained_on(images: Tensor) -> None:
    net = two_layers()
    with torch.no_grad():
        context = batched_kernels(net)
        context.__enter__()
    output = net(images)
    context.__exit__(None, None, None)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.inference_mode(), batched_kernels(net):
        inside = net(images)
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
    net = two_layers().float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = net(images.float())
        with batched_kernels(net):
            found = net(images.float())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    with batched_kernels(net), torch.autocast("cpu", torch.bfloat16):  # made before the type was known
        torch.testing.assert_close(net(images.float()), expected)


def test_a_compiled_net_makes_its_own(images: Tensor) -> None:
    net = two_layers()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with batched_kernels(net):
        torch.testing.assert_close(compiled(images), net(images))


def test_second_derivatives(images: Tensor) -> None:
    net = two_layers()

    def second(batched: bool) -> Found:
        images.requires_grad_()
        output = forward(net, images, batched)
        (first,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), list(net.parameters()), allow_unused=True))

    pairs = zip(second(True), second(False), strict=True)
    assert_same(*map(list, zip(*[(mine, other) for mine, other in pairs if other is not None], strict=True)))


def test_a_net_without_such_layers_is_left_alone(images: Tensor) -> None:
    net = nn.Conv2d(2, 2, 3).double()
    with batched_kernels(net):
        torch.testing.assert_close(net(images), net(images))


# What a context over a whole model must not change: who learns, what a backward pass costs, which graph is whose.


def gradients_of(net: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


@pytest.mark.usefixtures("each_kernel_form")
@pytest.mark.parametrize("frozen", [(0,), (2,), (0, 2)])
def test_frozen_layers_cost_no_gradient(images: Tensor, frozen: tuple[int, ...]) -> None:
    net = two_layers()
    for index in frozen:
        net[index].requires_grad_(False)
    with batched_kernels(net):
        output = net(images.requires_grad_())
    assert line_nodes(output) == 2 - len(frozen)
    output.square().sum().backward()
    found = gradients_of(net)
    run(net, images, batched=False)
    for mine, other in zip(found, gradients_of(net), strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.allclose(mine, other, atol=1e-10)


@pytest.mark.usefixtures("each_kernel_form")
def test_a_layer_that_is_not_used_has_no_gradient(images: Tensor) -> None:
    net = two_layers()
    with batched_kernels(net):
        output = net[0](images)
    output.sum().backward()
    assert all(parameter.grad is None for parameter in net[2].parameters())
    assert all(parameter.grad is not None for parameter in net[0].parameters())


@pytest.mark.usefixtures("each_kernel_form")
def test_losses_of_different_layers_each_run_backward(images: Tensor) -> None:
    net = nn.ModuleList([RotateConv2d(2, 4), RotateConv2d(2, 3)]).double()
    with batched_kernels(net):
        one, other = (layer(images).square().sum() for layer in net)
    one.backward()
    assert net[1].weight.grad is None
    other.backward()
    found = gradients_of(net)
    net.zero_grad()
    sum(layer(images).square().sum() for layer in net).backward()
    for mine, wanted in zip(found, gradients_of(net), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.usefixtures("each_kernel_form")
def test_parameters_that_were_changed_before_backward_are_refused(images: Tensor) -> None:
    net = two_layers()
    with batched_kernels(net):
        loss = net(images).sum()
    change_weight(net)
    with pytest.raises(RuntimeError, match="found them modified by an in-place operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts(images: Tensor, reentrant: bool) -> None:
    net = two_layers()

    def part(batch: Tensor) -> Tensor:
        return net[0](batch)

    with batched_kernels(net):
        middle = torch.utils.checkpoint.checkpoint(part, images.requires_grad_(), use_reentrant=reentrant)
        output = net[2](net[1](middle))
    output.square().sum().backward()
    found = [parameter.grad.clone() for parameter in net.parameters()]
    assert_same(found, run(net, images, batched=False)[1:])


def test_what_is_written_through_data_before_the_forward_pass_counts(images: Tensor) -> None:
    net = two_layers()
    with batched_kernels(net):
        net[0].weight.data.mul_(3)
        nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(net.parameters()).detach(), net.parameters())
        found = net(images)
    torch.testing.assert_close(found, net(images))


def test_parametrized_layers_make_their_own(images: Tensor) -> None:
    """A spectral norm takes one step of its power method a forward pass, as in nn.Conv2d, not two."""
    torch.manual_seed(1)
    net = two_layers()
    nn.utils.parametrizations.spectral_norm(net[0], "weight")
    calls: list[int] = []
    net[0].parametrizations["weight"][0].register_forward_hook(lambda *_: calls.append(1))
    net(images)
    assert len(calls) == 1
    with batched_kernels(net):
        net(images)
    assert len(calls) == 2


def test_kernels_lie_as_the_convolutions_read_them(images: Tensor, each_kernel_form: str) -> None:
    seen: list[Tensor] = []
    net, convolve = two_layers(), torch.nn.functional.conv2d
    for order in (torch.channels_last, torch.contiguous_format):
        batch = images.to(memory_format=order)
        with batched_kernels(net), pytest.MonkeyPatch.context() as patched:
            patched.setattr("torch.nn.functional.conv2d", lambda x, k, *a: (seen.append(k), convolve(x, k, *a))[1])
            net(batch)
    orders = (True, True, False, False) if each_kernel_form == "compiled" else (False,) * 4
    assert [kernel.stride(1) == 1 for kernel in seen] == list(orders)


def test_contexts_that_are_left_out_of_order(images: Tensor) -> None:
    net = two_layers()
    outer, inner = batched_kernels(net), batched_kernels(net)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert line_nodes(net(images)) == 2  # nothing is left set


def test_a_compiled_model_makes_nothing_ahead(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from rotateconv.nn import batched

    net = two_layers()
    monkeypatch.setattr(batched, "_make", lambda *_: pytest.fail("kernels were made for nobody"))
    with batched_kernels(net):
        torch.compile(net, backend="aot_eager")(images)


@pytest.mark.usefixtures("each_kernel_form")
def test_second_derivatives_of_the_parameters(images: Tensor) -> None:
    net = two_layers()

    def penalty(batched: bool) -> list[Tensor]:
        net.zero_grad()
        loss = forward(net, images, batched).square().sum()
        slopes = torch.autograd.grad(loss, [net[0].weight, net[0].angle], create_graph=True)
        sum(slope.square().sum() for slope in slopes).backward()
        return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]

    assert_same(penalty(True), penalty(False), 1e-8)
