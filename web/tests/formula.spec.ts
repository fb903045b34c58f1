// The formula and the resizing of the page give the numbers of the Python package: `python tools/page.py cases`.
import { readFileSync } from "node:fs";
import { expect, test } from "@playwright/test";
import { filtered, learningStep, lineKernel, response, type Path } from "../src/line";
import { centerOfMass, fitted, placed } from "../src/pixels";

type Case = {
  size: number;
  path: Path;
  degrees: number;
  weight: number[];
  kernel: number[];
  slope: number[];
  corner: boolean;
};
const { kernels, images } = JSON.parse(readFileSync(new URL("cases.json", import.meta.url), "utf-8"));

const largest = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.max(Math.abs(a.length - b.length), ...Array.from(a, (value, place) => Math.abs(value - b[place])));

for (const given of kernels as Case[]) {
  test(`the kernel at ${given.degrees}° on the ${given.path} of ${given.size} taps`, () => {
    const found = lineKernel(given.weight, (given.degrees / 180) * Math.PI, given.path);
    expect(largest(found.kernel, given.kernel)).toBeLessThan(1e-8);
    if (!given.corner) expect(largest(found.slope, given.slope)).toBeLessThan(1e-8);
  });
}

test("a response is the size of the kernel's transform, and a filter of one tap changes nothing", () => {
  const odd = response([0, 0, 0, -1, 0, 1, 0, 0, 0], 4); // 2·|sin ω| of the column's frequency
  const expected = [-3, -1, 1, 3].map((quarter) => 2 * Math.abs(Math.sin((quarter * Math.PI) / 4)));
  expect(largest(odd.slice(0, 4), expected)).toBeLessThan(1e-6);
  const picture = Float32Array.from({ length: 25 }, (_, place) => Math.sin(place));
  expect(largest(filtered(picture, 5, [0, 0, 0, 0, 1, 0, 0, 0, 0]), picture)).toBe(0);
  const shifted = filtered(picture, 5, [0, 0, 0, 0, 0, 1, 0, 0, 0]);
  expect([shifted[0], shifted[4]]).toEqual([picture[1], 0]);
});

for (const weights of [
  [-0.9, 0.55, 1],
  [-1, 0, 1],
  [-1, -0.5, 0, 0.5, 1],
  [-0.9, 0.4, 1, -0.3, 0.8],
]) {
  test(`the angle of the taps ${weights} learns to lie within 60 degrees of where it began`, () => {
    for (let turn = 0; turn < 40; turn++) {
      const goal = (turn / 40) * 2 * Math.PI;
      const wanted = lineKernel(weights, goal, "circle").kernel;
      let angle = goal + ((turn % 2 ? 1 : -1) * (30 + ((turn * 7) % 31)) * Math.PI) / 180;
      for (let step = 0; step < 600; step++) angle += learningStep(weights, angle, "circle", wanted);
      expect(Math.abs(angle - goal)).toBeLessThan(0.02);
    }
  });
}

test("pictures are cut and resized as by rotateconv predict", () => {
  const found = fitted(images.picture, images.width, images.height, 3, images.size);
  expect(largest(found, images.fitted)).toBeLessThanOrEqual(1); // Pillow computes with integers
});

test("a drawing is scaled to the box, wherever and however large it was drawn", () => {
  const seven = [
    [
      { x: 0, y: 0 },
      { x: 10, y: 0 },
      { x: 4, y: 20 },
    ],
  ];
  const moved = seven.map((stroke) => stroke.map(({ x, y }) => ({ x: 3 * x + 50, y: 3 * y - 7 })));
  expect(placed(moved, 1)).toEqual(placed(seven, 1));
  const ys = placed(seven, 1)[0].map(({ y }) => y);
  expect(Math.max(...ys) - Math.min(...ys)).toBeCloseTo(20 - 2.6);
  expect(centerOfMass(Float32Array.from([0, 0, 0, 0, 0, 1, 0, 0, 1]), 3)).toEqual({ x: 2, y: 1.5 });
});
