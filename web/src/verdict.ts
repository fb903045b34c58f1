// What the models say: the class, its probability, and both files side by side.

import { softmax, timeOfRun, type About, type Opened } from "./model";
import { element } from "./page";

export type Pair = { about: About; compact: Opened; dense: Opened };

const kilobytes = (bytes: number): string => `${(bytes / 1000).toFixed(bytes < 100_000 ? 1 : 0)} KB`;
const milliseconds = (time: number): string => `${time < 10 ? time.toFixed(1) : time.toFixed(0)} ms`;

function put(id: string, text: string): void {
  if (element(id).textContent !== text) element(id).textContent = text;
}

export function showFile({ compact, dense }: Pair): void {
  put("model-size", kilobytes(compact.bytes));
  for (const [name, model] of Object.entries({ compact, dense })) {
    put(`${name}-bytes`, kilobytes(model.bytes));
    put(`${name}-opening`, milliseconds(model.opening));
    element(`${name}-bar`).style.setProperty("--share", `${(100 * model.bytes) / dense.bytes}%`);
  }
  const times = (dense.bytes / compact.bytes).toFixed(0);
  put(
    "model-note",
    `The same scores from a file ${times} times smaller. It takes longer to open, since it decodes its kernels then, once; afterwards both run the same graph. The runtime itself is a download of 14 MB (3.7 MB compressed) for any model.`,
  );
}

export function showNothing({ classes, inputSize }: About, draws: boolean): void {
  put("answer", draws ? "Draw a digit." : "Give it a photo.");
  if (!draws) put("photo-classes", `It knows: ${classes.join(", ")}.`);
  const looks = element<HTMLCanvasElement>("looks");
  [looks.height, looks.width] = [inputSize[1], inputSize[2]];
  put("looks-text", `${inputSize[1]} × ${inputSize[2]}, as the model gets it`);
  const context = looks.getContext("2d")!;
  context.fillRect(0, 0, looks.width, looks.height);
  showBars(
    classes,
    classes.map(() => 0),
  );
  for (const name of ["compact", "dense"]) ["run", "class"].forEach((what) => put(`${name}-${what}`, "…"));
}

export function showAnswer(
  { about: { classes }, compact, dense }: Pair,
  logits: Float32Array,
  others: Float32Array,
): void {
  const shares = softmax(logits);
  const best = shares.indexOf(Math.max(...shares));
  const answer = element("answer");
  if (answer.dataset.label !== classes[best] || !answer.querySelector("b")) {
    answer.replaceChildren(
      Object.assign(document.createElement("b"), { textContent: classes[best] }),
      document.createElement("span"),
    );
    answer.dataset.label = classes[best];
  }
  answer.querySelector("span")!.textContent = `${(100 * shares[best]).toFixed(1)} % sure`;
  showBars(classes, shares);
  put("compact-class", classes[best]);
  put("dense-class", classes[others.indexOf(Math.max(...others))]);
  put("compact-run", milliseconds(timeOfRun(compact)));
  put("dense-run", milliseconds(timeOfRun(dense)));
}

function showBars(classes: string[], shares: number[]): void {
  const list = element("bars");
  const first = Math.max(...shares);
  list.dataset.shown = shares.join();
  list.style.setProperty("--names", `${Math.max(...classes.map((name) => name.length)) * 0.52 + 0.8}rem`);
  list.replaceChildren(
    ...classes.map((name, at) => {
      const row = document.createElement("li");
      row.classList.toggle("first", first > 0 && shares[at] === first);
      const bar = document.createElement("div");
      bar.append(document.createElement("i"));
      bar.style.setProperty("--share", `${100 * shares[at]}%`);
      const texts = [name, first > 0 ? `${(100 * shares[at]).toFixed(1)} %` : ""];
      const [label, share] = texts.map((textContent) => Object.assign(document.createElement("span"), { textContent }));
      row.append(label, bar, share);
      return row;
    }),
  );
}

export function showLooks({ inputSize: [channels, height, width] }: About, pixels: Float32Array): void {
  const canvas = element<HTMLCanvasElement>("looks");
  [canvas.height, canvas.width] = [height, width];
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    for (let part = 0; part < 3; part++)
      image.data[4 * place + part] = 255 * pixels[(part % channels) * width * height + place];
    image.data[4 * place + 3] = 255;
  }
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  put("looks-text", `${height} × ${width}, as the model gets it`);
}
