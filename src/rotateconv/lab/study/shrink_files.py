"""The files of the candidates of `shrink`: packed and compact ONNX, and the bytes of the one that counts."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rotateconv.export.export import export_onnx
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.study.shrink_record import ONNX, Count
from rotateconv.lab.train.load import pack_model
from rotateconv.quantization.bits import Bits


@dataclass(frozen=True)
class Files:
    """Writes the files of models for these data, and knows which of the two counts."""

    data: DataDescription
    count: Count

    def size(self, model: nn.Module, bits: Bits, packed: Path) -> int:
        """Pack a model, and return the bytes of the file that counts."""
        size = self.pack(model, bits, packed)
        if self.count == "rcp":
            return size
        with tempfile.TemporaryDirectory() as folder:
            return self.export(model, bits, Path(folder, ONNX))

    def pack(self, model: nn.Module, bits: Bits, path: Path) -> int:
        """Write the packed file, and return its bytes."""
        pack_model(model, self.data, path, bits)
        return path.stat().st_size

    def export(self, model: nn.Module, bits: Bits, path: Path) -> int:
        """Write the compact ONNX file, and return its bytes."""
        return export_onnx(model, path, compact=True, **bits.arguments, **self.data.about).bytes
