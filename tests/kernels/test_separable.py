"""The separable form: the same numbers as the dense one wherever a layer has both, and the choice between them."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from layers import ARGUMENTS, FORMS, name
from rotateconv import RotateConv2d, build_model
from rotateconv.kernels import separable as separable_module
from rotateconv.kernels.separable import dense_kernel, grouped_conv2d, prefers_separable

SEPARABLE = [form for form in FORMS if form["taps"] != "free" and form["angle_groups"] is not None]
UNGROUPED = [case for case in ARGUMENTS if case[1].get("groups", 1) == 1]

each_form = pytest.mark.parametrize("form", SEPARABLE, ids=name)


def in_both_forms(channels: tuple[int, int], size: int, **arguments: Any) -> tuple[RotateConv2d, RotateConv2d]:
    """The same layer twice: dense and separable."""
    channels = (channels[0], channels[1] * 2)  # a group has more than one output
    dense = RotateConv2d(*channels, size, **arguments, form="dense")
    separable = RotateConv2d(*channels, size, **arguments, form="separable")
    separable.load_state_dict(dense.state_dict(), strict=True)
    return dense, separable


def outputs_and_gradients(layer: RotateConv2d, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The output for these images and the gradient of everything that has one, from a fixed gradient of the output."""
    images = images.detach().requires_grad_()
    output = layer(images)
    seed = torch.Generator().manual_seed(3)
    output.backward(torch.randn(output.shape, generator=seed, dtype=torch.float64).to(output.dtype))
    yield "output", output.detach()
    yield "input", images.grad
    for key, parameter in layer.named_parameters():
        yield key, parameter.grad


def assert_same(dense: RotateConv2d, separable: RotateConv2d, images: torch.Tensor, tolerance: float) -> None:
    for (key, expected), (_, found) in zip(
        outputs_and_gradients(dense, images), outputs_and_gradients(separable, images), strict=True
    ):
        scale = expected.abs().max().item()
        assert scale > 0, key
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance * scale, msg=lambda text, k=key: f"{k}: {text}"
        )


@each_form
@pytest.mark.parametrize(("channels", "arguments"), UNGROUPED, ids=name)
def test_equals_the_dense_form(channels: tuple[int, int], arguments: dict[str, Any], form: dict[str, Any]) -> None:
    dense, separable = in_both_forms(channels, 3, **arguments, **form, dtype=torch.float64)
    images = torch.randn(2, channels[0], 11, 10, dtype=torch.float64)
    assert_same(dense, separable, images, 1e-10)
    unbatched = separable(images[0])
    torch.testing.assert_close(unbatched, dense(images)[0], rtol=0, atol=1e-10 * unbatched.abs().max().item())


@each_form
@pytest.mark.parametrize("size", [3, 5, 7, 9])
def test_equals_the_dense_form_in_float32(size: int, form: dict[str, Any]) -> None:
    dense, separable = in_both_forms((5, 6), size, padding="same", **form)
    images = torch.randn(3, 5, 13, 12)
    assert_same(dense, separable, images, 1e-5)
    assert_same(dense, separable, images.to(memory_format=torch.channels_last), 1e-5)
    strided = torch.randn(3, 12, 13, 10).transpose(1, 3)[:, ::2]  # neither of the two layouts
    assert_same(dense, separable, strided, 1e-5)


@each_form
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_that_of_the_dense_form(layout: torch.memory_format, form: dict[str, Any]) -> None:
    for mode in ("zeros", "reflect", "replicate", "circular"):
        dense, separable = in_both_forms((4, 4), 3, padding=1, padding_mode=mode, **form)
        images = torch.randn(2, 4, 6, 7).contiguous(memory_format=layout)
        assert separable(images).is_contiguous(memory_format=layout)
        assert dense(images).is_contiguous(memory_format=layout)


@each_form
def test_autocast(form: dict[str, Any]) -> None:
    dense, separable = in_both_forms((8, 8), 3, padding=1, **form)
    images = torch.randn(2, 8, 9, 9)
    exact = dense(images)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (dense, separable):
            output = layer(images)
            assert output.dtype == torch.bfloat16
            # Rounded once more than the dense form, where the filtered maps are written.
            assert (output.float() - exact).abs().max() < 2e-2 * exact.abs().max()


@each_form
def test_fx_traces_it(form: dict[str, Any]) -> None:
    _, separable = in_both_forms((4, 4), 3, padding=1, stride=2, padding_mode="circular", **form)
    images = torch.randn(2, 4, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(separable)(images), separable(images))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chosen", ["auto", "separable"])
def test_export_with_a_dynamic_batch(chosen: Any, groups: int) -> None:
    layer = RotateConv2d(64, 64, padding=1, taps="profile", angle_groups=groups, form=chosen)
    batch = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(layer, (torch.randn(3, 64, 8, 8),), dynamic_shapes=(batch,))
    calls = [node for node in exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(calls) == 2 * groups  # "auto" is separable too at this size
    images = torch.randn(5, 64, 9, 9)[..., 1:, 1:]
    torch.testing.assert_close(exported.module()(images), layer(images), rtol=0, atol=1e-4)


@each_form
@pytest.mark.parametrize("chosen", ["auto", "dense", "separable"])
def test_the_angle_takes_its_natural_step_in_every_form(chosen: Any, form: dict[str, Any]) -> None:
    layer = RotateConv2d(6, 8, **form, form=chosen, dtype=torch.float64)
    images = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    assert layer.angle_grad_scale != 1.0
    exact = torch.autograd.grad(F.conv2d(images, layer.kernel(), layer.bias).square().sum(), layer.angle)[0]
    found = torch.autograd.grad(layer(images).square().sum(), layer.angle)[0]
    expected = layer.angle_grad_scale * exact
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("chosen", ["auto", "separable"])
def test_compiles_as_one_graph(chosen: Any) -> None:
    layer = RotateConv2d(32, 32, 3, padding=1, taps="profile", angle_groups=1, form=chosen)
    images = torch.randn(2, 32, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), layer(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_vmap_over_parameters(groups: int) -> None:
    layers = [RotateConv2d(4, 6, taps="profile", angle_groups=groups, form="separable") for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    images = torch.randn(2, 4, 7, 7)

    def run(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layers[0], (parameters, buffers), (images,))

    found = torch.vmap(run)(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([layer(images) for layer in layers]), rtol=0, atol=1e-5)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return run(parameters, {}).square().sum()

    grads = torch.vmap(torch.func.grad(loss))(parameters)
    for index, layer in enumerate(layers):
        layer(images).square().sum().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(grads[key][index], parameter.grad, rtol=1e-4, atol=1e-3)


def test_second_derivatives() -> None:
    layer = RotateConv2d(2, 4, taps="profile", angle_groups=2, form="separable", dtype=torch.float64)
    layer.angle_grad_scale = 1.0

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(keys, values, strict=True)), (images,))

    images = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    keys = [key for key, _ in layer.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


def test_grouped_conv2d_by_hand() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    lines = torch.tensor([[[[0.0, 0, 0], [0, 0, 1], [0, 0, 0]]], [[[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]]])  # right, up
    weight = torch.tensor([[2.0], [10.0]])
    for form in ("dense", "separable", "auto"):
        output = grouped_conv2d(images, weight, lines, torch.tensor([0.5, 0.0]), (1, 1), (0, 0), (1, 1), form)
        assert output.tolist() == [[[[12.5, 14.5], [20.5, 22.5]], [[10.0, 20.0], [50.0, 60.0]]]]
    assert dense_kernel(weight, lines).flatten(1).argmax(1).tolist() == [5, 1]


@pytest.mark.parametrize("part", [1, 100, 300, 10**9])
def test_images_are_filtered_in_parts_that_join(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, separable = in_both_forms((4, 4), 3, padding=1, taps="profile", angle_groups=2, dtype=torch.float64)
    images = torch.randn(7, 4, 5, 6, dtype=torch.float64)
    whole, wanted = separable(images), dense(images)
    calls: list[int] = []
    right = separable_module.separable_conv2d

    def counted(part: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(len(part))
        return right(part, *arguments)

    monkeypatch.setattr(separable_module, "_PART", part)
    monkeypatch.setattr(separable_module, "separable_conv2d", counted)
    with torch.no_grad():
        found = separable(images)
    assert calls == {1: [7] + [1] * 7, 100: [7] + [1] * 7, 300: [7, 2, 2, 2, 1]}.get(part, [7])
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    calls.clear()
    torch.testing.assert_close(separable(images), wanted, rtol=0, atol=1e-10)
    assert calls == [7]  # with gradients the maps are kept anyway


def test_the_state_does_not_depend_on_the_form() -> None:
    states = [
        {
            key: value.shape
            for key, value in RotateConv2d(4, 8, angle_groups=2, taps="shared", form=form).state_dict().items()
        }
        for form in ("auto", "dense", "separable")
    ]
    assert states[0] == states[1] == states[2]


def test_the_form_is_shown_and_kept() -> None:
    arguments: dict[str, Any] = {"taps": "profile", "angle_groups": 2}
    layer = RotateConv2d(4, 8, **arguments, form="separable")
    assert "form='separable'" in repr(layer)
    assert eval(repr(layer), {"RotateConv2d": RotateConv2d}).form == "separable"
    assert "form" not in repr(RotateConv2d(4, 8, **arguments))
    assert RotateConv2d.from_conv(nn.Conv2d(4, 8, 3), **arguments, form="separable").form == "separable"
    fused, images = layer.fuse(), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fused(images), layer(images), rtol=0, atol=1e-5)


def test_unknown_forms_are_errors() -> None:
    with pytest.raises(ValueError, match="form must be one of 'auto', 'dense', 'separable', got 'fast'"):
        RotateConv2d(4, 8, form="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"taps": "shared"}, {"angle_groups": 2}, {"taps": "profile", "angle_groups": 2, "groups": 2}],
    ids=name,
)
def test_layers_without_a_separable_form_are_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r'^form="separable" needs (angle_groups, taps="shared" or taps="profile"|groups=1), got'
    ):
        RotateConv2d(4, 8, **arguments, form="separable")


def test_the_model_of_the_cost() -> None:
    """What was clearly faster, by the committed times, is chosen; the law of its terms in what was not timed."""
    record = json.loads((Path(__file__).parents[2] / "benchmarks" / "separable.json").read_text())
    clear = [row for row in record if max(row["dense"], row["separable"]) > 1.3 * min(row["dense"], row["separable"])]
    assert len(clear) > 900
    for row in clear:
        assert prefers_separable(
            row["channels"],
            row["channels"],
            row["kernel"],
            row["groups"],
            row["batch"] * row["size"] ** 2,
            training=row["mode"] == "training",
            dtype=getattr(torch, row["dtype"]),
            channels_last=row["channels_last"],
        ) == (row["separable"] < row["dense"]), row
    wide: dict[str, Any] = {"in_channels": 128, "out_channels": 128, "kernel_size": 3}
    for training, dtype, last in product((False, True), (torch.float32, torch.bfloat16), (False, True)):
        options: dict[str, Any] = {"training": training, "dtype": dtype, "channels_last": last}
        assert not prefers_separable(**wide, groups=128, positions=10**6, **options)  # depthwise is all there is
        # More groups never make it better, more outputs never worse.
        chosen = [prefers_separable(**wide, groups=2**g, positions=500, **options) for g in range(8)]
        assert chosen == sorted(chosen, reverse=True)
        chosen = [prefers_separable(64, 2**c, 3, 1, 500, **options) for c in range(12)]
        assert chosen == sorted(chosen)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_auto_asks_the_model(monkeypatch: pytest.MonkeyPatch, training: bool, last: bool) -> None:
    asked: list[tuple[Any, ...]] = []

    def answer(*arguments: Any, **named: Any) -> bool:
        asked.append((*arguments, named))
        return True

    ran: list[Any] = []
    monkeypatch.setattr(separable_module, "prefers_separable", answer)
    monkeypatch.setattr(separable_module, "separable_conv2d", lambda *arguments: ran.append(arguments))
    layer = RotateConv2d(6, 8, 5, stride=(2, 1), taps="shared", angle_groups=2)
    with torch.set_grad_enabled(training):
        layer(torch.randn(3, 6, 10, 12).to(memory_format=torch.channels_last if last else torch.contiguous_format))
    known = {"training": training, "dtype": torch.float32, "channels_last": last}
    assert asked == [(6, 8, 5, 2, 3 * 10 * 12 // 2, known)]
    assert len(ran) == 1
    for form in ("dense", "separable"):
        RotateConv2d(6, 8, 5, taps="shared", angle_groups=2, form=form)(torch.randn(3, 6, 10, 12))
    assert (len(asked), len(ran)) == (1, 2)


def test_a_model_of_groups_trains_in_every_form() -> None:
    images = torch.randn(2, 3, 16, 16)
    losses = []
    for form in ("dense", "separable", "auto"):
        torch.manual_seed(1)

        def conv(*arguments: Any, chosen: Any = form, **named: Any) -> nn.Module:
            return RotateConv2d(*arguments, **named, taps="profile", angle_groups=4, form=chosen)

        model = build_model("resnet20", conv=conv, width=0.5)
        loss = model(images).square().sum()
        loss.backward()
        losses.append(loss.item())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
