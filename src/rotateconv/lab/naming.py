"""What a model and a run are called, everywhere."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rotateconv.lab.config import RunConfig

if TYPE_CHECKING:
    from rotateconv.quantization.pack_description import PackedDescription


def counted(number: int, thing: str) -> str:
    """Return how many there are of a thing.

    Example:
        >>> counted(1, "epoch"), counted(1200, "epoch")
        ('1 epoch', '1,200 epochs')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def layers_label(config: RunConfig) -> str:
    """Return what the layers of its model are called: a key of `CONVS`, or the taps that a trained model got.

    Example:
        >>> layers_label(RunConfig(conv="conv3x3", width=0.6875)), layers_label(RunConfig(convert_taps="profile"))
        ('conv3x3 x0.69', 'profile taps')
        >>> layers_label(RunConfig(convert_taps="profile", convert_only="stages.2.*"))
        'profile taps in stages.2.*'
    """
    name = layers_name(config)
    return name if config.width == 1 else f"{name} x{config.width:.2f}"


def layers_name(config: RunConfig) -> str:
    """Return what they are called whatever their width.

    Example:
        >>> layers_name(RunConfig(conv="conv3x3", width=0.6875))
        'conv3x3'
    """
    if config.convert_taps is not None:
        return f"{config.convert_taps} taps" + (f" in {config.convert_only}" if config.convert_only else "")
    return config.conv if config.factory is None else "as built"


def architecture_name(config: RunConfig) -> str:
    """Return what a configuration's architecture is called: its name, or the function that builds the user's own."""
    return config.factory or config.model


def model_name(config: RunConfig) -> str:
    """Return what a configuration's model is called in one line.

    Example:
        >>> model_name(RunConfig(model="resnet20", conv="rotate2p", qat=True, weight_bits=4))
        'resnet20, rotate2p, trained with 4-bit weights'
        >>> model_name(RunConfig(qat=True, weight_bits=2, layer_bits=("stages.0.*=4",)))
        'resnet20, rotate4, trained with 2- to 4-bit weights'
    """
    name = f"{architecture_name(config)}, {layers_label(config)}"
    if config.bits is None:
        return name
    widths = {config.bits.weight, *(weight for _, (weight, _) in config.bits.layers)}
    few, most = min(widths), max(widths)
    return (
        f"{name}, trained with {few}-bit weights"
        if few == most
        else f"{name}, trained with {few}- to {most}-bit weights"
    )


def packed_name(description: "PackedDescription") -> str:
    """Return what the model of a packed file is called in one line."""
    build, layers = description.build, description.layers
    taps = ", ".join(f"{taps} taps" for taps in dict.fromkeys(config.taps for config in layers.values()))
    if build is None:
        return f"{description.architecture}, {taps}" if taps else description.architecture
    width = build.get("width", 1)
    return f"{build['name']}, {taps or build['conv']}{'' if width == 1 else f' x{width:.2f}'}"


def run_name(config: RunConfig) -> str:
    """Return what the folder of a run is called.

    Example:
        >>> run_name(RunConfig(conv="conv3x3", width=0.5, seed=2)), run_name(RunConfig(convert_taps="free"))
        ('resnet20-conv3x3-w0.5-seed2', 'resnet20-free-taps-seed0')
    """
    model = re.sub(r"\W+", "-", architecture_name(config))
    layers = re.sub(r"[^\w.]+", "-", layers_name(config)).rstrip(".-")
    width = "" if config.width == 1 else f"-w{config.width:g}"
    return f"{model}-{layers}{width}-seed{config.seed}"


Maker = Literal["train", "tune", "compare", "search", "convert", "finish", "shrink"]
"""What makes a folder of `runs`: a command, or train --source."""


def default_folder(maker: Maker, config: RunConfig, source: Path = Path(), detail: object = "") -> Path:
    """Return where a command writes whose user did not say; `detail` is the budget of shrink or the layers of tune.

    Example:
        >>> default_folder("shrink", RunConfig(), Path("runs/dense"), 40000).as_posix()
        'runs/dense-40000'
    """
    data = Path(config.data_dir).resolve().name if config.data == "folder" and config.data_dir else config.data
    names: dict[Maker, str] = {
        "train": f"{data}-{run_name(config)}",
        "tune": f"{source.name}{detail}-{'qat' if config.qat else 'tuned'}",
        "compare": f"compare-{data}",
        "search": f"search-{data}",
        "convert": f"{source.stem}-{config.convert_taps}",
        "finish": f"{source.resolve().name}-w{config.weight_bits}-a{config.angle_bits}",
        "shrink": f"{source.resolve().stem}-{detail}",
    }
    return Path("runs", names[maker])
