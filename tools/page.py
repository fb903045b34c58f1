"""What the page of web/ shows and its tests compare with.

python tools/page.py models --data-dir DIR   # trains two models, half an hour on a core, and writes web/public/models
python tools/page.py cases                   # kernels of `line_kernel`, for the tests of the page's formula
python tools/page.py dense                   # the committed compact files, decoded: web/public/models/dense
"""

import argparse
import base64
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rotateconv import RotateConv2d, line_kernel
from rotateconv._files import atomic_write
from rotateconv.lab.study.angles import starting_model
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_summary

WEB = Path(__file__).parent.parent / "web"
MODELS = WEB / "public" / "models"
DENSE = MODELS / "dense"
CASES = WEB / "tests" / "cases.json"

# The narrower one of digits is enough for them. DIR holds what torchvision reads (MNIST/raw) and cifar10-jpeg/.
RUNS = {
    "mnist": ["--recipe", "mnist", "--data", "mnist", "--width", "0.5", "--epochs", "5"],
    "cifar10-jpeg": ["--recipe", "quick", "--data", "folder", "--epochs", "6"],
}
COMMON = ["--model", "resnet20", "--conv", "rotate2p", "--qat", "--weight-bits", "4", "--angle-bits", "4"]


def models(data_dir: Path, runs: Path) -> None:
    """Train what is not trained yet, and write the compact file and the kernels of each model."""
    for name, options in RUNS.items():
        run, data = runs / name, data_dir / name if "folder" in options else data_dir
        if not (run / "summary.json").exists():
            going_on = ["--resume", run] if run.exists() else [*COMMON, *options, "--out", run]
            _rotateconv("train", *going_on, "--data-dir", data)
        MODELS.mkdir(parents=True, exist_ok=True)
        _rotateconv("export", run, "--to", "onnx", "--compact", "--out", MODELS / f"{name}.onnx")
        with atomic_write(MODELS / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(kernels(run), separators=(",", ":")) + "\n", encoding="utf-8")


def _rotateconv(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "rotateconv", *map(str, words)], check=True)


def kernels(run: Path) -> dict[str, Any]:
    """Return the kernels of a run's RotateConv layers: angles before and after, weights, profiles.

    Angles are bytes, in 256ths of a turn; weights are bytes, in 127ths of the layer's largest, plus 128: where that is
    128, the weight is 0, and the angle after the training has no meaning.
    """
    trained = load_run(run)
    start = dict(starting_model(trained.config, trained.data).named_modules())
    layers = []
    for name, layer in trained.model.named_modules():
        if isinstance(layer, RotateConv2d):
            first = start[name]
            assert isinstance(first, RotateConv2d)
            weight = layer.weight[..., 0]
            layers.append(
                {
                    "name": name,
                    "out": weight.shape[0],
                    "in": weight.shape[1],
                    "profile": [[round(value, 3) for value in row] for row in layer.profile.tolist()],
                    "weight": _bytes(weight / weight.abs().max() * 127 + 128),
                    "before": _bytes(first.angle / (2 * math.pi) * 256),
                    "after": _bytes(layer.angle / (2 * math.pi) * 256),
                }
            )
    return {"data": run.name, "accuracy": read_summary(run).test_accuracy, "layers": layers}


def _bytes(numbers: Tensor) -> str:
    rounded = numbers.detach().flatten().round().long().remainder(256)
    return base64.b64encode(bytes(rounded.tolist())).decode()


def cases() -> dict[str, Any]:
    """Return kernels and their derivatives by the angle, and a resized picture, at places where formulas go wrong."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (3, 5):
        for path in ("circle", "square"):
            for degrees in (0, 17, 45, 90, 123.4, 180, 225, 271, 359, -40):
                weight = torch.randn(size, generator=generator, dtype=torch.float64)
                angle = torch.tensor(math.radians(degrees), dtype=torch.float64)
                kernel, slope = torch.autograd.functional.jvp(  # type: ignore[no-untyped-call]
                    lambda turned, w=weight, k=size, p=path: line_kernel(w, turned, k, p), angle, torch.ones_like(angle)
                )
                rounded = {"weight": weight, "kernel": kernel, "slope": slope}
                numbers = {key: [round(one, 9) for one in value.flatten().tolist()] for key, value in rounded.items()}
                # On the square's corners, where the path itself bends, the slope is that of neither side.
                corner = path == "square" and degrees % 90 == 45
                found.append({"size": size, "path": path, "degrees": degrees, **numbers, "corner": corner})
    picture = torch.randint(0, 256, (11, 17, 3), generator=generator, dtype=torch.uint8)
    fitted = ImageOps.fit(Image.fromarray(picture.numpy()), (8, 8), Image.Resampling.BILINEAR)
    images = {"picture": picture.flatten().tolist(), "fitted": numpy.asarray(fitted).flatten().tolist()}
    return {"kernels": found, "images": {"width": 17, "height": 11, "size": 8, **images}}


def dense() -> None:
    """Write every model as ONNX Runtime has it in memory, its kernels decoded, and what it gives for a wave."""
    import onnx
    import onnxruntime

    DENSE.mkdir(parents=True, exist_ok=True)
    expected = {}
    for file in sorted(MODELS.glob("*.onnx")):
        options = onnxruntime.SessionOptions()
        # Constants folded, and no operators but standard ones.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        with atomic_write(DENSE / file.name) as temporary:
            options.optimized_model_filepath = str(temporary)
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            proto = onnx.load(temporary)
            used = {node.domain for node in proto.graph.node}
            kept = [entry for entry in proto.opset_import if entry.domain in used]
            del proto.opset_import[:]
            proto.opset_import.extend(kept)
            onnx.checker.check_model(proto)
            onnx.save(proto, temporary)
        shape = json.loads(session.get_modelmeta().custom_metadata_map["input_size"])
        wave = numpy.sin(numpy.arange(math.prod(shape), dtype=numpy.float64)).astype(numpy.float32)
        plain = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        expected[file.stem] = plain.run(["logits"], {"images": wave.reshape(1, *shape)})[0][0].tolist()
    (DENSE / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("models", "cases", "dense"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/page"), help="where the runs are, or will be")
    given = parser.parse_args()
    if given.what == "models":
        if given.data_dir is None:
            parser.error("models needs --data-dir: the folder that holds MNIST/raw and cifar10-jpeg")
        models(given.data_dir, given.runs)
    elif given.what == "cases":
        CASES.write_text(json.dumps(cases(), separators=(",", ":")) + "\n", encoding="utf-8")
    else:
        dense()


if __name__ == "__main__":
    main()
