"""The studies of `experiments/`: each can be started, its record is of it, and the pages show what the records say."""

import dataclasses
import math
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from rotateconv import RotateConv2d, build_model, pack
from rotateconv.lab.cli.compare import planned
from rotateconv.lab.config import RunConfig, differences
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.report.blocks import blocks
from rotateconv.lab.report.page import PICTURES, asked_for, fill_page, make_block
from rotateconv.lab.run_config import bits_keys
from rotateconv.lab.study.plan import Study, plan
from rotateconv.lab.study.study_record import CONVERSIONS, RECORDS, StudyRecord, find_studies, read_study
from rotateconv.quantization.bits import BITS_KEYS, Bits

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
RESULTS = sorted((ROOT / "docs").glob("results*.md"))
README = ROOT / "README.md"
STUDIES = sorted(EXPERIMENTS.rglob("study.toml"))
MEASURED = [file for file in STUDIES if (file.parent / RECORDS).is_file()]
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}
SIZE = 1_300_000  # bytes of all records together


def name_of(file: Path) -> str:
    return file.parent.relative_to(EXPERIMENTS).as_posix()


def describe(base: RunConfig) -> DataDescription:
    """What a model must know of the images of a study."""
    shape = SHAPES.get(base.data, (3, 32, 32))
    classes = tuple(str(number) for number in range(100 if base.data == "cifar100" else 10))
    return DataDescription(base.data, classes, (0.5,) * shape[0], (0.2,) * shape[0], shape, False, 1, 1, 1)


def test_there_are_studies() -> None:
    names = {name_of(file) for file in STUDIES}
    assert names >= {
        "digits",
        "mnist",
        "cifar10-jpeg",
        "defaults/recipe",
        "gpu/cifar10-resnet20",
        "gpu/cifar100-resnet20",
    }
    assert {"gpu/svhn-densenet40", "gpu/cifar10-jpeg-resnet20-modern"} <= names
    assert MEASURED


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=name_of)
def test_a_study_can_be_started(file: Path) -> None:
    study = planned(file)
    # Its models are built, but not those of equal size: searching them takes a second for each.
    entries = plan(Study(study.base, study.models, study.convs, study.seeds), describe(study.base))
    assert len(entries) == len(study.models) * len(study.convs)
    data = {"digits": "digits", "mnist": "mnist", "cifar10": "cifar10", "cifar100": "cifar100", "svhn": "svhn"}
    start = file.parent.name.split("-")[0]
    assert study.base.data == ("folder" if "jpeg" in str(file) or "defaults" in str(file) else data[start])


@pytest.mark.slow
@pytest.mark.parametrize("file", MEASURED, ids=name_of)
def test_a_record_is_of_its_study(file: Path) -> None:
    study = planned(file)
    models = {
        (model.config.model, model.config.conv, model.config.width): model
        for model in plan(study, describe(study.base))
    }
    for run in read_study(file.parent).runs:
        found = dataclasses.replace(run.config, seed=0)
        expected = models[found.model, found.conv, found.width]
        assert differences(expected.config, found) == {}
        assert run.equal_to == expected.equal_to
        assert run.config.seed in range(study.seeds)
        assert run.failed or run.result.parameters > 0


def test_records_are_small_and_of_no_machine() -> None:
    files = [file for name in (RECORDS, CONVERSIONS) for file in EXPERIMENTS.rglob(name)]
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert sum(map(len, texts)) < SIZE
    assert not [text for text in texts if "/home/" in text or "/tmp/" in text or "confusion" in text]


@pytest.fixture(scope="module")
def studies() -> dict[str, StudyRecord]:
    return find_studies([EXPERIMENTS])


@pytest.mark.parametrize("page", [*RESULTS, README], ids=lambda page: page.name)
def test_pages_are_current(page: Path, studies: dict[str, StudyRecord]) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill_page(text, studies) == text, f"rotateconv report experiments --page {page.relative_to(ROOT)}"
    for asked in blocks(text, "report"):
        for name in make_block(*asked_for(asked), studies).pictures:
            assert (page.parent / PICTURES / name).is_file(), name


def test_the_pages_show_every_study(studies: dict[str, StudyRecord]) -> None:
    texts = [page.read_text(encoding="utf-8") for page in RESULTS]
    asked = [asked_for(block) for text in texts for block in blocks(text, "report")]
    shown = {study for kind, study in asked if kind in ("table", "validation", "frontier")}
    assert not [name for name in studies if name not in shown and name.split("/")[0] not in shown]


BYTES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/points.toml"))


@pytest.mark.parametrize("study", BYTES)
def test_the_record_of_bytes_is_of_its_points(study: str) -> None:
    """Every quantized run is one of the commands that benchmarks/bytes.py makes, with the options of its point."""
    points = tomllib.loads((EXPERIMENTS / study / "points.toml").read_text())
    listed = {run.name: run for run in runpy.run_path(str(ROOT / "benchmarks" / "bytes.py"))["runs"](points, "")}
    assert listed
    if not (EXPERIMENTS / study / "records.jsonl").is_file():
        pytest.skip("nothing of it is recorded yet")
    found = read_study(EXPERIMENTS / study)
    assert set(found.files) <= {run.name for run in found.runs} <= set(listed)
    for run in found.runs:
        command = listed[run.name].command
        config = run.config
        assert listed[run.name].quantized == config.qat
        for option, value in {
            "--taps": config.convert_taps,
            "--conv": config.conv if command[0] == "train" else None,
            "--seed": None if config.qat else str(config.seed),
            "--epochs": str(config.epochs),
            "--teacher": config.teacher,
        }.items():
            assert (value is None) == (option not in command), (run.name, option)
            assert value is None or command[command.index(option) + 1] == value, (run.name, option)
        said = dict(word.split("=", 1) for word in command if "-bits=" in word or "-levels=" in word)
        usual = bits_keys(Bits())  # of what the command leaves out
        for key in BITS_KEYS:
            kept = getattr(config, key)
            text = None if kept is None else ",".join(kept) if isinstance(kept, tuple) else str(kept)
            expected = said.pop(f"--{key.replace('_', '-')}", usual[key] if config.qat else None)
            assert text == (None if expected is None else str(expected)), (run.name, key)
        assert not said, run.name


def test_the_entropy_of_a_slice_is_that_of_its_codes(tmp_path: Path) -> None:
    entropy = runpy.run_path(str(ROOT / "benchmarks" / "bytes.py"))["slice_entropy"]
    model = build_model("resnet20", "rotate2p")
    for layer in model.modules():
        if isinstance(layer, RotateConv2d):
            slices = torch.arange(layer.angle.numel()).view_as(layer.angle)
            turn = torch.where(slices < slices.numel() // 2, 0, slices // 4 % 8)
            with torch.no_grad():
                layer.weight.copy_((2 * (slices % 4) - 3)[..., None])  # -3, -1, 1, 3
                layer.angle.copy_(turn * torch.pi / 4)
    pack(model, tmp_path / "model.rcp", weight_bits=2, weight_levels=4, angle_bits=3)
    # Two bits of the weight; of the angle half of the slices have 0, and the others each of eight as often.
    expected = 2 - 9 / 16 * math.log2(9 / 16) + 7 / 16 * 4
    assert entropy(tmp_path / "model.rcp") == pytest.approx(expected, abs=1e-3)


def test_a_changed_number_is_seen(studies: dict[str, StudyRecord]) -> None:
    measured = next(name for name, study in studies.items() if study.runs and not study.files)
    (text,) = [page.read_text("utf-8") for page in RESULTS if f"report: table {measured} " in page.read_text("utf-8")]
    changed = [
        dataclasses.replace(run, summary=dataclasses.replace(run.result, test_accuracy=run.result.test_accuracy - 1))
        for run in studies[measured].runs
    ]
    study = dataclasses.replace(studies[measured], runs=tuple(changed))
    assert fill_page(text, {**studies, measured: study}) != text
