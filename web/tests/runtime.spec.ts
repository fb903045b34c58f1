// The compact files and their dense forms in ONNX Runtime for the web give what Python's gives: `python tools/page.py dense`.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test, type Worker } from "@playwright/test";
import * as ort from "onnxruntime-web/wasm";
import { about, metadata } from "../src/model";

ort.env.wasm.numThreads = 1;

const models = new URL("../public/models/", import.meta.url);
const expected: Record<string, number[]> = JSON.parse(readFileSync(new URL("dense/expected.json", models), "utf-8"));
const names = readdirSync(models).filter((name) => name.endsWith(".onnx"));

/** The picture that Python took, and its shape. */
function wave(file: Uint8Array): { pixels: Float32Array; shape: number[] } {
  const shape = about(file).inputSize;
  return {
    shape,
    pixels: Float32Array.from({ length: shape[0] * shape[1] * shape[2] }, (_, place) => Math.sin(place)),
  };
}

function compare(found: ArrayLike<number>, name: string): void {
  const wanted = expected[name.replace(".onnx", "")];
  const size = Math.max(...wanted.map(Math.abs));
  expect(found.length).toBe(wanted.length);
  wanted.forEach((value, place) => expect(Math.abs(found[place] - value)).toBeLessThan(1e-4 * size));
}

test("there are models", () => expect(names.length).toBeGreaterThan(0));

for (const name of names) {
  for (const path of [name, `dense/${name}`]) {
    const file = new Uint8Array(readFileSync(new URL(path, models)));

    test(`${path} in Node`, async () => {
      const session = await ort.InferenceSession.create(file);
      const { pixels, shape } = wave(file);
      const { logits } = await session.run({ images: new ort.Tensor("float32", pixels, [1, ...shape]) });
      compare(logits.data as Float32Array, name);
    });

    test(`${path} in Chromium`, async ({ page }) => {
      const [worker] = await Promise.all([page.waitForEvent("worker"), page.goto("/")]);
      const found = await page.evaluate(
        async ({ script, file, pixels, shape }) => {
          const runtime = new Worker(script, { type: "module" }); // the page's own, another time
          const ask = (question: object) =>
            new Promise<{ failed?: string; ran?: { logits: Float32Array } }>((done) => {
              runtime.onmessage = ({ data }) => done(data);
              runtime.postMessage(question);
            });
          const opened = await ask({ id: 0, files: { model: new Uint8Array(file) } });
          const { failed, ran } = await ask({ id: 1, name: "model", pixels: new Float32Array(pixels), shape });
          return failed ?? opened.failed ?? [...ran!.logits];
        },
        { script: (worker as Worker).url(), file: [...file], ...plain(wave(file)) },
      );
      expect(typeof found).toBe("object");
      compare(found as number[], name);
    });
  }

  test(`the metadata of ${name}`, () => {
    const file = new Uint8Array(readFileSync(new URL(name, models)));
    const { classes, mean, std, inputSize } = about(file);
    expect([classes.length, mean.length, std.length, inputSize.length]).toEqual([10, inputSize[0], inputSize[0], 3]);
    expect(metadata(file)).toHaveProperty("command");
    expect(() => metadata(file.subarray(0, 40))).not.toThrow(/undefined/);
  });
}

test("the example of a file from JavaScript prints the scores of an image", async () => {
  const web = fileURLToPath(new URL("..", import.meta.url));
  const folder = mkdtempSync(join(web, "node_modules", ".example-")); // where it finds the runtime
  copyFileSync(join(web, "../examples/compact_onnx.mjs"), join(folder, "example.mjs"));
  const bytes = Uint8Array.from({ length: 28 * 28 }, (_, place) => (37 * place) % 256);
  writeFileSync(join(folder, "image.raw"), bytes);
  const file = new Uint8Array(readFileSync(new URL("mnist.onnx", models)));
  const { mean, std } = about(file);
  const given = [fileURLToPath(new URL("mnist.onnx", models)), join(folder, "image.raw"), 1, 28, 28, mean[0], std[0]];
  const printed = execFileSync("node", [join(folder, "example.mjs"), ...given.map(String)], { encoding: "utf-8" });
  const images = new ort.Tensor(
    "float32",
    Float32Array.from(bytes, (byte) => (byte / 255 - mean[0]) / std[0]),
    [1, 1, 28, 28],
  );
  const { logits } = await (await ort.InferenceSession.create(file)).run({ images });
  rmSync(folder, { recursive: true });
  const found = printed.trim().split("\n").map(Number);
  expect(found).toHaveLength(10);
  found.forEach((value, place) => expect(value).toBeCloseTo((logits.data as Float32Array)[place], 4));
});

const plain = ({ pixels, shape }: { pixels: Float32Array; shape: number[] }) => ({ pixels: [...pixels], shape });
