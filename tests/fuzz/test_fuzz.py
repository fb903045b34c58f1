"""Whatever a file holds, its reader gives a result or one sentence, soon and in little memory."""

import pytest

from fuzz.run import fuzz
from fuzz.targets import TARGETS, Target
from rotateconv.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_gives_a_result_or_one_sentence(name: str) -> None:
    found = fuzz(TARGETS[name], seconds=2)
    assert found.inputs > 5
    assert found.refused > 0 or name == "trusted.json"  # a record of anything allows nothing
    assert found.refused < found.inputs
    assert not found.faults, "\n".join(found.faults.values())


def test_a_fault_is_seen() -> None:
    def read(folder: object) -> None:
        raise KeyError("nothing")

    found = fuzz(Target(lambda folder: None, lambda folder, rng: None, read), seconds=0.01)
    assert next(iter(found.faults)).startswith("KeyError in ")
    assert found.refused == 0


def test_a_sentence_is_no_fault() -> None:
    def read(folder: object) -> None:
        raise InputError("expected something else")

    found = fuzz(Target(lambda folder: None, lambda folder, rng: None, read), seconds=0.01)
    assert found.refused == found.inputs > 0
    assert not found.faults
