"""Change files and read them: `python tests/fuzz/run.py --seconds 60` prints a table of what came out.

Only a RotateConvError may come out of a reader, within five seconds and one gigabyte.
"""

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.targets import TARGETS, Target
from rotateconv.errors import RotateConvError

SLOWEST = 5.0  # seconds of the processor for one file
MOST = 2**30  # bytes that the process may grow by


@dataclass
class Result:
    """What came out of so many changed files; each fault by where it was raised, with the seed that shows it."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    grown: int = 0
    faults: dict[str, str] = field(default_factory=dict)


def fuzz(target: Target, seconds: float, seed: int = 0, first: int = 0) -> Result:
    """Give a reader changed files for so many seconds, from the number `first` on."""
    result = Result()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        target.prepare(folder)
        before = _peak()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number = first + result.inputs
            target.change(folder, random.Random(f"{seed}-{number}"))
            start = time.process_time()
            try:
                target.read(folder)
            except RotateConvError as error:
                result.refused += 1
                if not str(error).strip() or len(str(error)) > 2000:
                    result.faults.setdefault("a message of no or too many characters", f"{number}: {error!s:.300}")
            except Exception as error:  # whatever it is, it is a fault
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} in {last.filename}:{last.lineno}"
                result.faults.setdefault(where, f"number {number}: {''.join(traceback.format_exc()[-1500:])}")
            spent = time.process_time() - start
            if spent > SLOWEST:
                result.faults.setdefault("too slow", f"number {number}: {spent:.1f} s")
            result.slowest = max(result.slowest, spent)
            if _peak() - before > MOST and "too much memory" not in result.faults:
                result.faults["too much memory"] = f"number {number}: {(_peak() - before) / 2**20:.0f} MB more"
            result.inputs += 1
        result.grown = _peak() - before
    return result


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    """Print the table; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is named")
    asked = parser.parse_args()
    print("| reader | files | refused | faults | slowest, s | memory, MB |\n| --- | --- | --- | --- | --- | --- |")
    faults: dict[str, str] = {}
    for name in asked.readers or TARGETS:
        found = fuzz(TARGETS[name], asked.seconds, asked.seed, asked.first)
        print(
            f"| {name} | {found.inputs:,} | {found.refused:,} | {len(found.faults)} | {found.slowest:.1f} | "
            f"{found.grown / 2**20:.0f} |",
            flush=True,
        )
        faults |= {f"{name}: {where}": what for where, what in found.faults.items()}
    for where, what in faults.items():
        print(f"\n{where}\n{what}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
