"""What each process of `test_training_processes` runs, under torchrun."""

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rotateconv.errors import RunInterrupted
from rotateconv.lab.config import RunConfig, make_config
from rotateconv.lab.train.events import Event, StepEnd
from rotateconv.lab.train.fit import fit
from rotateconv.models import MODELS
from small import Tiny, small_digits

SMALL_MODELS: dict[str, Any] = {"plain": functools.partial(Tiny, norm=False), "tiny": Tiny}


def plain_config(**changes: Any) -> RunConfig:
    values = {"model": "plain", "epochs": 3, "batch_size": 32, "lr": 0.05, "augment": "paper", **changes}
    return make_config("digits", changes=values)


# With norm and dropout every process computes something of its own, so only these show that its state is kept.
NOISY = {"model": "tiny", "dropout": 0.3, "ema_decay": 0.9, "seed": 3}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    data = small_digits()
    fit(plain_config(), folder / "together", data=data)
    fit(plain_config(**NOISY), folder / "noisy", data=data)

    def stop(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 6:
            raise KeyboardInterrupt

    for name, changes in {
        "stopped": {**NOISY, "checkpoint_steps": 7},
        "left": {"checkpoint_steps": 7},
        "diverged": {"lr": 1e30},
        "odd": {"batch_size": 33},
    }.items():
        try:
            fit(plain_config(**changes), folder / name, data=data, on_event=stop)
        except (RunInterrupted, ValueError) as error:
            (folder / f"{name}-{PartialState().process_index}").write_text(str(error))
    fit(plain_config(**NOISY), folder / "stopped", data=data, resume=True)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    MODELS.update(SMALL_MODELS)
    main(Path(sys.argv[1]))
