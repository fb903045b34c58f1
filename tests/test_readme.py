"""What the README says is true: its Python examples run and its commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_examples_run_in_the_order_in_which_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchvision", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert examples
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    # The sizes that its comments say.
    before, after = (sum(p.numel() for p in names[name].parameters()) / 1e6 for name in ("deployed", "model"))
    assert f"# {before:.1f} million" in README
    assert f"# {after:.1f} million:" in README
    # Of untrained weights, which differ from run to run, and where the exporter may choose the wider constants.
    sizes = {kind: (tmp_path / f"small.{kind}").stat().st_size / 1e6 for kind in ("rcp", "onnx")}
    said = dict(zip(("rcp", "onnx"), map(float, re.findall(r"# (\d\.\d) MB", README)), strict=True))
    assert sizes == pytest.approx(said, abs=0.1)
    assert f"MB where float32 takes {before * 4:.0f}" in README


def test_the_first_screen_is_one() -> None:
    text = README.partition("## Try it")[0]
    assert len(README.splitlines()) < 100
    for words in ("pip install", "Use it for", "Not for", "not reproduced", "nine numbers again", "mask4", "ternary"):
        assert words in text, words
    assert len(text.partition("<!-- report: summary")[2].partition("<!-- end")[0].splitlines()) == 9  # four rows
