"""The bench: what it times is right, the numbers it makes of times are right, and its report says them."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commands import invoke
from rotateconv import RotateConv2d
from rotateconv.errors import BenchError
from rotateconv.lab.bench import cases, forms, report, run, targets, timing
from rotateconv.lab.bench.cases import LAYER_FORMS, MODEL_FORMS, Case
from rotateconv.lab.bench.forms import build_forms
from rotateconv.lab.bench.record import Row, record_from_json
from rotateconv.lab.bench.targets import Target
from rotateconv.lab.bench.timing import Spread
from rotateconv.lab.files import read_json
from rotateconv.lab.plain import to_json
from rotateconv.lab.report.blocks import blocks

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")

OURS = tuple(form for form in LAYER_FORMS if form.startswith("rotate"))
SMALL: list[Case] = [
    *(
        Case("layer", LAYER_FORMS, mode, 2, dtype, channels=8, size=6, stride=2)
        for mode in ("forward", "forward+backward", "step")
        for dtype in cases.PRECISIONS
    ),
    Case("model", MODEL_FORMS[:2], "step", 2, model="resnet20"),
    Case("fused model", MODEL_FORMS[:2], "forward", 2, model="resnet20"),
    Case("kernel", ("copy", "fused"), "forward", 8),
    Case("kernel", ("plain", "fused"), "forward+backward", 8),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(run, "matrix_rate", lambda dtype, device: 1e9)


class Clock:
    """Time that passes only when a function under test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Any:
        def function() -> None:
            self.order.append(name)
            self.now += seconds

        return function


def test_times_are_those_of_the_functions() -> None:
    clock = Clock()
    functions = {"slow": clock.work("slow", 2.0), "fast": clock.work("fast", 0.5)}
    times = timing.measure(functions, seconds=10.0, clock=clock)
    assert set(times["slow"]) == {2.0}
    assert set(times["fast"]) == {0.5}
    assert len(times["slow"]) == len(times["fast"]) == 8  # 2.5 seconds a round, 20 in all
    assert clock.order[2:6] == ["fast", "slow", "slow", "fast"]  # interleaved, there and back
    assert timing.ratio(times, "slow", "fast") == Spread(4.0, 4.0, 4.0)


def test_short_functions_are_repeated_and_long_ones_timed_seven_times() -> None:
    clock = Clock()
    times = timing.measure({"short": clock.work("short", 1e-4)}, seconds=0.0, clock=clock)
    assert times["short"] == pytest.approx([1e-4] * 7)
    assert len(clock.order) == 1 + 7 * 50  # 5 milliseconds a sample


def test_spread_by_hand() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_multiply_adds_and_memory_by_hand() -> None:
    conv, images = nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 6, 6)
    assert timing.multiply_adds(lambda: conv(images)) == 2 * 4 * 4 * 5 * 3 * 9

    def allocate() -> None:
        one, other = torch.empty(1000), torch.empty(3000)
        del one, other
        torch.empty(2000)

    assert timing.peak_memory(allocate) == 16000
    assert 1e6 < timing.matrix_rate(torch.float32, seconds=0.0) < 1e15


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.kind}-{case.mode}-{case.dtype}")
def test_every_case_gives_a_row_a_form(case: Case) -> None:
    record = run.run_bench([case], seconds=0.0)
    rows = record.rows
    missing = {"DCLS"} if forms._dcls(SMALL[0]) is None else set()
    assert [row.form for row in rows] == [form for form in case.forms if form not in missing]
    for row in rows:
        assert row.case == case
        assert row.baseline == case.forms[0]
        assert 0 < row.seconds_low <= row.seconds <= row.seconds_high
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.rounds >= 3
        assert row.peak_bytes > 0
        assert (row.multiply_adds is None) == (case.kind == "kernel")
        if row.multiply_adds is not None:
            assert row.share_of_matrix_rate == pytest.approx(row.multiply_adds / row.seconds / 1e9)
    assert rows[0].ratio == rows[0].peak_ratio == 1
    assert record_from_json(json.loads(json.dumps(to_json(record), allow_nan=False)), "bench.json") == record


@pytest.mark.parametrize("dtype", cases.PRECISIONS)
@pytest.mark.parametrize("form", OURS)
def test_a_wrong_form_is_not_timed(form: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("layer", (form,), "forward", 2, dtype, channels=8, size=6)
    build_forms(case)
    right = RotateConv2d.forward

    def wrong_values(layer: RotateConv2d, images: Tensor) -> Tensor:
        return 1.2 * right(layer, images)

    def wrong_gradient(layer: RotateConv2d, images: Tensor) -> Tensor:
        output = right(layer, images)
        return output.detach() + 0.7 * (output - output.detach())

    for wrong in (wrong_values, wrong_gradient):
        monkeypatch.setattr(RotateConv2d, "forward", wrong)
        with pytest.raises(BenchError, match=f"{form} is .* from the reference implementation"):
            build_forms(case)


@pytest.mark.parametrize("case", SMALL[-3:], ids=lambda case: case.kind)
def test_wrong_models_and_kernels_are_not_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "line_kernel" if case.kind != "fused model" else "fuse"
    right = getattr(forms, name)

    class Off(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, images: Tensor) -> Tensor:
            return self.inside(images) + 1

    if name == "fuse":
        monkeypatch.setattr(forms, "fuse", lambda model, **options: Off(right(model, **options)))
    else:
        monkeypatch.setattr(forms, "line_kernel", lambda *arguments: 1.2 * right(*arguments))
    with pytest.raises(BenchError, match="from the reference implementation, more than 1e-03: not timed"):
        build_forms(case)


def test_a_captured_step_is_recorded_once_and_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Recorder:
        """A graph that runs what it recorded."""

        def warm_up(self, work: Any) -> None:
            calls.append("warm up")
            work()

        def capture(self, work: Any) -> None:
            calls.append("capture")
            self.work = weakref.ref(work)  # a CUDA graph does not keep the tensors that it reads and writes

        def replay(self) -> None:
            calls.append("replay")
            work = self.work()
            assert work is not None
            work()

    monkeypatch.setattr(forms, "CudaGraph", Recorder)
    case = Case("model", ("rotate4",), "captured step", 2, model="resnet20")
    (row,) = run.run_bench([case], seconds=0.0).rows
    assert calls[:5] == ["warm up"] * 3 + ["capture", "replay"]
    assert set(calls[5:]) == {"replay"}
    assert row.seconds > 0
    assert row.multiply_adds is None


def test_a_foreign_file_is_no_record(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    for text, message in (
        ('{"schema": 0}', "is no record of this version's bench"),
        ('{"schema": 1}', "expected the key"),
    ):
        file.write_text(text)
        result = invoke(["bench", "--record", str(file), "--page", str(file)])
        assert result.exit_code == 2
        assert message in result.stderr


def test_the_deformable_rival_is_a_convolution() -> None:
    layer = forms._deformable(Case("layer", (), "forward", 1, channels=4, size=7, stride=2))
    assert layer is not None
    images = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        layer.offset.zero_()
        torch.testing.assert_close(layer(images), F.conv2d(images, layer.weight, stride=2, padding=1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sweeps_name_forms_that_exist(device: str) -> None:
    every = [*cases.quick_cases(), *cases.full_cases(device), *(t.case for t in targets.targets(device))]
    assert len(every) > 100
    for case in every:
        known = {"layer": LAYER_FORMS, "kernel": ("plain", "fused", "copy")}.get(case.kind, MODEL_FORMS)
        assert set(case.forms) <= set(known)
        assert case.kind != "layer" or case.channels % 4 == 0
    channels, sizes, batches, kernels, strides = (
        {getattr(case, key) for case in cases.full_cases() if case.kind == "layer"}
        for key in ("channels", "size", "batch", "kernel_size", "stride")
    )
    assert (min(channels), max(channels), min(sizes), max(sizes)) == (16, 1024, 4, 64)
    assert (min(batches), max(batches), kernels, strides) == (1, 512, {3, 5, 7}, {1, 2})


@pytest.mark.parametrize(("mode", "numbers"), [("forward", 4 + 9), ("forward+backward", 3 * 4 + 2 * 9)])
def test_the_copy_moves_what_the_kernel_must(mode: cases.Mode, numbers: int) -> None:
    """A slice's 3 weights, angle and kernel once; then weights and angle again, and all gradients."""
    copied = forms.build_forms(Case("kernel", ("copy",), mode, 8))["copy"]()
    assert isinstance(copied, torch.Tensor)
    assert 2 * copied.numel() == 64 * numbers


def test_targets_by_hand() -> None:
    case = Case("kernel", ("plain", "fused"), "forward", 8)
    row = Row(
        case,
        **{"form": "fused", "baseline": "plain", "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.8, "rounds": 7},
        **{"seconds": 1.0, "seconds_low": 0.9, "seconds_high": 1.1, "multiply_adds": None, "peak_bytes": 8},
        **{"share_of_matrix_rate": None, "peak_ratio": 1.5},
    )
    found = targets.judge(Target(case, "fused", "speedup", least=2.0), [replace(row, form="plain"), row])
    assert (found.value, found.low, found.high, found.reached) == (2.0, 1.25, 2.5, True)
    assert targets.judge(Target(case, "fused", "ratio", most=0.4), [row]).reached is False
    assert targets.judge(Target(case, "fused", "ratio", least=0.4, most=0.6), [row]).reached is True
    assert targets.judge(Target(case, "fused", "ratio", least=0.6, most=0.8), [row]).wanted == "0.6 to 0.8"
    assert targets.judge(Target(case, "fused", "peak_ratio", most=1.02), [row]).value == 1.5
    other = Case("kernel", ("plain", "fused"), "forward", 9)
    missing = targets.judge(Target(other, "fused", "ratio", most=1.0), [row])
    assert (missing.value, missing.reached) == (None, None)
    # The peer of the case is not installed: its form was compared with itself.
    alone = targets.judge(Target(case, "fused", "ratio", most=1.0), [replace(row, baseline="fused", ratio=1.0)])
    assert (alone.value, alone.reached) == (None, None)


def test_cases_of_targets_are_timed_once_and_judged(tmp_path: Path) -> None:
    case = SMALL[-1]
    goals = [Target(case, "fused", "ratio", most=1e9), Target(case, "fused", "ratio", most=0.0)]
    seen = []
    record = run.run_bench([case], goals, seconds=0.0, on_case=lambda *found: seen.append(found))
    assert [(one, list(so_far.rows)) for one, _, so_far in seen] == [(case, list(record.rows))]
    assert seen[0][2].targets == record.targets
    assert [row.reached for row in record.targets] == [True, False]
    text = report.to_markdown(record)
    assert "| at most 1e+09 |" in text
    assert text.count("| yes |") == text.count("| **no** |") == 1
    assert all(
        line.count("|") == text.splitlines()[text.splitlines().index("## Targets") + 2].count("|")
        for line in text.split("## Targets")[1].split("##")[0].strip().splitlines()
    )


def test_what_was_timed_is_kept_when_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "quick_cases", lambda: [SMALL[-1], replace(SMALL[-1], batch=9)])
    time = run._time

    def stops(case: Case, device: str, seconds: float) -> Any:
        if case.batch == 9:
            raise KeyboardInterrupt
        return time(case, device, seconds)

    monkeypatch.setattr(run, "_time", stops)
    result = invoke(["bench", "--device", "cpu", "--seconds", "1e-9", "--out", str(tmp_path / "b")])
    assert result.exit_code == 130
    kept = record_from_json(read_json(tmp_path / "b" / "bench.json"), tmp_path)
    assert {row.case for row in kept.rows} == {SMALL[-1]}


def test_a_page_is_filled_and_then_stays(tmp_path: Path) -> None:
    record = run.run_bench([SMALL[-1]], seconds=0.0)
    page = "one\n<!-- bench: machine -->\nold\n<!-- end -->\ntwo\n<!-- bench: kernel -->\n<!-- end -->\nthree\n"
    filled = report.fill_tables(page, record)
    rows = [row for row in record.rows if row.case.kind == "kernel"]
    assert filled.startswith("one\n<!-- bench: machine -->\n- Device: ")
    assert filled.endswith(f"two\n<!-- bench: kernel -->\n{report.rows_table(rows)}\n<!-- end -->\nthree\n")
    assert "old" not in filled
    assert report.fill_tables(filled, record) == filled
    with pytest.raises(ValueError, match="the record has no table 'layer', only machine, kernel"):
        report.fill_tables("<!-- bench: layer -->\n<!-- end -->", record)


@pytest.mark.parametrize(("record", "page"), [("cpu.json", "speed.md"), ("gpu.json", "speed-gpu.md")])
def test_the_page_is_that_of_the_committed_record(record: str, page: str) -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / page).read_text(encoding="utf-8")
    found = record_from_json(read_json(root / "benchmarks" / record), record)
    assert report.fill_tables(text, found) == text, (
        f"docs/{page} is older than the record: rotateconv bench --record benchmarks/{record} --page docs/{page}"
    )
    assert set(report.KINDS) | {"machine", "targets"} == set(blocks(text, "bench"))


def test_memory_that_does_not_suffice_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, device: str) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "build_forms", fail)
    record = run.run_bench(SMALL[-1:], seconds=0.0)
    assert record.rows[0].error == "out of memory"
    assert "Did not fit into the memory: line_kernel of 8 x 8 slices." in report.to_markdown(record)


@pytest.mark.parametrize("words", [[], ["--targets"]])
def test_eager_leaves_out_what_is_compiled(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    every = [SMALL[-1], replace(SMALL[0], compiled=True)]
    monkeypatch.setattr(cases, "quick_cases", lambda: every)
    monkeypatch.setattr(
        targets, "targets", lambda device: [Target(case, case.forms[-1], "ratio", most=9) for case in every]
    )
    result = invoke(["bench", "--eager", "--device", "cpu", "--seconds", "1e-9", *words])
    assert result.exit_code == 0, result.output
    assert SMALL[-1].name in result.output
    assert "compiled" not in result.output


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "quick_cases", lambda: [SMALL[0], SMALL[1], SMALL[-1]])
    result = invoke(["bench", "--device", "cpu", "--seconds", "1e-9", "--out", str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    assert "8 -> 8 at 6 x 6, batch 2, k 3, stride 2, forward, float32" in result.output
    record = record_from_json(read_json(tmp_path / "b" / "bench.json"), "bench.json")
    assert (tmp_path / "b" / "bench.md").read_text() == report.to_markdown(record)
    assert (tmp_path / "b" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["bench.json", "bench.md", "bench.png"]
    for key in ("cpu", "threads", "load_average", "versions", "device", "time"):
        assert getattr(record.environment, key) is not None


def test_a_page_by_the_command_from_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run.run_bench([SMALL[-1]], seconds=0.0)
    page, file = tmp_path / "speed.md", tmp_path / "bench.json"
    page.write_text("<!-- bench: kernel -->\n<!-- end -->\n")
    file.write_text(json.dumps(to_json(record)))
    monkeypatch.setattr(run, "run_bench", None)  # nothing is measured
    result = invoke(["bench", "--record", str(file), "--page", str(page)])
    assert result.exit_code == 0, result.output
    assert page.read_text() == report.fill_tables(page.read_text(), record)
    assert "line_kernel of 8 x 8 slices" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "--targets"], "--full and --targets are two sets of cases"),
        (["--device", "tpu"], "--device must be cpu, cuda, cuda:N or mps, not 'tpu'"),
        (["--page", "speed.md"], "--page needs --record"),
        (["--record", "bench.json"], "--record needs --page"),
        (["--record", "no.json", "--page", "no.md"], "cannot read no.json"),
    ],
)
def test_mistakes_of_the_command(arguments: list[str], message: str) -> None:
    result = invoke(["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
