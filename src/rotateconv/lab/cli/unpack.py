"""`rotateconv unpack`: what a packed file holds, and its numbers as an ordinary state dict."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv._files import atomic_write
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.bits import described
from rotateconv.lab.cli.shared.console import facts, make_console
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.naming import packed_name

EXAMPLES = options.examples(
    ("What is in a file:", "rotateconv unpack digits.rotateconv"),
    ("Its numbers for other programs:", "rotateconv unpack digits.rotateconv --out digits.safetensors"),
    ("With every kernel written out:", "rotateconv unpack digits.rotateconv --out digits.safetensors --fused"),
)


def unpack(
    file: Annotated[Path, Parameter(help="A file of rotateconv pack.", show_default=False)],
    /,
    *,
    out: Annotated[
        Path | None, options.value("--out", "FILE", "Write the state dict, float32, as safetensors.")
    ] = None,
    model: options.BuiltBy = None,
    fused: Annotated[bool, options.switch("--fused", "Kernels in it instead of weights and angles.")] = False,
) -> None:
    """Check a packed file, show what it says of its model, and write its numbers as safetensors."""
    if out is None:
        refuse({"--fused": fused, "--model": model}, "no --out")
    from rotateconv.lab.train.checkpoint import weights_bytes
    from rotateconv.lab.train.pretrained import load_packed_file
    from rotateconv.quantization.pack import describe_packed

    description = describe_packed(file)
    rows = {
        "file": f"{file}: {file.stat().st_size:,} bytes, undamaged",
        "model": packed_name(description),
        "bits": described(description.widths),
    }
    if description.classes is not None:
        rows["classes"] = ", ".join(description.classes)
    if description.mean is not None and description.std is not None:
        mean, std = (" ".join(f"{number:.4g}" for number in values) for values in (description.mean, description.std))
        rows["normalization"] = f"mean {mean}, standard deviation {std}, of images between 0 and 1"
    if description.input_size is not None:
        rows["images"] = " x ".join(map(str, description.input_size))
    if out is not None:
        unpacked, _ = load_packed_file(file, model, fused=fused)
        with atomic_write(out) as temporary:
            temporary.write_bytes(weights_bytes(unpacked))
        rows["written"] = f"{out}: {out.stat().st_size:,} bytes"
    facts(make_console(), rows)
