"""`rotateconv train`: one model, one data set, one run folder."""

import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import keys, options
from rotateconv.lab.cli.shared.console import duration, make_console, say
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.cli.shared.settings import check_names, described, fine_tuned
from rotateconv.lab.config import RunConfig, changed, overridden
from rotateconv.lab.naming import counted, default_folder
from rotateconv.lab.run_config import SOURCE_KEYS
from rotateconv.lab.train.events import Event
from rotateconv.lab.train.run_results import RunSummary

EXAMPLES = options.examples(
    ("The embedded digits, a minute:", "rotateconv train"),
    ("ResNet-20 of rotate4 on CIFAR-10:", "rotateconv train --data cifar10 --download --model resnet20 --conv rotate4"),
    ("An image folder:", "rotateconv train --data folder --data-dir photos --image-size 32 --epochs 30"),
    ("Go on after Ctrl-C:", "rotateconv train --resume runs/digits-resnet20-rotate4-seed0"),
    ("Quantized to 4 bits, from a finished run:", "rotateconv train --source runs/digits-resnet20-rotate4-seed0 --qat"),
    ("Two processes:", "torchrun --nproc-per-node 2 -m rotateconv train --out runs/two"),
)


@keys.takes("changes", RunConfig, without=("source",))
def train(
    *,
    changes: keys.Given | None = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    download: options.Download = False,
    source: Annotated[
        Path | None,
        options.value(
            "--source",
            "RUN",
            "Go on from a trained model: its recipe with half the epochs and learning rate, it being the teacher. "
            "With --conv, a dense one goes on as layers of that kind, fitted to its kernels.",
            options.MODEL,
        ),
    ] = None,
    out: Annotated[
        Path | None, options.value("--out", "RUN", "The run folder; runs/DATA-MODEL-CONV-seedN.", options.RUN)
    ] = None,
    resume: Annotated[
        Path | None, options.value("--resume", "RUN", "Go on with the run in this folder.", options.RUN)
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    log_with: options.LogWith = None,
) -> None:
    """Train a model and keep weights, records and configuration in a run folder.

    Ctrl-C saves and says how to go on; a second Ctrl-C leaves at once.
    """
    values, called = keys.read(RunConfig, changes)
    everything = {**values, **overridden(set_ or ())}
    if resume is not None:
        given = {"--out": out, "--config": config, "--source": source, "--overwrite": overwrite}
        refuse({**given, "--recipe": values.get("recipe")}, "--resume")
        settings, run = _resumed(resume, everything, called), resume
    elif source is not None:
        if source.is_file():
            raise ConfigError(
                f"--source takes the folder of a run, and {source} is a file: rotateconv convert goes on from weights"
            )
        given = {called.get(key, key): everything[key] for key in SOURCE_KEYS if key in everything and key != "conv"}
        refuse({**given, "--config": config}, "--source, whose own it keeps")
        settings = fine_tuned(source, values=everything, called=called)
        named = f"-{settings.conv}" if "conv" in everything else ""
        run = out or default_folder("tune", settings, source, named)
    else:
        settings = described(config, values, called, set_)
        run = out or default_folder("train", settings)
    options.use_device(device)
    run_training(
        settings,
        run,
        resume=resume is not None,
        overwrite=overwrite,
        download=download,
        trackers=options.trackers(log_with),
    )


def _resumed(run: Path, values: Mapping[str, Any], called: Mapping[str, str]) -> RunConfig:
    """Return the configuration of the run that is resumed, with what the command line says differently."""
    from rotateconv.lab.train.run_folder import read_config

    named = values.get("factory")
    return changed(read_config(run, factory=named if isinstance(named, str) else None), values, called)


def run_training(
    settings: RunConfig, run: Path, *, resume: bool, overwrite: bool, download: bool, trackers: tuple[str, ...]
) -> None:
    """Train, and show how it goes."""
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.cli.shared.progress import TrainingProgress
    from rotateconv.lab.train.fit import fit
    from rotateconv.lab.train.trackers import Trackers

    console = make_console()
    check_names(settings.data, settings.model, settings.conv)
    done = resume and (run / "summary.json").is_file()
    load = partial(load_shown, console=console, download=download)
    try:
        with closing(Trackers(trackers)) as tracked, closing(TrainingProgress(console)) as progress:

            def on_event(event: Event) -> None:
                progress(event)
                tracked(event)

            summary = fit(settings, run, data=load, resume=resume, overwrite=overwrite, on_event=on_event)
        if done:
            say(console, f"{run} is finished already")
        _tell(console, run, summary, settings.epochs)
    except KeyboardInterrupt:
        again = f"rotateconv train --resume {shlex.quote(str(run))}"
        how = f"go on from the last checkpoint with {again}" if (run / "config.json").is_file() else "nothing was saved"
        raise KeyboardInterrupt(f"stopped at once: {how}") from None
    finally:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def _tell(console: Console, run: Path, summary: RunSummary, epochs: int) -> None:
    """Print what a finished run found, and what to do with it."""
    text = f"test accuracy {summary.test_accuracy:.2f} %, loss {summary.test_loss:.4f}"
    if summary.best_epoch is not None:
        text += f"; best validation accuracy {summary.best_validation_accuracy:.2f} % in epoch {summary.best_epoch}"
    console.print(text, style="bold", soft_wrap=True)
    say(console, f"{counted(epochs, 'epoch')} in {duration(summary.seconds)}, kept in {run}")
    say(console, f"look closer with: rotateconv evaluate {shlex.quote(str(run))}")
