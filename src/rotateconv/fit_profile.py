"""Least squares for line segments that share a profile: one for all slices of a row, an angle for each slice."""

import torch
from torch import Tensor

from rotateconv.kernel import Path, tap_footprints, tap_slopes, unit_profile
from rotateconv.search import GRID, Segments, best_on_grid, grid_angles, in_chunks, refine, solve

_COARSE = 15  # every so many angles of the grid are enough to decide between the starts: 48 in a turn
_ROUNDS = 4  # of searching all angles again, for rows that are nearly exact
_LARGEST = 3  # slices of a row whose own taps are tried as its profile
_STEPS = 12  # of Gauss-Newton: it ends at rounding after 4 to 8 where the slices are line segments


def fit_profiles(rows: Tensor, size: int, path: Path) -> tuple[Tensor, Tensor]:
    """Minimise Σ_i ‖K_i - w_i · Σ_t profile[t] · S_t(angle_i)‖² for every row of slices K_i.

    Given the profile, every slice searches its own angle on the grid; given angles and weights, the profile is a
    T x T linear problem. The two take turns from several starts; the best goes on with Gauss-Newton steps for profile
    and angles together.

    Args:
        rows: [row, slice, cell], floating point.
        size: k.
        path: "circle" or "square".

    Returns:
        The profiles [row, tap], of unit norm over a turn, and the angles [row, slice], both float64.
    """
    angles = grid_angles(rows.device)
    free = Segments(size, path)
    basis = free.basis(angles).to(rows.dtype)  # [angle, tap, cell]

    def fit(part: Tensor) -> tuple[Tensor, ...]:
        coarse = basis[::_COARSE]
        tries = [_take_turns(part, start, coarse, turns=2) for start in _starts(part, angles, basis, free)]
        values = torch.stack([value for _, _, value in tries])  # [start, row]
        profile = torch.stack([profile for profile, _, _ in tries])[values.argmax(0), torch.arange(len(part))]
        profile, index, _ = _take_turns(part, profile, coarse, turns=4)
        profile, angle, _ = _gauss_newton(part, profile, angles[::_COARSE][index], size, path)
        unfinished = torch.arange(len(part), device=part.device)
        for _ in range(_ROUNDS):
            rows = part[unfinished]
            found, turned, left = search(rows, profile[unfinished])
            profile, angle = profile.index_put((unfinished,), found), angle.index_put((unfinished,), turned)
            # Nearly exact means exact but for slices that were left on the wrong side of a kink: go on with those.
            unfinished = unfinished[(left < 1e-3) & (left > 1e-13)]
            if len(unfinished) == 0:
                break
        return profile, angle

    def search(rows: Tensor, profile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every slice searches the whole turn for the given profile, then profile and angles move together."""
        _, index, _ = _take_turns(rows, profile.to(rows.dtype), basis, turns=0)
        given = free._replace(profile=profile.repeat_interleave(rows.shape[1], 0))
        angle = refine(rows.double().flatten(0, 1)[:, None], angles[index].flatten(), given).view_as(index)
        return _gauss_newton(rows, profile, angle, size, path)

    profile, angle = in_chunks(fit, rows.shape[1] * max(GRID, 4 * size**3), rows)
    return unit_profile(profile, size, path), angle.remainder(2 * torch.pi)


def _starts(rows: Tensor, angles: Tensor, basis: Tensor, free: Segments) -> list[Tensor]:
    """Profiles to start from, [row, tap]: of the largest slices; the main even one, the main odd one, their sum."""
    slices = rows.flatten(0, 1)[:, None]
    index, _ = best_on_grid(slices, basis[: len(basis) // 2 : _COARSE])
    taps = solve(slices, basis[::_COARSE][index])[:, 0].unflatten(0, rows.shape[:2])  # [row, slice, tap]
    starts = []
    # Half a turn reverses the taps, so the sign of the odd part is arbitrary: the two parts are found separately.
    for part in (taps + taps.flip(-1), taps - taps.flip(-1)):
        values, vectors = torch.linalg.eigh(part.mT @ part)
        starts.append(vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt())
    starts.append(starts[0] + starts[1])
    # Where all slices follow one profile, each of them shows it: the largest ones most exactly.
    for largest in rows.square().sum(-1).topk(min(_LARGEST, rows.shape[1]), 1).indices.T:
        slices = rows[torch.arange(len(rows), device=rows.device), largest][:, None]
        index, _ = best_on_grid(slices, basis[: len(basis) // 2])
        angle = refine(slices.double(), angles[index], free)
        starts.append(solve(slices.double(), free.basis(angle))[:, 0].to(rows.dtype))
    return starts


def _take_turns(rows: Tensor, profile: Tensor, basis: Tensor, turns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles for the profile, profile for the angles, ...: the profile, its angles (indices) and what they explain."""
    for turn in range(turns + 1):
        lines, length = _unit(torch.einsum("rt,atc->rac", profile, basis))
        value, index = (rows @ lines.mT).square_().max(-1)  # over [row, slice, angle]
        if turn < turns:
            line = lines[torch.arange(len(rows), device=rows.device)[:, None], index]  # [row, slice, cell]
            weight = (rows * line).sum(-1) / length.gather(1, index).clamp(min=1e-30)
            profile = _normal_solve(weight[..., None, None] * basis[index], rows)
    return profile, index, value.sum(1)


def _gauss_newton(rows: Tensor, profile: Tensor, angle: Tensor, size: int, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Steps for profiles and angles at once, quadratic near an exact fit; a step that explains less is shortened.

    Returns the profiles, the angles, and the share of every row's squared norm that stays unexplained.
    """

    def taps(at: Tensor) -> Tensor:
        return tap_footprints(at, size, path).flatten(-2)  # [row, slice, tap, cell]

    def explained(profile: Tensor, angle: Tensor) -> Tensor:
        lines = (profile[:, None, None] @ taps(angle))[:, :, 0]
        return ((lines * rows).sum(-1).square() / lines.square().sum(-1).clamp(min=1e-30)).sum(1)

    rows, profile = rows.double(), profile.double()
    total = rows.square().sum((1, 2)).clamp(min=1e-30)
    value = explained(profile, angle)
    scale, active = torch.ones_like(value), torch.ones_like(value, dtype=torch.bool)
    for _ in range(_STEPS):
        basis, slopes = taps(angle), tap_slopes(angle, size, path).flatten(-2)
        line, turned = (
            (profile[:, None, None] @ vectors)[:, :, 0] for vectors in (basis, slopes)
        )  # [row, slice, cell]
        weight = (line * rows).sum(-1, keepdim=True) / line.square().sum(-1, keepdim=True).clamp(min=1e-30)
        # What the weight and the angle of a slice can take up by themselves lies along these two directions.
        along, _ = _unit(line)
        across, speed = _unit(turned - along * (along * turned).sum(-1, keepdim=True))
        directions = torch.stack([along, across], -2)  # [row, slice, 2, cell]
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
    """Least squares Σ_{slice, cell} (rows - profile · design)² for the profile [row, tap].

    Args:
        design: [row, slice, tap, cell].
        rows: [row, slice, cell].
        gauge: [row, tap], a direction that changes nothing and stays at 0, if there is one.
    """
    normal = torch.einsum("rstc,rsuc->rtu", design, design)
    size = normal.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    identity = torch.eye(normal.shape[-1], device=normal.device, dtype=normal.dtype)
    normal = normal + (torch.finfo(normal.dtype).eps * size + torch.finfo(normal.dtype).tiny) * identity
    if gauge is not None:
        unit, _ = _unit(gauge)
        normal = normal + size * unit[:, :, None] * unit[:, None, :]
    profile: Tensor = torch.linalg.solve(normal, torch.einsum("rstc,rsc->rt", design, rows))
    return profile


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors scaled to length 1 (or left at 0), and their lengths."""
    length = vector.norm(dim=-1)
    return vector / length.clamp(min=1e-30)[..., None], length
