"""`rotateconv compare`: configurations by seeds, and the table of what they reached."""

import dataclasses
from pathlib import Path
from typing import Annotated

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import executors, keys, options
from rotateconv.lab.cli.shared.errors import refuse, without_torchrun
from rotateconv.lab.cli.shared.settings import described
from rotateconv.lab.config import RunConfig, overridden
from rotateconv.lab.keys import KeyValueError, fields_of, read_toml
from rotateconv.lab.naming import default_folder
from rotateconv.lab.study.plan import Study, contrasts_from

EXAMPLES = options.examples(
    ("The paper's layers on the embedded digits:", "rotateconv compare"),
    (
        "On CIFAR-10, with dense models of equal size:",
        "rotateconv compare --data cifar10 --download --equal-params --out runs/cifar10",
    ),
    ("Accuracy against bytes too:", "rotateconv compare --sizes --out runs/digits"),
    ("A study in a file, one run at a time:", "rotateconv compare --config study.toml --jobs 1"),
    ("On a Ray cluster, four runs on a GPU:", "rotateconv compare --on ray --gpus-per-run 0.25 --out /shared/study"),
)
_OF_THE_STUDY = tuple(key for key in fields_of(Study) if key != "base")
_OF_A_RUN = {"model": "--models", "conv": "--convs", "seed": "--seeds"}


@keys.takes("study", Study, without=("base", "contrasts"), group=options.STUDY)
@keys.takes("changes", RunConfig, without=tuple(_OF_A_RUN))
def compare(
    *,
    study: keys.Given | None = None,
    changes: keys.Given | None = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    download: options.Download = False,
    sizes: Annotated[
        bool,
        options.switch(
            "--sizes", "Then compare accuracy against bytes too, of the finished runs at several bits.", options.STUDY
        ),
    ] = False,
    with_: Annotated[
        list[Path] | None,
        options.value(
            "--with",
            "RUN",
            "With --sizes: a finished run of elsewhere, such as a converted one; may be repeated.",
            options.STUDY,
        ),
    ] = None,
    bits: Annotated[
        str | None, options.value("--bits", "A,B", "With --sizes: of a weight; 32,8,6,4,3,2.", options.STUDY)
    ] = None,
    out: Annotated[
        Path | None, options.value("--out", "DIR", "For runs and table; runs/compare-DATA.", options.RUN)
    ] = None,
    where: executors.Where = executors.Where(),  # noqa: B008
    together: Annotated[
        int | None,
        options.value(
            "--together",
            "INTEGER",
            "Runs in one process, taking turns step by step: for small models on a GPU; 1.",
            options.RUN,
        ),
    ] = None,
    overwrite: Annotated[bool, options.switch("--overwrite", "Start every run again.", options.RUN)] = False,
    log_with: options.LogWith = None,
) -> None:
    """Train models with several seeds and compare them with the dense model of the same recipe.

    The same command goes on after Ctrl-C: finished runs are skipped. DIR gets comparison.json, .md and .png, and
    with --sizes also sizes.json, .md and .png: what each model is worth in a packed file of so many bytes.
    """
    without_torchrun("compare")
    if not sizes:
        refuse({"--with": with_, "--bits": bits}, "no --sizes")
    if where.on != "local":
        refuse({"--together": together}, f"--on {where.on}")
    plan = planned(config, study, changes, set_)
    out = out or default_folder("compare", plan.base)
    widths = None if bits is None else _widths(bits)
    trackers = options.trackers(log_with)
    from rotateconv.lab.cli.shared.comparison import run_comparison

    run_comparison(
        plan,
        out,
        where.executor(out),
        jobs=where.jobs,
        together=1 if together is None else together,
        overwrite=overwrite,
        download=download,
        trackers=trackers,
        sizes=sizes,
        widths=widths,
        others=with_ or (),
    )


def planned(
    file: Path | None, study: keys.Given | None = None, changes: keys.Given | None = None, set_: list[str] | None = None
) -> Study:
    """Return the study that a file describes, and over it the options."""
    in_file = {} if file is None else read_toml(file)
    for key in (*in_file, *overridden(set_ or ())):
        if key in _OF_A_RUN:
            raise ConfigError(f"a comparison has no {key} of its own: give {_OF_A_RUN[key]}")
    values, called = keys.read(Study, study)
    found = {key: in_file[key] for key in _OF_THE_STUDY if key in in_file} | values
    try:
        plan = Study(RunConfig(), **{**found, "contrasts": contrasts_from(found.get("contrasts", {}))})
    except KeyValueError as mistake:
        raise mistake.of(called.get(mistake.key, f"{file}: {mistake.key}")) from None
    given = keys.read(RunConfig, changes)
    base = described(file, *given, set_, foreign=_OF_THE_STUDY, models=plan.models, convs=plan.convs)
    if base.factory is not None and (count := len(plan.models) * len(plan.convs)) > 1:
        raise ConfigError(f"{base.factory} builds one model, not {count}: give one of --convs and of --models with it")
    return dataclasses.replace(plan, base=base)


def _widths(text: str) -> tuple[int, ...]:
    """Return the bits of --bits."""
    names = [name.strip() for name in text.split(",")]
    if not all(name.isdigit() for name in names):
        raise ConfigError(f"--bits must be whole numbers with commas between, such as 32,8,4, not {text!r}")
    return tuple(map(int, names))
