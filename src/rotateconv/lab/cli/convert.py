"""`rotateconv convert`: a trained model of dense convolutions becomes one of RotateConv layers."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, get_args

from rich.console import Console

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import bits, keys, options
from rotateconv.lab.cli.shared.budget import bytes_in, refuse_bits, tell_size
from rotateconv.lab.cli.shared.console import facts, make_console, say, show_table
from rotateconv.lab.cli.shared.errors import going_on, without_torchrun
from rotateconv.lab.cli.shared.settings import check_names, fine_tuned
from rotateconv.lab.config import RunConfig, overridden
from rotateconv.lab.keys import kinds_of
from rotateconv.lab.naming import default_folder
from rotateconv.lab.study.convert_record import ConversionRecord, states_table
from rotateconv.lab.train.events import RunWarning

EXAMPLES = options.examples(
    ("A run of this library:", "rotateconv convert runs/digits-resnet20-conv3x3-seed0 --taps profile"),
    (
        "Your own model and its weights:",
        "rotateconv convert model.pt --model mine:build --data folder --data-dir photos",
    ),
    ("To few bits at once:", "rotateconv convert runs/dense --taps free --qat --out runs/small"),
    ("Into 28 KB, more bits where they help most:", "rotateconv convert runs/dense --taps profile --budget 28KB"),
    ("Layer by layer, in three stages:", "rotateconv convert runs/dense --stages 3 --epochs 6"),
)
NAMES = {
    "convert_taps": "--taps",
    "convert_path": "--path",
    "convert_angle_groups": "--angle-groups",
    "convert_learn_angle": "--learn-angle",
    "convert_form": "--form",
    "convert_learn_profile": "--learn-profile",
    "convert_fit": "--fit",
    "convert_only": "--only",
    "mean": "--mean",  # shown here: a model of one's own was trained with its own
    "std": "--std",
}
_HELP = {
    "convert_taps": "Taps of the RotateConv layers that dense convolutions become; free.",
    "convert_fit": "What their fit brings near: the dense kernels, or what these compute on training images, without "
    "labels; outputs.",
}
OF_THE_SOURCE = ("model", "conv", "width", "growth", "dropout", "factory", "source")


@keys.takes("changes", RunConfig, without=OF_THE_SOURCE, names=NAMES, help=_HELP)
def convert(
    source: options.TrainedSource,
    /,
    *,
    model: options.WeightsBuiltBy = None,
    changes: keys.Given | None = None,
    stages: Annotated[
        int,
        options.value(
            "--stages",
            "INTEGER",
            "Convert a part of the layers at a time, the nearest fits first, each with its part of the epochs.",
            options.CONVERSION,
        ),
    ] = 1,
    budget: Annotated[
        str | None,
        options.value(
            "--budget",
            "BYTES",
            "Train with --qat for a packed file of so many bytes (40KB, 40000): bits of weights and angles are "
            "chosen for each part of the model.",
            show_default=False,
        ),
    ] = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    out: Annotated[Path | None, options.value("--out", "RUN", "The run folder; runs/SOURCE-TAPS.", options.RUN)] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    log_with: options.LogWith = None,
) -> None:
    """Convert a trained model to RotateConv layers, fine-tune it with its original as the teacher, and report the cost.

    A run's own recipe with half its epochs and learning rate is what it is fine-tuned with, if no option differs; its
    data too. A model of your own may want its own normalization: --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2.
    SOURCE is never changed. The same command goes on after Ctrl-C.
    """
    without_torchrun("convert", jobs=False)
    values, called = keys.read(RunConfig, changes, NAMES)
    values = {"convert_taps": "free", "convert_fit": "outputs", **values, **overridden(set_ or ())}
    choices = get_args(kinds_of(RunConfig, "convert_taps")[0])
    if (taps := values["convert_taps"]) not in choices:  # none, which the key may be, is nothing to convert to
        name, shown = called.get("convert_taps", "convert_taps"), "none" if taps is None else repr(taps)
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {shown}")
    size = None if budget is None else bytes_in(budget)
    if size is not None:
        refuse_bits(values, called)
        values["qat"] = True
    settings = fine_tuned(source, model, config, values, called)
    run = out or default_folder("convert", settings, source)
    options.use_device(device)
    _convert(settings, run, stages=stages, budget=size, overwrite=overwrite, trackers=options.trackers(log_with))


def _convert(
    settings: RunConfig, run: Path, *, stages: int, budget: int | None, overwrite: bool, trackers: tuple[str, ...]
) -> None:
    """Convert, and show how it goes."""
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.cli.shared.progress import FittingProgress, TrainingProgress
    from rotateconv.lab.study.convert import convert_run
    from rotateconv.lab.study.events import BitsAllocated, ConversionEvent, LayerFitted, ModelFitted, StageStart
    from rotateconv.lab.train.trackers import Trackers

    console = make_console()
    check_names(settings.data, settings.model, settings.conv)
    images = load_shown(settings.images, console)
    progress: list[TrainingProgress] = []
    fitting = FittingProgress(console)

    def on_event(event: ConversionEvent) -> None:
        match event:
            case LayerFitted():
                fitting.show(event)
            case BitsAllocated(found):
                say(console, f"bits: {bits.described(found.bits)}; about {found.bytes:,} bytes packed, norms folded")
            case ModelFitted():
                say(console, str(event.report))
                if settings.factory is not None:
                    mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (images.mean, images.std))
                    say(console, f"images between 0 and 1, less the mean {mean}, over the standard deviation {std}")
                few_bits = "" if event.quantized is None else f", {event.quantized:.2f} % with the bits too"
                say(
                    console,
                    f"validation accuracy: {event.source:.2f} % trained, {event.fitted:.2f} % fitted, "
                    f"{event.calibrated:.2f} % with the norms recalibrated{few_bits}",
                )
            case StageStart():
                for shown in progress:
                    shown.close()
                if event.stages > 1:
                    say(console, f"stage {event.stage} of {event.stages}")
                progress.append(TrainingProgress(console))
            case RunWarning(message) if not progress:
                say(console, f"warning: {message}")
            case _ if progress:
                progress[-1](event)
                tracked(event)

    def kept() -> str:
        return "go on from the last checkpoint" if any(run.glob("checkpoints/*")) else "nothing was kept; begin again"

    try:
        with going_on(kept), closing(Trackers(trackers)) as tracked:
            result = convert_run(
                settings, run, data=images, stages=stages, budget=budget, overwrite=overwrite, on_event=on_event
            )
    finally:
        fitting.bar.stop()
        for shown in progress:
            shown.close()
    _tell(console, run, result)
    if budget is not None:
        tell_size(console, run, budget)


def _tell(console: Console, run: Path, result: ConversionRecord) -> None:
    """Print what the conversion cost and what to do with its run."""
    show_table(console, states_table(result))
    kept = {
        "fine_tuned": "fine-tuned" if result.bits is None else "fine-tuned and quantized",
        "calibrated": "fitted and recalibrated",
        "quantized": "fitted, quantized and recalibrated",
    }
    better = "" if result.kept == "fine_tuned" else ": better on the validation images than the fine-tuned one"
    facts(
        console,
        {
            "run": str(run),
            "kept": f"the {kept[result.kept]} model{better}",
            "report": str(run / "conversion.md"),
            "records": str(run / "conversion.json"),
        },
    )
