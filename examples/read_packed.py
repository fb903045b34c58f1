"""Classify uint8 images (N, H, W) or (N, C, H, W) with a packed ResNet of rotate4 or rotate2p, in NumPy alone.

    python read_packed.py model.rotateconv images.npy

The format is in docs/packed-format.md. A file has a stream of codes for each kind of number, without names or shapes: a
reader that knows the model takes them in the order of its layers.
"""

import hashlib
import json
import sys
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np


class Packed:
    """The streams of a packed file, each read once from its beginning to its end."""

    def __init__(self, path):
        data = Path(path).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")  # a safetensors file: length of the header, header, tensors
        header = json.loads(data[8:start])
        about = header["__metadata__"]
        blank = data[:start].replace(about["sha256"].encode(), b"0" * 64, 1)  # the hash was taken with zeros for itself
        if about["version"] != "1" or hashlib.sha256(blank + data[start:]).hexdigest() != about["sha256"]:
            raise ValueError(f"{path} is no packed model of version 1, or it was altered")
        self.description = json.loads(about["description"])
        weight, self.angle_bits, dense = self.description["bits"]
        bits = {"weight": weight, "dense": dense, "profile": self.description.get("profile_bits", 0)}
        self.levels = {name: 2**count - (count > 1) for name, count in bits.items()}
        self.levels["weight"] = self.description.get("levels", self.levels["weight"])
        self.own = self.description.get("layer_bits", {})  # of weight and angle, by patterns of layers' names
        self.streams = {}
        for name, (count, width, deflated) in self.description["streams"].items():
            first, last = (start + offset for offset in header[name]["data_offsets"])
            body = zlib.decompress(data[first:last], -15) if deflated else data[first:last]
            bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")[: count * width]
            self.streams[name] = bits.reshape(count, width) @ (1 << np.arange(width))
        low, high = self.streams["scale"].reshape(2, -1)  # all low bytes, then all high ones, of signed numbers
        unsigned = low + 256 * high
        self.streams["scale"] = np.where(unsigned < 2**15, unsigned, unsigned - 2**16)

    def take(self, name, *shape):
        """The next codes of a stream."""
        codes, self.streams[name] = np.split(self.streams[name], [np.prod(shape)])
        return codes.reshape(shape)

    def weights(self, name, *shape, bits=None):
        """The next weights: codes around zero, times a scale for every output channel, eight scales per octave."""
        levels = self.levels[name]
        if bits is not None:  # of the layer's own, in a stream of their own; without a zero where the others have none
            even = self.description.get("levels", 1) % 2 == 0 and bits < 8
            name, levels = f"{name}{bits}", 2**bits - (bits > 1 and not even)
        step = 1 if levels % 2 else 2  # an even number of levels has no zero: -3, -1, 1, 3
        codes = step * self.take(name, *shape) - step * (levels - 1) // 2
        scale = self.take("scale", shape[0]) / 8
        return codes * 2 ** scale.reshape(-1, *[1] * (len(shape) - 1))

    def bfloat16(self, *shape):
        """The next 16-bit floats: how far the exponent is below the largest one, and sign and fraction."""
        exponent = self.take("exponent", 1) - self.take("exponent", *shape)
        mantissa = self.take("mantissa", *shape)
        sign, fraction = mantissa >> 7, mantissa & 127
        bits = sign << 31 | exponent << 23 | fraction << 16  # of a float32
        return bits.astype(np.uint32).view(np.float32).astype(float)

    def line_kernels(self, layer, outputs, inputs):
        """The kernels (outputs, inputs, 3, 3) of the next RotateConv layer: three taps on a line through the center."""
        free = self.description["build"]["conv"] == "rotate4"
        own = ([bits for name, bits in self.own.items() if fnmatchcase(layer, name)] or [(None, None)])[-1]
        weight = self.weights("weight", outputs, inputs, 3 if free else 1, bits=own[0])
        turning = (weight[..., ::2] != 0).any(-1)  # where both ends are zero, the file holds no angle
        angle = np.zeros((outputs, inputs))
        codes = self.take(f"angle{own[1] or ''}", turning.sum())
        angle[turning] = codes * 2 * np.pi / 2 ** (own[1] or self.angle_bits)
        if not free:
            profile = self.weights("profile", outputs, 3) if "profile" in self.streams else self.bfloat16(outputs, 3)
            weight = weight * profile[:, None]  # the profile of an output channel
        tap = np.arange(-1, 2)[:, None]
        grid = np.arange(-1, 2)
        # Bilinear: the share that tap t at t·(-sin θ, cos θ) gives to a row, and to a column.
        row, column = -np.sin(angle)[..., None, None], np.cos(angle)[..., None, None]
        rows = np.maximum(0, 1 - abs(tap * row - grid))  # [output, input, tap, row]
        columns = np.maximum(0, 1 - abs(tap * column - grid))
        return np.einsum("oit,oitr,oitc->oirc", weight, rows, columns)

    def batch_norm(self, x):
        """Images through the next batch norm."""
        weight, bias, mean, variance = (self.bfloat16(x.shape[1], 1, 1) for _ in range(4))
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def convolve(x, kernel, stride=1):
    """A 3 x 3 convolution, zeros around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nihwrc,oirc->nohw", windows, kernel, optimize=True)


def relu(x):
    """No number below zero."""
    return np.maximum(0, x)


def classify(path, images):
    """The scores (N, classes) of images, and the names of the classes."""
    packed = Packed(path)
    about, build = packed.description, packed.description["build"]
    mean, std = (np.array(about[key])[:, None, None] for key in ("mean", "std"))
    x = (images.reshape(len(images), -1, *images.shape[-2:]) / 255 - mean) / std

    width = round(16 * build["width"])
    stem = packed.weights("dense", width, x.shape[1], 3, 3)
    x = relu(packed.batch_norm(convolve(x, stem)))

    depth = int(build["name"].removeprefix("resnet"))
    blocks = (depth - 2) // 6  # of each of three stages
    for stage in range(3):
        for block in range(blocks):
            outputs, stride = width * 2**stage, 2 if stage and not block else 1
            name = f"stages.{stage}.{block}.conv"
            y = relu(packed.batch_norm(convolve(x, packed.line_kernels(name + "1", outputs, x.shape[1]), stride)))
            y = packed.batch_norm(convolve(y, packed.line_kernels(name + "2", outputs, outputs)))
            y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]  # the shortcut; new channels have none
            x = relu(y)

    scores = x.mean((2, 3)) @ packed.weights("dense", build["num_classes"], x.shape[1]).T
    return scores + packed.bfloat16(scores.shape[1]), about.get("classes") or range(scores.shape[1])


if __name__ == "__main__":
    found, names = classify(sys.argv[1], np.load(sys.argv[2]))
    print(*(names[best] for best in found.argmax(1)), sep="\n")
