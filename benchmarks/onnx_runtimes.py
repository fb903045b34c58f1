"""One compact file in other runtimes, each in a virtual environment of its own: make runtimes

python benchmarks/onnx_runtimes.py                 # the record, and its table in docs/compact-onnx.md
"""

import importlib.metadata
import json
import runpy
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_suffix(".json")
REQUIRED = {
    "onnxruntime==1.20.1": "numpy",
    "onnxruntime": "numpy",
    "openvino": "numpy",
    "onnx": "numpy",
}


def run(package: str, file: str, numbers: str) -> dict[str, Any]:
    """Inside such an environment, with nothing of rotateconv: what the runtime makes of the file."""
    import numpy as np

    given = np.load(numbers)
    start = time.process_time()
    if package == "openvino":
        import openvino

        model = openvino.Core().compile_model(
            file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )  # bf16, where a CPU has it, by default
        opened = time.process_time() - start
        found = model([given["images"]])[0]
    elif package == "onnx":
        import onnx.reference

        evaluator = onnx.reference.ReferenceEvaluator(file)
        opened = time.process_time() - start
        found = evaluator.run(None, {"images": given["images"]})[0]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        opened = time.process_time() - start
        found = session.run(None, {"images": given["images"]})[0]
    difference = abs(found - given["logits"]).max() / abs(given["logits"]).max()
    version = importlib.metadata.version(package)
    return {"package": package, "version": version, "opening_seconds": opened, "difference": float(difference)}


def main() -> None:
    import numpy as np
    import torch

    from rotateconv import build_model, export_onnx, quantize
    from rotateconv._files import atomic_write

    lively = runpy.run_path(str(Path(__file__).with_name("compact_onnx.py")))["lively"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for conv in ("rotate2p", "rotate4-g4", "mask4"):
            torch.manual_seed(0)
            model, images = lively(build_model("resnet20", conv)), torch.randn(2, 3, 32, 32)
            export_onnx(model, folder / f"{conv}.onnx", input_size=(3, 32, 32), compact=True)
            with torch.no_grad():
                logits = quantize(model, angle_bits=4)(images)
            np.savez(folder / f"{conv}.npz", images=images.numpy(), logits=logits.numpy())
        for required, more in REQUIRED.items():
            place = folder / "venv"
            venv.create(place, clear=True, with_pip=True)
            python = str(place / "bin" / "python")
            subprocess.run([python, "-m", "pip", "install", "--quiet", required, more], check=True)
            for file in sorted(folder.glob("*.onnx")):
                command = [python, __file__, required.split("==")[0], str(file), str(file.with_suffix(".npz"))]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                failed = {"package": required, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
                rows.append({"conv": file.stem, **(failed if done.returncode else json.loads(done.stdout))})
                print(rows[-1], flush=True)
    with atomic_write(RECORD) as temporary:
        temporary.write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(*sys.argv[1:])))
    else:
        main()
        runpy.run_path(str(Path(__file__).with_name("compact_onnx.py")))["fill_page"]()
