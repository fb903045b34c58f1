"""The work of `rotateconv compare`: its runs, then its tables on the console, and where they are kept."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from itertools import product
from pathlib import Path

from rich.console import Console

from rotateconv.errors import FAULT
from rotateconv.lab.cli.shared.console import facts, make_console, say, show_table
from rotateconv.lab.cli.shared.errors import going_on
from rotateconv.lab.cli.shared.loading import load_shown
from rotateconv.lab.cli.shared.settings import check_names
from rotateconv.lab.cli.shared.study_progress import StudyProgress
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import CommandError, Failure
from rotateconv.lab.naming import counted
from rotateconv.lab.report.comparison import write_comparison, write_sizes
from rotateconv.lab.report.page import SIZES_CAPTION, caption
from rotateconv.lab.report.statistics import Group
from rotateconv.lab.report.tables import COMPARISON, MODEL, group_table, sizes_table
from rotateconv.lab.study.compare import compare
from rotateconv.lab.study.events import RecordsChanged, StudyEvent
from rotateconv.lab.study.executor import Executor
from rotateconv.lab.study.plan import Study
from rotateconv.lab.study.sizes import BITS, SizesTable, measure_sizes
from rotateconv.lab.train.run_folder import read_config


def run_comparison(
    plan: Study,
    out: Path,
    place: AbstractContextManager[Executor | None],
    *,
    jobs: int | None,
    together: int,
    overwrite: bool,
    download: bool,
    trackers: tuple[str, ...],
    sizes: bool,
    widths: Sequence[int] | None,
    others: Sequence[Path],
) -> None:
    """Do the runs of a study and show what they found; with `sizes`, at which bytes, beside other runs."""
    for run in others:
        read_config(run)  # a folder that cannot be measured in the end is refused at the beginning
    with place as executor:
        for model, conv in product(plan.models, plan.convs):
            check_names(plan.base.data, model, conv)
        console = make_console()
        images = load_shown(plan.base.images, console, download=download)
        data = DataDescription.of(images)
        with going_on(), closing(StudyProgress(console, plan.base, plan.seeds, data, out)) as progress:

            def on_event(event: StudyEvent) -> None:
                progress(event)
                if isinstance(event, RecordsChanged):
                    write_comparison(event.records, plan.contrasts, out)

            records = compare(
                plan,
                data,
                out,
                jobs=jobs,
                together=together,
                executor=executor,
                overwrite=overwrite,
                trackers=trackers,
                on_event=on_event,
            )
    groups = write_comparison(records, plan.contrasts, out)
    _show_comparison(console, groups, out)
    if sizes:
        runs = [out / "runs" / run.name for group in groups for run in group.runs]
        table = SizesTable(images.name, tuple(measure_sizes([*runs, *others], images, widths or BITS)))
        write_sizes(table, out)
        _show_sizes(console, table, out)
    if failed := sum(record.summary is None for record in records):
        message = f"{failed} of {len(records)} runs diverged: {out / 'comparison.md'} says where"
        raise CommandError(Failure(FAULT, message))


def _show_comparison(console: Console, groups: Sequence[Group], out: Path) -> None:
    """Print the table of a comparison, one per model, what the numbers mean, and its files."""
    for model in dict.fromkeys(group.model for group in groups):
        own = [group for group in groups if group.model == model]
        run = (*own[0].runs, *own[0].failed)[0]
        title = f"{run.data.name}, {model}, {counted(run.config.epochs, 'epoch')} of {run.config.recipe}"
        show_table(console, group_table(own, [column for column in COMPARISON if column is not MODEL]), title)
    console.print(caption(groups), style="dim", width=min(100, console.width))
    for group in groups:
        for run in group.failed:
            say(console, f"{group.model} {group.label}, seed {run.config.seed}: {run.failed}")
    console.print()
    _show_files(console, out, "comparison")


def _show_sizes(console: Console, table: SizesTable, out: Path) -> None:
    """Print accuracy against bytes, what the numbers mean, and its files."""
    show_table(console, sizes_table(table.rows, strong=""), f"{table.dataset}: accuracy against bytes")
    console.print(SIZES_CAPTION, style="dim", width=min(100, console.width))
    _show_files(console, out, "sizes")


def _show_files(console: Console, out: Path, name: str) -> None:
    files = {"table": "md", "records": "json", "picture": "png"}
    facts(console, {what: str(out / f"{name}.{end}") for what, end in files.items()})
