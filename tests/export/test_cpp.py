"""The example in C++, compiled against the headers of ONNX Runtime, answers as Python does."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rotateconv import build_model, export_onnx

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[2] / "examples" / "compact_onnx.cpp"
HEADERS = Path(os.environ.get("ONNXRUNTIME_HEADERS", "/usr/include/onnxruntime"))
LIBRARIES = sorted(Path(runtime.__file__).parent.glob("capi/libonnxruntime.so.*"))


@pytest.mark.skipif(
    not ((HEADERS / "onnxruntime_cxx_api.h").is_file() and LIBRARIES and shutil.which("g++")),
    reason="needs g++, the headers of ONNX Runtime (ONNXRUNTIME_HEADERS) and a wheel with its library",
)
def test_the_example_answers_as_python(tmp_path: Path) -> None:
    (library := tmp_path / "libonnxruntime.so.1").symlink_to(LIBRARIES[0])  # the name that it says itself
    command = ["g++", "-std=c++17", f"-I{HEADERS}", EXAMPLE, library, f"-Wl,-rpath,{tmp_path}", "-o", "example"]
    subprocess.run(command, cwd=tmp_path, check=True)
    model = build_model("resnet20", "rotate2p", width=0.25, in_channels=1)
    export_onnx(model, tmp_path / "model.onnx", input_size=(1, 8, 8), compact=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    answers = set()
    for image in 3 * np.random.default_rng(0).standard_normal((10, 1, 8, 8), dtype=np.float32):
        (tmp_path / "image.f32").write_bytes(image.tobytes())
        found = subprocess.check_output(
            ["./example", "model.onnx", "image.f32", "1", "8", "8"], cwd=tmp_path, text=True
        )
        answers.add(int(found))
        assert int(found) == session.run(None, {"images": image[None]})[0].argmax()
    assert len(answers) > 1
