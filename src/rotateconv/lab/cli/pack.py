"""`rotateconv pack`: a trained model in one small file."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.errors import RunError
from rotateconv.lab.cli import options
from rotateconv.lab.naming import model_name

EXAMPLES = options.examples(
    ("4-bit weights and 5-bit angles:", "rotateconv pack runs/digits-resnet20-rotate4-seed0 --out digits.rotateconv"),
    ("More accurate:", "rotateconv pack runs/digits --out digits.rotateconv --calibrate"),
    ("Smaller and coarser:", "rotateconv pack runs/digits --out digits.rotateconv --calibrate --weight-bits 3"),
)


def pack(
    run: Annotated[Path, Parameter(help="Run folder of a trained model.", show_default=False)],
    /,
    *,
    out: Annotated[Path, Parameter(name="--out", metavar="FILE", help="The file to write, exactly.")],
    weight_bits: Annotated[
        int, Parameter(name="--weight-bits", metavar="INTEGER", help="Of a weight of a convolution, 1 to 8.")
    ] = 4,
    angle_bits: Annotated[int, Parameter(name="--angle-bits", metavar="INTEGER", help="Of an angle, 2 to 8.")] = 5,
    dense_bits: Annotated[
        int,
        Parameter(
            name="--dense-bits",
            metavar="INTEGER",
            help="Of a weight of the stem, of 1x1 convolutions and linear layers, 1 to 8.",
        ),
    ] = 8,
    calibrate: Annotated[
        bool,
        options.switch("--calibrate", "Recalibrate the norms' statistics on training images: more accurate."),
    ] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Write a trained model into a file of a few kilobytes: quantized, entropy-coded, with all that rebuilds it.

    Rounding shifts what each batch norm sees. With --calibrate they measure it again on 2,048 training images: as many
    bytes, and most of the accuracy that rounding after the training loses comes back.
    """
    if not calibrate:
        options.refuse({"--data-dir": data_dir}, "no --calibrate")
    from rotateconv.lab.cli.console import facts, make_console, say
    from rotateconv.lab.cli.loading import load_shown
    from rotateconv.lab.data.description import DataDescription
    from rotateconv.lab.train.load import CALIBRATION, calibration_batches, load_run, pack_model
    from rotateconv.quantization.quantize import quantize

    trained = load_run(run)
    data, model = trained.data, trained.model
    console = make_console()
    statistics = "of the training"
    if calibrate:
        where = trained.config.data_dir if data_dir is None else str(data_dir)
        images = load_shown(dataclasses.replace(trained.config, data_dir=where), console)
        if DataDescription.of(images) != data:
            raise RunError(f"{run} was trained on other images of {data.name}: give it the same --data-dir")
        batches = calibration_batches(model, trained.config, data, images.train)
        model = quantize(model, weight_bits, angle_bits, dense_bits=dense_bits, calibration=batches).cpu()
        statistics = f"recalibrated on {min(CALIBRATION, len(images.train)):,} training images"
    pack_model(model, data, out, weight_bits=weight_bits, angle_bits=angle_bits, dense_bits=dense_bits)
    size = out.stat().st_size
    dense = sum(tensor.numel() * tensor.element_size() for tensor in trained.model.state_dict().values())
    facts(
        console,
        {
            "model": f"{model_name(trained.config)}, trained on {data.name}",
            "bits": f"{weight_bits} per weight, {angle_bits} per angle, {dense_bits} in stem, 1x1 and linear layers",
            "statistics": statistics,
            "packed": f"{size:,} bytes, {dense / size:.1f} times smaller than its {dense:,} bytes",
        },
    )
    say(console, f"look inside with: rotateconv unpack {shlex.quote(str(out))}")
