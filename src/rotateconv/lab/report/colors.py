"""What the layers of a model are drawn with, the same in every picture: members of a family share a hue."""

from rotateconv.lab.report.statistics import Group

_FAMILIES = {
    "dense, grey": {"conv3x3": "#222222", "conv3x3-d2": "#525252", "conv5x5": "#737373", "conv7x7": "#969696"},
    "four parameters, orange": {
        "rotate4": "#d55e00",
        "rotate4-fixed": "#f4a582",
        "rotate4-g4": "#8c2d04",
        "rotate4-k5": "#ff7f0e",
        "rotate4-k7": "#ffa94d",
        "rotate4-k9": "#ffd08a",
        "free taps": "#cb181d",
    },
    "two and a profile, blue": {
        "rotate2p": "#0072b2",
        "rotate2p-fixed": "#56b4e9",
        "rotate2p-g4": "#08306b",
        "rotate2p-k5": "#4a4fc4",
        "rotate2p-k7": "#7c80e0",
        "rotate2p-k9": "#b0b3f2",
        "rotate2p-g4-k5": "#2b5c8a",
        "rotate2p-g4-k7": "#4f81ad",
        "rotate2p-g4-k9": "#86aed0",
        "profile taps": "#17becf",
    },
    "two, green": {
        "rotate2": "#009e73",
        "rotate2b": "#00593f",
        "rotate2-k5": "#33c49a",
        "rotate2-k7": "#7bd8bb",
        "rotate2-k9": "#b8eadb",
        "shared taps": "#66a61e",
    },
    "positions left out, yellow": {"line": "#e6ab02", "mask4": "#a8a000", "pattern4": "#6b6500"},
    "factors, brown": {"separable": "#8c564b", "lowrank4": "#b15928", "lowrank2": "#d9a07a", "outer": "#5b3a29"},
    "codebooks, purple": {"codebook16": "#7b3294", "codebook32": "#c2a5cf"},
    "a model of the user's own": {"as built": "#444444"},
}

COLORS = {name: color for family in _FAMILIES.values() for name, color in family.items()}
"""By the name of the layers; narrowed dense models are grey."""

_OTHER = "#aaaaaa"


def layers_color(label: str) -> str:
    """Return the color of layers by what they are called.

    Example:
        >>> layers_color("rotate2p"), layers_color("conv3x3 x0.50")
        ('#0072b2', '#222222')
    """
    return COLORS.get(label.partition(" x")[0], _OTHER)


def group_color(group: Group) -> str:
    """Return the color of a group: of its layers, and paler for a narrower dense model."""
    if group.config.conv == "conv3x3" and group.equal_to is not None:
        level = round(255 * (0.2 + 0.6 * (1 - min(1.0, group.config.width))))
        return f"#{level:02x}{level:02x}{level:02x}"
    return layers_color(group.label)
