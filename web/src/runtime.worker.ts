// ONNX Runtime for the web, beside the page: what takes long here stops no pen and no turning line.

import * as ort from "onnxruntime-web/wasm";
import type { Answer, Question } from "./model";

ort.env.wasm.numThreads = 1; // any static server allows it; several threads need special headers

const ROUNDS = 3;
const sessions = new Map<string, ort.InferenceSession>();

/** Open files, in turns: the first round compiles the runtime, and the best of the others counts. */
async function open(files: Record<string, Uint8Array>): Promise<Record<string, number>> {
  const best: Record<string, number> = {};
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, file] of Object.entries(files)) {
      await sessions.get(name)?.release();
      const begun = performance.now();
      sessions.set(name, await ort.InferenceSession.create(file));
      if (round > 0) best[name] = Math.min(best[name] ?? Infinity, performance.now() - begun);
    }
  }
  return best;
}

async function run(
  name: string,
  pixels: Float32Array,
  shape: number[],
): Promise<{ logits: Float32Array; time: number }> {
  const images = new ort.Tensor("float32", pixels, [1, ...shape]);
  const begun = performance.now();
  const { logits } = await sessions.get(name)!.run({ images });
  return { logits: logits.data as Float32Array, time: performance.now() - begun };
}

addEventListener("message", async ({ data }: MessageEvent<Question>) => {
  const answer: Answer = { id: data.id };
  try {
    if ("files" in data) answer.opened = await open(data.files);
    else answer.ran = await run(data.name, data.pixels, data.shape);
  } catch (error) {
    answer.failed = String(error);
  }
  postMessage(answer);
});
