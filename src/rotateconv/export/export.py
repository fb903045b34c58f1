"""A trained model for other runtimes: ONNX and torch.export, fused, checked before the file gets its name."""

import bisect
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv._files import atomic_write, check_target
from rotateconv.convert.fuse import WRAPPERS, fuse
from rotateconv.errors import InputError, needing
from rotateconv.export.preprocessing import add_preprocessing, normalized
from rotateconv.nn import arguments
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.quantize import Entry, quantized_entries

OPSET = 18
"""Of the ONNX file: the lowest that PyTorch's exporter writes without converting, so the most runtimes read it."""

_COEFFICIENT_BITS = (12, 13, 14, 15, 16, 17, 18, 20, 24)
"""Of scales and biases in a compact file; the more where fewer change an output by too much."""

TOLERANCE = 1e-4
"""Largest difference of an output number that passes, for outputs of size one; for larger ones in proportion."""


@dataclass(frozen=True)
class Export:
    """A file that was written and checked.

    Attributes:
        path: Of the file.
        bytes: Its size.
        largest_difference: Of any output number between the file, run by its runtime, and the model.
        opset, ir_version: Of an ONNX file, else None.
    """

    path: Path
    bytes: int
    largest_difference: float
    opset: int | None = None
    ir_version: int | None = None


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int],
    compact: bool = False,
    preprocessing: bool = False,
    weight_bits: int = 4,
    angle_bits: int = 4,
    dense_bits: int = 8,
    weight_levels: int | None = None,
    profile_bits: int | None = None,
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Export:
    """Write a model as one ONNX file, and check that ONNX Runtime computes what PyTorch does.

    Kernels are written out and batch norms folded (`fuse(model, fold_batchnorm=True)`). The input is called
    "images", (batch, channels, height, width) with any batch, the output "logits". What a deployer must know is
    in the file's metadata_props, as JSON: "classes", "mean", "std", "input_size".

    With `compact`, the model is quantized first, and the file holds the codes, which plain operators of its own
    graph decode. All their inputs are constants: a runtime that folds constants, as ONNX Runtime does by default,
    decodes once, when it opens the file, and then runs what a dense file has. docs/compact-onnx.md says more.

    Args:
        model: With one input and one output, in float32; not changed.
        path: The file to write, exactly; it gets this name after the check.
        input_size: (channels, height, width) of an image.
        compact: Whether the file holds codes of a few bits, and decodes itself.
        preprocessing: Whether the file takes "images" of uint8, (batch, height, width, channels) of any size, resizes
            and normalizes them, and gives "probabilities"; needs mean and std.
        weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits: As in quantize; without compact
            they have no effect.
        classes: Names of the classes, in the order of the outputs.
        mean, std: Per channel, of images between 0 and 1: the model takes (image - mean) / std.
        notes: More metadata, such as a license: names and texts, stored as they are.

    Returns:
        Size, opset, IR version, and the largest difference from the model (of a compact file, from
        ``quantize(model)``), over batches of 1 and 3 (15).

    Raises:
        ValueError: If a package is missing, bits are out of range, preprocessing has no mean and std, the model cannot
            take images of that size or be exported, or ONNX Runtime computes something else: no file is written then.

    Example:
        >>> from rotateconv import build_model
        >>> export_onnx(build_model("resnet20"), "model.onnx", input_size=(3, 32, 32)).opset  # doctest: +SKIP
        18
    """
    onnx, runtime = _onnx()
    check_target(path)
    if preprocessing and not (mean and std and len(mean) == len(std) == input_size[0]):
        raise InputError(f"preprocessing needs mean and std of each of {input_size[0]} channels, got {mean} and {std}")
    model = _unwrapped(model)
    tensors: list[Entry] = []
    if compact:
        bits = Bits.of(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits)
        model, tensors = quantized_entries(model, bits)
    fused, batches, expected = _prepare(model, input_size, 15 if compact else 3)
    with _quiet(), _reported(model, "ONNX"):
        program = torch.onnx.export(
            fused,
            (batches[-1],),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        proto = program.model_proto  # type: ignore[union-attr]
        _strip(proto)
        onnx.helper.set_model_props(proto, _metadata(input_size, classes, mean, std) | dict(notes or {}))
        if compact:
            proto = _fewest_bits(proto, model, tensors, runtime, batches, expected)
        if preprocessing:
            assert mean is not None
            assert std is not None
            add_preprocessing(proto, input_size, mean, std)
            batches = [((images * 0.25 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1) for images in batches]
            with torch.no_grad():
                expected = [fused(normalized(pixels, mean, std)).softmax(1) for pixels in batches]
        onnx.checker.check_model(proto)
    with atomic_write(path) as temporary:
        onnx.save(proto, temporary)
        found = _run(runtime, str(temporary), batches)
        difference = _compare(found, expected, "ONNX Runtime")
    return Export(Path(path), Path(path).stat().st_size, difference, OPSET, int(proto.ir_version))


def _fewest_bits(
    dense: Any, model: nn.Module, tensors: list[Entry], runtime: Any, batches: list[Tensor], expected: list[Tensor]
) -> Any:
    """The compact file whose scales and biases have the fewest bits with which it computes what the model does."""
    from rotateconv.export.compact import compact

    def fits(bits: int) -> bool:
        found = _run(runtime, compact(dense, model, tensors, bits).SerializeToString(), batches)
        # A third of what is allowed: other images than these may be farther off.
        return all((a - b).abs().max() <= TOLERANCE / 3 * b.abs().max() for a, b in zip(found, expected, strict=True))

    place = bisect.bisect_left(_COEFFICIENT_BITS[:-1], True, key=fits)
    return compact(dense, model, tensors, _COEFFICIENT_BITS[place])


def _run(runtime: Any, file: str | bytes, batches: list[Tensor]) -> list[Tensor]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # not every core of a machine that others use too
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"images": images.numpy()})[0]) for images in batches]


def export_torch(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int],
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Export:
    """Write a model as a torch.export program (.pt2), which runs without this library; checked like the other.

    Kernels are written out and batch norms folded. `torch.export.load(path).module()` is the model; what a
    deployer must know is in the extra file "metadata.json".

    Args:
        model, path, input_size, classes, mean, std: As in export_onnx.

    Returns:
        Size, and the largest difference from the model, over batches of 1 and 3.

    Raises:
        ValueError: If the model cannot take images of that size or be exported, or the file computes something
            else: no file is written then.

    Example:
        >>> from rotateconv import build_model
        >>> export_torch(build_model("resnet20"), "model.pt2", input_size=(3, 32, 32)).bytes  # doctest: +SKIP
        1121873
    """
    check_target(path)
    model = _unwrapped(model)
    fused, batches, expected = _prepare(model, input_size, 3)
    with _quiet(), _reported(model, "torch.export"):
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(fused, (batches[-1],), dynamic_shapes=shapes)
        metadata = json.dumps(_metadata(input_size, classes, mean, std))
        buffer = io.BytesIO()  # saving to a path insists on its ending
        torch.export.save(program, buffer, extra_files={"metadata.json": metadata})
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
        with _quiet(), temporary.open("rb") as file, torch.no_grad():
            loaded = torch.export.load(io.BytesIO(file.read())).module()
            found = [loaded(images) for images in batches]
        difference = _compare(found, expected, "the loaded program")
    return Export(Path(path), Path(path).stat().st_size, difference)


def _onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime."""
    with needing("export", "export to ONNX needs more packages", InputError):
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx.export uses it, and says so in a traceback
    return onnx, onnxruntime


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without nn.DataParallel and the like around it."""
    while isinstance(model, WRAPPERS):
        model = model.module
    return model


def _prepare(model: nn.Module, input_size: Sequence[int], images: int) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """The fused copy on the CPU, batches of images, and what the model itself makes of them."""
    if len(input_size) != 3:
        raise InputError(f"input_size must be (channels, height, width), got {tuple(input_size)}")
    shape = [arguments.positive("every number of input_size", size) for size in input_size]
    other = next((p.dtype for p in model.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        raise InputError(f"export needs a model in float32, got {other}: call model.float()")
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, *shape, generator=generator) for count in (1, images)]
    flags = {module: module.training for module in model.modules()}
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        model.eval()
        with torch.no_grad():
            expected = [model(batch.to(place)) for batch in batches]
        try:
            fused = fuse(model, fold_batchnorm=True)
        except InputError:  # forward() has branches: torch.export may take them, and the norms stay as they are
            fused = fuse(model)
        fused = fused.cpu().requires_grad_(False)
    except RuntimeError as error:
        size = " x ".join(map(str, shape))
        raise InputError(f"the model cannot take images of {size}: {str(error).splitlines()[0]}") from None
    finally:
        for module, training in flags.items():
            module.training = training
    if not all(isinstance(output, Tensor) for output in expected):
        raise InputError(f"export needs a model whose output is one tensor, got a {type(expected[0]).__name__}")
    return fused, batches, [output.cpu() for output in expected]


def _strip(proto: Any) -> None:
    """Remove the exporter's notes: stack traces with paths of this computer, as large as a small model."""
    for noted in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    proto.graph.ClearField("doc_string")
    for tensor in proto.graph.initializer:
        tensor.ClearField("metadata_props")


def _metadata(
    input_size: Sequence[int],
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, str]:
    given = {"input_size": input_size, "classes": classes, "mean": mean, "std": std}
    return {key: json.dumps(list(value)) for key, value in given.items() if value is not None}


def _compare(found: list[Tensor], expected: list[Tensor], runtime: str) -> float:
    differences = []
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise InputError(f"{runtime} gives {tuple(one.shape)} where the model gives {tuple(other.shape)}")
        differences.append((one - other).abs().max().item())
    largest, size = max(differences), max(1.0, *(other.abs().max().item() for other in expected))
    if not largest <= TOLERANCE * size:
        raise InputError(
            f"{runtime} differs from the model by {largest:.3g}, more than {TOLERANCE:g} of outputs up to {size:.3g}: "
            "nothing was written"
        )
    return largest


@contextlib.contextmanager
def _reported(model: nn.Module, what: str) -> Iterator[None]:
    """Whatever the exporter raises, as a sentence."""
    try:
        yield
    except Exception as error:  # each version of the exporters has classes of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise InputError(f"{type(model).__name__} cannot be exported to {what}: {first}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own deprecations and log every step; neither is for who exports a model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
