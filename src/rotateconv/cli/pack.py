"""`rotateconv pack`: a trained net in one small file."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rotateconv.cli import options
from rotateconv.config import net_name

EXAMPLES = options.examples(
    ("4-bit weights and 5-bit angles:", "rotateconv pack runs/digits-resnet20-rotate4-seed0 --out digits.rotateconv"),
    ("Smaller and coarser:", "rotateconv pack runs/digits --out digits.rotateconv --weight-bits 3 --angle-bits 4"),
)


def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained net.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write, exactly.", show_default=False)],
    weight_bits: Annotated[int, typer.Option("--weight-bits", help="Of a weight of a convolution, 2 to 8.")] = 4,
    angle_bits: Annotated[int, typer.Option("--angle-bits", help="Of an angle, 3 to 8.")] = 5,
    dense_bits: Annotated[
        int,
        typer.Option("--dense-bits", help="Of a weight of the stem, of 1x1 convolutions and linear layers, 2 to 8."),
    ] = 8,
) -> None:
    """Write a trained net into a file of a few kilobytes: rounded, entropy-coded, with all that rebuilds it."""
    from rotateconv.cli.console import facts, make_console, say
    from rotateconv.trained import load_run, pack_net

    trained = load_run(run)
    data = trained.data
    pack_net(trained.model, data, out, weight_bits=weight_bits, angle_bits=angle_bits, dense_bits=dense_bits)
    size = out.stat().st_size
    dense = sum(tensor.numel() * tensor.element_size() for tensor in trained.model.state_dict().values())
    console = make_console()
    facts(
        console,
        {
            "model": f"{net_name(trained.config)}, trained on {data.name}",
            "bits": f"{weight_bits} a weight, {angle_bits} an angle, {dense_bits} in stem, 1x1 and linear layers",
            "packed": f"{size:,} bytes, {dense / size:.1f} times smaller than its {dense:,} bytes",
        },
    )
    say(console, f"look inside with: rotateconv unpack {shlex.quote(str(out))}")
