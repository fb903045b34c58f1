"""Accuracy against bytes on one footing: the runs of experiments/bytes, and the sizes of their files.

    python benchmarks/bytes.py --data-dir DATA/cifar10-jpeg --work runs/bytes            # all that is missing
    python benchmarks/bytes.py --work runs/bytes --list                                  # its commands alone
    python benchmarks/bytes.py --data-dir DATA/cifar10-jpeg --work runs/bytes --record   # of the finished ones
    python benchmarks/bytes.py --data-dir DATA/cifar10-jpeg --work runs/bytes-long --study bytes-long --together 8

The footing: a model is trained with float32 numbers first; then it, or what it is converted to, goes on with quantized
ones for the same number of epochs, with the dense model of full width and the same seed as the teacher. Every run is a
command of rotateconv, resumed where it was stopped. With --together, for a GPU, so many at a time take turns in one
process, and conversions run in others beside it; the last step is left to --record. That step writes records.jsonl
and files.json there, of which `rotateconv report` makes the table and the picture.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rotateconv.errors import RunInterrupted
from rotateconv.lab.config import RunConfig, make_config, overridden
from rotateconv.lab.study.events import RunDied, RunDiverged, RunEvent
from rotateconv.lab.study.executor import run_tasks
from rotateconv.lab.study.finish import finishing
from rotateconv.lab.study.pool import local_executor
from rotateconv.lab.study.study_record import FileBytes, find_studies, write_study
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.events import EpochEnd, RunWarning
from rotateconv.quantization.pack import describe_packed, load_packed
from rotateconv.quantization.primitives import encode_angle, encode_weight, to_digits
from rotateconv.quantization.quantize import entries

STUDIES = Path(__file__).resolve().parents[1] / "experiments"


@dataclass(frozen=True)
class Run:
    """A run of the study, and the command that trains it in the folder of the study's runs."""

    name: str
    command: tuple[str, ...]
    quantized: bool


def runs(points: dict, data_dir: str) -> Iterator[Run]:
    """Yield the runs in the order of the file, seed by seed; a source comes before what goes on from it."""
    made = set()
    for seed in range(max(point.get("seeds", 1) for point in points["point"])):
        for point in points["point"]:
            if seed >= point.get("seeds", 1):
                continue
            dense = f"f-conv3x3-x1-s{seed}"
            width, trained = point.get("width", 1.0), point.get("source", "conv3x3")  # the layers of the source
            source = f"f-{trained}-x{width:g}-s{seed}"
            for conv, wide in (("conv3x3", 1.0), (trained, width)):
                name = f"f-{conv}-x{wide:g}-s{seed}"
                if name not in made:
                    made.add(name)
                    options = [*points["float"], "--conv", conv, "--width", f"{wide:g}", "--seed", str(seed)]
                    yield Run(name, ("train", *options, "--data-dir", data_dir, "--out", name), quantized=False)
            bits = {key: point[key] for key in point if key.endswith(("_bits", "_levels"))}
            mixed = f"-{point.get('label', 'mixed')}" if "layer_bits" in bits else ""
            taken = "" if trained == "conv3x3" else f"-of-{trained}"
            only = point.get("only", "")  # of the convolutions to convert; the others stay dense
            part = f"-in-{only.rstrip('.*')}" if only else ""
            form = f"{point['taps']}-taps{taken}{part}" if "taps" in point else point.get("conv", trained)
            levels = f"l{bits['weight_levels']}" if "weight_levels" in bits else ""
            angles = f"a{bits['angle_bits']}" if "angle_bits" in bits else ""
            profile = f"p{bits['profile_bits']}" if "profile_bits" in bits else ""
            extra = point.get("options", [])
            more = "".join(f"-{word.lstrip('-').replace('=', '-')}" for word in extra if word != "--set")
            name = f"{form}-x{width:g}-w{bits['weight_bits']}{levels}{angles}{profile}{mixed}{more}-s{seed}"
            options = [f"--{key.replace('_', '-')}={value}" for key, value in bits.items()]
            if "taps" in point:
                command = ["convert", source, "--taps", point["taps"], *([f"--only={only}"] if only else []), "--qat"]
            elif "conv" in point:
                command = ["train", "--source", source, "--conv", point["conv"], "--qat"]
            else:
                command = ["finish", source]
            usual = [] if any(word.startswith("--epochs=") for word in extra) else points["finish"]
            # Of the dense model of full width, but where a row was made while `convert` let the source teach.
            teacher = source if point.get("teacher") == "source" else dense
            common = [*usual, "--teacher", teacher, "--data-dir", data_dir, "--out", name]
            yield Run(name, (*command, *options, *extra, *common), quantized=True)


def finished(run: Run, work: Path) -> bool:
    """Return whether there is nothing left to train."""
    return (work / run.name / "summary.json").is_file()


@contextmanager
def processes(found: list[Run], work: Path) -> Iterator[None]:
    """Train runs, each in a process of its own, beside the block; what they print goes to files beside their folders.

    They share the cores. The end of the block waits for them; left by an exception, they save what they have.
    """
    started = {}
    for run in found:
        print(shlex.join(["rotateconv", *run.command]), flush=True)
        resumed = (work / run.name / "config.json").is_file() and run.command[0] == "train"
        words = ("train", "--resume", run.name) if resumed else run.command
        command = [sys.executable, "-m", "rotateconv", *words]
        threads = max(1, (os.cpu_count() or 1) // len(found))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with (work / f"{run.name}.log").open("a") as log:
            started[run.name] = subprocess.Popen(
                command, cwd=work, stdout=log, stderr=log, env=environment, start_new_session=True
            )
    try:
        yield
        failed = [name for name, process in started.items() if process.wait() != 0]
    finally:
        for process in started.values():
            process.send_signal(signal.SIGINT)  # nothing, where it has ended
        for process in started.values():
            process.wait()
    if failed:
        raise SystemExit(f"failed, as the .log beside each says: {', '.join(failed)}")


def train_together(found: list[Run], work: Path, together: int) -> None:
    """Train what is missing, so many runs at a time in one process: first all models with float32 numbers."""
    os.chdir(work)  # the runs name each other by their folders
    for quantized in (False, True):
        missing = [run for run in found if run.quantized == quantized and not finished(run, Path())]
        converted = [run for run in missing if run.command[0] == "convert"]
        tasks = [Task(run.name, configuration(run), Path(run.name)) for run in missing if run not in converted]
        with processes(converted, Path()):
            if tasks:
                run_tasks(iter(tasks), local_executor(len(tasks), together, together), len(tasks), tell)


def configuration(run: Run) -> RunConfig:
    """Return what the command of a run says."""
    kind, *words = run.command
    source = words.pop(0) if kind == "finish" else None
    values = {}
    while words:
        word = words.pop(0)
        if "=" not in word:
            word += f"={words.pop(0)}"
        key, value = word.removeprefix("--set=").removeprefix("--").split("=")
        values[key.replace("-", "_")] = value
    del values["out"]
    given = [f"{key}={value}" for key, value in values.items()]
    return make_config(overrides=given) if source is None else finishing(source, overridden(given))


def tell(event: object) -> None:
    """Print the end of an epoch, and what is wrong."""
    match event:
        case RunEvent(run, EpochEnd(record)):
            print(f"{run}: epoch {record.epoch}, validation {record.validation_accuracy} %, {record.seconds:.1f} s")
        case RunEvent(run, RunWarning(message)) | RunDied(run, message) | RunDiverged(run, message):
            print(f"{run}: {message}")
    sys.stdout.flush()


def measure(run: Run, work: Path) -> FileBytes:
    """Return what there is to say of a run's packed file and compact ONNX file, which are written beside its folder."""
    found = {}
    for key, end, command in (("packed", "rcp", "pack"), ("compact", "onnx", "export")):
        file = work / f"{run.name}.{end}"
        if not file.is_file():
            options = ["--fold-norms", "--no-evaluate"] if command == "pack" else ["--to", "onnx", "--compact"]
            words = [sys.executable, "-m", "rotateconv", command, run.name, "--out", file.name, *options]
            subprocess.run(words, cwd=work, stdout=subprocess.DEVNULL, check=True)
        found[key] = file.stat().st_size
    return FileBytes(**found, slice_entropy=slice_entropy(work / f"{run.name}.rcp"))


def slice_entropy(file: Path) -> float | None:
    """Return the bits that the codes of a kernel slice hold together: H = -sum p log2 p over the slices of all layers.

    None where there are not many slices for each one that could be, and the estimate would be too low; and for layers
    of other kinds than lines and dense convolutions.
    """
    bits = describe_packed(file)
    tensors = entries(load_packed(file), bits.widths)
    angles = {
        entry.layers[0]: encode_angle(entry.tensor, entry.bits, entry.period) for entry in tensors if entry.layers
    }
    owner = {id(layer.weight): layer for layer in angles}
    slices, most = [], 1
    for entry in tensors:
        if entry.kind == "codebook" or entry.positions is not None:
            return None
        if entry.kind == "weight":
            digits = to_digits(encode_weight(entry.tensor, entry.levels)[0], entry.levels).long()
            digits = digits.flatten(0, 1).flatten(1)
            number = (digits * entry.levels ** torch.arange(digits.shape[1])).sum(1)
            most = entry.levels ** digits.shape[1]
            if (layer := owner.get(id(entry.tensor))) is not None:
                if layer.angle_groups is not None:
                    return None
                number, most = number * 256 + angles[layer].flatten(), most * 2 ** bits.bits[1]
            slices.append(number)
    counts = torch.cat(slices).unique(return_counts=True)[1].double()
    share = counts / counts.sum()
    return round(-(share * share.log2()).sum().item(), 3) if most * 16 <= counts.sum() else None


def record(study: Path, finished: list[Run], work: Path) -> None:
    """Write the record of the study."""
    (found,) = find_studies(work / run.name for run in finished).values()
    write_study(found.runs, study / "records.jsonl")
    sizes = {run.name: measure(run, work) for run in finished if run.quantized}
    (study / "files.json").write_text(json.dumps({key: asdict(one) for key, one in sizes.items()}, indent=1) + "\n")


def main() -> None:
    """Train what is missing, or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="cifar10-jpeg", help="folder of cifar10-jpeg: train/ and test/")
    parser.add_argument("--study", default="bytes", help="folder in experiments/ with the points.toml")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print the commands, and train nothing")
    parser.add_argument("--together", type=int, default=0, help="runs at a time in one process, on a GPU")
    parser.add_argument("--record", action="store_true", help="write the record of finished runs alone")
    arguments = parser.parse_args()
    study = STUDIES / arguments.study
    found = list(runs(tomllib.loads((study / "points.toml").read_text()), arguments.data_dir))
    if arguments.list:
        print("\n".join(shlex.join(["rotateconv", *run.command]) for run in found))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.together and not arguments.record:
        try:
            train_together(found, arguments.work, arguments.together)
        except (RunInterrupted, KeyboardInterrupt):
            raise SystemExit("stopped; the same command goes on") from None
        return
    if not arguments.record:
        for run in found:
            if not finished(run, arguments.work):
                with processes([run], arguments.work):
                    pass
    record(study, [run for run in found if finished(run, arguments.work)], arguments.work)


if __name__ == "__main__":
    main()
