"""The container of a packed model: a safetensors file of byte streams, with a description and a checksum."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from rotateconv._files import atomic_write
from rotateconv.errors import InputError

FORMAT = "rotateconv-packed"
VERSION = 1
_NO_CHECKSUM = "0" * 64

Description = dict[str, Any]


def write_packed(path: str | Path, description: Description, streams: Mapping[str, tuple[Tensor, int]]) -> None:
    """Write the file, whole or not at all.

    Args:
        path: The file, exactly.
        description: What JSON can hold; the key "streams" is added.
        streams: By name: codes (1-d, uint8) and their width in bits.

    Raises:
        ValueError: If the disk takes nothing there.
    """
    stored = {name: _store(codes, width) for name, (codes, width) in streams.items()}
    places = {name: [len(streams[name][0]), width, deflated] for name, (_, width, deflated) in stored.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "sha256": _NO_CHECKSUM,
        "description": _json(description | {"streams": places}),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, (data, _, _) in stored.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns its body
    whole = len(text).to_bytes(8, "little") + text + body
    checksum = hashlib.sha256(whole).hexdigest().encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(whole.replace(_NO_CHECKSUM.encode(), checksum, 1))


def read_packed(path: str | Path) -> tuple[Description, dict[str, Tensor]]:
    """The description and the codes (1-d, uint8) of every stream.

    Raises:
        ValueError: If there is no such file, or it is cut off, altered, foreign or of another version.
    """
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        stored = {name: tensor["data"] for name, tensor in safetensors.deserialize(whole)}  # type: ignore[no-untyped-call]
        length = 8 + int.from_bytes(whole[:8], "little")
        metadata = json.loads(whole[8:length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no packed model, or it was cut off: {error}") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file but no packed model: make one with rotateconv.pack")
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path} has version {metadata.get('version')} of the packed format, and this rotateconv reads "
            f"version {VERSION}: update rotateconv"
        )
    checksum = metadata.get("sha256", "").encode()
    blank = whole[:length].replace(checksum, _NO_CHECKSUM.encode(), 1) if len(checksum) == 64 else b""
    if hashlib.sha256(blank + whole[length:]).hexdigest().encode() != checksum:
        raise InputError(f"{path} was altered: its checksum is not that of its content; get the file again")
    try:
        description = json.loads(metadata["description"])
        places = description.pop("streams")
        return description, {name: _restore(stored[name], *place) for name, place in places.items()}
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is no packed model that can be read: {error}") from None


def _store(codes: Tensor, width: int) -> tuple[bytes, int, bool]:
    """The shortest of: codes packed by their width, the same deflated, one byte per code deflated.

    Huffman's code alone is within 1 % of the entropy of 4-bit weights: they are too random for matches, and for
    contexts (layer, input channel, the tap before) too alike.
    """
    packed, plain = _pack_bits(codes, width), _to_bytes(codes)
    choices = [(packed, width, False)]
    for data, data_width in ((packed, width), (plain, 8)):
        for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
            deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
            choices.append((deflate.compress(data) + deflate.flush(), data_width, True))
    return min(choices, key=lambda choice: len(choice[0]))


def _restore(data: bytes, count: int, width: int, deflated: bool) -> Tensor:
    if not (type(count) is int and count >= 0 and type(width) is int and 1 <= width <= 8):
        raise InputError(f"a stream of {count} codes of {width} bits")
    size = (count * width + 7) // 8
    if deflated:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # whatever more there may be
    if len(data) != size:
        raise InputError(f"a stream of {len(data)} bytes where {size} were announced")
    return _unpack_bits(_from_bytes(data), count, width)


def _pack_bits(codes: Tensor, width: int) -> bytes:
    """Bit i of code n is bit n·width + i of the bytes, the lowest of each byte first; zeros fill the last byte."""
    if width == 8:
        return _to_bytes(codes)
    bits = (codes[:, None] >> torch.arange(width, dtype=torch.uint8)) & 1
    bits = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    return _to_bytes((bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8))


def _unpack_bits(data: Tensor, count: int, width: int) -> Tensor:
    if width == 8:
        return data
    bits = ((data[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: count * width].view(-1, width)
    return (bits << torch.arange(width, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _to_bytes(codes: Tensor) -> bytes:
    # Not by way of NumPy, which an installation of PyTorch may lack.
    buffer = bytearray(len(codes))
    if buffer:
        torch.frombuffer(buffer, dtype=torch.uint8).copy_(codes)
    return bytes(buffer)


def _from_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
