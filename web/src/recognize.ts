// Draw a digit or drop a photo: a compact model says what it is, and the dense one beside it.

import { onTheme } from "./color";
import { about, open, scores, type About, type Opened } from "./model";
import { element, everyFrame, onChoice } from "./page";
import { digitPixels, fitted, MNIST, trace, type Point, type Stroke } from "./pixels";
import { EXAMPLES } from "./strokes";
import { showAnswer, showFile, showLooks, showNothing, type Pair } from "./verdict";

type Task = "mnist" | "cifar10-jpeg";

const PHOTO_LIMIT = 1024; // pixels of a photo's longer side: larger ones are shrunk by the browser first
const SMALLEST = 0.25; // of the drawing area: what is drawn smaller is not enlarged any further
const pad = element<HTMLCanvasElement>("pad");
const pairs: Partial<Record<Task, Promise<Pair>>> = {};

let task: Task = "mnist";
let strokes = scaled(EXAMPLES[7], pad.width / 100); // to begin with, and replaced by the first stroke
let shown = true; // whether the strokes are an example
let photo: ImageBitmap | undefined;

export function recognizer(): void {
  const update = everyFrame(() => void queue());
  drawing(update);
  examples(update);
  photos(update);
  onChoice("task", (chosen) => {
    task = chosen as Task;
    element("digit-input").hidden = task !== "mnist";
    element("photo-input").hidden = task === "mnist";
    update();
  });
  onTheme(drawPad);
  drawPad();
  // The runtime has 14 MB: what stands above it on the page comes first.
  if (document.readyState === "complete") update();
  else addEventListener("load", update);
}

/** One classification at a time, and then the newest picture, so that the answer never lags behind the pen. */
let running = false;
let again = false;
async function queue(): Promise<void> {
  again = running;
  if (running) return;
  running = true;
  try {
    do {
      again = false;
      await classify();
    } while (again);
  } catch (error) {
    element("answer").textContent = `The model cannot be loaded: ${error instanceof Error ? error.message : error}`;
  } finally {
    running = false;
  }
}

async function fetched(address: string): Promise<Uint8Array> {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} is missing (${answer.status}): make page writes it`);
  return new Uint8Array(await answer.arrayBuffer());
}

function load(name: Task): Promise<Pair> {
  return (pairs[name] ??= (async () => {
    const [small, large] = await Promise.all([
      fetched(`./models/${name}.onnx`),
      fetched(`./models/dense/${name}.onnx`),
    ]);
    const [compact, dense] = await open({ [`${name} compact`]: small, [`${name} dense`]: large });
    return { about: about(small), compact, dense };
  })());
}

async function classify(): Promise<void> {
  const now = task;
  const pair = await load(now);
  if (now !== task) return;
  showFile(pair);
  const pixels = now === "mnist" ? drawnPixels(pair.about) : photoPixels(pair.about);
  if (!pixels) return showNothing(pair.about, now === "mnist");
  showLooks(pair.about, pixels);
  // In turns, a few times at first: the browser translates what runs often.
  const order = pair.compact.runs.length % 2 ? [pair.dense, pair.compact] : [pair.compact, pair.dense];
  const found = new Map<Opened, Float32Array>();
  for (let round = pair.compact.runs.length < 8 ? 0 : 3; round < 4; round++)
    for (const model of order) found.set(model, await scores(model, pair.about, pixels));
  if (now === task) showAnswer(pair, found.get(pair.compact)!, found.get(pair.dense)!);
}

function drawnPixels({ inputSize }: About): Float32Array | undefined {
  if (inputSize[1] !== MNIST.side)
    throw new Error(`a drawing has ${MNIST.side} x ${MNIST.side} pixels, not ${inputSize}`);
  return strokes.length ? digitPixels(strokes, SMALLEST * pad.width) : undefined;
}

function photoPixels({ inputSize: [channels, height] }: About): Float32Array | undefined {
  if (!photo) return undefined;
  const shrink = Math.min(1, PHOTO_LIMIT / Math.max(photo.width, photo.height));
  const [width, tall] = [Math.max(1, Math.round(photo.width * shrink)), Math.max(1, Math.round(photo.height * shrink))];
  const canvas = new OffscreenCanvas(width, tall);
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, 0, 0, width, tall);
  const { data } = context.getImageData(0, 0, width, tall);
  const rgb = new Uint8Array(width * tall * channels);
  for (let place = 0; place < rgb.length; place++)
    rgb[place] = data[Math.floor(place / channels) * 4 + (place % channels)];
  const small = fitted(rgb, width, tall, channels, height);
  const area = height * height;
  return small.map((_, place) => small[(place % area) * channels + Math.floor(place / area)] / 255);
}

function drawStrokes(canvas: HTMLCanvasElement, drawn: Stroke[], pen: number): void {
  const context = canvas.getContext("2d")!;
  context.clearRect(0, 0, canvas.width, canvas.height);
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  Object.assign(context, { strokeStyle: ink, lineWidth: pen, lineCap: "round", lineJoin: "round" });
  drawn.forEach((stroke) => trace(context, stroke));
}

const drawPad = (): void => drawStrokes(pad, strokes, pad.width / 14);

function drawing(update: () => void): void {
  const at = (event: PointerEvent): Point => {
    const box = pad.getBoundingClientRect();
    return {
      x: ((event.clientX - box.x) / box.width) * pad.width,
      y: ((event.clientY - box.y) / box.height) * pad.height,
    };
  };
  const changed = () => {
    drawPad();
    update();
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    if (shown) strokes = []; // an example is replaced, a drawing goes on
    shown = false;
    strokes.push([at(event)]);
    changed();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    const fine = event.getCoalescedEvents?.() ?? [];
    strokes[strokes.length - 1].push(...(fine.length ? fine : [event]).map(at));
    changed();
  });
  element("clear").addEventListener("click", () => {
    strokes = [];
    changed();
  });
}

function examples(update: () => void): void {
  const canvases = EXAMPLES.map((example, digit) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Example ${digit}`);
    const canvas = Object.assign(document.createElement("canvas"), { width: 100, height: 100 });
    button.append(canvas);
    button.addEventListener("click", () => {
      strokes = scaled(example, pad.width / 100);
      shown = true;
      drawPad();
      update();
    });
    element("examples").append(button);
    return canvas;
  });
  const redraw = () => canvases.forEach((canvas, digit) => drawStrokes(canvas, EXAMPLES[digit], 9));
  onTheme(redraw);
  redraw();
}

function scaled(drawn: Stroke[], factor: number): Stroke[] {
  return drawn.map((stroke) => stroke.map(({ x, y }) => ({ x: x * factor, y: y * factor })));
}

function photos(update: () => void): void {
  const [drop, view] = [element("drop"), element<HTMLCanvasElement>("photo-view")];
  const take = async (file: Blob | null | undefined) => {
    if (!file) return;
    try {
      photo = await createImageBitmap(file);
    } catch {
      element("answer").textContent = "This file does not decode as an image.";
      return;
    }
    const side = Math.min(photo.width, photo.height); // the middle, which is what the model gets
    const corner: [number, number] = [(photo.width - side) / 2, (photo.height - side) / 2];
    view.hidden = false;
    element("drop-text").hidden = true;
    view.getContext("2d")!.drawImage(photo, ...corner, side, side, 0, 0, view.width, view.height);
    update();
  };
  element("photo").addEventListener("change", (event) => void take((event.target as HTMLInputElement).files?.[0]));
  for (const name of ["dragenter", "dragover", "dragleave", "drop"])
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    });
  drop.addEventListener("drop", (event) => void take(event.dataTransfer?.files[0]));
  addEventListener("paste", (event) => {
    if (task !== "mnist") void take(event.clipboardData?.files[0]);
  });
}
