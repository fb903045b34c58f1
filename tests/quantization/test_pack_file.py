"""Packed files that are refused, and the streams in them."""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forging import forge, forge_header, forge_stream
from rotateconv import build_model, load_packed, pack, quantize
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.pack import describe_packed
from rotateconv.quantization.pack_description import Stored
from rotateconv.quantization.pack_file import restore, store
from rotateconv.quantization.pack_streams import decode, encode
from rotateconv.quantization.quantize import entries


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "model"
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


@pytest.mark.slow
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
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
        load_packed(tmp_path / "model")
    with pytest.raises(ValueError, match="is no packed model, or it was cut off"):
        describe_packed(tmp_path / "model")


def test_another_safetensors_file(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model")
    with pytest.raises(ValueError, match=r"is a safetensors file but no packed model: make one with rotateconv\.pack"):
        load_packed(tmp_path / "model")


def in_description(**changes: object) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        metadata["description"] = json.dumps(json.loads(metadata["description"]) | changes)

    return change


def stream(**changes: object) -> Callable[[dict[str, str]], None]:
    def change(metadata: dict[str, str]) -> None:
        description = json.loads(metadata["description"])
        description["streams"] |= changes
        metadata["description"] = json.dumps(description)

    return change


def test_another_version(packed: Path) -> None:
    forge(packed, lambda metadata: metadata.update(version="2"))
    with pytest.raises(
        ValueError, match="has version '2' of the packed format, and this rotateconv reads version 1: update"
    ):
        load_packed(packed)


BUILD = {"name": "resnet20", "conv": "rotate2p", "num_classes": 10, "in_channels": 3, "width": 0.25}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda metadata: metadata.pop("sha256"), "was altered: its checksum is not that of its content"),
        (lambda metadata: metadata.pop("description"), "is no packed model that can be read: it has no description"),
        (lambda metadata: metadata.update(description="{"), "is no packed model that can be read: Expecting property"),
        (lambda metadata: metadata.update(description="[1]"), "its description must be an object, not list"),
        (lambda metadata: metadata.update(description="[" * 200_000), "it is nested too deeply"),
        (lambda metadata: metadata.update(description="9" * 5000), "is no packed model that can be read"),
        (stream(weight=[5, 8, True]), "its stream 'weight' has 5 codes where its model has 1,856"),
        (stream(weight=[-1, 8, True]), "is no packed model that can be read: a stream of -1 codes"),
        (stream(weight=[1, 9, True]), "is no packed model that can be read: a stream of 1 codes of 9 bits"),
        (stream(weight=[1, 8, 1]), "whether a stream is deflated must be true or false"),
        (stream(weight=[1, 8]), "its stream 'weight' must have a count, a width and whether it is deflated"),
        (stream(weight={"1": 8}), "its stream 'weight' must have a count, a width and whether it is deflated"),
        (stream(angle=[10**9, 8, True]), "its stream 'angle' has 1,000,000,000 codes where its model has 1,856"),
        (stream(weight=[1856, 1, False]), "cannot load .*a stream of .* bytes where 232 were announced"),
        (stream(other=[1, 8, True]), "unknown stream 'other': they are weight, dense, scale"),
        (in_description(streams={}), "its stream 'weight' is missing"),
        (in_description(streams=[1]), "its description has no streams"),
        (in_description(unknown=1), "is no packed model that can be read: unknown key 'unknown'"),
        (in_description(bits=[4, 5]), "bits must be a list of three whole numbers"),
        (in_description(bits=None), "bits must be a list of three whole numbers"),
        (in_description(bits=[4, 5, 9]), "dense_bits must be a whole number from 1 to 8, got 9"),
        (in_description(bits=[4, 6, 8]), "holds the numbers of a ResNet with other tensors than this version builds"),
        (in_description(layout="0" * 16), "holds the numbers of a ResNet with other tensors than this version builds"),
        (in_description(layout=1), "layout must be a text"),
        (in_description(architecture=["ResNet"]), "architecture must be a text"),
        (in_description(architecture="\ud800"), "a text in it is no Unicode"),
        (in_description(classes=[1, 2]), "classes must be a list of texts"),
        (in_description(classes="ab"), "classes must be a list of texts"),
        (in_description(classes=["\udfff"]), "a text in it is no Unicode"),
        (in_description(std=1), "std must be a list of finite numbers above 0"),
        (in_description(std=[0.5, 0.0, 0.5]), "std must be a list of finite numbers above 0"),
        (in_description(mean=[float("nan")] * 3), "it holds a number that is not finite, NaN"),
        (in_description(mean=[True]), "mean must be a list of finite numbers"),
        (in_description(input_size=5), "input_size must be a list of three whole numbers above 0"),
        (in_description(input_size=[3, 0, 32]), "input_size must be a list of three whole numbers above 0"),
        (
            in_description(input_size=[3, 10**5, 10**5]),
            "input_size 3 x 100000 x 100000 is larger than 16,777,216 numbers",
        ),
        (in_description(build={"name": "os.system"}), "unknown model 'os.system'"),
        (in_description(build=BUILD | {"conv": "eval"}), "unknown conv 'eval'"),
        (in_description(build=BUILD | {"width": "wide"}), "width of the model must be a number above 0, got 'wide'"),
        (in_description(build=BUILD | {"width": 1e300}), "cannot load .*its model is larger than any memory"),
        (in_description(build=BUILD | {"num_classes": 2.5}), "num_classes of the model must be a whole number above 0"),
        (in_description(build=BUILD | {"conv": 5}), "conv of the model must be a text, got 5"),
        (in_description(build=BUILD | {"growth": 5}), "resnet20 has no growth, got growth=5: leave it out"),
        (in_description(build=BUILD | {"device": "cuda"}), "the arguments of build_model are name, .*got 'device'"),
        (in_description(build=BUILD | {"width": 0.5}), "with other tensors than this version builds for its name"),
        (in_description(build=[1]), r"the arguments of build_model must be an object with a name, got \[1\]"),
        (in_description(lines=["stem"]), "lines must be pairs of options and the names of layers"),
        (in_description(lines=[[{}, "stem"]]), "lines must name each layer once"),
        (in_description(lines=[[{}, ["stem"]], [{"taps": "shared"}, ["stem"]]]), "lines must name each layer once"),
        (in_description(lines=[[{}, [5]]]), "lines must name each layer once"),
        (in_description(lines={"stem": {"device": "cuda"}}), "the options of a RotateConv2d are .* got device"),
        (in_description(lines={"stem": {"taps": ["free"]}}), r"taps must be one of .*, got \['free'\]"),
        (in_description(lines={"stem": {"angle_groups": 10**9}}), "must be divisible by angle_groups"),
        (in_description(lines={"stem": {}}), "with other tensors than this version builds for its name"),
        (in_description(lines={"nowhere": {}}), "its layers are those of another model: .*has no attribute `nowhere`"),
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
    with pytest.raises(ValueError, match="unknown key 'unknown'"):
        describe_packed(packed)


def test_a_stream_that_the_description_does_not_know(packed: Path) -> None:
    forge_header(packed, lambda header: header.update(other=header["weight"]))
    with pytest.raises(ValueError, match=r"no packed model"):
        load_packed(packed)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("weight", 15, "stages.0.0.conv1.weight stand for no finite numbers of 4 bits"),
        ("scale", 0x7F, "stand for no finite numbers"),
        ("angle", 32, "angle stand for no finite numbers of 5 bits"),
        ("exponent", 255, "stand for no finite numbers of 16 bits"),
    ],
)
def test_codes_that_stand_for_no_finite_number(name: str, value: int, what: str) -> None:
    """Each is one that no file of `pack` has: beyond the bits, or infinite."""
    tensors = entries(quantize(build_model("resnet20", "rotate2p", width=0.25)), Bits(4, 5, 8))
    codes = {key: stream for key, (stream, _) in encode(tensors).items()}
    codes[name] = torch.full_like(codes[name], value)
    with pytest.raises(ValueError, match=what):
        decode(tensors, codes.__getitem__)


@pytest.mark.parametrize(
    ("conv", "stream", "place", "value", "what"),
    [
        # Of the low bytes: the count of batches, then how many patterns, and the first position of the first.
        ("pattern4", "integer", 1, 0, "position stand for no finite numbers"),
        ("pattern4", "integer", 2, 9, "position stand for no finite numbers"),
        ("pattern4", "index", 0, 8, "position stand for no finite numbers"),
        ("codebook16", "index", 0, 16, "conv1.weight stand for no finite numbers"),
    ],
)
def test_positions_and_indices_that_there_are_not(conv: str, stream: str, place: int, value: int, what: str) -> None:
    tensors = entries(quantize(build_model("resnet20", conv, width=0.25)), Bits(4, 5, 8))
    codes = {key: stream for key, (stream, _) in encode(tensors).items()}
    codes[stream][place] = value
    with pytest.raises(ValueError, match=what):
        decode(tensors, codes.__getitem__)
    del codes["index"]
    with pytest.raises(ValueError, match=r"integer|index|position"):
        decode(tensors, codes.__getitem__)


def test_a_seed_that_there_is_not() -> None:
    tensors = entries(quantize(build_model("resnet20", "mask4", width=0.25)), Bits(4, 5, 8))
    codes = {key: stream for key, (stream, _) in encode(tensors).items()}
    assert len(codes["index"]) == 0  # a seed gives all positions of a layer
    codes["integer"][2 * len(codes["integer"]) // 8 + 2] = 1  # of the third bytes, that of the first seed
    with pytest.raises(ValueError, match="position stand for no finite numbers"):
        decode(tensors, codes.__getitem__)


def peak(code: str, *arguments: object) -> tuple[int, str]:
    """Run code in a process of its own; the megabytes that it took beyond importing, and what it printed."""
    program = f"""
import resource, sys
from rotateconv import load_packed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {code}
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60
    )
    *printed, megabytes = done.stdout.splitlines()
    return int(megabytes), "\n".join(printed)


needs_rusage = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")


@pytest.mark.slow
@needs_rusage
def test_a_billion_codes_take_no_memory(packed: Path) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(10_000_000)
    body = b"".join(deflate.compress(zeros) for _ in range(100)) + deflate.flush()
    forge_stream(packed, "weight", body, [10**9, 8, True])
    megabytes, printed = peak("load_packed(sys.argv[1])", packed)
    assert "its stream 'weight' has 1,000,000,000 codes where its model has 1,856" in printed
    assert megabytes < 200


@pytest.mark.slow
@needs_rusage
@pytest.mark.parametrize(("width", "numbers"), [(100.0, "1,212,"), (13.0, None)])
def test_a_model_of_a_few_bytes_and_much_memory_is_not_built(width: float, numbers: str, packed: Path) -> None:
    forge(packed, in_description(build=BUILD | {"width": width}))
    megabytes, printed = peak("load_packed(sys.argv[1], max_parameters=10**7)", packed)
    assert "numbers, more than the 10,000,000 allowed: if you trust it, give max_parameters" in printed
    assert megabytes < 100


def test_a_larger_model_is_loaded_for_who_allows_it(packed: Path) -> None:
    with pytest.raises(ValueError, match=r"its model has .* numbers, more than the 1,000 allowed"):
        load_packed(packed, max_parameters=1000)
    assert load_packed(packed, max_parameters=100_000)


@pytest.mark.parametrize("name", ["weight", "dense", "scale", "angle", "mantissa", "exponent", "integer", "profile"])
def test_streams_of_another_length(name: str) -> None:
    tensors = entries(quantize(build_model("resnet20", "rotate2p", width=0.25), profile_bits=4), Bits(4, 5, 8, None, 4))
    codes = {key: stream for key, (stream, _) in encode(tensors).items()}
    size = {"scale": 2, "integer": 8}.get(name, 1)
    with pytest.raises(ValueError, match=f"its stream '{name}' has .* codes, too few|stand for no finite"):
        decode(tensors, (codes | {name: codes[name][:-size]}).__getitem__)
    with pytest.raises(ValueError, match=f"its stream '{name}' has .* codes, too many for the model"):
        decode(tensors, (codes | {name: torch.cat([codes[name], codes[name].new_zeros(size)])}).__getitem__)
    if size > 1:
        with pytest.raises(ValueError, match=f"a stream of {len(codes[name]) - 1} bytes where {size} a number were"):
            decode(tensors, (codes | {name: codes[name][1:]}).__getitem__)


# -------------------------------------------------------------------------------------------- the streams


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
@pytest.mark.parametrize("kind", ["random", "alike"])
def test_streams_come_back(width: int, count: int, kind: str) -> None:
    codes = torch.randint(2**width, (count,), dtype=torch.uint8) if kind == "random" else torch.ones(count).byte()
    data, stored_width, deflated = store(codes, width)
    assert torch.equal(restore(data, Stored(count, stored_width, deflated)), codes)
    assert len(data) <= (count * width + 7) // 8


def test_streams_longer_than_what_is_taken_apart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotateconv.quantization.pack_file.CHUNK", 16)
    codes = torch.randint(8, (1001,), dtype=torch.uint8)
    data, width, deflated = store(codes, 3)
    assert (width, deflated) == (3, False)
    assert torch.equal(restore(data, Stored(1001, width, deflated)), codes)


def test_the_bits_of_a_stream_are_where_the_format_says() -> None:
    codes = torch.tensor([1, 2, 4, 7, 0, 5], dtype=torch.uint8)
    found = list(store(codes, 3)[0])
    bits = sum(int(code) << (3 * place) for place, code in enumerate(codes))
    assert found == [bits & 255, bits >> 8 & 255, bits >> 16]


def test_a_stream_that_inflates_without_end_is_not_inflated() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(50_000_000)) + bomb.flush()
    with pytest.raises(ValueError, match="a stream of 11 bytes where 10 were announced"):
        restore(data, Stored(10, 8, True))


def test_a_stream_that_is_not_deflated_data() -> None:
    with pytest.raises(ValueError, match="a stream that cannot be inflated: Error -3"):
        restore(b"\xff" * 10, Stored(10, 8, True))
