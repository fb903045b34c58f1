"""`rotateconv search`: the recipe that the validation split likes best."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import executors, keys, options
from rotateconv.lab.cli.shared.console import facts, make_console, say
from rotateconv.lab.cli.shared.errors import going_on, without_torchrun
from rotateconv.lab.cli.shared.settings import check_names, described
from rotateconv.lab.cli.shared.unread import refuse_unread
from rotateconv.lab.config import RunConfig
from rotateconv.lab.naming import default_folder

if TYPE_CHECKING:
    from rich.console import Console

    from rotateconv.lab.study.search import SearchResult

EXAMPLES = options.examples(
    ("Learning rates and weight decay on the embedded digits:", "rotateconv search --trials 20 --out runs/search"),
    ("Of quantization-aware training:", "rotateconv search --qat --weight-bits-range 2,4 --out runs/bits"),
    ("On a Ray cluster:", "rotateconv search --on ray --gpus-per-run 0.25 --trials 200 --out /shared/search"),
)


def _range(key: str, usual: str) -> Parameter:
    help = f"Lowest and highest {key}, or none; {usual}."
    return Parameter(name=_range_option(key), metavar="A,B", group=options.STUDY, help=help)


def _range_option(key: str) -> str:
    return f"--{key.replace('_', '-')}-range"


_RECIPES = "a tenth to ten times the recipe's"


@keys.takes("changes", RunConfig)
def search(
    *,
    changes: keys.Given | None = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    download: options.Download = False,
    lr_range: Annotated[str | None, _range("lr", _RECIPES)] = None,
    weight_decay_range: Annotated[str | None, _range("weight_decay", _RECIPES)] = None,
    angle_lr_scale_range: Annotated[str | None, _range("angle_lr_scale", f"{_RECIPES}, of angles that learn")] = None,
    weight_bits_range: Annotated[str | None, _range("weight_bits", "none, and only with --qat")] = None,
    angle_bits_range: Annotated[str | None, _range("angle_bits", "none, and only with --qat")] = None,
    trials: Annotated[
        int,
        options.value(
            "--trials", "INTEGER", "Configurations, with those of earlier calls; 30.", options.STUDY, show_default=False
        ),
    ] = 30,
    no_pruning: Annotated[
        bool, options.switch("--no-pruning", "Train all to the end, also those behind the median.", options.STUDY)
    ] = False,
    out: Annotated[
        Path | None, options.value("--out", "DIR", "For trials and best.toml; runs/search-DATA.", options.RUN)
    ] = None,
    where: executors.Where = executors.Where(),  # noqa: B008
    log_with: options.LogWith = None,
) -> None:
    """Search the learning rate, weight decay and angle learning rate with the best validation accuracy.

    Optuna proposes, the first proposal being the recipe as it is; the test split is never evaluated: that is left to
    rotateconv train --config DIR/best.toml. The same command goes on after Ctrl-C, and with more --trials. More bits
    nearly always win: a range of them shows where they stop to.
    """
    without_torchrun("search")
    base = described(config, *keys.read(RunConfig, changes), set_)
    given = {
        "lr": lr_range,
        "weight_decay": weight_decay_range,
        "angle_lr_scale": angle_lr_scale_range,
        "weight_bits": weight_bits_range,
        "angle_bits": angle_bits_range,
    }
    chosen = {key: _numbers(key, text) for key, text in given.items() if text is not None}
    refuse_unread(chosen, {key: _range_option(key) for key in chosen}, [base])
    trackers = options.trackers(log_with)
    out = out or default_folder("search", base)

    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.cli.shared.study_progress import StudyProgress
    from rotateconv.lab.data.description import DataDescription
    from rotateconv.lab.study import search as library

    with where.executor(out) as executor:
        check_names(base.data, base.model, base.conv)
        console = make_console()
        data = DataDescription.of(load_shown(base.images, console, download=download))
        together = {**library.default_ranges(base, data), **chosen}
        ranges = {key: pair for key, pair in together.items() if pair is not None}
        with going_on(), closing(StudyProgress(console, base, None, data, out)) as progress:
            found = library.search(
                base,
                ranges,
                out,
                trials=trials,
                prune=not no_pruning,
                jobs=where.jobs,
                executor=executor,
                trackers=trackers,
                on_event=progress,
            )
    _show(console, found, ranges, out / library.BEST)


def _show(console: "Console", found: "SearchResult", ranges: dict[str, tuple[float, float]], file: Path) -> None:
    """Print what was searched, and the best."""
    started = "" if found.start_accuracy is None else f", {found.start_accuracy:.2f} % before the search"
    facts(
        console,
        {
            "trials": f"{found.trials}, {found.pruned} of them stopped early or diverged",
            "searched": ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in ranges.items()),
            "best": f"validation accuracy {found.accuracy:.2f} %{started}",
            "file": str(file),
        },
    )
    say(console, file.read_text(encoding="utf-8").rstrip())


def _numbers(key: str, text: str) -> tuple[float, float] | None:
    """Return the range in a text; None for the word none."""
    if text.strip() == "none":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ConfigError(
            f"{_range_option(key)} must be two numbers with a comma between, or none, not {text!r}"
        ) from None
    return low, high
