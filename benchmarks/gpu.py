"""What a few minutes on a GPU are spent on: tests, the bench, then runs, those that decide most first.

    python benchmarks/gpu.py --seconds 780 --data-dir DATA --out runs/gpu
    python benchmarks/gpu.py --seconds 60 --out /tmp/gpu --dry-run     # the same on a CPU, with tiny models

The runs are those of experiments/bytes-long and bytes-densenet40 (benchmarks/bytes.py) and of experiments/gpu. DATA
holds cifar10-jpeg/ and what torchvision reads. --only names the stages that are wanted. The same command goes on: what
has passed is not done again, runs that were stopped are saved and resumed. OUT gets progress.jsonl, a line for each
stage as it ends, the output of every stage, bench/, kernels.json and a folder for each study with its runs, and
records.jsonl of those of experiments/gpu.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# In the order of what they decide; within a study, all configurations with seed 0 come first.
STUDIES = (
    "cifar10-jpeg-resnet20-modern",
    "cifar10-jpeg-densenet40",
    "cifar10-jpeg-resnet20-classic",
    "cifar10-resnet20",
    "cifar10-jpeg-resnet56-modern",
    "cifar10-jpeg-resnet56-classic",
    "cifar100-resnet20",
    "cifar10-densenet40",
    "svhn-resnet20",
    "cifar100-densenet40",
    "svhn-densenet40",
)
BYTES = ("bytes-long", "bytes-densenet40")  # accuracy against bytes, what experiments/bytes is too small for
GRACE = 20.0  # seconds that a stopped study may take to save its runs, within the time that is given
LEAST = 5.0  # a stage is not begun with less


@dataclass(frozen=True)
class Stage:
    """A command, the most seconds that it may take, and whether it is done for good once it has ended well."""

    name: str
    command: list[str]
    most: float
    once: bool = True


def stages(arguments: argparse.Namespace) -> list[Stage]:
    """Return what is to be done, in order."""
    python, out, dry = sys.executable, arguments.out, arguments.dry_run
    tests = ["tests/test_gpu.py", *([] if dry else ["tests/kernels/test_fused_triton.py"])]
    bench = ["--device", "cpu" if dry else "cuda", "--targets", "--eager", "--seconds", "0.001" if dry else "0.5"]
    # Eight at a time: in each, a test mostly waits for Triton's compiler. pytest-benchmark, if installed, refuses that.
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-n", "0" if dry else "8"]
    pytest += ["-k", "not interpreter"]  # which needs no GPU
    found = [
        Stage("tests", [*pytest, *tests], 180),
        Stage("bench", [python, "-m", "rotateconv", "bench", *bench, "--out", str(out / "bench")], 10 if dry else 120),
    ]
    if not dry:
        script = str(ROOT / "benchmarks" / "gpu_kernels.py")
        found.append(Stage("kernels", [python, script, str(out / "kernels.json")], 60))
        for study in BYTES:
            words = ["--study", study, "--work", str(out / study), "--together", str(arguments.jobs)]
            words += ["--data-dir", str(arguments.data_dir / "cifar10-jpeg")]
            found.append(Stage(study, [python, str(ROOT / "benchmarks" / "bytes.py"), *words], float("inf")))
    for study in STUDIES[: 1 if dry else None]:
        jpeg = "cifar10-jpeg" in study
        data = ["--data-dir", str(arguments.data_dir / "cifar10-jpeg" if jpeg else arguments.data_dir)]
        tiny = ["--data", "digits", "--epochs", "1", "--width", "0.25", "--batch-size", "512", "--seeds", "1"]
        tiny += ["--no-equal-params", "--device", "cpu"]
        file = ROOT / "experiments" / "gpu" / study / "study.toml"
        command = [python, "-m", "rotateconv", "compare", "--config", str(file), "--out", str(out / study)]
        command += ["--jobs", str(arguments.jobs), "--together", str(arguments.jobs), *(tiny if dry else data)]
        found.append(Stage(study, command, float("inf")))
    return found


def run(stage: Stage, seconds: float, out: Path) -> dict[str, object]:
    """Do a stage for so many seconds at most; stop it as Ctrl-C would, so that it saves what it has."""
    started = time.monotonic()
    with (out / f"{stage.name}.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        stopped = False
        try:
            process.wait(max(0.1, min(stage.most, seconds - GRACE)))
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    spent = round(time.monotonic() - started, 1)
    return {"stage": stage.name, "seconds": spent, "stopped": stopped, "exit_code": process.returncode}


def finished(out: Path, commit: str) -> set[str]:
    """Return the stages that need not be done again: studies, and tests and bench of this commit, that ended well."""
    path = out / "progress.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        str(line["stage"])
        for line in lines
        if line["exit_code"] == 0 and (line["stage"] in (*BYTES, *STUDIES) or line["commit"] == commit)
    }


def record(out: Path, study: str) -> None:
    """Write the records of a study's finished runs, however many there are."""
    if list((out / study).glob("runs/*/summary.json")):
        words = ["record", str(out / study), "--out", str(out / study / "records.jsonl")]
        with (out / "record.txt").open("a", encoding="utf-8") as log:
            subprocess.run([sys.executable, "-m", "rotateconv", *words], cwd=ROOT, stdout=log, stderr=log, check=False)


def main() -> int:
    """Run the stages until the time is over; 1 where one of them failed, without being stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=780, help="for everything together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--jobs", type=int, default=5, help="runs that take turns in one process, 1.5 times as fast as one by one"
    )
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="tests, bench, kernels, or the name of a study")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny models on the digits")
    arguments = parser.parse_args()
    arguments.out, arguments.data_dir = arguments.out.resolve(), arguments.data_dir.resolve()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("expected a GPU, found none: try --dry-run")
    todo = stages(arguments)
    names = [stage.name for stage in todo]
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"expected --only with some of {', '.join(names)}, found {', '.join(sorted(unknown))}")
    deadline = time.monotonic() + arguments.seconds
    arguments.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    done, failed = finished(arguments.out, commit.stdout.strip()), False
    for stage in todo:
        if arguments.only and stage.name not in arguments.only:
            continue
        left = deadline - time.monotonic()
        if stage.name in done:
            print(f"{stage.name}: done before")
            continue
        if left < LEAST + GRACE:
            print(f"{stage.name}: no time left")
            continue
        line = {**run(stage, left, arguments.out), "commit": commit.stdout.strip()}
        failed |= line["exit_code"] != 0 and not line["stopped"]
        with (arguments.out / "progress.jsonl").open("a", encoding="utf-8") as progress:
            progress.write(json.dumps(line) + "\n")
        if stage.name in STUDIES:
            record(arguments.out, stage.name)
        runs = len(list((arguments.out / stage.name).glob("runs/*/summary.json")))
        state = "stopped" if line["stopped"] else f"exit code {line['exit_code']}"
        print(f"{stage.name}: {state} after {line['seconds']} s" + (f", {runs} runs finished" if runs else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
