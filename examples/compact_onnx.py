"""Classify an image with a compact ONNX file: python compact_onnx.py digits.onnx image.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])  # decodes the kernels, once
about = {
    key: json.loads(session.get_modelmeta().custom_metadata_map[key])
    for key in ("classes", "mean", "std", "input_size")
}
channels, height, width = about["input_size"]
image = Image.open(sys.argv[2]).convert("L" if channels == 1 else "RGB").resize((width, height))
pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
mean, std = (np.array(about[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
logits = session.run(None, {"images": ((pixels - mean) / std)[None]})[0][0]
print(about["classes"][logits.argmax()])
