"""Packed files that are refused, and the streams in them."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from rotateconv import build_model, load_packed, pack, quantize
from rotateconv.quantization.pack import describe_packed
from rotateconv.quantization.pack_file import read_packed, write_packed
from rotateconv.quantization.pack_streams import decode, encode
from rotateconv.quantization.quantize import entries


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "net"
    pack(build_model("resnet20", "rotate2p", width=0.25), path)
    return path


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nothing: No such file or directory"):
        load_packed(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        load_packed(tmp_path)


def test_a_file_that_is_cut_off_anywhere(packed: Path) -> None:
    data = packed.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(data), 997), len(data) - 1]:
        packed.write_bytes(data[:length])
        with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
            load_packed(packed)


def test_a_file_with_something_behind(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
        load_packed(packed)


def test_a_file_that_is_altered_anywhere(packed: Path) -> None:
    data = packed.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(0, header, 5), *range(header, len(data), 997), len(data) - 1]:
        for flip in (1, 0x80):
            packed.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            with pytest.raises(ValueError, match=r"was altered|no packed model|has version .* of the packed format"):
                load_packed(packed)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x04" + bytes(50), bytes(1000), b"\xff" * 64])
def test_a_foreign_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(data)
    with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
        load_packed(tmp_path / "net")
    with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
        describe_packed(tmp_path / "net")


def test_another_safetensors_file(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "net")
    with pytest.raises(ValueError, match=r"is a safetensors file but no packed model: make one with rotateconv\.pack"):
        load_packed(tmp_path / "net")


def forge(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Change the metadata of a file and give it the right checksum again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header["__metadata__"])
    if "sha256" in header["__metadata__"]:
        header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + data[8 + length :]
    path.write_bytes(whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1))


def in_description(**changes: object) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        metadata["description"] = json.dumps(json.loads(metadata["description"]) | changes)

    return change


def test_another_version(packed: Path) -> None:
    forge(packed, lambda metadata: metadata.update(version="2"))
    with pytest.raises(
        ValueError, match="has version 2 of the packed format, and this rotateconv reads version 1: update"
    ):
        load_packed(packed)


BUILD = {"name": "resnet20", "conv": "rotate2p", "num_classes": 10, "in_channels": 3, "width": 0.25}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda metadata: metadata.pop("sha256"), "was altered: its checksum is not that of its content"),
        (lambda metadata: metadata.pop("description"), "is no packed model that can be read: 'description'"),
        (lambda metadata: metadata.update(description="{"), "is no packed model that can be read: Expecting property"),
        (lambda metadata: metadata.update(description="[1]"), "is no packed model that can be read"),
        (in_description(streams={"weight": [5, 8, True]}), "is no packed model that can be read: a stream of"),
        (
            in_description(streams={"weight": [-1, 8, True]}),
            "is no packed model that can be read: a stream of -1 codes",
        ),
        (
            in_description(streams={"weight": [1, 9, True]}),
            "is no packed model that can be read: a stream of 1 codes of 9",
        ),
        (in_description(streams={"angle": [10**9, 8, True]}), "is no packed model that can be read"),
        (in_description(streams={"other": [1, 8, True]}), "is no packed model that can be read: 'other'"),
        (in_description(streams={}), "its stream 'scale' is missing"),
        (in_description(unknown=1), "unexpected keyword argument 'unknown'"),
        (in_description(bits=[4, 5]), "cannot load .*missing 1 required positional argument"),
        (in_description(bits=[4, 5, 9]), "dense_bits must be a whole number from 2 to 8, got 9"),
        (in_description(bits=[4, 6, 8]), "holds the numbers of a ResNet with other tensors than this version builds"),
        (in_description(layout="0" * 16), "holds the numbers of a ResNet with other tensors than this version builds"),
        (in_description(build={"name": "os.system"}), "unknown model 'os.system'"),
        (in_description(build=BUILD | {"conv": "eval"}), "unknown conv 'eval'"),
        (in_description(build=BUILD | {"width": "wide"}), "cannot load"),
        (in_description(build=BUILD | {"width": 0.5}), "with other tensors than this version builds for its name"),
        (in_description(build=[1]), "cannot load"),
        (in_description(lines={"stem": {"device": "cuda"}}), "cannot load"),
        (in_description(lines={"stem": {}}), "with other tensors than this version builds for its name"),
        (in_description(lines={"nowhere": {}}), "cannot load .*has no attribute `nowhere`"),
    ],
)
def test_a_description_that_is_wrong(change: Callable[[dict[str, str]], None], match: str, packed: Path) -> None:
    forge(packed, change)
    with pytest.raises(ValueError, match=match):
        load_packed(packed)


def test_the_forger_can_write_a_file_that_is_right(packed: Path) -> None:
    before = load_packed(packed).state_dict()
    forge(packed, in_description())
    after = load_packed(packed).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_description_with_unknown_keys_is_not_described(packed: Path) -> None:
    forge(packed, in_description(unknown=1))
    with pytest.raises(ValueError, match="unexpected keyword argument 'unknown'"):
        describe_packed(packed)


@pytest.mark.parametrize("name", ["weight", "dense", "scale", "angle", "mantissa", "exponent", "integer"])
def test_streams_of_another_length(name: str) -> None:
    tensors = entries(quantize(build_model("resnet20", width=0.25)), 4, 5, 8)
    codes = {key: stream for key, (stream, _) in encode(tensors).items()}
    size = {"scale": 2, "integer": 8}.get(name, 1)
    with pytest.raises(ValueError, match=f"its stream '{name}' has .* codes, too few for the model"):
        decode(tensors, codes | {name: codes[name][:-size]})
    with pytest.raises(ValueError, match=f"its stream '{name}' has .* codes, too many for the model"):
        decode(tensors, codes | {name: torch.cat([codes[name], codes[name].new_zeros(size)])})
    with pytest.raises(ValueError, match=f"its stream '{name}' is missing"):
        decode(tensors, {key: stream for key, stream in codes.items() if key != name})
    if size > 1:
        with pytest.raises(ValueError, match=f"a stream of {len(codes[name]) - 1} bytes where {size} a number were"):
            decode(tensors, codes | {name: codes[name][1:]})


# -------------------------------------------------------------------------------------------- the streams


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
@pytest.mark.parametrize("kind", ["random", "alike"])
def test_streams_come_back(width: int, count: int, kind: str, tmp_path: Path) -> None:
    codes = torch.randint(2**width, (count,), dtype=torch.uint8) if kind == "random" else torch.ones(count).byte()
    write_packed(tmp_path / "net", {"note": "é"}, {"codes": (codes, width), "again": (codes, width)})
    description, streams = read_packed(tmp_path / "net")
    assert description == {"note": "é"}
    assert torch.equal(streams["codes"], codes)
    assert torch.equal(streams["again"], codes)
    with safetensors.safe_open(tmp_path / "net", "pt") as file:
        assert file.get_tensor("codes").numel() <= (count * width + 7) // 8


def test_the_bits_of_a_stream_are_where_the_format_says(tmp_path: Path) -> None:
    codes = torch.tensor([1, 2, 4, 7, 0, 5], dtype=torch.uint8)
    write_packed(tmp_path / "net", {}, {"codes": (codes, 3)})
    with safetensors.safe_open(tmp_path / "net", "pt") as file:
        found = file.get_tensor("codes").tolist()
    bits = sum(int(code) << (3 * place) for place, code in enumerate(codes))
    assert found == [bits & 255, bits >> 8 & 255, bits >> 16]


def test_a_stream_that_inflates_without_end_is_not_inflated(packed: Path, tmp_path: Path) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(50_000_000)) + bomb.flush()
    save_file(
        {"weight": torch.frombuffer(bytearray(data), dtype=torch.uint8)},
        tmp_path / "bomb",
        {"format": "rotateconv-packed", "version": "1", "sha256": "0" * 64, "description": ""},
    )
    forge(tmp_path / "bomb", lambda m: m.update(description=json.dumps({"streams": {"weight": [10, 8, True]}})))
    with pytest.raises(ValueError, match="a stream of 11 bytes where 10 were announced"):
        load_packed(tmp_path / "bomb")
