// The ten digits as strokes on a square of 100 x 100, for who has no mouse at hand, and for the tests.

import type { Stroke } from "./pixels";

/** Points of a curve through the corners given, rounded off: each corner pulls the pen towards it (quadratic B-spline). */
function curve(...corners: [number, number][]): Stroke {
  const [first, last] = [corners[0], corners[corners.length - 1]];
  const middles = corners.slice(1).map(([x, y], at) => [(x + corners[at][0]) / 2, (y + corners[at][1]) / 2]);
  const points: Stroke = [{ x: first[0], y: first[1] }];
  for (let at = 0; at + 1 < middles.length; at++) {
    const [[ax, ay], [bx, by], [cx, cy]] = [middles[at], corners[at + 1], middles[at + 1]];
    for (let step = 0; step <= 8; step++) {
      const t = step / 8;
      const [p, q, r] = [(1 - t) ** 2, 2 * t * (1 - t), t * t];
      points.push({ x: p * ax + q * bx + r * cx, y: p * ay + q * by + r * cy });
    }
  }
  return [...points, { x: last[0], y: last[1] }];
}

const straight = (...points: [number, number][]): Stroke => points.map(([x, y]) => ({ x, y }));

export const EXAMPLES: Stroke[][] = [
  [curve([55, 18], [30, 14], [22, 50], [30, 88], [56, 90], [80, 70], [78, 26], [62, 10], [50, 20])],
  [straight([56, 14], [46, 86])],
  [curve([26, 32], [30, 10], [62, 6], [78, 26], [66, 50], [26, 84], [22, 90], [40, 82], [82, 86])],
  [curve([28, 20], [50, 8], [78, 14], [76, 40], [44, 48], [46, 46], [82, 52], [80, 84], [48, 94], [24, 80])],
  [straight([34, 14], [24, 54], [76, 54]), straight([68, 20], [60, 90])],
  [straight([74, 14], [36, 16]), curve([36, 16], [32, 44], [44, 42], [80, 44], [78, 84], [44, 94], [24, 80])],
  [curve([66, 12], [40, 24], [22, 60], [34, 92], [66, 92], [74, 66], [52, 52], [30, 64], [30, 74])],
  [straight([22, 18], [76, 16]), curve([76, 16], [70, 34], [50, 60], [46, 90])],
  [curve([70, 24], [52, 6], [26, 16], [34, 42], [70, 58], [74, 86], [46, 96], [24, 80], [40, 56], [72, 36], [70, 18])],
  [curve([72, 28], [56, 10], [28, 20], [28, 46], [54, 52], [74, 30], [72, 30], [70, 60], [60, 92])],
];
