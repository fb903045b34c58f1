// Colors of numbers: the paper for 0, orange for the largest, blue for the smallest; those of the page's theme.

export type Rgb = [number, number, number];

const dark = matchMedia("(prefers-color-scheme: dark)");
const probe = document.createElement("canvas").getContext("2d")!;

/** A color of the style sheet, such as "--orange". */
export function themed(name: string): Rgb {
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name); // whatever its notation
  return [1, 3, 5].map((at) => parseInt(String(probe.fillStyle).slice(at, at + 2), 16)) as Rgb;
}

/** The same as CSS, so that it follows the theme by itself. */
export function cssColor(value: number, most = 1): string {
  const share = Math.round(100 * Math.min(1, Math.abs(value) / most));
  return `color-mix(in srgb, var(${value >= 0 ? "--orange" : "--blue"}) ${share}%, var(--paper))`;
}

/** Whether words on the color of a number are read better in the paper's color than in ink. */
export const isStrong = (value: number, most = 1): boolean => Math.abs(value) / most > (dark.matches ? 0.6 : 0.85);

/** Fill a canvas, pixel by pixel, with numbers between -1 and 1. */
export function paint(canvas: HTMLCanvasElement | OffscreenCanvas, numbers: ArrayLike<number>): void {
  const [paper, orange, blue] = ["--paper", "--orange", "--blue"].map(themed);
  const image = new ImageData(canvas.width, canvas.height);
  for (let place = 0; place < numbers.length; place++) {
    const value = numbers[place];
    const [end, share] = [value >= 0 ? orange : blue, Math.min(1, Math.abs(value))];
    for (let part = 0; part < 3; part++) image.data[4 * place + part] = paper[part] + share * (end[part] - paper[part]);
    image.data[4 * place + 3] = 255;
  }
  (canvas.getContext("2d") as CanvasRenderingContext2D).putImageData(image, 0, 0);
}

/** Call back when the theme changes. */
export function onTheme(redraw: () => void): void {
  dark.addEventListener("change", redraw);
}
