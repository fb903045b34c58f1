"""Nodes before and behind a classifier in an ONNX file: from pixels of any size, and to probabilities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FLOAT, _UINT8 = 1, 2  # of onnx.TensorProto


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a model takes, (N, C, H, W), of pixels (N, H, W, C) of its size.

    Example:
        >>> normalized(torch.tensor([[[[0], [255]]]], dtype=torch.uint8), [0.5], [0.5])
        tensor([[[[-1.,  1.]]]])
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def add_preprocessing(proto: Any, input_size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a model take uint8 images (N, height, width, C) of any one size, and give probabilities.

    The middle of the longer side is cut out, to whole pixels, then resized (bilinear, antialiased), rounded to whole
    numbers, and normalized.

    Args:
        proto: The ModelProto with the input "images" and the output "logits"; changed.
        input_size: Channels, height and width that the model takes.
        mean, std: Per channel, of images between 0 and 1.
    """
    import numpy as np
    import onnx

    graph, (channels, height, width) = proto.graph, input_size
    constants = {
        "pp_target": np.array([height, width]),
        "pp_turned": np.array([width, height]),
        "pp_axes": np.array([1, 2]),
        "pp_one": np.array([1]),
        "pp_two": np.array([2]),
        "pp_mean": np.array(mean, dtype=np.float32).reshape(-1, 1, 1) * 255,
        "pp_std": np.array(std, dtype=np.float32).reshape(-1, 1, 1) * 255,
    }
    before: list[tuple[str, list[str], str | list[str], dict[str, Any]]] = [
        ("Shape", ["images"], "pp_size", {"start": 1, "end": 3}),
        # Of a side s with the other o, and targets t and u, at most o · t / u is kept.
        ("Split", ["pp_size"], ["pp_h", "pp_w"], {"num_outputs": 2}),
        ("Concat", ["pp_w", "pp_h"], "pp_other", {"axis": 0}),
        ("Mul", ["pp_other", "pp_target"], "pp_product", {}),
        ("Div", ["pp_product", "pp_turned"], "pp_most", {}),
        ("Min", ["pp_size", "pp_most"], "pp_part", {}),
        ("Max", ["pp_part", "pp_one"], "pp_kept", {}),
        ("Sub", ["pp_size", "pp_kept"], "pp_rest", {}),
        ("Div", ["pp_rest", "pp_two"], "pp_start", {}),
        ("Add", ["pp_start", "pp_kept"], "pp_end", {}),
        ("Slice", ["images", "pp_start", "pp_end", "pp_axes"], "pp_middle", {}),
        ("Cast", ["pp_middle"], "pp_float", {"to": _FLOAT}),
        ("Transpose", ["pp_float"], "pp_planes", {"perm": [0, 3, 1, 2]}),
        (
            "Resize",
            ["pp_planes", "", "", "pp_target"],
            "pp_resized",
            {"mode": "linear", "antialias": 1, "axes": [2, 3]},
        ),
        ("Round", ["pp_resized"], "pp_whole", {}),
        ("Sub", ["pp_whole", "pp_mean"], "pp_centered", {}),
        ("Div", ["pp_centered", "pp_std"], "pp_images", {}),
    ]
    for node in graph.node:
        node.input[:] = ["pp_images" if name == "images" else name for name in node.input]
    nodes = [
        onnx.helper.make_node(kind, inputs, [outputs] if isinstance(outputs, str) else outputs, **attributes)
        for kind, inputs, outputs, attributes in before
    ]
    softmax = onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)
    nodes = [*nodes, *graph.node, softmax]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    given = onnx.helper.make_tensor_value_info("images", _UINT8, ["batch", "height", "width", channels])
    graph.input[0].CopyFrom(given)
    graph.output[0].name = "probabilities"
