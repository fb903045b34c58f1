// From what a person draws or drops to the pixels that the models were trained on.

export type Point = { x: number; y: number };
export type Stroke = Point[];

/**
 * Where to put a drawing so that it is like one of MNIST: there the ink's longer side was scaled to 20 pixels, and its
 * center of mass laid on the middle of 28 x 28. Strokes are drawn anew at that size instead of shrinking what is on the
 * screen, so a digit drawn small has lines as thick as one drawn large.
 */
export const MNIST = { side: 28, box: 20, pen: 2.6, fine: 8 };

/** Scale and shift that bring the strokes' longer side to the box less the pen, in the middle of the image. */
export function placed(strokes: Stroke[], smallest: number): Stroke[] {
  const points = strokes.flat();
  const [xs, ys] = [points.map((point) => point.x), points.map((point) => point.y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  // A dot stays a dot: nothing is enlarged beyond what a drawing of the smallest size would be.
  const scale = (MNIST.box - MNIST.pen) / Math.max(right - left, bottom - top, smallest);
  const middle = MNIST.side / 2;
  return strokes.map((stroke) =>
    stroke.map(({ x, y }) => ({
      x: middle + (x - (left + right) / 2) * scale,
      y: middle + (y - (top + bottom) / 2) * scale,
    })),
  );
}

/** The middle of the ink, from the middle of the first pixel. */
export function centerOfMass(pixels: Float32Array, side: number): Point {
  let [sum, x, y] = [0, 0, 0];
  pixels.forEach((value, place) => {
    sum += value;
    x += value * (place % side);
    y += value * Math.floor(place / side);
  });
  return sum === 0 ? { x: (side - 1) / 2, y: (side - 1) / 2 } : { x: x / sum, y: y / sum };
}

/** Draw a path of points. */
export function trace(context: CanvasRenderingContext2D, stroke: Stroke): void {
  context.beginPath();
  context.moveTo(stroke[0].x, stroke[0].y);
  for (const { x, y } of stroke) context.lineTo(x, y);
  if (stroke.length === 1) context.lineTo(stroke[0].x + 0.01, stroke[0].y);
  context.stroke();
}

/** The strokes, white on black, as 28 x 28 numbers between 0 and 1: each the mean of 8 x 8 finer ones. */
export function digitPixels(strokes: Stroke[], smallest: number): Float32Array {
  const { side, fine, pen } = MNIST;
  const canvas = new OffscreenCanvas(side * fine, side * fine);
  const context = canvas.getContext("2d", { willReadFrequently: true }) as unknown as CanvasRenderingContext2D;
  const drawn = (dx: number, dy: number): Float32Array => {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.setTransform(fine, 0, 0, fine, dx * fine, dy * fine);
    Object.assign(context, { strokeStyle: "white", lineWidth: pen, lineCap: "round", lineJoin: "round" });
    placed(strokes, smallest).forEach((stroke) => trace(context, stroke));
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Float32Array(side * side);
    for (let place = 0; place < data.length / 4; place++) {
      const [row, col] = [Math.floor(place / canvas.width), place % canvas.width];
      pixels[Math.floor(row / fine) * side + Math.floor(col / fine)] += data[4 * place] / (255 * fine * fine);
    }
    return pixels;
  };
  const center = centerOfMass(drawn(0, 0), side);
  return drawn((side - 1) / 2 - center.x, (side - 1) / 2 - center.y);
}

/**
 * The middle of a picture, of the shape asked for, resized as `rotateconv predict` does: Pillow's ImageOps.fit with its
 * bilinear filter, a triangle as wide as the step where the picture shrinks. Bytes in, bytes out, channels last.
 */
export function fitted(
  bytes: ArrayLike<number>,
  width: number,
  height: number,
  channels: number,
  size: number,
): Float32Array {
  const side = Math.min(width, height);
  const wide = resampled(bytes, height, width, channels, (width - side) / 2, side, size); // height x size
  const turned = transposed(wide, height, size, channels);
  return transposed(resampled(turned, size, height, channels, (height - side) / 2, side, size), size, size, channels);
}

/** Every row of `columns` pixels resized to `size`, from `length` pixels beginning at `start`. */
function resampled(
  bytes: ArrayLike<number>,
  rows: number,
  columns: number,
  channels: number,
  start: number,
  length: number,
  size: number,
): Float32Array {
  const found = new Float32Array(rows * size * channels);
  const step = length / size;
  const reach = Math.max(step, 1);
  for (let to = 0; to < size; to++) {
    const middle = start + (to + 0.5) * step;
    const first = Math.max(0, Math.floor(middle - reach + 0.5));
    const last = Math.min(columns, Math.floor(middle + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) =>
      Math.max(0, 1 - Math.abs((first + i + 0.5 - middle) / reach)),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let row = 0; row < rows; row++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        weights.forEach((weight, i) => (sum += weight * bytes[(row * columns + first + i) * channels + channel]));
        found[(row * size + to) * channels + channel] = Math.floor(sum / total + 0.5);
      }
    }
  }
  return found;
}

function transposed(bytes: Float32Array, rows: number, columns: number, channels: number): Float32Array {
  return bytes.map((_, place) => {
    const [pixel, channel] = [Math.floor(place / channels), place % channels];
    const [row, column] = [Math.floor(pixel / rows), pixel % rows]; // of the transposed picture, columns x rows
    return bytes[(column * columns + row) * channels + channel];
  });
}
