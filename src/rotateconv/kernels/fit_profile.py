"""Least squares for line segments that share a profile: one for all slices of a row, an angle for each slice.

The method is variable projection: weights, which are linear, never appear as unknowns, because for given profile and
angles the best ones are known in closed form. What is left is searched on a grid, then by Gauss-Newton.

Reference:
    Golub, Pereyra, "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables
    Separate", SIAM Journal on Numerical Analysis, 1973.
    Kaufman, "A variable projection method for solving separable nonlinear least squares problems", BIT, 1975: the
    Gauss-Newton step below, which leaves out the derivative of the projection.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rotateconv.kernels.fit_search import GRID, Segments, best_on_grid, grid_angles, in_chunks, refine
from rotateconv.kernels.line import Path, tap_slopes, tap_splats, unit_profile


class _Effort(NamedTuple):
    """How far the search goes, and what that costs.

    Measured on 64 x 64 random slices of 3 x 3 (58 ms on one core, a relative residual of 0.75388) and on as many
    exact line segments (102 ms, 3e-8).

    coarse: Every so many angles of the grid decide between the starts, 48 in a turn. Twice as many take 65 ms and
        change the residual of the random slices by 1e-6.
    fine: Every so many angles are searched where only Gauss-Newton follows. All of them take 80 ms, for 0.75384.
    near: A row is nearly made of line segments if it leaves less than this share of its square at the coarse
        angles, and a random one leaves more. Such a row gets full searches in float64: without, exact ones end at
        4e-5; with them for all, random ones take 180 ms, for 0.75384.
    rounds: Of full searches, at most; the rows above need one or two.
    largest: So many of the largest slices offer their own taps as the profile, one start each: 0.75402 with one.
    steps: Of Gauss-Newton, at most: rows of line segments end at rounding after 4 to 8.
    """

    coarse: int = 15
    fine: int = 3
    near: float = 0.25
    rounds: int = 4
    largest: int = 3
    steps: int = 12


_EFFORT = _Effort()


class _Grid(NamedTuple):
    """Angles to search: [angle], float64, and at each the splats of the taps, [angle, tap, position]."""

    angles: Tensor
    basis: Tensor
    size: int
    path: Path

    def every(self, step: int) -> "_Grid":
        """Every `step`-th of the angles."""
        return self._replace(angles=self.angles[::step], basis=self.basis[::step])


def fit_profiles(rows: Tensor, size: int, path: Path) -> tuple[Tensor, Tensor]:
    """Minimize Σ_i ‖K_i - w_i · Σ_t profile[t] · S_t(angle_i)‖² for every row of slices K_i.

    Given the profile, every slice searches its own angle on the grid; given angles and weights, the profile is a
    T x T linear problem. The two alternate on few angles from several starts; the best goes on with more angles
    and ends with Gauss-Newton steps for profile and angles together. A row of line segments, or nearly, is worth
    more: there Gauss-Newton in float64 reaches rounding, once no slice is left on the wrong side of a kink.

    Args:
        rows: [row, slice, position], floating point.
        size: k.
        path: "circle" or "square".

    Returns:
        The profiles [row, tap], of unit norm over a turn, and the angles [row, slice], both float64.
    """
    angles = grid_angles(rows.device)
    grid = _Grid(angles, Segments(size, path).basis(angles).to(rows.dtype), size, path)

    def unit(places: Tensor) -> Tensor:
        """Some of the rows, each scaled to a largest number of 1."""
        part = rows[places]
        return part / part.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(part.dtype).tiny)

    # The largest temporaries of a row: what the angles explain of its slices, their kernels, a basis for each slice.
    slices, positions = rows.shape[1], size**2
    each, kernels = max(slices, positions), slices * size * positions
    everywhere = torch.arange(len(rows), device=rows.device)
    profile, angle, left = in_chunks(
        lambda places: _start(unit(places), grid), max(each * GRID // _EFFORT.coarse, kernels), everywhere
    )
    near, far = (left < _EFFORT.near).nonzero()[:, 0], (left >= _EFFORT.near).nonzero()[:, 0]
    exact = in_chunks(
        lambda places, start, at: _finish_near(unit(places), start, at, grid),
        max(each * GRID, 4 * kernels),
        near,
        profile[near],
        angle[near],
    )
    rough = in_chunks(
        lambda places, start: _finish_far(unit(places), start, grid),
        max(each * GRID // _EFFORT.fine, 4 * kernels),
        far,
        profile[far],
    )
    for places, (found, turned) in ((near, exact), (far, rough)):
        profile, angle = profile.index_put((places,), found), angle.index_put((places,), turned)
    return unit_profile(profile, size, path), angle.remainder(2 * torch.pi)


def _start(rows: Tensor, grid: _Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The best of several starts on the coarse grid: profiles, angles, and the share of each row left over."""
    coarse = grid.every(_EFFORT.coarse)
    tries = [_alternate(rows, start, coarse.basis, turns=2) for start in _starts(rows, grid.basis)]
    best = torch.stack([value for _, _, value in tries]).argmax(0)  # [row]
    profile = torch.stack([profile for profile, _, _ in tries])[best, torch.arange(len(rows), device=rows.device)]
    profile, index, value = _alternate(rows, profile, coarse.basis, turns=4)
    return profile.double(), coarse.angles[index], 1 - value / rows.square().sum((1, 2)).clamp(min=1e-30)


def _finish_far(rows: Tensor, profile: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Profiles and angles of rows that no line segments come near: a finer grid, then Gauss-Newton, in their dtype."""
    fine = grid.every(_EFFORT.fine)
    profile, index, _ = _alternate(rows, profile.to(rows.dtype), fine.basis, turns=2)
    profile, angle, _ = _gauss_newton(rows, profile, fine.angles[index].to(rows.dtype), grid.size, grid.path)
    return profile.double(), angle.double()


def _finish_near(rows: Tensor, profile: Tensor, angle: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Profiles and angles of rows that are line segments, or nearly: Gauss-Newton in float64, from the best side."""
    free = Segments(grid.size, grid.path)
    profile, angle, _ = _gauss_newton(rows.double(), profile, angle, grid.size, grid.path)
    pending = torch.arange(len(rows), device=rows.device)
    for _ in range(_EFFORT.rounds):
        # Every slice searches the whole turn for the given profile, then profile and angles move together.
        part, given = rows[pending], free._replace(profile=profile[pending].repeat_interleave(rows.shape[1], 0))
        _, index, _ = _alternate(part, profile[pending].to(part.dtype), grid.basis, turns=0)
        turned = refine(part.double().flatten(0, 1)[:, None], grid.angles[index].flatten(), given).view_as(index)
        found, turned, left = _gauss_newton(part.double(), profile[pending], turned, grid.size, grid.path)
        profile, angle = profile.index_put((pending,), found), angle.index_put((pending,), turned)
        # Nearly exact means exact but for slices that were left on the wrong side of a kink: go on with those.
        pending = pending[(left < 1e-3) & (left > 1e-13)]
        if len(pending) == 0:
            break
    return profile, angle


def _starts(rows: Tensor, basis: Tensor) -> list[Tensor]:
    """Profiles to start from, [row, tap]: of the largest slices; the main even one, the main odd one, their sum."""
    taps = _free_taps(rows, basis[: len(basis) // 2 : _EFFORT.coarse])  # [row, slice, tap]
    starts = []
    # Half a turn reverses the taps, so the sign of the odd part is arbitrary: the two parts are found separately.
    for part in (taps + taps.flip(-1), taps - taps.flip(-1)):
        values, vectors = torch.linalg.eigh(part.mT @ part)
        starts.append(vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt())
    starts.append(starts[0] + starts[1])
    # Where all slices follow one profile, each of them shows it: the largest ones most exactly.
    largest = rows.square().sum(-1).topk(min(_EFFORT.largest, rows.shape[1]), 1).indices
    taps = _free_taps(rows[torch.arange(len(rows), device=rows.device)[:, None], largest], basis[: len(basis) // 2])
    return [*starts, *taps.unbind(1)]


def _free_taps(rows: Tensor, basis: Tensor) -> Tensor:
    """The taps [row, slice, tap] of every slice by itself at the angle of the basis that explains most of it."""
    slices = rows.flatten(0, 1)[:, None]
    index, _ = best_on_grid(slices, basis)
    inverse = torch.linalg.pinv(basis.mT)[index]  # [slice, tap, position]
    taps: Tensor = inverse @ slices.mT
    return taps.view(*rows.shape[:2], -1)


def _alternate(rows: Tensor, profile: Tensor, basis: Tensor, turns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles for the profile, profile for the angles, ...: the profile, its angles (indices) and what they explain."""
    count, vectors, positions = basis.shape
    gram = (basis @ basis.mT).flatten(1)  # [angle, tap * tap]
    for turn in range(turns + 1):
        lines, length = _unit((profile @ basis.transpose(0, 1).flatten(1)).view(-1, count, positions))
        share = rows @ lines.mT  # [row, slice, angle]
        most, index = share.abs().max(-1)
        if turn < turns:
            weight = share.gather(-1, index[..., None])[..., 0] / length.gather(1, index).clamp(min=1e-30)
            # The normal equations need of the slices at an angle only the sums of weight² and of weight · slice.
            place = (index + count * torch.arange(len(rows), device=rows.device)[:, None]).flatten()
            squares = rows.new_zeros(len(rows) * count).index_add_(0, place, weight.square().flatten())
            weighted = (weight[..., None] * rows).flatten(0, 1)
            sums = rows.new_zeros(len(rows) * count, positions).index_add_(0, place, weighted)
            moments = sums.view(-1, count * positions) @ basis.mT.reshape(-1, vectors)
            profile = _solve_normal((squares.view(-1, count) @ gram).view(-1, vectors, vectors), moments)
    return profile, index, most.square().sum(1)


def _gauss_newton(rows: Tensor, profile: Tensor, angle: Tensor, size: int, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Steps for profiles and angles at once, quadratic near an exact fit; a step that explains less is shortened.

    The weights are projected out: a step is taken in the profile and the angles alone, on the residual that is left
    with the best weights for them.

    Returns the profiles, the angles, and the share of every row's squared norm that stays unexplained.
    """

    def taps(at: Tensor) -> Tensor:
        return tap_splats(at, size, path).flatten(-2)  # [row, slice, tap, position]

    def explained(profile: Tensor, angle: Tensor) -> Tensor:
        lines = (profile[:, None, None] @ taps(angle))[:, :, 0]
        return ((lines * rows).sum(-1).square() / lines.square().sum(-1).clamp(min=1e-30)).sum(1)

    total = rows.square().sum((1, 2)).clamp(min=1e-30)
    value = explained(profile, angle)
    scale, active = torch.ones_like(value), torch.ones_like(value, dtype=torch.bool)
    for _ in range(_EFFORT.steps):
        basis, slopes = taps(angle), tap_slopes(angle, size, path).flatten(-2)
        # [row, slice, position]
        line, turned = ((profile[:, None, None] @ vectors)[:, :, 0] for vectors in (basis, slopes))
        weight = (line * rows).sum(-1, keepdim=True) / line.square().sum(-1, keepdim=True).clamp(min=1e-30)
        # What the weight and the angle of a slice can take up by themselves lies along these two directions.
        along, _ = _unit(line)
        across, speed = _unit(turned - along * (along * turned).sum(-1, keepdim=True))
        directions = torch.stack([along, across], -2)  # [row, slice, 2, position]
        design, residual = weight[..., None] * basis, rows - weight * line
        free = design - (design @ directions.mT) @ directions
        change = _normal_solve(free, residual, gauge=profile)
        left = residual - (change[:, None, None] @ design)[:, :, 0]
        speed = (weight * speed[..., None])[..., 0]
        turn = (across * left).sum(-1) * speed / (speed.square() + 1e-12 * speed.square().mean(1, keepdim=True) + 1e-30)
        new_profile = profile + scale[:, None] * change
        new_angle = angle + scale[:, None] * turn.clamp(-0.05, 0.05)
        new_value = explained(new_profile, new_angle)
        better = (new_value > value) & active
        profile = torch.where(better[:, None], new_profile, profile)
        angle = torch.where(better[:, None], new_angle, angle)
        gain = (new_value - value).abs() / new_value.clamp(min=1e-30)
        value = torch.where(better, new_value, value)
        scale = torch.where(better, (2 * scale).clamp(max=1.0), scale / 4)
        # Only a row that is nearly exact is worth the last digits. Every row by itself: chunks change nothing.
        active = active & (gain > torch.where(value > 0.999 * total, 1e-15, 1e-5)) & (scale > 1e-4)
        if not active.any():
            break
    return profile, angle, 1 - value / total


def _normal_solve(design: Tensor, rows: Tensor, gauge: Tensor | None = None) -> Tensor:
    """Least squares Σ_{slice, position} (rows - profile · design)² for the profile [row, tap].

    Args:
        design: [row, slice, tap, position].
        rows: [row, slice, position].
        gauge: [row, tap], a direction that changes nothing and stays at 0, if there is one.
    """
    normal = torch.einsum("rstc,rsuc->rtu", design, design)
    return _solve_normal(normal, torch.einsum("rstc,rsc->rt", design, rows), gauge)


def _solve_normal(normal: Tensor, moments: Tensor, gauge: Tensor | None = None) -> Tensor:
    """The profile [row, tap] of the normal equations [row, tap, tap], where they are singular the smallest one."""
    size = normal.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    identity = torch.eye(normal.shape[-1], device=normal.device, dtype=normal.dtype)
    normal = normal + (torch.finfo(normal.dtype).eps * size + torch.finfo(normal.dtype).tiny) * identity
    if gauge is not None:
        unit, _ = _unit(gauge)
        normal = normal + size * unit[:, :, None] * unit[:, None, :]
    profile: Tensor = torch.linalg.solve(normal, moments)
    return profile


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors scaled to length 1 (or left at 0), and their lengths."""
    length = vector.norm(dim=-1)
    return vector / length.clamp(min=1e-30)[..., None], length
