// The kernel explorer: a line that turns, and everything that follows from its angle and weights.

import { onTheme, paint } from "./color";
import { filtered, learningStep, lineKernel, response, type Path } from "./line";
import { calm, choose, element, everyFrame, onChoice, set, signed } from "./page";
import { chart, drawStage, fill, grid, laidOut, spokes, TURN, type Shown } from "./stage";

const PRESETS: Record<string, Record<number, number[]>> = {
  ridge: { 3: [-0.5, 1, -0.5], 5: [-0.25, -0.5, 1, -0.5, -0.25] },
  edge: { 3: [-1, 0, 1], 5: [-1, -0.5, 0, 0.5, 1] },
  line: { 3: [0.7, 0.7, 0.7], 5: [0.5, 0.5, 0.5, 0.5, 0.5] },
  free: { 3: [-0.9, 0.55, 1], 5: [-0.9, 0.4, 1, -0.3, 0.8] },
};

const SECONDS = 14; // of a turn by itself
const STILL = 1e-4; // radians: a smaller step is none

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
