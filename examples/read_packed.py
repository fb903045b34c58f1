"""Classify uint8 images (N, H, W) with a packed ResNet: python read_packed.py net.rotateconv images.npy"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np


class Packed:  # the format is in docs/packed-format.md; each stream is read once, in the order of the net
    def __init__(self, path):
        data = Path(path).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        about = header["__metadata__"]
        blank = data[:start].replace(about["sha256"].encode(), b"0" * 64, 1)
        if about["version"] != "1" or hashlib.sha256(blank + data[start:]).hexdigest() != about["sha256"]:
            raise ValueError(f"{path} is no packed model of version 1, or it was altered")
        self.description, self.streams = json.loads(about["description"]), {}
        for name, (count, width, deflated) in self.description["streams"].items():
            first, last = (start + offset for offset in header[name]["data_offsets"])
            body = zlib.decompress(data[first:last], -15) if deflated else data[first:last]
            bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")[: count * width]
            self.streams[name] = bits.reshape(count, width) @ (1 << np.arange(width))
        self.streams["scale"] = (([1, 256] @ self.streams["scale"].reshape(2, -1)) + 2**15) % 2**16 - 2**15  # int16

    def take(self, name, *shape):
        codes, self.streams[name] = np.split(self.streams[name], [np.prod(shape)])
        return codes.reshape(shape)

    def weights(self, kind, bits, *shape):  # codes around zero, times a scale for every output channel
        codes = self.take(kind, *shape) - (2 ** (bits - 1) - 1)
        return codes * 2 ** (self.take("scale", shape[0], *[1] * (len(shape) - 1)) / 8)

    def half(self, *shape):  # bfloat16: sign and fraction, and how far the exponent is below the largest
        exponent, mantissa = self.take("exponent", 1) - self.take("exponent", *shape), self.take("mantissa", *shape)
        bits = (mantissa >> 7) << 31 | exponent << 23 | (mantissa & 127) << 16
        return bits.astype(np.uint32).view(np.float32).astype(float)

    def lines(self, outputs, inputs):  # (outputs, inputs, 3, 3) from weights and angles
        (weight_bits, angle_bits, _), free = self.description["bits"], self.description["build"]["conv"] == "rotate4"
        weight = self.weights("weight", weight_bits, outputs, inputs, 3 if free else 1)
        turning, angle = (weight[..., ::2] != 0).any(-1), np.zeros((outputs, inputs))
        angle[turning] = self.take("angle", turning.sum()) * 2 * np.pi / 2**angle_bits  # the others have no angle
        weight = weight if free else weight * self.half(outputs, 3)[:, None]
        place, tap, cell = np.stack((-np.sin(angle), np.cos(angle))), np.arange(-1, 2)[:, None], np.arange(-1, 2)
        rows, columns = np.maximum(0, 1 - abs(tap * place[..., None, None] - cell))
        return np.einsum("oit,oitr,oitc->oirc", weight, rows, columns)

    def norm(self, x):  # batch norm
        scale, shift, mean, variance = (self.half(x.shape[1], 1, 1) for _ in range(4))
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift


def convolve(x, kernel, stride=1):  # 3x3, zeros around
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("nihwrc,oirc->nohw", windows[:, :, ::stride, ::stride], kernel, optimize=True)


def classify(path, images):  # scores (N, classes) of a ResNet of rotate4 or rotate2p, and the names of the classes
    packed = Packed(path)
    about, build, bits = packed.description, packed.description["build"], packed.description["bits"][2]
    mean, std = (np.array(about[key])[:, None, None] for key in ("mean", "std"))
    x, width = (images.reshape(len(images), -1, *images.shape[-2:]) / 255 - mean) / std, round(16 * build["width"])
    x = np.maximum(0, packed.norm(convolve(x, packed.weights("dense", bits, width, x.shape[1], 3, 3))))
    for block in range(depth := (int(build["name"][6:]) - 2) // 2):
        outputs, stride = width << 3 * block // depth, 2 if block in (depth // 3, 2 * depth // 3) else 1
        y = np.maximum(0, packed.norm(convolve(x, packed.lines(outputs, x.shape[1]), stride)))
        y = packed.norm(convolve(y, packed.lines(outputs, outputs)))
        y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]
        x = np.maximum(0, y)
    scores = x.mean((2, 3)) @ packed.weights("dense", bits, build["num_classes"], x.shape[1]).T
    return scores + packed.half(scores.shape[1]), about.get("classes") or range(scores.shape[1])


if __name__ == "__main__":
    found, names = classify(sys.argv[1], np.load(sys.argv[2]))
    print(*(names[best] for best in found.argmax(1)), sep="\n")
