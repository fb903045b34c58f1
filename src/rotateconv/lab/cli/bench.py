"""`rotateconv bench`: what the layer costs on this machine, beside others."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.console import make_console, say
from rotateconv.lab.plain import to_json

if TYPE_CHECKING:
    from rotateconv.lab.bench.record import BenchRecord, LostRow, Row

EXAMPLES = options.examples(
    ("Decide for this machine, some minutes:", "rotateconv bench"),
    ("The numbers that the layer must reach:", "rotateconv bench --targets --out bench"),
    ("All sizes, hours:", "rotateconv bench --full --out bench"),
    ("The tables of a page from a record:", "rotateconv bench --record bench/bench.json --page docs/speed.md"),
)


def bench(
    *,
    full: Annotated[bool, options.switch("--full", "All sizes, precisions and models: hours.")] = False,
    targets: Annotated[
        bool, options.switch("--targets", "Only what has a number to reach, measured against wanted.")
    ] = False,
    eager: Annotated[
        bool, options.switch("--eager", "Leave out the cases with torch.compile, which take the longest.")
    ] = False,
    device: options.Device = None,
    seconds: Annotated[float, options.value("--seconds", "NUMBER", "For each form of each case, about.")] = 0.5,
    out: Annotated[Path | None, options.value("--out", "DIR", "Folder for bench.json, bench.md and bench.png.")] = None,
    record: Annotated[
        Path | None, options.value("--record", "FILE", "Measure nothing: the bench.json for --page.")
    ] = None,
    page: Annotated[
        Path | None, options.value("--page", "FILE", "Make the tables of this Markdown page anew, from --record.")
    ] = None,
) -> None:
    """Time the layer, its forms and its rivals: medians of interleaved repeats, each form checked first.

    The first form of a case is the one that the others are compared with.
    """
    if full and targets:
        raise ConfigError("--full and --targets are two sets of cases: leave one of them out")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds must be a number above 0, not {seconds:g}")
    if (record is None) != (page is None):
        raise ConfigError("--page needs --record" if record is None else "--record needs --page")
    if record is not None and page is not None:
        _fill(page, record)
    else:
        _measure(full=full, targets=targets, eager=eager, name=device, seconds=seconds, out=out)


def _fill(page: Path, record: Path) -> None:
    """Write the tables of a record into a page."""
    from rotateconv.lab.bench.record import record_from_json
    from rotateconv.lab.bench.report import fill_tables
    from rotateconv.lab.files import read_json, write_bytes
    from rotateconv.lab.report.blocks import read_page

    found = record_from_json(read_json(record), record)
    write_bytes(page, fill_tables(read_page(page), found).encode())


def _measure(*, full: bool, targets: bool, eager: bool, name: str | None, seconds: float, out: Path | None) -> None:
    """Run the bench, show it and keep it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, is talkative
    import torch

    from rotateconv.lab.bench import cases, report, run
    from rotateconv.lab.bench import targets as wanted
    from rotateconv.lab.files import make_folder, write_bytes, write_json
    from rotateconv.lab.train.device import chosen_device, is_indexed

    options.use_device(name)
    chosen = chosen_device()
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"the bench times cpu and cuda, not {chosen.type}: say --device cpu")
    if is_indexed(chosen):
        torch.cuda.set_device(chosen)
    device = chosen.type
    if out is not None:
        make_folder(out)
    console = make_console()

    def show(case: cases.Case, rows: "list[Row | LostRow]", record: "BenchRecord") -> None:
        say(console, f"{case.name}, {case.how}")
        for row in rows:
            say(console, f"    {row}")
        if out is not None:
            write_json(out / "bench.json", to_json(record))  # so far

    todo = [] if targets else cases.full_cases(device) if full else cases.quick_cases()
    goals = wanted.targets(device) if targets else []
    if eager:
        todo = [case for case in todo if not case.compiled]
        goals = [goal for goal in goals if not goal.case.compiled]
    found = run.run_bench(todo, goals, device=device, seconds=seconds, on_case=show)
    text = report.to_markdown(found)
    say(console, "\n" + text[: text.index("\n## One layer")] if "\n## One layer" in text else "\n" + text)
    if out is not None:
        write_json(out / "bench.json", to_json(found))
        write_bytes(out / "bench.md", text.encode())
        report.write_plot(found, out / "bench.png")
        say(console, f"kept in {out}: bench.json, bench.md, bench.png")
