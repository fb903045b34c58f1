"""Kill runs at random moments and let them go on: does each end bit for bit like one that was never disturbed?

`python benchmarks/torture.py --kills 90` prints a table; of the kills five in nine are SIGKILL, the others SIGINT and
SIGTERM. Every kind of run is first made undisturbed, which also says how long it takes.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TINY = ["--model", "resnet20", "--width", "0.125", "--epochs", "2", "--set", "checkpoint_steps=5"]
PATIENCE = 600  # seconds until a process that does not end is a fault; on a busy machine a stop takes a minute
SIGNALS = [signal.SIGKILL] * 10 + [signal.SIGINT] * 5 + [signal.SIGTERM] * 3


@dataclass
class Kind:
    """A command, where it writes, and how it goes on; `{out}` and `{source}` stand for folders."""

    begin: list[str]
    resume: list[str]
    kills: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    same: int = 0
    leftovers: int = 0
    odd: list[str] = field(default_factory=list)


def kinds() -> dict[str, Kind]:
    """Return the kinds of runs."""
    train, go_on = ["train", *TINY, "--out", "{out}"], ["train", "--resume", "{out}"]
    convert = ["convert", "{source}", "--taps", "free", "--epochs", "2", "--out", "{out}"]
    convert += ["--set", "checkpoint_steps=5"]
    compare = [*("compare", "--models", "resnet20", "--width", "0.125", "--convs", "rotate4,conv3x3", "--seeds", "1")]
    compare += ["--epochs", "1", "--set", "checkpoint_steps=5", "--jobs", "2", "--out", "{out}"]
    return {
        "train": Kind([*train, "--conv", "rotate4"], go_on),
        "average and teacher": Kind(
            [*train, "--conv", "mask4", "--teacher", "{source}", "--set", "ema_decay=0.9"], go_on
        ),
        "quantization-aware": Kind([*train, "--conv", "rotate2p", "--qat", "--weight-bits", "4"], go_on),
        "convert": Kind(convert, go_on),
        "compare": Kind(compare, compare),
    }


def main() -> int:
    """Print the table; 1 if a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=90, help="of all kinds together")
    parser.add_argument("--seconds", type=float, default=None, help="end after so long, if earlier")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    end = time.monotonic() + (asked.seconds or float("inf"))
    with tempfile.TemporaryDirectory() as name:
        found = torture(Path(name), asked.kills, end, rng)
    print("| kind of run | SIGKILL | SIGINT | SIGTERM | runs ended | bit for bit the same | left over |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for title, kind in found.items():
        counts = " | ".join(str(kind.kills.get(name, 0)) for name in ("SIGKILL", "SIGINT", "SIGTERM"))
        print(f"| {title} | {counts} | {kind.ended} | {kind.same} | {kind.leftovers} |")
    odd = [f"{title}: {what}" for title, kind in found.items() for what in kind.odd]
    print("\n".join(odd), file=sys.stderr)
    return 1 if odd else 0


def torture(folder: Path, kills: int, end: float, rng: random.Random) -> dict[str, Kind]:
    """Make every kind of run undisturbed, then disturbed until there were so many kills."""
    source = folder / "source"
    run(["train", *TINY, "--conv", "conv3x3", "--out", str(source)])
    found, expected, seconds = kinds(), {}, {}
    for title, kind in found.items():
        out, start = folder / f"{title} undisturbed", time.monotonic()
        run(filled(kind.begin, out, source))
        expected[title], seconds[title] = weights(out), time.monotonic() - start
    names = [name for name in found if expected[name]]
    assert len(names) == len(found), "an undisturbed run has no weights"
    count, number = 0, 0
    while count < kills and time.monotonic() < end:
        title = names[number % len(names)]
        number += 1
        kind, out = found[title], folder / f"{title} {number}"
        count += disturbed(kind, out, source, seconds[title], rng, expected[title])
        shutil.rmtree(out, ignore_errors=True)
        print(f"{count} kills: {out.name}, {kind.same} of {kind.ended} the same", file=sys.stderr, flush=True)
    return found


def disturbed(kind: Kind, out: Path, source: Path, seconds: float, rng: random.Random, expected: object) -> int:
    """Kill a run up to four times, let it end, and look at it; return how often it was killed."""
    count = 0
    for _ in range(rng.randint(1, 4)):
        process = start(command(kind, out, source))
        try:
            code = process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            sent = rng.choice(SIGNALS)
            process.send_signal(sent)
            kind.kills[sent.name] = kind.kills.get(sent.name, 0) + 1
            count += 1
            code = process.wait(PATIENCE)
            expected_codes = {signal.SIGKILL: (-9, 0), signal.SIGINT: (130, 0, -2), signal.SIGTERM: (130, 0, 143, -15)}
            if code not in expected_codes[sent]:
                kind.odd.append(f"exit code {code} after {sent.name}: {last_line(process)}")
        else:
            if code != 0:
                kind.odd.append(f"exit code {code} undisturbed: {last_line(process)}")
            break
        time.sleep(0.5)  # a worker of a comparison ends with its parent
    process = start(command(kind, out, source))
    if (code := process.wait(PATIENCE)) != 0:
        kind.odd.append(f"exit code {code} when it went on: {last_line(process)}")
    kind.ended += 1
    if weights(out) == expected:
        kind.same += 1
    else:
        kind.odd.append(f"{out.name} ended with other weights")
    left = [path for path in out.rglob("*") if ".tmp" in path.suffixes]
    kind.leftovers += len(left)
    return count


def command(kind: Kind, out: Path, source: Path) -> list[str]:
    """Return the command that begins a run or goes on with it, as a user would."""
    return filled(kind.resume if (out / "config.json").is_file() else kind.begin, out, source)


def filled(words: list[str], out: Path, source: Path) -> list[str]:
    """Return a command with its folders."""
    return [word.format(out=out, source=source) for word in words]


def start(words: list[str]) -> "subprocess.Popen[str]":
    """Start the program."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # read when the process has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "rotateconv", *words],
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.errors = errors  # type: ignore[attr-defined]
    return process


def last_line(process: "subprocess.Popen[str]") -> str:
    """Return the last line that a process wrote to stderr."""
    process.errors.seek(0)  # type: ignore[attr-defined]
    lines = process.errors.read().strip().splitlines()  # type: ignore[attr-defined]
    return lines[-1] if lines else ""


def run(words: list[str]) -> None:
    """Run the program to its end; CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "rotateconv", *words], check=True, stdout=subprocess.DEVNULL)


def weights(out: Path) -> dict[str, object]:
    """Return the hash of the final weights of every run in a folder, and its epochs, by its name in there."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("summary.json")):
        with contextlib.suppress(ValueError, OSError):
            epochs = [json.loads(line)["epoch"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
            found[str(path.parent.relative_to(out))] = (json.loads(path.read_text())["weights_sha256"], epochs)
    return found


if __name__ == "__main__":
    sys.exit(main())
