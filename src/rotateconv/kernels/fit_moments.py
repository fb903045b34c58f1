"""Line segments fitted to what a layer computes, not to its kernel: least squares of its output, slice by slice."""

from typing import NamedTuple

import torch
from torch import Tensor

from rotateconv.kernels.fit_search import best_on_grid, solve
from rotateconv.kernels.line import Path, Taps, line_kernel, tap_splats, unit_profile

_ANGLES = 360  # in a turn that are tried for every slice, a degree apart


class Moments(NamedTuple):
    """What the output error of a convolution depends on, of as many positions of its input as one likes.

    With patches x of the input, (in · k · k), and the outputs y that are wanted, (out)::

        E ‖y - K·x‖² = trace(K·A·Kᵀ) - 2 trace(K·Tᵀ) + E ‖y‖²,    A = E x·xᵀ,    T = E y·xᵀ

    inputs: A, (in · k², in · k²).
    outputs: T, (out, in · k²).
    """

    inputs: Tensor
    outputs: Tensor


class SegmentFit(NamedTuple):
    """Parameters of line segments, as `fit_line` returns them: weight, angle and profile or None."""

    weight: Tensor
    angle: Tensor
    profile: Tensor | None


def fit_moments(
    moments: Moments, start: SegmentFit, taps: Taps, size: int, path: Path, *, groups: int | None = None, passes: int
) -> SegmentFit:
    """Lower the output error E ‖y - K·x‖² of line segments K, from a start on, by block coordinate descent.

    Of all slices but those of one input channel the kernel is held; what these add to the error depends on the k² x k²
    block of A alone, so in its Cholesky basis they are an ordinary least-squares fit, with the best weights of every
    angle in closed form. Angles are searched over the whole turn, every channel in turn, `passes` times; profiles of
    output channels follow after each pass. No step raises the error.

    Args:
        moments: Float64, A positive definite.
        start: Of one convolution group: weight (out, in, T) or (out, in, 1), angle (out, in) or (G, in), profile
            (out, T), (G, in, T) or None.
        taps, size, path: Of the segments, with k = size.
        groups: G equal groups of output channels that share the angle of an input channel.
        passes: Over all input channels.

    Returns:
        The parameters, float64.
    """
    fit = _Descent(moments, start, taps, size, path, groups)
    for _ in range(passes):
        for channel in range(fit.angle.shape[-1]):
            fit.improve(channel)
        if taps == "profile" and groups is None:
            fit.improve_profiles()
    return SegmentFit(fit.weight, fit.angle, fit.profile)


class _Descent:
    """The parameters, their kernel, and the moments of the output that is still missing."""

    def __init__(
        self, moments: Moments, start: SegmentFit, taps: Taps, size: int, path: Path, groups: int | None
    ) -> None:
        self.moments, self.taps, self.size, self.path = moments, taps, size, path
        self.weight, self.angle = start.weight.double().clone(), start.angle.double().clone()
        self.profile = None if start.profile is None else start.profile.double().clone()
        self.own = groups is None  # every slice has an angle of its own
        # Half a turn later free taps are the same in reverse order, and shared taps are the same.
        turn = _ANGLES if taps == "profile" and self.own else _ANGLES // 2
        angles = torch.arange(turn, device=self.angle.device, dtype=torch.float64) * (2 * torch.pi / _ANGLES)
        self.angles, self.splats = angles, tap_splats(angles, size, path).flatten(2)  # [angle, tap, position]
        self._reset()

    def _reset(self) -> None:
        channels = range(self.weight.shape[1])
        slices = [self._slices(self.weight[:, i], self.angle[:, i], self._profiles(i)) for i in channels]
        self.kernel = torch.stack(slices, 1)  # [out, in, position]
        self.missing = self.moments.outputs - self.kernel.flatten(1) @ self.moments.inputs

    def _profiles(self, channel: int) -> Tensor | None:
        """The profiles of an input channel's slices, one for each angle."""
        return self.profile if self.own or self.profile is None else self.profile[:, channel]

    def _slices(self, weight: Tensor, angle: Tensor, profile: Tensor | None) -> Tensor:
        """The slices [out, position] of an input channel: weights [out, vector], angles and profiles of each bundle."""
        bundle = len(weight) // len(angle)
        taps = weight if profile is None else weight * profile.repeat_interleave(bundle, 0)
        return line_kernel(taps, angle.repeat_interleave(bundle, 0), self.size, self.path).flatten(1)

    def improve(self, channel: int) -> None:
        """Give the slices of an input channel the best angles and weights, the others held."""
        place = slice(channel * self.size**2, (channel + 1) * self.size**2)
        lower = torch.linalg.cholesky(self.moments.inputs[place, place])
        old = self.kernel[:, channel]
        target = torch.linalg.solve_triangular(lower, self.missing[:, place].mT, upper=False).mT + old @ lower
        bundles = target.unflatten(0, (len(self.angle), -1))  # [bundle, slice, position]
        index, weight, profile = self._search(bundles, lower)
        angle = self.angles[index]
        new = self._slices(weight, angle, self._profiles(channel) if profile is None else profile)
        # The start may lie between two angles that are tried.
        error, before = ((target - kernel @ lower).square().sum(1) for kernel in (new, old))
        better = (error - before).unflatten(0, (len(angle), -1)).sum(1) < 0
        each = better.repeat_interleave(bundles.shape[1])[:, None]
        self.angle[better, channel] = angle[better]
        self.weight[:, channel] = torch.where(each, weight, self.weight[:, channel])
        if profile is not None and self.profile is not None:
            self.profile[better, channel] = profile[better]
        change = torch.where(each, new - old, 0.0)
        self.kernel[:, channel] += change
        self.missing -= change @ self.moments.inputs[place]

    def _search(self, bundles: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The best angle (its index), weights [out, vector] and profile of each bundle, in the basis of `lower`."""
        basis = self.splats @ lower  # [angle, tap, position]
        if self.profile is not None and self.own:
            return *self._search_profiles(bundles[:, 0], basis), None
        if self.taps == "shared":
            basis = basis.sum(1, keepdim=True)
        together = self.profile is not None
        index, _ = best_on_grid(bundles, basis, rank_one=together)
        weight = solve(bundles, basis[index], rank_one=together)
        if not together:
            return index, weight.flatten(0, 1), None
        largest = weight.abs().amax(2).argmax(1)[:, None, None].expand(-1, 1, self.size)
        profile = unit_profile(weight.gather(1, largest)[:, 0], self.size, self.path)
        return index, solve(bundles, profile[:, None] @ basis[index]).flatten(0, 1), profile

    def _search_profiles(self, slices: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """The same where every output channel has a profile, and so a basis, of its own."""
        assert self.profile is not None
        # The line of a profile p at an angle is p · basis: its product with a slice, and its square.
        share = torch.einsum("ato,ot->ao", basis @ slices.mT, self.profile)
        squares = self.profile[:, :, None] * self.profile[:, None, :]
        length = ((basis @ basis.mT).flatten(1) @ squares.flatten(1).mT).clamp(min=1e-300)
        best = (share.square() / length).argmax(0, keepdim=True)
        return best[0], (share / length).gather(0, best).mT

    def improve_profiles(self) -> None:
        """Give every output channel the best profile, its angles and weights held."""
        assert self.profile is not None
        out = len(self.weight)
        vectors = (self.weight[..., None] * tap_splats(self.angle, self.size, self.path).flatten(-2)).transpose(1, 2)
        vectors = vectors.reshape(out, self.size, -1)  # [out, tap, in · position]
        seen = vectors @ self.moments.inputs
        gram = seen @ vectors.mT
        gram = gram + 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-300) * torch.eye(
            self.size, dtype=gram.dtype, device=gram.device
        )
        wanted = (vectors @ self.moments.outputs[:, :, None])[..., 0]
        profile = torch.linalg.solve(gram, wanted)
        unit = unit_profile(profile, self.size, self.path)
        # The profile keeps its norm of 1 over a turn, and the weights take up what it was longer.
        scale = (profile * unit).sum(1) / unit.square().sum(1)
        self.profile, self.weight = unit, self.weight * scale[:, None, None]
        self._reset()
