// A model in ONNX Runtime for the web: opened, timed, and run on pixels prepared as in its training.

/** What a file of `rotateconv export` says of the images it takes; the shape is channels, height, width. */
export type About = { classes: string[]; mean: number[]; std: number[]; inputSize: [number, number, number] };

/** A file that the runtime has open; times in milliseconds. */
export type Opened = { name: string; bytes: number; opening: number; runs: number[] };

export type Question = { id: number } & (
  { files: Record<string, Uint8Array> } | { name: string; pixels: Float32Array; shape: number[] }
);
export type Answer = {
  id: number;
  opened?: Record<string, number>;
  ran?: { logits: Float32Array; time: number };
  failed?: string;
};

let worker: Worker | undefined;
let asked = 0;
const waiting = new Map<number, (answer: Answer) => void>();

async function ask(question: Omit<Question, "id">): Promise<Answer> {
  if (!worker) {
    worker = new Worker(new URL("./runtime.worker.ts", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => waiting.get(data.id)?.(data));
    worker.addEventListener("error", ({ message }) =>
      waiting.forEach((done, id) => done({ id, failed: message || "the runtime does not start" })),
    );
  }
  const id = asked++;
  const answer = await new Promise<Answer>((done) => {
    waiting.set(id, done);
    worker!.postMessage({ id, ...question });
  });
  waiting.delete(id);
  if (answer.failed) throw new Error(answer.failed);
  return answer;
}

/** Open files by names of one's own, and time it. */
export async function open(files: Record<string, Uint8Array>): Promise<Opened[]> {
  const { opened } = await ask({ files });
  return Object.entries(files).map(([name, file]) => ({
    name,
    bytes: file.byteLength,
    opening: opened![name],
    runs: [],
  }));
}

/** Scores of one picture: numbers between 0 and 1, channels first. Its time is kept among the last ones. */
export async function scores(model: Opened, about: About, pixels: Float32Array): Promise<Float32Array> {
  const area = about.inputSize[1] * about.inputSize[2];
  const normalized = pixels.map((value, place) => {
    const channel = Math.floor(place / area);
    return (value - about.mean[channel]) / about.std[channel];
  });
  const { ran } = await ask({ name: model.name, pixels: normalized, shape: about.inputSize });
  model.runs = [...model.runs.slice(-20), ran!.time];
  return ran!.logits;
}

/** The median of the last ones. */
export const timeOfRun = ({ runs }: Opened): number => [...runs].sort((a, b) => a - b)[Math.floor(runs.length / 2)];

export function softmax(logits: Float32Array): number[] {
  const most = Math.max(...logits);
  const sizes = Array.from(logits, (value) => Math.exp(value - most));
  const total = sizes.reduce((sum, value) => sum + value, 0);
  return sizes.map((value) => value / total);
}

/**
 * The metadata of an ONNX file, which the runtime for the web does not hand out: fields 14 of ModelProto, each a message
 * of a key (1) and a value (2). Everything else is skipped by its length.
 */
export function metadata(file: Uint8Array): Record<string, string> {
  const found: Record<string, string> = {};
  const text = (bytes: Uint8Array | undefined) => new TextDecoder().decode(bytes);
  for (const { field, bytes } of fields(file)) {
    if (field !== 14 || !bytes) continue;
    const parts = new Map(fields(bytes).map((part) => [part.field, part.bytes]));
    found[text(parts.get(1))] = text(parts.get(2));
  }
  return found;
}

/** What a file says of its images. */
export function about(file: Uint8Array): About {
  const { classes, mean, std, input_size } = metadata(file);
  return {
    classes: JSON.parse(classes),
    mean: JSON.parse(mean),
    std: JSON.parse(std),
    inputSize: JSON.parse(input_size),
  };
}

/** The fields of a protocol buffer; `bytes` of those that have a length. */
function fields(message: Uint8Array): { field: number; bytes?: Uint8Array }[] {
  const found: { field: number; bytes?: Uint8Array }[] = [];
  let at = 0;
  const varint = () => {
    let [value, factor] = [0, 1];
    for (;;) {
      const byte = message[at++];
      if (byte === undefined) throw new Error("the file is cut off");
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      factor *= 128;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const [field, type] = [Math.floor(tag / 8), tag % 8];
    if (type === 2) {
      const length = varint();
      found.push({ field, bytes: message.subarray(at, at + length) });
      at += length;
    } else {
      found.push({ field });
      if (type === 0) varint();
      else at += type === 1 ? 8 : 4;
    }
  }
  return found;
}
