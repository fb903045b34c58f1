"""RotateConv2d in torch.compile and torch.export: one graph, used again, with the same numbers."""

from typing import Any

import pytest
import torch

from layers import FORMS, gradients, image_for, name
from rotateconv import RotateConv2d
from tolerances import assert_close

# Where every form costs too much: every taps, path and angle_groups, and every pair of them once.
SOME_FORMS = [FORMS[index] for index in (0, 3, 5, 6, 9, 10)]
some_forms = pytest.mark.parametrize("form", SOME_FORMS, ids=name)
each_mode = pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
each_training = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def test_some_forms_are_enough() -> None:
    for first, second in (("taps", "path"), ("taps", "angle_groups"), ("path", "angle_groups")):
        found = {(form[first], form[second]) for form in SOME_FORMS}
        assert found == {(form[first], form[second]) for form in FORMS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding_mode", "training"),
    [("zeros", True), ("zeros", False), ("reflect", True), ("replicate", False), ("circular", True)],
)
@some_forms
def test_one_graph_that_is_used_again(form: dict[str, Any], padding_mode: str, training: bool) -> None:
    torch.compiler.reset()
    layer = RotateConv2d(4, 8, 3, padding=1, padding_mode=padding_mode, **form).train(training)
    images = image_for(4)
    expected = layer(images)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_close(compiled(images), expected, scale=3)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(images), expected, scale=3)
        with torch.no_grad():
            layer.angle += 0.1
        assert_close(compiled(images), layer(images), scale=3)
        assert (compiled(images) - expected).abs().max() > 0.01


@pytest.mark.slow
@some_forms
def test_compiled_gradients(form: dict[str, Any]) -> None:
    torch.compiler.reset()
    layer, images = RotateConv2d(4, 8, 3, **form), image_for(4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = gradients(layer, layer(images))
    for key, gradient in gradients(layer, compiled(images)).items():
        assert_close(gradient, expected[key], scale=10 * expected[key].abs().max().item())


@pytest.mark.slow
@each_training
def test_compiled_code(training: bool) -> None:
    torch.compiler.reset()
    layer, images = RotateConv2d(4, 8, 3).train(training), image_for(4)
    compiled = torch.compile(layer, fullgraph=True)
    output, expected = compiled(images), layer(images)
    assert_close(output, expected, scale=3)
    expected_gradients = gradients(layer, expected)
    for key, gradient in gradients(layer, output).items():
        assert_close(gradient, expected_gradients[key], scale=10 * expected_gradients[key].abs().max().item())
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(images), expected, scale=3)


@pytest.mark.slow
@each_mode
@some_forms
def test_export_with_dynamic_batch_and_size(form: dict[str, Any], padding_mode: str) -> None:
    layer = RotateConv2d(4, 8, 3, padding=1, padding_mode=padding_mode, **form).eval()
    batch, height, width = (
        torch.export.Dim("batch"),
        torch.export.Dim("height", min=4),
        torch.export.Dim("width", min=4),
    )
    shapes = {"input": {0: batch, 2: height, 3: width}}
    program = torch.export.export(layer, (image_for(4),), dynamic_shapes=shapes)
    for images in (torch.randn(1, 4, 4, 5), torch.randn(3, 4, 11, 7)):
        assert_close(program.module()(images), layer(images), scale=3)
