"""RotateConfig: the options that make a convolution a RotateConv2d, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rotateconv.errors import InputError
from rotateconv.kernels.line import Path, Taps, check_path, check_taps
from rotateconv.kernels.separable import Form, check_form
from rotateconv.nn import arguments


@dataclass(frozen=True)
class RotateConfig:
    """What a `RotateConv2d` has beyond the arguments of nn.Conv2d; the constructor's keywords are its fields.

    Attributes:
        taps: "free" (T weights per slice), "shared" (one) or "profile" (one, and T per output channel).
        path: "circle" (a tap keeps its distance to the center) or "square" (its ring of the grid).
        angle_groups: G equal groups of output channels that share the angles; None for one angle per slice.
        learn_angle: Whether the angles are parameters, or buffers that stay as they are.
        form: "auto", "dense" or "separable": how a layer with angle groups computes its output.
        learn_profile: Whether the profiles are parameters, or buffers that stay as they are.

    Raises:
        ValueError: If an option is not one of these, or two of them exclude each other.

    Example:
        >>> RotateConfig("profile", angle_groups=4)
        RotateConfig(taps='profile', path='circle', angle_groups=4, learn_angle=True, form='auto', learn_profile=True)
    """

    taps: Taps = "free"
    path: Path = "circle"
    angle_groups: int | None = None
    learn_angle: bool = True
    form: Form = "auto"
    learn_profile: bool = True

    def __post_init__(self) -> None:
        check_taps(self.taps)
        check_path(self.path)
        check_form(self.form)
        if self.angle_groups is not None:
            arguments.positive("angle_groups", self.angle_groups)
            object.__setattr__(self, "angle_groups", int(self.angle_groups))  # an integer of NumPy is not JSON
        for name in ("learn_angle", "learn_profile"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not self.learn_profile and self.taps != "profile":
            raise InputError(f'learn_profile=False needs taps="profile", got taps={self.taps!r}: leave it out')
        if self.form == "separable" and not self.is_separable:
            raise InputError(
                'form="separable" needs angle_groups, taps="shared" or taps="profile", '
                f"got angle_groups={self.angle_groups} and taps={self.taps!r}"
            )

    @property
    def is_separable(self) -> bool:
        """Whether the layer equals line filters of its angle groups, followed by a pointwise convolution."""
        return self.angle_groups is not None and self.taps != "free"

    def check_layer(self, out_channels: int, groups: int) -> None:
        """Raise ValueError unless a layer with so many output channels and groups can have these options."""
        if self.angle_groups is not None:
            arguments.divides("angle_groups", self.angle_groups, out_channels=out_channels)
        if self.form == "separable" and groups != 1:
            raise InputError(f'form="separable" needs groups=1, got groups={groups}')

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON can hold them; the two youngest only where they are not the default.

        Example:
            >>> RotateConfig("shared").to_dict()
            {'taps': 'shared', 'path': 'circle', 'angle_groups': None, 'learn_angle': True}
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if name in _ALWAYS or value != _DEFAULTS[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RotateConfig":
        """The options of `to_dict`; those that are not there have their default.

        Raises:
            ValueError: If an option is unknown, or its value is not one that it can have.

        Example:
            >>> RotateConfig.from_dict({"taps": "shared"}) == RotateConfig("shared")
            True
        """
        if not isinstance(values, Mapping) or not set(values) <= set(_DEFAULTS):
            found = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise InputError(f"the options of a RotateConv2d are {', '.join(_DEFAULTS)}, got {found}")
        return cls(**values)


_DEFAULTS = {field.name: field.default for field in fields(RotateConfig)}
_ALWAYS = ("taps", "path", "angle_groups", "learn_angle")  # in every packed file: older readers compare them
