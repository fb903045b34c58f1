// The formula of the kernel, as in src/rotateconv/kernels/line.py, and what follows from it.

export type Path = "circle" | "square";

/** Rows of numbers, k x k, one after the other. */
export type Grid = number[];

/** The place (row, column) of the tap t = 1: ρ(θ)·u(θ), with u = (-sin θ, cos θ), row 0 on top. */
export function direction(angle: number, path: Path): [number, number] {
  const [row, col] = [-Math.sin(angle), Math.cos(angle)];
  const radius = path === "circle" ? 1 : Math.max(Math.abs(row), Math.abs(col));
  return [row / radius, col / radius];
}

/** The derivative of `direction` by the angle. */
export function velocity(angle: number, path: Path): [number, number] {
  const [row, col] = direction(angle, path);
  if (path === "circle") return [-col, row];
  // p = u / m with m = max(|sin θ|, |cos θ|), so p' = (u' - p·m') / m
  const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
  const steep = Math.abs(sin) > Math.abs(cos);
  const size = Math.abs(steep ? sin : cos);
  const growth = steep ? Math.sign(sin) * cos : -Math.sign(cos) * sin;
  return [(-cos - row * growth) / size, (-sin - col * growth) / size];
}

/** Λ(z) = max(0, 1 - |z|): how much of a unit square at distance z lies over a position. */
const overlap = (z: number) => Math.max(0, 1 - Math.abs(z));

/** Λ', and the mean of both sides where it jumps. */
function slope(z: number): number {
  const distance = Math.abs(z);
  if (distance > 1 + 1e-12) return 0;
  return distance > 1 - 1e-12 ? -Math.sign(z) / 2 : Math.abs(z) < 1e-12 ? 0 : -Math.sign(z);
}

/** K[r, c] = Σ_t weights[t] · Λ(t·ρ·u_row - r) · Λ(t·ρ·u_col - c), and its derivative by the angle. */
export function lineKernel(weights: readonly number[], angle: number, path: Path): { kernel: Grid; slope: Grid } {
  const size = weights.length;
  const half = (size - 1) / 2;
  const [row, col] = direction(angle, path);
  const [rowSpeed, colSpeed] = velocity(angle, path);
  const found = { kernel: new Array<number>(size * size).fill(0), slope: new Array<number>(size * size).fill(0) };
  for (let t = -half; t <= half; t++) {
    for (let place = 0; place < size * size; place++) {
      const [z, y] = [t * row - (Math.floor(place / size) - half), t * col - ((place % size) - half)];
      found.kernel[place] += weights[t + half] * overlap(z) * overlap(y);
      found.slope[place] +=
        weights[t + half] * t * (slope(z) * rowSpeed * overlap(y) + overlap(z) * slope(y) * colSpeed);
    }
  }
  return found;
}

/** |Σ K[r, c]·exp(-i(ω_row·r + ω_col·c))| for count x count frequencies from -π to π, upward ones on top. */
export function response(kernel: Grid, count: number): Float32Array {
  const size = Math.round(Math.sqrt(kernel.length));
  const half = (size - 1) / 2;
  const found = new Float32Array(count * count);
  for (let place = 0; place < found.length; place++) {
    const down = ((Math.floor(place / count) + 0.5) / count - 0.5) * 2 * Math.PI;
    const right = (((place % count) + 0.5) / count - 0.5) * 2 * Math.PI;
    let [real, imaginary] = [0, 0];
    for (let at = 0; at < kernel.length; at++) {
      const phase = down * (Math.floor(at / size) - half) + right * ((at % size) - half);
      real += kernel[at] * Math.cos(phase);
      imaginary -= kernel[at] * Math.sin(phase);
    }
    found[place] = Math.hypot(real, imaginary);
  }
  return found;
}

/**
 * The step of the angle, downhill, on the mean squared difference that smooth pictures show between the kernel and another:
 * ½·(K - K')ᵀ·C·(K - K') with the covariance C = exp(-distance²/8) of their pixels. (On white noise, C = 1, a kernel that
 * lies on a grid line has the largest norm, and descent stops at the hill before it.) A part of Gauss and Newton's step.
 */
export function learningStep(weights: readonly number[], angle: number, path: Path, wanted: Grid): number {
  const size = weights.length;
  const { kernel, slope } = lineKernel(weights, angle, path);
  const place = (at: number) => [Math.floor(at / size), at % size];
  const smooth = slope.map((_, p) => {
    const [row, col] = place(p);
    return slope.reduce((sum, value, q) => {
      const [r, c] = place(q);
      return sum + value * Math.exp(-((row - r) ** 2 + (col - c) ** 2) / 8);
    }, 0);
  });
  const dot = (other: Grid) => smooth.reduce((sum, value, at) => sum + value * other[at], 0);
  const step = (-0.04 * dot(kernel.map((value, at) => value - wanted[at]))) / (dot(slope) + 0.02);
  return Math.max(-0.05, Math.min(0.05, step));
}

/** The picture, side x side, seen through the kernel as a convolution layer computes it (zeros outside). */
export function filtered(picture: Float32Array, side: number, kernel: Grid): Float32Array {
  const size = Math.round(Math.sqrt(kernel.length));
  const half = (size - 1) / 2;
  const found = new Float32Array(picture.length);
  for (let row = 0; row < side; row++) {
    for (let col = 0; col < side; col++) {
      let sum = 0;
      for (let at = 0; at < kernel.length; at++) {
        const [r, c] = [row + Math.floor(at / size) - half, col + (at % size) - half];
        if (r >= 0 && r < side && c >= 0 && c < side) sum += kernel[at] * picture[r * side + c];
      }
      found[row * side + col] = sum;
    }
  }
  return found;
}
