// The kernels of a trained model, layer by layer, with their angles before and after training.

import { onTheme, paint } from "./color";
import { lineKernel } from "./line";
import { calm, element, everyFrame, onChoice, svg } from "./page";
import { TURN, type Shown } from "./stage";

type Layer = {
  name: string;
  out: number;
  in: number;
  profile: number[][];
  weight: Uint8Array;
  before: Uint8Array;
  after: Uint8Array;
};
type Kernels = { data: string; accuracy: number; layers: Layer[] };

const BINS = 16; // as many as there are angles of four bits
const REPLAY = 2500; // milliseconds
const NONE = 128; // the byte of the weight 0: a kernel without an angle
const WIDTH = 1100; // pixels of the picture, about

async function load(name: string): Promise<Kernels> {
  const found = await (await fetch(`./models/${name}.json`)).json();
  const bytes = (text: string) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const layer of found.layers) for (const key of ["weight", "before", "after"]) layer[key] = bytes(layer[key]);
  return found;
}

export function trained(open: (shown: Shown) => void): void {
  const [mosaic, slider, time] = [
    element<HTMLCanvasElement>("mosaic"),
    element<HTMLInputElement>("layer"),
    element<HTMLInputElement>("time"),
  ];
  let kernels: Kernels | undefined;
  let chosen = { row: 0, col: 0 };

  /** The layer that is shown, and the angle of one of its slices on the way from before to after, the short way round. */
  const layer = () => kernels!.layers[Number(slider.value)];
  const angleOf = (at: number, share = Number(time.value) / 100) => {
    const { before, after } = layer();
    const way = ((after[at] - before[at] + 384) % 256) - 128;
    return ((before[at] + share * way) / 256) * TURN;
  };
  const tapsOf = (at: number) => {
    const { weight, profile, in: inputs } = layer();
    return profile[Math.floor(at / inputs)].map((value) => (value * (weight[at] - NONE)) / 127);
  };

  const redraw = everyFrame(() => {
    if (!kernels) return;
    const { out, in: inputs, name } = layer();
    const size = layer().profile[0].length;
    const taps = Array.from({ length: out * inputs }, (_, at) => tapsOf(at));
    const sizes = taps
      .flat()
      .map(Math.abs)
      .sort((a, b) => a - b);
    const most = sizes[Math.floor(0.97 * sizes.length)]; // a few are far larger than all others
    const small = new OffscreenCanvas(inputs * size, out * size); // a pixel for each position
    const numbers = new Float32Array(small.width * small.height);
    taps.forEach((row, at) => {
      const [top, left] = [Math.floor(at / inputs) * size, (at % inputs) * size];
      lineKernel(row, angleOf(at), "circle").kernel.forEach((value, place) => {
        numbers[(top + Math.floor(place / size)) * small.width + left + (place % size)] = value / most;
      });
    });
    paint(small, numbers);
    const side = Math.max(3, Math.floor(WIDTH / Math.max(small.width, small.height))) * size; // of a kernel, in pixels
    [mosaic.width, mosaic.height] = [inputs * side, out * side];
    const context = mosaic.getContext("2d")!;
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, mosaic.width, mosaic.height);
    const color = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name);
    Object.assign(context, { strokeStyle: color("--rule"), lineWidth: Math.max(1.5, side / 14) });
    context.beginPath();
    for (let row = 0; row <= out; row++) context.rect(0, row * side, mosaic.width, 0);
    for (let col = 0; col <= inputs; col++) context.rect(col * side, 0, 0, mosaic.height);
    context.stroke();
    Object.assign(context, { strokeStyle: color("--ink"), lineCap: "round", lineWidth: Math.max(1.5, side / 26) });
    if (side > 20)
      taps.forEach((row, at) => {
        const [x, y] = [((at % inputs) + 0.5) * side, (Math.floor(at / inputs) + 0.5) * side];
        const [dx, dy] = [Math.cos(angleOf(at)) * side * 0.32, -Math.sin(angleOf(at)) * side * 0.32];
        context.globalAlpha = Math.min(1, (1.5 * Math.hypot(...row)) / most); // a kernel of zeros has no angle to see
        context.beginPath();
        context.moveTo(x - dx, y - dy);
        context.lineTo(x + dx, y + dy);
        context.stroke();
      });
    Object.assign(context, { globalAlpha: 1, lineWidth: 4 });
    context.strokeRect(chosen.col * side + 2, chosen.row * side + 2, side - 4, side - 4);
    element("layer-text").textContent = `${Number(slider.value) + 1} of ${kernels.layers.length}: ${inputs} → ${out}`;
    slider.setAttribute("aria-valuetext", `${name}, ${inputs} to ${out} channels`);
    element("time-text").textContent =
      ({ 0: "before", 100: "after" } as Record<string, string>)[time.value] ?? `${time.value} %`;
    const at = chosen.row * inputs + chosen.col;
    const degrees = (share: number) => `${Math.round(((angleOf(at, share) / TURN) * 360 + 360) % 360)}°`;
    const turned = layer().weight[at] === NONE ? "its weight became 0" : `from ${degrees(0)} to ${degrees(1)}`;
    element("chosen").textContent = `Output ${chosen.row + 1}, input ${chosen.col + 1}: ${turned}`;
    const used = [...layer().weight.keys()].filter((place) => layer().weight[place] !== NONE);
    drawRose(
      used.map((place) => angleOf(place, 0)),
      used.map((place) => angleOf(place)),
    );
  });

  const take = async (name: string) => {
    const found = await load(name);
    kernels = found;
    slider.max = String(found.layers.length - 1);
    slider.value = "0";
    pick(0, 0);
  };
  const pick = (row: number, col: number) => {
    if (!kernels) return;
    const clamp = (value: number, count: number) => Math.max(0, Math.min(count - 1, value));
    chosen = { row: clamp(row, layer().out), col: clamp(col, layer().in) };
    redraw();
  };

  onChoice("kernels", (name) => void take(name));
  slider.addEventListener("input", () => pick(chosen.row, chosen.col));
  time.addEventListener("input", redraw);
  element("train").addEventListener("click", () => {
    const begun = performance.now();
    const step = (now: number) => {
      const share = calm() ? 1 : Math.min(1, (now - begun) / REPLAY);
      time.value = String(Math.round(100 * share));
      redraw();
      if (share < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  });
  mosaic.addEventListener("pointerdown", (event) => {
    if (!kernels) return;
    const box = mosaic.getBoundingClientRect();
    const { out, in: inputs } = layer();
    pick(
      Math.floor(((event.clientY - box.y) / box.height) * out),
      Math.floor(((event.clientX - box.x) / box.width) * inputs),
    );
  });
  mosaic.addEventListener("keydown", (event) => {
    const moves: Record<string, [number, number]> = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    };
    const move = moves[event.key];
    if (event.key === "Enter") element("open").click();
    if (!move) return;
    event.preventDefault();
    pick(chosen.row + move[0], chosen.col + move[1]);
  });
  element("open").addEventListener("click", () => {
    if (!kernels) return;
    const at = chosen.row * layer().in + chosen.col;
    const taps = tapsOf(at);
    const most = Math.max(...taps.map(Math.abs)) || 1; // shown at full size, as the sliders have it
    open({ weights: taps.map((value) => value / most), angle: angleOf(at), path: "circle" });
    element("kernel").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
    element("stage").focus({ preventScroll: true });
  });
  onTheme(redraw);
  void take("mnist");
}

/** How angles lie: a slice of a circle for each of 16 directions, its area in proportion; the start as an outline. */
function drawRose(before: number[], now: number[]): void {
  const counts = (angles: number[]) => {
    const found = new Array<number>(BINS).fill(0);
    for (const angle of angles) found[((Math.round((angle / TURN) * BINS) % BINS) + BINS) % BINS]++;
    return found;
  };
  const [first, last] = [counts(before), counts(now)];
  const most = 2.2 * (now.length / BINS); // the circle of equal counts stays where it is
  const slices = (found: number[], look: Record<string, string | number>) =>
    found.map((count, bin) => {
      const radius = Math.min(104, 100 * Math.sqrt(count / most));
      const point = (turn: number) =>
        `${(radius * Math.cos(turn)).toFixed(2)} ${(-radius * Math.sin(turn)).toFixed(2)}`;
      const [from, to] = [((bin - 0.5) / BINS) * TURN, ((bin + 0.5) / BINS) * TURN];
      return svg("path", { d: `M0 0L${point(from)}A${radius} ${radius} 0 0 0 ${point(to)}Z`, ...look });
    });
  element("rose").replaceChildren(
    ...[45, 90].map((half) => svg("circle", { r: half, fill: "none", stroke: "var(--rule)" })),
    svg("path", { d: "M-108 0H108M0 -108V108", stroke: "var(--rule)" }),
    ...slices(last, { fill: "var(--orange)", "fill-opacity": 0.75, stroke: "var(--paper)", "stroke-width": 1 }),
    ...slices(first, { fill: "none", stroke: "var(--faint)", "stroke-width": 1.5 }),
  );
}
