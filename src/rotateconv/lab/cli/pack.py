"""`rotateconv pack`: a trained model in one small file."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.lab.cli.shared import bits, keys, options
from rotateconv.lab.cli.shared.console import facts, make_console, say
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.naming import model_name
from rotateconv.quantization.bits import Bits

EXAMPLES = options.examples(
    ("4-bit weights and 5-bit angles:", "rotateconv pack runs/digits-resnet20-rotate4-seed0 --out digits.rotateconv"),
    ("More accurate:", "rotateconv pack runs/digits --out digits.rotateconv --calibrate"),
    ("Smaller and coarser:", "rotateconv pack runs/digits --out digits.rotateconv --calibrate --weight-bits 3"),
)


@bits.takes_bits
def pack(
    run: Annotated[Path, Parameter(help="Run folder of a trained model.", show_default=False)],
    /,
    *,
    out: Annotated[Path, options.value("--out", "FILE", "The file to write, exactly.")],
    asked: keys.Given | None = None,
    calibrate: Annotated[
        bool, options.switch("--calibrate", "Recalibrate the norms' statistics on training images: more accurate.")
    ] = False,
    fold_norms: Annotated[
        bool,
        options.switch("--fold-norms", "Put the norms' statistics into their weights: smaller, for inference alone."),
    ] = False,
    evaluate: Annotated[
        bool,
        Parameter(
            name="--evaluate",
            negative="--no-evaluate",
            show_default=False,
            help="Measure the file's model on the run's validation images, if they are at hand.",
        ),
    ] = True,
    data_dir: keys.DataDir = None,
) -> None:
    """Write a trained model into a file of a few kilobytes: quantized, entropy-coded, with all that rebuilds it.

    Quantization shifts what each batch norm sees. With --calibrate they are recalibrated on 2,048 training images: as
    many bytes, and most of the accuracy that quantization after the training loses comes back.

    A model that was trained with --qat keeps the bits it was trained with; any other gets 4 per weight, 5 per angle and
    8 in stem, 1x1 and linear layers.
    """
    if not calibrate and not evaluate:
        refuse({"--data-dir": data_dir}, "--no-evaluate and no --calibrate")

    from rotateconv.lab.cli.shared.loading import load_shown, validation_accuracy
    from rotateconv.lab.train.load import CALIBRATION, calibration_batches, check_images, load_run, pack_model
    from rotateconv.lab.train.weights import state_bytes
    from rotateconv.quantization.pack import describe_packed, load_packed
    from rotateconv.quantization.quantize import quantize

    trained = load_run(run)
    chosen = bits.choose(asked, run, trained.config.bits, Bits())
    data, model = trained.data, trained.model
    console = make_console()
    statistics = "of the training"
    if data_dir is not None:
        trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, data_dir=str(data_dir)))
    if calibrate:
        images = load_shown(trained.config.images, console)
        check_images(run, data, images)
        batches = calibration_batches(model, trained.config.execution, data, images.train)
        model = quantize(model, **chosen.arguments, calibration=batches).cpu()
        statistics = f"recalibrated on {min(CALIBRATION, len(images.train)):,} training images"
    pack_model(model, data, out, chosen, fold_norms=fold_norms)
    size = out.stat().st_size
    accuracy = "not measured: --no-evaluate"
    if evaluate:
        kept = load_packed(out, model=model if describe_packed(out).build is None else None)
        accuracy = validation_accuracy(dataclasses.replace(trained, model=kept), console)
    dense = state_bytes(trained.model)
    facts(
        console,
        {
            "model": f"{model_name(trained.config)}, trained on {data.name}",
            "bits": bits.described(chosen),
            "statistics": statistics,
            "packed": f"{size:,} bytes, {dense / size:.1f} times smaller than its {dense:,} bytes",
            "accuracy": accuracy,
        },
    )
    say(console, f"look inside with: rotateconv unpack {shlex.quote(str(out))}")
