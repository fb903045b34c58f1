// Scores of a compact ONNX file for an image of raw bytes (channels x height x width, uint8, of the model's size):
// npm install onnxruntime-web; node compact_onnx.mjs digits.onnx image.raw 1 8 8 0.305 0.376
// (the file, the image, channels, height, width, then the mean and the standard deviation of each channel)
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [file, image, ...numbers] = process.argv.slice(2);
const [channels, height, width, ...rest] = numbers.map(Number);
const session = await ort.InferenceSession.create(readFileSync(file)); // decodes the kernels, once
const pixels = Float32Array.from(readFileSync(image), (value, place) => {
  const channel = Math.floor(place / (height * width));
  return (value / 255 - rest[channel]) / rest[channels + channel];
});
const images = new ort.Tensor("float32", pixels, [1, channels, height, width]);
console.log([...(await session.run({ images })).logits.data].join("\n"));
