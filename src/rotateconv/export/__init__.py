"""A trained model for other runtimes: ONNX and torch.export, fused and checked before the file gets its name."""

from rotateconv.export.export import Export as Export
from rotateconv.export.export import export_onnx as export_onnx
from rotateconv.export.export import export_torch as export_torch
