"""Damaged and crafted files: random changes of bytes, and of what JSON and a saved state hold."""

import json
import random
from typing import Any

import torch

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 5, 255, 2**31, 2**63, -(2**63), 10**9, 10**30, 1e-300, 1e300, -0.0, 0.5),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "a", "nan", "../../x", "/dev/zero", "\x1b[31m", "[bold]", "\ud800", "é" * 50, "x" * 3000, "os:fork", "free"),
    *([], {}, [[]], {"": {}}, [1, "a", None], [0.5] * 5),
)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to three places flipped, cut out, inserted, doubled, filled or cut off."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(made) + 1)
        end = min(len(made), place + rng.choice((1, 2, 8, 64, 4096)))
        match rng.randrange(7):
            case 0 if place < len(made):
                made[place] ^= 1 << rng.randrange(8)
            case 1:
                del made[place:end]
            case 2:
                made[place:place] = rng.randbytes(rng.choice((1, 4, 64)))
            case 3:
                made[place:place] = made[place:end]
            case 4:
                made[place:end] = bytes([rng.choice((0, 255, 0x5B, 0x7B, 0x22))]) * (end - place)
            case 5:
                del made[place:]
            case _:
                made[place : place + 8] = rng.choice((2**63, 2**31, 0, 10**12)).to_bytes(8, "little")
    return bytes(made)


def change_value(value: Any, rng: random.Random) -> Any:
    """Return a copy of a nested value in which one thing is another, is missing, is there twice or is new."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("new", "", "\ud800", "__class__")): rng.choice(ODD)}
            case 2:
                return {**value, key: value[rng.choice(list(value))]}
            case _:
                return {**value, key: change_value(value[key], rng)}
    if isinstance(value, list | tuple) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        made = list(value)
        match rng.randrange(6):
            case 0:
                del made[place]
            case 1:
                made.append(rng.choice(ODD))
            case 2:
                made = made * 3
            case _:
                made[place] = change_value(made[place], rng)
        return made
    if isinstance(value, torch.Tensor) and rng.random() < 0.7:
        return rng.choice((value[:0], value.double(), value.flatten(), torch.full_like(value, 200), torch.zeros(3)))
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice((value + 1, -value, value * 1000, value / 3))
    return rng.choice(ODD)


def change_json(text: str, rng: random.Random) -> bytes:
    """Return JSON whose value was changed once to three times, or its bytes, or that is nested without end."""
    match rng.randrange(12):
        case 0:
            return change_bytes(text.encode(), rng)
        case 1:
            return rng.choice((b"[", b'{"a":')) * 100_000
        case _:
            value = json.loads(text)
            for _ in range(rng.randint(1, 3)):
                value = change_value(value, rng)
            return json.dumps(value).encode()


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with other bytes, or another header before its tensors."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return change_bytes(data, rng)
    header = change_json(data[8 : 8 + length].decode(), rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
