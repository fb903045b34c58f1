"""One table of tolerances: how far numbers of size one may lie apart, for every dtype."""

import torch

# A dozen roundings of a float64; the same for float32, where the angle itself is rounded by 1e-7 a radian;
# one rounding of the result in half precision, which is computed in float32.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def assert_close(found: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Compare elementwise, at the tolerance of the coarser dtype times the size of the numbers.

    Args:
        found, expected: of one shape and device.
        scale: the size of the numbers that were summed, where it is not one.
    """
    tolerance = scale * max(TOLERANCE[found.dtype], TOLERANCE[expected.dtype])
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, check_dtype=False, check_stride=False)
