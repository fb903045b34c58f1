"""What RotateConv2d refuses: one sentence with what was expected and what was found."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rotateconv import RotateConv2d

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kernel_size": 4}, "kernel_size must be an odd integer >= 3, got 4"),
    ({"kernel_size": 1}, "kernel_size must be an odd integer >= 3, got 1"),
    ({"kernel_size": (3, 5)}, "kernel_size must be one odd number >= 3 or an equal pair, got (3, 5)"),
    ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer >= 1 or a pair of them, got (3, 3, 3)"),
    ({"kernel_size": 3.0}, "kernel_size must be an integer >= 1 or a pair of them, got 3.0"),
    ({"kernel_size": "3"}, "kernel_size must be an integer >= 1 or a pair of them, got '3'"),
    ({"kernel_size": 0}, "kernel_size must be an integer >= 1 or a pair of them, got 0"),
    ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
    ({"in_channels": 4.0}, "in_channels must be a positive integer, got 4.0"),
    ({"out_channels": -6}, "out_channels must be a positive integer, got -6"),
    ({"out_channels": True}, "out_channels must be a positive integer, got True"),
    ({"groups": 0}, "groups must be a positive integer, got 0"),
    ({"groups": 3}, "in_channels must be divisible by groups, got in_channels=4 and groups=3"),
    ({"groups": 4}, "out_channels must be divisible by groups, got out_channels=6 and groups=4"),
    ({"angle_groups": 0}, "angle_groups must be a positive integer, got 0"),
    ({"angle_groups": 1.5}, "angle_groups must be a positive integer, got 1.5"),
    ({"angle_groups": 4}, "out_channels must be divisible by angle_groups, got out_channels=6 and angle_groups=4"),
    ({"stride": 0}, "stride must be an integer >= 1 or a pair of them, got 0"),
    ({"stride": (1, 2, 3)}, "stride must be an integer >= 1 or a pair of them, got (1, 2, 3)"),
    ({"stride": None}, "stride must be an integer >= 1 or a pair of them, got None"),
    ({"dilation": 0}, "dilation must be an integer >= 1 or a pair of them, got 0"),
    ({"dilation": (1, -1)}, "dilation must be an integer >= 1 or a pair of them, got (1, -1)"),
    ({"padding": -1}, "padding must be an integer >= 0 or a pair of them, got -1"),
    ({"padding": (1, 0.5)}, "padding must be an integer >= 0 or a pair of them, got (1, 0.5)"),
    ({"padding": "full"}, "padding must be a number, a pair, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, "padding='same' needs stride 1, got stride (2, 2)"),
    ({"padding_mode": "mirror"}, "padding_mode must be one of zeros, reflect, replicate, circular, got 'mirror'"),
    ({"taps": "rotate4"}, "taps must be one of 'free', 'shared', 'profile', got 'rotate4'"),
    ({"path": "ellipse"}, "path must be one of 'circle', 'square', got 'ellipse'"),
    ({"dtype": torch.int32}, "dtype must be a floating-point type, got torch.int32"),
    ({"dtype": torch.complex64}, "dtype must be a floating-point type, got torch.complex64"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda case: str(case)[:50])
def test_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"in_channels": 4, "out_channels": 6} | arguments
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        RotateConv2d(**arguments)
    assert "\n" not in str(caught.value)


def test_unknown_argument() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'transposed'"):
        RotateConv2d(4, 6, 3, transposed=True)  # type: ignore[call-arg]


def test_integers_of_other_libraries() -> None:
    layer = RotateConv2d(np.int64(4), np.int64(6), np.int64(3), np.int32(2), (np.int64(1), 1))
    assert layer(torch.zeros(1, 4, 8, 8)).shape == (1, 6, 4, 4)
    assert repr(layer) == repr(RotateConv2d(4, 6, 3, 2, 1))


def test_lists_as_pairs() -> None:
    assert repr(RotateConv2d(4, 6, [3, 3], [1, 2], [0, 1], [2, 1])) == repr(
        RotateConv2d(4, 6, (3, 3), (1, 2), (0, 1), (2, 1))
    )


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(2, 2, 3), nn.Linear(2, 2), RotateConv2d(2, 2), None]
)
def test_from_what_is_no_convolution(module: Any) -> None:
    with pytest.raises(TypeError, match=f"expected an nn.Conv2d, got {type(module).__name__}"):
        RotateConv2d.from_conv(module)


@pytest.mark.parametrize(("size", "found"), [(1, "1"), (2, "2"), ((1, 3), r"\(1, 3\)"), ((3, 5), r"\(3, 5\)")])
def test_from_a_convolution_with_another_kernel(size: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be .*odd .*>= 3.*, got {found}$"):
        RotateConv2d.from_conv(nn.Conv2d(2, 2, size))


def test_from_a_convolution_without_values() -> None:
    with pytest.raises(ValueError, match="expected a convolution with values, got one on the meta device"):
        RotateConv2d.from_conv(nn.Conv2d(2, 2, 3, device="meta"))


def test_from_a_convolution_with_nan() -> None:
    conv = nn.Conv2d(2, 2, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="kernel must be finite, got 1 NaN or infinite values"):
        RotateConv2d.from_conv(conv)


def test_from_a_complex_convolution() -> None:
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, got torch\.complex64"):
        RotateConv2d.from_conv(nn.Conv2d(2, 2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("forms", [{"taps": "rotate2"}, {"path": "line"}, {"angle_groups": 3}], ids=str)
def test_from_conv_with_unknown_forms(forms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be (one of|divisible by)"):
        RotateConv2d.from_conv(nn.Conv2d(2, 2, 3), **forms)
