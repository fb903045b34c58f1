"""The container of a packed model: a safetensors file of byte streams, with a description and a checksum."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from rotateconv._files import atomic_write, parse_json, read_regular
from rotateconv.errors import InputError
from rotateconv.quantization.pack_description import PackedDescription, Stored, parse_description

_FORMAT = "rotateconv-packed"
VERSION = 1
LARGEST = 2**28
"""Bytes of a packed file above which it is refused, unless the caller allows more."""
LARGEST_HEADER = 2**22
CHUNK = 2**20  # codes that are taken apart at a time; a multiple of 8
_NO_CHECKSUM = "0" * 64


def write_packed(path: str | Path, description: Mapping[str, Any], streams: Mapping[str, tuple[Tensor, int]]) -> None:
    """Write the file, whole or not at all.

    Args:
        path: The file, exactly.
        description: What JSON can hold; the key "streams" is added.
        streams: By name: codes (1-d, uint8) and their width in bits.

    Raises:
        ValueError: If the disk takes nothing there.
    """
    stored = {name: store(codes, width) for name, (codes, width) in streams.items()}
    places = {name: [len(streams[name][0]), width, deflated] for name, (_, width, deflated) in stored.items()}
    metadata = {
        "format": _FORMAT,
        "version": str(VERSION),
        "sha256": _NO_CHECKSUM,
        "description": _json({**description, "streams": places}),
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


@dataclass(frozen=True)
class PackedFile:
    """What a packed file holds, checked and not yet inflated.

    Attributes:
        description: Of the model.
        stored: How each stream is stored.
        data: The bytes of each stream as they are in the file.
    """

    description: PackedDescription
    stored: Mapping[str, Stored]
    data: Mapping[str, bytes]

    def codes(self, name: str) -> Tensor:
        """The codes of a stream, uint8: memory for as many as the file says, and no more."""
        return restore(self.data[name], self.stored[name])


def read_packed(path: str | Path, largest: int = LARGEST) -> PackedFile:
    """What is in a file, without its streams inflated.

    Args:
        path: A file that `write_packed` wrote.
        largest: Number of bytes above which it is refused.

    Raises:
        ValueError: If there is no such file, or it is too large, cut off, altered, foreign or of another version, or
            its description is not one of a packed file.
    """
    try:
        whole = read_regular(Path(path), largest)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    length = 8 + int.from_bytes(whole[:8], "little")
    if length > LARGEST_HEADER and whole[8:9] == b"{" and length <= len(whole):
        raise InputError(f"{path} has a header of {length:,} bytes, more than the {LARGEST_HEADER:,} allowed")
    try:
        data = {name: bytes(tensor["data"]) for name, tensor in safetensors.deserialize(whole)}  # type: ignore[no-untyped-call]
        metadata = parse_json(whole[8:length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no packed model, or it was cut off: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} is a safetensors file but no packed model: make one with rotateconv.pack")
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path} has version {str(metadata.get('version'))[:20]!r} of the packed format, and this rotateconv reads "
            f"version {VERSION}: update rotateconv"
        )
    checksum = str(metadata.get("sha256", "")).encode(errors="replace")
    content = hashlib.sha256(whole[:length].replace(checksum, _NO_CHECKSUM.encode(), 1) if len(checksum) == 64 else b"")
    content.update(memoryview(whole)[length:])
    if content.hexdigest().encode() != checksum:
        raise InputError(f"{path} was altered: its checksum is not that of its content; get the file again")
    try:
        description, stored = parse_description(metadata.get("description"))
        if unknown := sorted(set(data) - set(stored)):
            raise InputError(f"unknown stream {unknown[0]!r}")
        if missing := sorted(set(stored) - set(data)):
            raise InputError(f"its stream {missing[0]!r} is missing")
    except ValueError as error:
        raise InputError(f"{path} is no packed model that can be read: {error}") from None
    return PackedFile(description, stored, data)


def store(codes: Tensor, width: int) -> tuple[bytes, int, bool]:
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


def restore(data: bytes, stored: Stored) -> Tensor:
    """The codes in the bytes of a stream, uint8: memory for as many as are announced, however much would inflate.

    Raises:
        ValueError: If the bytes hold more or fewer.
    """
    size = (stored.count * stored.width + 7) // 8
    if stored.deflated:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # whatever more there may be
        except zlib.error as error:
            raise InputError(f"a stream that cannot be inflated: {error}") from None
    if len(data) != size:
        raise InputError(f"a stream of {len(data)} bytes where {size} were announced")
    return _unpack_bits(_from_bytes(data), stored.count, stored.width)


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
    codes = torch.empty(count, dtype=torch.uint8)
    places, values = torch.arange(8, dtype=torch.uint8), torch.arange(width, dtype=torch.uint8)
    for start in range(0, count, CHUNK):  # a byte becomes eight on the way
        end = min(start + CHUNK, count)
        part = data[start * width // 8 : -(-end * width // 8)]
        bits = ((part[:, None] >> places) & 1).flatten()[: (end - start) * width].view(-1, width)
        codes[start:end] = (bits << values).sum(1, dtype=torch.uint8)
    return codes


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
