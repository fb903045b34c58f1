"""Keys that have no meaning beside the others: refused where the user gave them, not in files and presets."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rotateconv.errors import ConfigError
from rotateconv.lab.keys import fields_of
from rotateconv.lab.naming import layers_name
from rotateconv.lab.run_config import RunConfig

if TYPE_CHECKING:
    from rotateconv.nn.config import RotateConfig


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a run reads a key, and what is said where no run does, behind the key's name."""

    reads: Callable[[RunConfig], bool]
    sentence: Callable[[Sequence[RunConfig]], str]


def refuse_unread(given: Mapping[str, object], called: Mapping[str, str] | None, runs: Sequence[RunConfig]) -> None:
    """Raise ConfigError where the user gave a key that no run reads.

    Args:
        given: values by key of options and --set; none, which asks for nothing, is passed over.
        called: what the user calls the keys; else the key.
        runs: configurations with these values: one, or all that are compared.

    Example:
        >>> refuse_unread({"gamma": 0.5}, {"gamma": "--gamma"}, [RunConfig(schedule="cosine")])
        Traceback (most recent call last):
        rotateconv.errors.ConfigError: --gamma is of schedule=steps, not cosine: set --schedule steps, or leave it out
    """
    for key, value in given.items():
        for rule in RULES.get(key, ()) if value is not None else ():
            if not any(map(rule.reads, runs)):
                raise ConfigError(f"{(called or {}).get(key, key)} {rule.sentence(runs)}")


@functools.cache
def _layer_of(conv: str) -> "RotateConfig | None":
    """Return the options of the RotateConv layers with this name; None of other layers."""
    import torch

    from rotateconv.models.convs import find_conv
    from rotateconv.nn.conv import RotateConv2d

    with torch.device("meta"):
        layer = find_conv(conv)(16, 16, 3)
    return layer.config if isinstance(layer, RotateConv2d) else None


def _turns(run: RunConfig) -> bool:
    """Whether angles may learn: what a user's own function builds is not looked at."""
    if run.factory is not None or (run.convert_taps is not None and run.convert_learn_angle):
        return True
    layer = _layer_of(run.conv)
    return layer is not None and layer.learn_angle


def _has_open_profiles(run: RunConfig) -> bool:
    """Whether there may be profiles that a layer does not itself say how to begin."""
    if run.factory is not None or run.convert_taps == "profile":
        return True
    layer = _layer_of(run.conv)
    return layer is not None and layer.taps == "profile" and layer.learn_profile


def _without(what: str) -> Callable[[Sequence[RunConfig]], str]:
    def sentence(runs: Sequence[RunConfig]) -> str:
        names = dict.fromkeys(layers_name(run) for run in runs)
        return f"is of {what}, and there are none in {', '.join(names)}: leave it out"

    return sentence


_STEPS = Rule(
    lambda run: run.schedule == "steps",
    lambda runs: f"is of schedule=steps, not {runs[0].schedule}: set --schedule steps, or leave it out",
)
_TAUGHT = Rule(
    lambda run: run.teacher is not None,
    lambda _: "is of training with a teacher: name a run with --teacher, or leave it out",
)
_TURNING = Rule(_turns, _without("angles that learn"))
_PROFILES = Rule(_has_open_profiles, _without("profiles that learn"))
_FRESH = Rule(
    lambda run: run.source is None,
    lambda runs: f"is of fresh weights, and those of {runs[0].source} are there already: leave it out",
)
_BY_NAME = Rule(
    lambda run: run.factory is None,
    lambda runs: f"is of a model of this library, and {runs[0].factory} builds its own: leave it out",
)
_CONVERTED = Rule(
    lambda run: run.convert_taps is not None,
    lambda _: "says what dense convolutions become: set convert_taps too, or leave it out",
)
_OF_CONVERSION = [name for name in fields_of(RunConfig) if name.startswith("convert_") and name != "convert_taps"]

RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("milestones", "gamma"), (_STEPS,)),
    **dict.fromkeys(("teacher_weight", "teacher_temperature"), (_TAUGHT,)),
    **dict.fromkeys(("angle_lr_scale", "angle_grad_scale", "angle_weight_decay"), (_TURNING,)),
    "angle_init": (_FRESH, _TURNING),
    "profile_init": (_FRESH, _PROFILES),
    **dict.fromkeys(("model", "conv", "width", "growth", "dropout"), (_BY_NAME,)),
    **dict.fromkeys(_OF_CONVERSION, (_CONVERTED,)),
}
"""What has to be for a key to have a meaning; others have one in every run, or are refused by those who read them."""
