"""What our training loop and loader cost beside the steps themselves: `python benchmarks/training_loop.py [FILE]`.

Two ratios, each from interleaved rounds, in processor time, which other work on the machine hardly touches:

    epoch    the steps of an epoch of `fit`, from its start to its last step, over a bare loop with the same model, the
             same batches and the same optimizer, that records nothing
    loader   cutting and augmenting a batch, over a bare training step on it
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from rotateconv.lab.bench.timing import Spread
from rotateconv.lab.config import RunConfig, make_config
from rotateconv.lab.data.image_data import build_data
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.files import write_json
from rotateconv.lab.plain import to_json
from rotateconv.lab.train.environment import Environment
from rotateconv.lab.train.events import Event, RunStart, StepEnd
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.process_memory import keep_freed_memory
from rotateconv.lab.train.schedule import build_optimizer
from rotateconv.models import build_model
from rotateconv.nn.batched import batched_kernels

STEPS, ROUNDS = 8, 24  # many short epochs: the machine's own pace drifts by a tenth within half a minute


def random_images(count: int) -> Split:
    """Images as large as CIFAR's, of noise: what they show costs nothing."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Split(images, torch.arange(count) % 10)


def batches(config: RunConfig, data: ImageData, split: Split) -> Batches:
    """The batches that `fit` trains on."""
    return Batches(
        split,
        config.batch_size,
        mean=data.mean,
        std=data.std,
        augment=config.augment,
        flip=data.flip,
        shuffle=True,
        channels_last=config.channels_last,
    )


def our_epoch(config: RunConfig, data: ImageData) -> float:
    """Seconds of the steps of one epoch of `fit`."""
    times: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, RunStart | StepEnd):
            times.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        fit(config, Path(folder, "run"), data=data, on_event=on_event)
    return times[-1] - times[0]


def bare_epoch(config: RunConfig, data: ImageData, split: Split) -> float:
    """Seconds of the same steps, and nothing else."""
    model = build_model(config.model, config.conv).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optimization)
    start = time.process_time()
    for images, labels in batches(config, data, split):
        optimizer.zero_grad()
        with batched_kernels(model):
            scores = model(images)
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
    return time.process_time() - start


def loader_epoch(config: RunConfig, data: ImageData, split: Split) -> float:
    """Seconds of cutting the same batches."""
    start = time.process_time()
    for _ in batches(config, data, split):
        pass
    return time.process_time() - start


def main() -> None:
    """Measure, print, and write the record where a file is named."""
    keep_freed_memory()  # as the command does
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = make_config("quick", changes={"data": "folder", "epochs": 1, "conv": "rotate4", "validation": False})
    count = STEPS * config.batch_size
    classes = tuple("abcdefghij")
    data = build_data("noise", classes, random_images(count), random_images(100), flip=True)
    # Without a validation split `fit` trains on all images again: the same ones in another order.
    parts = (data.train, data.validation)
    split = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    bare_epoch(config, data, split)  # what the first steps allocate is kept
    rounds = []
    epochs = {
        "ours": lambda: our_epoch(config, data),
        "bare": lambda: bare_epoch(config, data, split),
        "loader": lambda: loader_epoch(config, data, split),
    }
    for index in range(ROUNDS):
        order = list(epochs)[:: -1 if index % 2 else 1]  # none is always measured in the wake of the same other
        found = {name: epochs[name]() for name in order}
        rounds.append({name: found[name] for name in epochs})
        print(json.dumps(rounds[-1]), flush=True)
    ratios = {
        "epoch_over_bare_loop": [row["ours"] / row["bare"] for row in rounds],
        "loader_share_of_a_step": [row["loader"] / (row["bare"] - row["loader"]) for row in rounds],
    }
    spreads = {name: Spread.of(values) for name, values in ratios.items()}
    medians = {name: spread.median for name, spread in spreads.items()}
    quartiles = {name: [spread.low, spread.high] for name, spread in spreads.items()}
    print(json.dumps({"medians": medians, "middle_half": quartiles}))
    if len(sys.argv) > 1:
        record = {
            "environment": to_json(Environment.now()),
            "steps": STEPS,
            "seconds": rounds,
            "ratios": ratios,
            "medians": medians,
            "middle_half": quartiles,
        }
        write_json(Path(sys.argv[1]), record)


if __name__ == "__main__":
    main()
