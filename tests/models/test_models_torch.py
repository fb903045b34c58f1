"""What torch can do with the models: differentiate, trace, export, compile, materialize, channels-last."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from registries import each_conv
from rotateconv.models import MODELS, build_model
from rotateconv.models.densenet import DenseNet
from rotateconv.models.resnet import ResNet
from rotateconv.nn._conv_base import ConvBase

# One small model of each kind, for what is slow on a deep one.
SMALL: dict[str, Callable[[str], nn.Module]] = {
    "resnet": lambda conv: ResNet(8, conv),
    "densenet": lambda conv: DenseNet(7, conv),
    "densenet-bc": lambda conv: DenseNet(10, conv, bottleneck=True, compression=0.5),
}


@each_conv
@pytest.mark.parametrize("small", SMALL)
def test_every_parameter_gets_a_gradient(small: str, conv: str) -> None:
    model = SMALL[small](conv)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


class LayerTracer(fx.Tracer):
    """Traces the model and leaves the layers whole, as feature extraction does."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        own = isinstance(module, ConvBase)
        return own or super().is_leaf_module(module, qualified_name)


@each_conv
@pytest.mark.parametrize("small", SMALL)
def test_fx_traces_every_convolution(small: str, conv: str) -> None:
    model = SMALL[small](conv).eval()
    traced = fx.GraphModule(model, LayerTracer().trace(model))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_fx_traces_every_model(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, "rotate4")
    graph = LayerTracer().trace(model)
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    layers = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    assert [name for name in called if name in layers] == layers  # each once, in the order of the model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "conv"),
    [
        ("resnet", "rotate4"),
        ("resnet", "rotate2p-g4"),
        ("resnet", "mask4"),
        ("densenet", "rotate2"),
        ("densenet-bc", "rotate2p"),
    ],
)
def test_export_with_a_dynamic_batch(small: str, conv: str) -> None:
    model = SMALL[small](conv).eval()
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(batch,)).module()
    for images in (torch.randn(1, 3, 8, 8), torch.randn(5, 3, 8, 8)):
        torch.testing.assert_close(exported(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize(("small", "conv"), [("resnet", "rotate4"), ("densenet-bc", "mask4")])
def test_compiles_as_one_graph(small: str, conv: str) -> None:
    torch.compiler.reset()
    model = SMALL[small](conv)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    twin(x).sum().backward()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


@each_conv
@pytest.mark.parametrize("small", SMALL)
def test_meta_models_take_real_values(small: str, conv: str) -> None:
    model = SMALL[small](conv).eval()
    with torch.device("meta"):
        empty = SMALL[small](conv)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(filled(x), model(x), rtol=0, atol=0)


@each_conv
@pytest.mark.parametrize("small", SMALL)
def test_channels_last_gives_the_same_output(small: str, conv: str) -> None:
    model = SMALL[small](conv).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)
