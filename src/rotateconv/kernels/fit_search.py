"""Least squares for line segments with one angle: what a segment explains of given slices, and its best angle."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rotateconv.kernels.line import Path, tap_slopes, tap_splats

GRID = 720  # angles in a full turn that are tried first: half a degree apart
_STEP = 2 * torch.pi / GRID
_CHUNK = 1 << 21  # numbers in the largest temporary
_OFF = 1e-9  # from a grid angle into its interval: exactly on a kink, the derivative is the mean of both sides
_STEPS = 12  # of regula falsi; it ends at rounding after about six


class Segments(NamedTuple):
    """A family of line segments with free weights: of every tap, or of a given profile as a whole.

    size: k. path: "circle" or "square".
    profile: None for free taps, else [bundle, tap] or [1, tap].
    rank_one: the slices of a bundle must use multiples of one segment: the profile is unknown but shared.
    outer: leave out the center tap and the center position. A free center tap fits that one exactly at every angle,
        so the best angle is the same without it; and a large center cannot drown the rest in rounding.
    """

    size: int
    path: Path
    profile: Tensor | None = None
    rank_one: bool = False
    outer: bool = False

    def basis(self, angle: Tensor) -> Tensor:
        """[bundle] angles -> [bundle, vector, position], the vectors that the weights multiply."""
        return self._combined(tap_splats(angle, self.size, self.path).flatten(2))

    def slope(self, angle: Tensor) -> Tensor:
        """The derivative of `basis` by the angle."""
        return self._combined(tap_slopes(angle, self.size, self.path).flatten(2))

    def of(self, index: Tensor) -> "Segments":
        """The family of some of the bundles."""
        if self.profile is None or len(self.profile) == 1:
            return self
        return self._replace(profile=self.profile[index])

    def positions(self, slices: Tensor) -> Tensor:
        """Those of all positions [..., position] that the family is compared on."""
        return _without_middle(slices) if self.outer else slices

    def _combined(self, taps: Tensor) -> Tensor:
        if self.outer:
            taps = _without_middle(_without_middle(taps).mT).mT
        return taps if self.profile is None else self.profile[:, None] @ taps


def in_chunks(function: Callable[..., tuple[Tensor, ...]], numbers: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply a function to equal parts of tensors of one length, and join what it returns.

    Args:
        function: takes parts of `tensors`, returns a tuple of tensors of the parts' length.
        numbers: how many numbers the function's largest temporary holds for each row; it bounds the parts.
        *tensors: of one length.
    """
    rows = max(1, _CHUNK // numbers)
    parts = [function(*part) for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]
    return tuple(torch.cat(results) for results in zip(*parts, strict=True))


def solve(bundles: Tensor, basis: Tensor, rank_one: bool = False) -> Tensor:
    """The least-squares weights of slices in a basis.

    Args:
        bundles: [bundle, slice, position].
        basis: [bundle, vector, position].
        rank_one: the slices of a bundle must use multiples of one vector of the span: the best one.

    Returns:
        [bundle, slice, vector]
    """
    moments, gram = basis @ bundles.mT, basis @ basis.mT
    if basis.shape[1] == 1:
        return (moments / gram.clamp(min=torch.finfo(gram.dtype).tiny)).mT
    if not rank_one:
        weight: Tensor = torch.linalg.solve(gram, moments).mT
        return weight
    lower = torch.linalg.cholesky(gram)
    inside = torch.linalg.solve_triangular(lower, moments, upper=False)  # in an orthonormal basis of the span
    leading = torch.linalg.eigh(inside @ inside.mT)[1][..., -1:]
    vector = torch.linalg.solve_triangular(lower.mT, leading, upper=True)  # [bundle, vector, 1]
    best: Tensor = (inside.mT @ leading) @ vector.mT
    return best


def best_on_grid(bundles: Tensor, basis: Tensor, rank_one: bool = False) -> tuple[Tensor, Tensor]:
    """For every bundle, the index of the basis [angle, vector, position] that explains most of it, and how much."""
    count, vectors, _ = basis.shape
    lower = torch.linalg.cholesky(basis @ basis.mT)
    orthonormal = torch.linalg.solve_triangular(lower, basis, upper=False).flatten(0, 1)

    def scores(part: Tensor) -> tuple[Tensor, ...]:
        moments = (part @ orthonormal.mT).unflatten(-1, (count, vectors))  # [bundle, slice, angle, vector]
        if rank_one and vectors > 1:
            found = torch.linalg.eigvalsh(torch.einsum("bsav,bsaw->bavw", moments, moments))[..., -1]
        else:
            found = moments.square_().sum((1, 3))
        best = found.max(1)
        return best.indices, best.values

    index, value = in_chunks(scores, bundles.shape[1] * count * vectors, bundles)
    return index, value


def refine(bundles: Tensor, angle: Tensor, segments: Segments) -> Tensor:
    """Climb from the best angles of the grid to the maximum of what the segments explain, in the next interval.

    With W the best weights, the explained part f(θ) = ‖W·S(θ)‖² has the derivative 2·⟨X - W·S, W·S'⟩: its zero is
    bracketed by the interval and found by regula falsi (Illinois), in float64, to rounding. The kinks of a 3 x 3
    kernel lie on the grid; where f rises to both sides of one, both intervals are searched.

    Args:
        bundles: [bundle, slice, position], float64.
        angle: [bundle], float64, on the grid.
        segments: of these bundles.

    Returns:
        [bundle] angles that explain at least as much as those given.
    """
    best, most = angle, _explained(bundles, angle, segments)
    for side in (1, -1):
        start = angle + side * _OFF
        rising = (side * _slope(bundles, start, segments) > 0).nonzero()[:, 0]
        if len(rising):
            part, family = bundles[rising], segments.of(rising)
            found = _climb(part, start[rising], start[rising] + side * (_STEP - 2 * _OFF), family)
            value = _explained(part, found, family)
            better = value > most[rising]
            best = best.index_put((rising[better],), found[better])
            most = most.index_put((rising[better],), value[better])
    return best


def _climb(bundles: Tensor, near: Tensor, far: Tensor, segments: Segments) -> Tensor:
    """The zero of the derivative between two angles, by regula falsi with Illinois's halving."""
    low, high = torch.minimum(near, far), torch.maximum(near, far)
    at_near, at_far = _slope(bundles, near, segments), _slope(bundles, far, segments)
    for _ in range(_STEPS):
        step = at_far * (far - near) / (at_far - at_near)
        new = torch.clamp(far - step.nan_to_num(0.0, 0.0, 0.0), low, high)
        at_new = _slope(bundles, new, segments)
        crossed = at_new * at_far < 0  # then the zero lies between the two newest
        near, at_near = torch.where(crossed, far, near), torch.where(crossed, at_far, at_near / 2)
        moved, far, at_far = (new - far).abs().max(), new, at_new
        if moved < 1e-12:
            break
    return far


def _explained(bundles: Tensor, angle: Tensor, segments: Segments) -> Tensor:
    basis = segments.basis(angle)
    return (solve(bundles, basis, segments.rank_one) @ basis).square().sum((1, 2))


def _slope(bundles: Tensor, angle: Tensor, segments: Segments) -> Tensor:
    """Half the derivative of the explained part by the angle."""
    basis = segments.basis(angle)
    weight = solve(bundles, basis, segments.rank_one)
    return ((bundles - weight @ basis) * (weight @ segments.slope(angle))).sum((1, 2))


def grid_angles(device: torch.device) -> Tensor:
    """The angles of the grid, [GRID], from 0 on, in float64: the kinks must lie on it."""
    return torch.arange(GRID, device=device, dtype=torch.float64) * _STEP


def _without_middle(tensor: Tensor) -> Tensor:
    """The last dimension without its middle element."""
    middle = tensor.shape[-1] // 2
    return torch.cat([tensor[..., :middle], tensor[..., middle + 1 :]], -1)
