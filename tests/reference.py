"""The slow twin of the library in NumPy: the kernel by its formula, the input sampled bilinearly at the taps.

Written from the formulas alone; nothing of the library is imported here. Everything is float64.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def tap_places(angle: Any, size: int, path: str) -> tuple[Array, Array]:
    """Rows and columns of the taps, from the center, (..., T): row = -t·ρ·sin θ, column = t·ρ·cos θ."""
    sin, cos = np.sin(np.asarray(angle, dtype=np.float64)), np.cos(np.asarray(angle, dtype=np.float64))
    rho = {"circle": np.ones_like(sin), "square": 1 / np.maximum(np.abs(sin), np.abs(cos))}[path]
    taps = np.arange(size) - (size - 1) / 2
    return -taps * (rho * sin)[..., None], taps * (rho * cos)[..., None]


def splats(angle: Any, size: int, path: str) -> Array:
    """S of every tap: Λ(row of the tap - r)·Λ(column of the tap - c), (..., T, k, k)."""
    rows, cols = tap_places(angle, size, path)
    cells = np.arange(size) - (size - 1) / 2
    share_of_row = np.maximum(0, 1 - np.abs(rows[..., None] - cells))
    share_of_col = np.maximum(0, 1 - np.abs(cols[..., None] - cells))
    return share_of_row[..., :, None] * share_of_col[..., None, :]


def line_kernel(weight: Any, angle: Any, size: int = 3, path: str = "circle") -> Array:
    """K = Σ_t W_t·S_t, from weights (..., T) or (..., 1) and angles (...)."""
    weight = np.asarray(weight, dtype=np.float64)
    return (weight[..., None, None] * splats(angle, size, path)).sum(-3)


def distance_to_kink(angle: Any, size: int, path: str) -> Array:
    """How far the nearest moving tap is from a grid line, in cells, (...)."""
    places = np.stack(tap_places(angle, size, path))
    if path == "square":  # the larger coordinate stays on its line; the smaller one is what moves
        places = np.take_along_axis(places, np.abs(places).argmin(0)[None], 0)
    moving = np.delete(places, size // 2, axis=-1)
    return np.abs(moving - np.round(moving)).min((0, -1))


def best_residual(kernel: Any, angles: Array, size: int, path: str, profile: Any = None) -> Array:
    """The smallest ‖K - W·S(θ)‖ over some angles θ, with the least-squares weights of each.

    Args:
        kernel: (n, k, k).
        angles: the angles to try.
        profile: None for free weights, else (T): its multiples.

    Returns:
        (n)
    """
    cells = np.asarray(kernel, dtype=np.float64).reshape(-1, size * size)
    best = np.full(len(cells), np.inf)
    for basis in splats(angles, size, path).reshape(len(angles), size, -1):
        vectors = basis if profile is None else (np.asarray(profile) @ basis)[None]
        orthonormal = np.linalg.svd(vectors, full_matrices=False)[2]
        best = np.minimum(best, np.linalg.norm(cells - cells @ orthonormal.T @ orthonormal, axis=1))
    return best


def slice_taps(
    weight: Array, angle: Array, profile: Array | None, size: int, taps: str, angle_groups: int | None
) -> Iterator[tuple[int, int, Array, float]]:
    """The taps' weights and the angle of every slice: (output channel, input channel, (T), angle)."""
    for out, i in np.ndindex(weight.shape[:2]):
        group = None if angle_groups is None else out // (len(weight) // angle_groups)
        if taps == "free":
            values = weight[out, i]
        elif taps == "shared":
            values = np.full(size, weight[out, i, 0])
        else:
            assert profile is not None
            values = weight[out, i, 0] * (profile[out] if group is None else profile[group, i])
        yield out, i, values, float(angle[out, i] if group is None else angle[group, i])


def rotate_conv2d(
    images: Array,
    weight: Array,
    angle: Array,
    bias: Array | None = None,
    profile: Array | None = None,
    *,
    size: int = 3,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    taps: str = "free",
    path: str = "circle",
    angle_groups: int | None = None,
) -> Array:
    """What RotateConv2d computes, without a kernel: every output reads the padded input at the taps' places.

    A dilation d spreads the cells of the kernel: it is laid on its own k x k grid first, and the cell (r, c)
    then reads the pixel d·(r, c) away. So an output sees the sublattice of pixels that are d apart and holds
    its center, and samples that lattice bilinearly at the place of the tap counted in lattice steps. (Sampling
    all pixels at d times the place would mix the nearest pixels instead, which no k x k kernel can do.)

    Args:
        images: (N, in, H, W).
        weight, angle, bias, profile: as in the layer.
        size: k; the rest as in the layer.

    Returns:
        (N, out, H', W')
    """
    (step_row, step_col), (apart_row, apart_col) = pair(stride), pair(dilation)
    half = size // 2
    if isinstance(padding, str):
        padding = {"valid": (0, 0), "same": (half * apart_row, half * apart_col)}[padding]
    pad_row, pad_col = pair(padding)
    padded = np.pad(images, ((0, 0), (0, 0), (pad_row, pad_row), (pad_col, pad_col)), mode=PAD_MODES[padding_mode])
    out_rows = (padded.shape[2] - 2 * half * apart_row - 1) // step_row + 1
    out_cols = (padded.shape[3] - 2 * half * apart_col - 1) // step_col + 1

    def pixels(channel: int, row: int, col: int) -> Array:
        """For every output, the pixel (row, col) lattice steps from its center, (N, H', W')."""
        if max(abs(row), abs(col)) > half:  # beyond the kernel: only ever asked for with a share of zero
            return np.zeros((len(images), out_rows, out_cols))
        top, left = (half + row) * apart_row, (half + col) * apart_col
        rows, cols = top + step_row * np.arange(out_rows), left + step_col * np.arange(out_cols)
        return padded[:, channel][:, rows][:, :, cols]

    def sampled(channel: int, row: float, col: float) -> Array:
        """Bilinear interpolation between the four pixels around a place."""
        above, left = int(np.floor(row)), int(np.floor(col))
        down, right = row - above, col - left
        upper = (1 - right) * pixels(channel, above, left) + right * pixels(channel, above, left + 1)
        lower = (1 - right) * pixels(channel, above + 1, left) + right * pixels(channel, above + 1, left + 1)
        return (1 - down) * upper + down * lower

    result = np.zeros((len(images), len(weight), out_rows, out_cols))
    for out, i, values, theta in slice_taps(weight, angle, profile, size, taps, angle_groups):
        channel = out // (len(weight) // groups) * weight.shape[1] + i
        for value, row, col in zip(values, *tap_places(theta, size, path), strict=True):
            result[:, out] += value * sampled(channel, row, col)
    return result if bias is None else result + bias[:, None, None]


def pair(value: Any) -> tuple[int, int]:
    """A number as a (height, width) pair of it."""
    return (value, value) if isinstance(value, int) else tuple(value)
