"""The trained net that a run starts from, or learns from: another run's, or a user's own."""

from pathlib import Path

import torch
from torch import nn

from rotateconv.convert.convert import convert
from rotateconv.convert.recalibrate import evaluating
from rotateconv.convert.report import ConversionReport
from rotateconv.errors import ConfigError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.train.factory import build_from, load_weights, read_weights_file
from rotateconv.lab.train.load import DataDescription, chosen_lines, load_run


def load_source(path: str, config: RunConfig, data: DataDescription) -> nn.Module:
    """Return the trained net at `path`, on the CPU, in evaluation mode.

    Args:
        path: a run folder, or a file of weights for `config.factory`.
        config: of the run that needs it.
        data: the images of that run; the net must know the same ones.

    Raises:
        ConfigError: a file without a factory, weights that do not fit, or a net that does not take these images.
        RunError: no run folder, or one without weights.
    """
    if not Path(path).is_file():
        run = load_run(path)
        for key in ("classes", "input_shape", "mean", "std"):
            ours, theirs = getattr(data, key), getattr(run.data, key)
            if ours != theirs:
                raise ConfigError(
                    f"the net of {path} was trained with {key} {theirs}, this run has {ours}: give both the same data"
                )
        return run.model
    if config.factory is None:
        raise ConfigError(f"{path} is a file of weights: say which function builds its net, as package.module:function")
    with torch.random.fork_rng(devices=[]):
        net = build_from(config.factory)
    load_weights(net, read_weights_file(path), path)
    check_takes(net, data, config.factory)
    return net.eval()


def start_from_source(net: nn.Module, config: RunConfig, data: DataDescription) -> ConversionReport | None:
    """Give a run's net the values of its source, whose convolutions become the nearest lines where it has lines.

    Args:
        net: as `build_net` makes it; changed in place.
        config: of the run; `source` is set.
        data: its images.

    Returns:
        What became of each convolution, or None where the run has no lines or the source has them already.

    Raises:
        ConfigError, RunError: as `load_source`; or the source has other tensors than the run's net.
        ValueError: there is nothing to convert.
    """
    assert config.source is not None
    source = load_source(config.source, config, data)
    # One that was converted before has the net's tensors already.
    converted = {name: t.shape for name, t in net.state_dict().items()} == {
        name: t.shape for name, t in source.state_dict().items()
    }
    report = None if config.lines is None or converted else convert_source(source, config)
    load_weights(net, source.state_dict(), config.source)
    return report


def convert_source(source: nn.Module, config: RunConfig) -> ConversionReport:
    """Convert a trained net, in place, as `config` says; ValueError where there is nothing to convert."""
    assert config.lines is not None
    return convert(
        source,
        config.lines,
        where=chosen_lines(source, config),
        path=config.line_path,
        angle_groups=config.line_groups,
    )


def check_takes(net: nn.Module, data: DataDescription, factory: str) -> None:
    """Raise ConfigError unless a user's net maps images of the data's shape to one number a class."""
    shape = "x".join(map(str, data.input_shape))
    try:
        with evaluating(net):
            scores = net(torch.zeros(2, *data.input_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"the net of {factory} does not take images of {shape}: {told}") from error
    classes = len(data.classes)
    if not isinstance(scores, torch.Tensor) or scores.shape != (2, classes):
        found = tuple(scores.shape[1:]) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ConfigError(f"the net of {factory} must give {classes} numbers an image, one a class, not {found}")
