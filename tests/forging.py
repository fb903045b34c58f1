"""Packed files changed by hand, with a checksum that is right again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of a file."""
    forge_header(path, lambda header: change(header["__metadata__"]))


def forge_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a file."""
    header, body = split(path.read_bytes())
    change(header)
    path.write_bytes(joined(header, body))


def forge_stream(path: Path, name: str, data: bytes, place: list[object]) -> None:
    """Give a stream other bytes, and what the description says of it."""
    header, body = split(path.read_bytes())
    metadata = header.pop("__metadata__")
    parts = {key: body[slice(*entry["data_offsets"])] for key, entry in header.items()} | {name: data}
    description = json.loads(metadata["description"])
    description["streams"][name] = place
    made: dict[str, Any] = {"__metadata__": metadata | {"description": json.dumps(description)}}
    offset = 0
    for key, part in parts.items():
        made[key] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
    path.write_bytes(joined(made, b"".join(parts.values())))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the body of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    """The file of a header and a body, with its checksum where it has one."""
    if "sha256" in header["__metadata__"]:
        header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + body
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)
