// The pictures of the explorer: the line on its grid, the numbers of a kernel, and the gradient over a turn.

import { cssColor, isStrong } from "./color";
import { direction, lineKernel, type Path } from "./line";
import { element, set, signed, svg } from "./page";

export const TURN = 2 * Math.PI;

export type Shown = { weights: number[]; angle: number; path: Path };

export type Cells = { rects: SVGRectElement[]; texts: SVGTextElement[] };
export type Parts = Cells & {
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

export function fill({ rects, texts }: Cells, numbers: number[], most = 1): void {
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

export function grid(target: SVGSVGElement, size: number): Cells {
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

export function laidOut(stage: SVGSVGElement, size: number): Parts {
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

export function drawStage(parts: Parts, { weights, angle, path }: Shown, kernel: number[]): void {
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

/** The gradient's size over a turn. */
export function chart({ weights, path }: Shown): void {
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
export function spokes(side: number): Float32Array {
  return Float32Array.from({ length: side * side }, (_, place) => {
    const [x, y] = [(place % side) - side / 2 + 0.5, Math.floor(place / side) - side / 2 + 0.5];
    const inside = Math.min(1, Math.max(0, side * 0.46 - Math.hypot(x, y)));
    return inside * Math.min(1, Math.max(-1, 2 * Math.cos(18 * Math.atan2(y, x))));
  });
}
