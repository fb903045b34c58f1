// The kernel explorer: a line that turns, and everything that follows from its angle and weights.

import { cssColor, isStrong, onTheme, paint } from "./color";
import { direction, filtered, learningStep, lineKernel, response, type Path } from "./line";
import { calm, choose, element, everyFrame, onChoice, set, signed, svg } from "./page";

export const PRESETS: Record<string, Record<number, number[]>> = {
  ridge: { 3: [-0.5, 1, -0.5], 5: [-0.25, -0.5, 1, -0.5, -0.25] },
  edge: { 3: [-1, 0, 1], 5: [-1, -0.5, 0, 0.5, 1] },
  line: { 3: [0.7, 0.7, 0.7], 5: [0.5, 0.5, 0.5, 0.5, 0.5] },
  free: { 3: [-0.9, 0.55, 1], 5: [-0.9, 0.4, 1, -0.3, 0.8] },
};

const TURN = 2 * Math.PI;
const SECONDS = 14; // of a turn by itself

const STILL = 1e-4; // radians: a smaller step is none

export type Shown = { weights: number[]; angle: number; path: Path };

export function explorer(): { show(shown: Shown): void } {
  const stage = element<SVGSVGElement>("stage");
  const slider = element<HTMLInputElement>("angle");
  const play = element<HTMLButtonElement>("play");
  const state: Shown = { weights: [...PRESETS.free[3]], angle: (40 / 180) * Math.PI, path: "circle" };
  const star = spokes(element<HTMLCanvasElement>("seen").width);
  let parts = laidOut(stage, 3);
  let gradient = grid(element<SVGSVGElement>("slope"), 3);

  const redraw = everyFrame(() => {
    const { weights, angle, path } = state;
    const { kernel, slope } = lineKernel(weights, angle, path);
    const degrees = Math.round((angle / TURN) * 360) % 360;
    drawStage(parts, state, kernel);
    fill(gradient, slope, Math.max(1, ...slope.map(Math.abs)));
    slider.value = String(degrees);
    slider.setAttribute("aria-valuetext", `${degrees} degrees`);
    element("angle-text").textContent = `${degrees}°`;
    const size = weights.length;
    const rows = Array.from({ length: size }, (_, row) =>
      kernel
        .slice(row * size, (row + 1) * size)
        .map((value) => signed(value))
        .join(" "),
    );
    set(stage, {
      "aria-valuenow": degrees,
      "aria-valuetext": `${degrees} degrees. Numbers by row: ${rows.join("; ")}`,
    });
    const total = kernel.reduce((sum, value) => sum + Math.abs(value), 0) || 1;
    const seen = element<HTMLCanvasElement>("seen");
    paint(
      seen,
      filtered(star, seen.width, kernel).map((value) => (1.7 * value) / total),
    );
    const passes = element<HTMLCanvasElement>("response");
    paint(
      passes,
      response(kernel, passes.width).map((value) => value / total),
    );
    const x = 30 + (degrees / 360) * 200;
    set(element("speed").querySelector(".now")!, { x1: x, x2: x });
  });

  const reshape = () => {
    forget();
    const size = state.weights.length;
    parts = laidOut(stage, size);
    gradient = grid(element<SVGSVGElement>("slope"), size);
    choose("size", String(size));
    choose("path", state.path);
    element("few").textContent = String(size + 1);
    element("many").textContent = String(size * size);
    weightSliders(state, () => {
      forget();
      chart(state);
      redraw();
    });
    chart(state);
    redraw();
  };

  const turnTo = (angle: number) => {
    state.angle = ((angle % TURN) + TURN) % TURN;
    redraw();
  };

  // Learning: descent on the angle alone, towards a kernel of the same taps that is turned elsewhere.
  const learn = element<HTMLButtonElement>("learn");
  let goal: number | undefined;
  const forget = () => {
    goal = undefined;
    learn.setAttribute("aria-pressed", "false");
    set(parts.goal, { visibility: "hidden" });
  };
  const descend = (aim: number) => {
    if (goal !== aim) return; // another one, or none any more
    const wanted = lineKernel(state.weights, aim, state.path).kernel;
    for (let steps = calm() ? 1000 : 1; steps > 0; steps--) {
      const step = learningStep(state.weights, state.angle, state.path, wanted);
      turnTo(state.angle + step);
      if (Math.abs(step) < STILL) return learn.setAttribute("aria-pressed", "false");
    }
    requestAnimationFrame(() => descend(aim));
  };
  learn.addEventListener("click", () => {
    const learning = learn.getAttribute("aria-pressed") === "true";
    setPlaying(false);
    if (learning) return;
    goal = state.angle + ((30 + 30 * Math.random()) / 360) * TURN * (Math.random() < 0.5 ? -1 : 1);
    const half = (state.weights.length - 1) / 2 + 0.4;
    const [x, y] = [half * Math.cos(goal), -half * Math.sin(goal)];
    set(parts.goal, { x1: -x, y1: -y, x2: x, y2: y, visibility: "visible" });
    learn.setAttribute("aria-pressed", "true");
    descend(goal);
  });

  let last = 0;
  const turning = (now: number) => {
    if (play.getAttribute("aria-pressed") !== "true") return;
    turnTo(state.angle + (Math.min(now - last, 100) / 1000 / SECONDS) * TURN);
    last = now;
    requestAnimationFrame(turning);
  };
  const setPlaying = (playing: boolean) => {
    forget();
    const before = play.getAttribute("aria-pressed") === "true";
    play.setAttribute("aria-pressed", String(playing));
    play.textContent = playing ? "Stop" : "Turn";
    if (playing && !before) {
      last = performance.now();
      requestAnimationFrame(turning);
    }
  };
  play.addEventListener("click", () => setPlaying(play.getAttribute("aria-pressed") !== "true"));

  slider.addEventListener("input", () => {
    setPlaying(false);
    turnTo((Number(slider.value) / 360) * TURN);
  });
  const drag = (event: PointerEvent) => {
    const box = stage.getBoundingClientRect();
    const [x, y] = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
    if (Math.hypot(x, y) > box.width / 20) turnTo(Math.atan2(-y, x)); // the middle has no direction
  };
  stage.addEventListener("pointerdown", (event) => {
    setPlaying(false);
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && drag(event));
  stage.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 15 : 3;
    const degrees = (state.angle / TURN) * 360;
    const keys: Record<string, number> = {
      ArrowUp: degrees + step,
      ArrowRight: degrees + step,
      ArrowDown: degrees - step,
      ArrowLeft: degrees - step,
      PageUp: degrees + 15,
      PageDown: degrees - 15,
      Home: 0,
      End: 359,
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    setPlaying(false);
    turnTo((keys[event.key] / 360) * TURN);
  });
  onChoice("size", (size) => {
    state.weights = [...PRESETS.free[Number(size)]];
    reshape();
  });
  onChoice("path", (path) => {
    state.path = path as Path;
    reshape();
  });
  for (const [name, weights] of Object.entries(PRESETS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      state.weights = [...weights[state.weights.length]];
      reshape();
    });
    element("presets").append(button);
  }
  onTheme(redraw);
  reshape();
  setPlaying(!calm());
  return {
    show(shown) {
      setPlaying(false);
      Object.assign(state, shown);
      reshape();
    },
  };
}

type Cells = { rects: SVGRectElement[]; texts: SVGTextElement[] };
type Parts = Cells & {
  line: SVGLineElement;
  grip: SVGLineElement;
  arrow: SVGElement;
  splats: SVGRectElement[];
  taps: SVGCircleElement[];
  rings: SVGElement;
  goal: SVGElement;
};

/** The positions of a kernel with their numbers, around the middle of the picture; a position is one unit wide. */
function cells(size: number): Cells {
  const half = (size - 1) / 2;
  const rects: SVGRectElement[] = [];
  const texts: SVGTextElement[] = [];
  for (let place = 0; place < size * size; place++) {
    const [x, y] = [(place % size) - half, Math.floor(place / size) - half];
    rects.push(
      svg("rect", { x: x - 0.5, y: y - 0.5, width: 1, height: 1, stroke: "var(--rule)", "stroke-width": 0.02 }),
    );
    texts.push(
      svg("text", {
        x: x - 0.44,
        y: y - 0.28,
        "font-size": 0.155,
        "font-weight": 600,
        "pointer-events": "none",
        "paint-order": "stroke",
        "stroke-width": 0.07,
        "stroke-linejoin": "round",
      }),
    );
  }
  return { rects, texts };
}

function fill({ rects, texts }: Cells, numbers: number[], most = 1): void {
  numbers.forEach((value, place) => {
    rects[place].style.fill = cssColor(value, most);
    texts[place].style.fill = isStrong(value, most)
      ? "var(--paper)"
      : Math.abs(value) < 0.005
        ? "var(--faint)"
        : "var(--ink)";
    texts[place].style.stroke = cssColor(value, most); // a halo, over the line and the squares
    texts[place].textContent = signed(value);
  });
}

function grid(target: SVGSVGElement, size: number): Cells {
  const made = cells(size);
  const side = size + 0.3;
  set(target, { viewBox: `${-side / 2} ${-side / 2} ${side} ${side}` });
  made.texts.forEach((text, place) =>
    set(text, {
      x: (place % size) - (size - 1) / 2,
      y: Math.floor(place / size) - (size - 1) / 2 + 0.1,
      "font-size": 0.28,
      "text-anchor": "middle",
    }),
  );
  target.replaceChildren(...made.rects, ...made.texts);
  return made;
}

function laidOut(stage: SVGSVGElement, size: number): Parts {
  const half = (size - 1) / 2;
  const scale = size / 3; // of what is drawn on the grid: as large on five positions as on three
  const side = size + 0.5 * scale;
  set(stage, { viewBox: `${-side / 2} ${-side / 2} ${side} ${side}` });
  const made = cells(size);
  made.texts.forEach((text) => set(text, { "font-size": size === 3 ? 0.155 : 0.2 }));
  const line = svg("line", { stroke: "var(--ink)", "stroke-width": 0.045 * scale, "stroke-linecap": "round" });
  const arrow = svg("path", {
    d: "M-.16 -.14 .12 0 -.16 .14Z",
    fill: "var(--ink)",
    stroke: "var(--ink)",
    "stroke-width": 0.05,
    "stroke-linejoin": "round",
  });
  const dash = {
    stroke: "var(--ink)",
    "stroke-width": 0.018 * scale,
    "stroke-dasharray": `${0.07 * scale} ${0.05 * scale}`,
  };
  const splats = Array.from({ length: size }, () => svg("rect", { width: 1, height: 1, fill: "none", ...dash }));
  const taps = Array.from({ length: size }, () =>
    svg("circle", { r: 0.13 * scale, stroke: "var(--ink)", "stroke-width": 0.04 * scale }),
  );
  // What a finger grips: wider than the line, and the only part where a touch does not scroll the page.
  const grip = svg("line", {
    stroke: "transparent",
    "stroke-width": 0.7 * scale,
    "stroke-linecap": "round",
    class: "grip",
  });
  const frame = svg("rect", {
    x: -half - 0.5,
    y: -half - 0.5,
    width: size,
    height: size,
    fill: "none",
    stroke: "var(--faint)",
    "stroke-width": 0.03,
  });
  const rings = svg("g", {});
  const goal = svg("line", {
    stroke: "var(--green)",
    "stroke-width": 0.1 * scale,
    "stroke-linecap": "round",
    visibility: "hidden",
  });
  stage.replaceChildren(...made.rects, frame, rings, goal, ...splats, line, arrow, ...taps, ...made.texts, grip);
  return { ...made, line, grip, arrow, splats, taps, rings, goal };
}

function drawStage(parts: Parts, { weights, angle, path }: Shown, kernel: number[]): void {
  fill(parts, kernel);
  const half = (weights.length - 1) / 2;
  const [row, col] = direction(angle, path);
  const [up, right] = direction(angle, "circle");
  const scale = weights.length / 3;
  const length = half * Math.hypot(row, col) + 0.36 * scale; // the arrow's tip stays clear of the last tap
  const ends = { x1: -half * col, y1: -half * row, x2: length * right, y2: length * up };
  set(parts.line, ends);
  set(parts.grip, ends);
  set(parts.arrow, {
    transform: `translate(${length * right} ${length * up}) rotate(${(-angle / TURN) * 360}) scale(${scale})`,
  });
  if (parts.rings.getAttribute("data-path") !== path) {
    const look = {
      fill: "none",
      stroke: "var(--green)",
      "stroke-width": 0.02 * scale,
      "stroke-dasharray": "0.04 0.06",
    };
    parts.rings.replaceChildren(
      ...Array.from({ length: half }, (_, t) =>
        path === "circle"
          ? svg("circle", { r: t + 1, ...look })
          : svg("rect", { x: -t - 1, y: -t - 1, width: 2 * t + 2, height: 2 * t + 2, ...look }),
      ),
    );
    set(parts.rings, { "data-path": path });
  }
  weights.forEach((weight, at) => {
    const [x, y] = [(at - half) * col, (at - half) * row];
    set(parts.splats[at], { x: x - 0.5, y: y - 0.5 });
    set(parts.taps[at], { cx: x, cy: y });
    parts.taps[at].style.fill = cssColor(weight);
  });
}

function weightSliders(state: Shown, changed: () => void): void {
  const half = (state.weights.length - 1) / 2;
  element("weights").replaceChildren(
    ...state.weights.map((weight, at) => {
      const label = document.createElement("label");
      const name = document.createElement("span");
      name.textContent = `tap ${signed(at - half, 0)}`;
      const input = Object.assign(document.createElement("input"), {
        type: "range",
        min: "-1",
        max: "1",
        step: "0.05",
      });
      input.value = String(weight);
      const output = document.createElement("output");
      output.textContent = signed(weight);
      input.addEventListener("input", () => {
        state.weights[at] = Number(input.value);
        output.textContent = signed(state.weights[at]);
        changed();
      });
      label.append(name, input, output);
      return label;
    }),
  );
}

/** The gradient's size over a turn. */
function chart({ weights, path }: Shown): void {
  const sizes = Array.from({ length: 721 }, (_, at) =>
    Math.hypot(...lineKernel(weights, (at / 720) * TURN, path).slope),
  );
  const most = Math.max(0.1, ...sizes);
  const place = (at: number, value: number) =>
    `${(30 + (at / 720) * 200).toFixed(1)} ${(200 - (value / most) * 175).toFixed(1)}`;
  const curve = `M${sizes.map((value, at) => place(at, value)).join("L")}`;
  const target = element<SVGSVGElement>("speed");
  const words = { "font-size": 13, fill: "var(--faint)", "text-anchor": "middle" };
  target.replaceChildren(
    ...[0, 90, 180, 270, 360].flatMap((degrees) => {
      const x = 30 + (degrees / 360) * 200;
      return [
        svg("line", { x1: x, x2: x, y1: 20, y2: 200, stroke: "var(--rule)" }),
        svg("text", { x: x - (degrees === 360 ? 8 : 0), y: 220, ...words }, `${degrees}°`),
      ];
    }),
    svg("text", { x: 26, y: 30, ...words, "text-anchor": "end" }, most.toFixed(1)),
    svg("text", { x: 26, y: 204, ...words, "text-anchor": "end" }, "0"),
    svg("path", { d: `${curve}L230 200L30 200Z`, fill: "var(--orange)", opacity: 0.15 }),
    svg("path", { d: curve, fill: "none", stroke: "var(--orange)", "stroke-width": 2, "stroke-linejoin": "round" }),
    svg("line", { class: "now", y1: 20, y2: 200, x1: 30, x2: 30, stroke: "var(--ink)", "stroke-width": 2 }),
  );
}

/** A star of spokes: every direction of an edge once, and finer toward the middle. */
function spokes(side: number): Float32Array {
  return Float32Array.from({ length: side * side }, (_, place) => {
    const [x, y] = [(place % side) - side / 2 + 0.5, Math.floor(place / side) - side / 2 + 0.5];
    const inside = Math.min(1, Math.max(0, side * 0.46 - Math.hypot(x, y)));
    return inside * Math.min(1, Math.max(-1, 2 * Math.cos(18 * Math.atan2(y, x))));
  });
}
