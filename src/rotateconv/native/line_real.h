/* The kernels and gradients of a block of slices in one type, REAL; included by line.c once for each.
 *
 * Arrays are [row or position or tap][slice], `step` numbers from one to the next; n slices of them are used.
 */

INLINE REAL NAME(positive)(REAL x) { return x < 0 ? 0 : x; } /* max(x, 0) that keeps NaN */
INLINE REAL NAME(size_of)(REAL x) { return x < 0 ? -x : x; }
INLINE REAL NAME(sign)(REAL x) { return (REAL)(x > 0) - (REAL)(x < 0); }
INLINE REAL NAME(on_axis)(REAL x) { return NAME(size_of)(x) <= 4 * EPSILON ? 0 : x; }

/* `tap_direction`; the sine and cosine are changed to it in place. */
INLINE void NAME(direction)(REAL *restrict sin_row, REAL *restrict cos_col, int square, int n) {
  for (int i = 0; i < n; i++) sin_row[i] = -sin_row[i];
  if (!square) return;
  for (int i = 0; i < n; i++) {
    REAL row = sin_row[i], col = cos_col[i], height = NAME(size_of)(row), width = NAME(size_of)(col);
    REAL radius = height > width ? height : width;
    sin_row[i] = row / radius;
    cos_col[i] = col / radius;
  }
}

/* [tap][slice] of (slice, tap). */
INLINE void NAME(load_taps)(const REAL *restrict weight, int size, int taps, REAL *restrict tap, int n, int step) {
  for (int t = 0; t < size; t++)
    for (int i = 0; i < n; i++) tap[t * step + i] = weight[taps == 1 ? i : i * taps + t];
}

/* max(0, 1 - |t·p - r|) for the rows or columns r. */
INLINE void NAME(hats)(const REAL *restrict place, int t, int size, REAL *restrict hat, int n, int step) {
  for (int r = 0; r < size; r++)
    for (int i = 0; i < n; i++) hat[r * step + i] = NAME(positive)(1 - NAME(size_of)(t * place[i] - (r - size / 2)));
}

/* -2 Λ' there: on the kinks the mean of both sides. */
INLINE void NAME(slopes)(const REAL *restrict place, int t, int size, REAL *restrict slope, int n, int step) {
  for (int r = 0; r < size; r++)
    for (int i = 0; i < n; i++) {
      REAL distance = t * place[i] - (r - size / 2);
      slope[r * step + i] = NAME(sign)(distance) * (1 + NAME(sign)(1 - NAME(size_of)(distance)));
    }
}

/* `_forward_3`: the tap 1 lies sin θ up and cos θ right. */
INLINE void NAME(forward_3)(const REAL *restrict weight, int taps, const REAL *restrict angle, REAL *restrict kernel,
                            int n, int step) {
  REAL sin_x[BLOCK], cos_x[BLOCK];
  NAME(sincos)(angle, sin_x, cos_x, n);
  for (int i = 0; i < n; i++) {
    const REAL *w = weight + i * taps;
    REAL other = w[0], center = w[taps / 2], tap = w[taps - 1];
    REAL up = NAME(positive)(sin_x[i]), right = NAME(positive)(cos_x[i]);
    REAL down = up - sin_x[i], left = right - cos_x[i], level = 1 - (up + down), mid = 1 - (right + left);
    REAL tap_left = tap * left, tap_mid = tap * mid, tap_right = tap * right;
    REAL other_left = other * left, other_mid = other * mid, other_right = other * right;
    kernel[i] = tap_left * up + other_right * down;
    kernel[step + i] = tap_mid * up + other_mid * down;
    kernel[2 * step + i] = tap_right * up + other_left * down;
    kernel[3 * step + i] = (tap_left + other_right) * level;
    kernel[4 * step + i] = (tap_mid + other_mid) * level + center;
    kernel[5 * step + i] = (tap_right + other_left) * level;
    kernel[6 * step + i] = tap_left * down + other_right * up;
    kernel[7 * step + i] = tap_mid * down + other_mid * up;
    kernel[8 * step + i] = tap_right * down + other_left * up;
  }
}

/* `_backward_3`: kernel holds the gradient of the kernel; by even and odd parts, rows first. */
INLINE void NAME(backward_3)(const REAL *restrict weight, int taps, const REAL *restrict angle,
                             const REAL *restrict kernel, REAL scale, REAL *restrict grad_weight,
                             REAL *restrict grad_angle, int n, int step) {
  REAL sin_x[BLOCK], cos_x[BLOCK], even_[BLOCK], odd_[BLOCK];
  NAME(sincos)(angle, sin_x, cos_x, n);
  for (int i = 0; i < n; i++) {
    const REAL *g = kernel + i;
    REAL other = weight[i * taps], tap = weight[i * taps + taps - 1];
    REAL s = NAME(on_axis)(sin_x[i]), c = NAME(on_axis)(cos_x[i]);
    REAL height = NAME(size_of)(s), width = NAME(size_of)(c);
    REAL mean_left = (g[0] + g[6 * step]) / 2, mean_mid = (g[step] + g[7 * step]) / 2;
    REAL mean_right = (g[2 * step] + g[8 * step]) / 2;
    REAL even_left = mean_left - g[3 * step], even_mid = mean_mid - g[4 * step], even_right = mean_right - g[5 * step];
    REAL odd_left = (g[0] - g[6 * step]) / 2, odd_mid = (g[step] - g[7 * step]) / 2;
    REAL odd_right = (g[2 * step] - g[8 * step]) / 2;
    REAL cc = g[4 * step], ce = (g[3 * step] + g[5 * step]) / 2 - cc, co = (g[5 * step] - g[3 * step]) / 2;
    REAL ee = (even_left + even_right) / 2 - even_mid, eo = (even_right - even_left) / 2;
    REAL oe = (odd_left + odd_right) / 2 - odd_mid, oo = (odd_right - odd_left) / 2;
    REAL rows = even_mid + width * ee, cols = ce + height * ee;
    REAL across = co + height * eo, along = odd_mid + width * oe;
    REAL even = cc + width * ce + height * rows + s * c * oo, odd = c * across + s * along;
    REAL rise = NAME(sign)(s) * c, fall = NAME(sign)(c) * s;
    REAL angle_even = rise * rows - fall * cols + (c * c - s * s) * oo;
    REAL angle_odd = c * along - s * across + rise * c * eo - fall * s * oe;
    even_[i] = even;
    odd_[i] = odd;
    if (grad_angle) grad_angle[i] = scale * (angle_even * (tap + other) + angle_odd * (tap - other));
  }
  if (!grad_weight) return;
  if (taps == 1)
    for (int i = 0; i < n; i++) grad_weight[i] = even_[i] + even_[i] + kernel[4 * step + i];
  else
    for (int i = 0; i < n; i++) {
      grad_weight[3 * i] = even_[i] - odd_[i];
      grad_weight[3 * i + 1] = kernel[4 * step + i];
      grad_weight[3 * i + 2] = even_[i] + odd_[i];
    }
}

/* `_forward`: the taps t and -t have the same splat, turned by half a turn. */
INLINE void NAME(forward_any)(const REAL *restrict weight, int taps, const REAL *restrict angle, int square, int size,
                              REAL *restrict kernel, int n, int step) {
  REAL row[BLOCK], col[BLOCK], tap[LINES], rows[LINES], cols[LINES];
  int half = size / 2, end = size - 1;
  NAME(sincos)(angle, row, col, n);
  NAME(direction)(row, col, square, n);
  NAME(load_taps)(weight, size, taps, tap, n, step);
  for (int t = 1; t <= half; t++) {
    NAME(hats)(row, t, size, rows, n, step);
    NAME(hats)(col, t, size, cols, n, step);
    const REAL *mine = tap + (half + t) * step, *others = tap + (half - t) * step;
    for (int r = 0; r < size; r++)
      for (int c = 0; c < size; c++) {
        REAL *out = kernel + (r * size + c) * step;
        const REAL *at_row = rows + r * step, *at_col = cols + c * step;
        const REAL *far_row = rows + (end - r) * step, *far_col = cols + (end - c) * step;
        for (int i = 0; i < n; i++) {
          REAL both = at_row[i] * mine[i] * at_col[i] + far_row[i] * others[i] * far_col[i];
          out[i] = t == 1 ? both : out[i] + both;
        }
      }
  }
  for (int i = 0; i < n; i++) kernel[(half * size + half) * step + i] += tap[half * step + i];
}

/* `_backward`. */
INLINE void NAME(backward_any)(const REAL *restrict weight, int taps, const REAL *restrict angle, int square, int size,
                               const REAL *restrict kernel, REAL scale, REAL *restrict grad_weight,
                               REAL *restrict grad_angle, int n, int step) {
  REAL row[BLOCK], col[BLOCK], row_speed[BLOCK], col_speed[BLOCK], grad_row[BLOCK], grad_col[BLOCK];
  REAL tap[LINES], rows[LINES], cols[LINES], row_slopes[LINES], col_slopes[LINES], grad_tap[LINES];
  int half = size / 2, end = size - 1;
  NAME(sincos)(angle, row, col, n);
  for (int i = 0; i < n; i++) { row_speed[i] = row[i]; col_speed[i] = col[i]; } /* the sine and the cosine */
  NAME(direction)(row, col, square, n);
  for (int i = 0; i < n; i++) {
    REAL s = row_speed[i], c = col_speed[i];
    if (square) { /* `tap_velocity` */
      REAL height = NAME(size_of)(s), width = NAME(size_of)(c);
      REAL radius = height > width ? height : width;
      REAL growth = height > width ? NAME(sign)(s) * c : -NAME(sign)(c) * s;
      row_speed[i] = (-c - row[i] * growth) / radius;
      col_speed[i] = (-s - col[i] * growth) / radius;
    } else {
      row_speed[i] = -NAME(on_axis)(c);
      col_speed[i] = -NAME(on_axis)(s);
    }
    row[i] = NAME(on_axis)(row[i]);
    col[i] = NAME(on_axis)(col[i]);
    grad_row[i] = grad_col[i] = 0;
    grad_tap[half * step + i] = kernel[(half * size + half) * step + i];
  }
  NAME(load_taps)(weight, size, taps, tap, n, step);
  for (int t = 1; t <= half; t++) {
    NAME(hats)(row, t, size, rows, n, step);
    NAME(hats)(col, t, size, cols, n, step);
    NAME(slopes)(row, t, size, row_slopes, n, step);
    NAME(slopes)(col, t, size, col_slopes, n, step);
    const REAL *mine = tap + (half + t) * step, *others = tap + (half - t) * step;
    REAL *to_mine = grad_tap + (half + t) * step, *to_others = grad_tap + (half - t) * step;
    for (int i = 0; i < n; i++) to_mine[i] = to_others[i] = 0;
    for (int r = 0; r < size; r++)
      for (int c = 0; c < size; c++) {
        const REAL *grad = kernel + (r * size + c) * step, *reversed = kernel + ((end - r) * size + end - c) * step;
        const REAL *at_row = rows + r * step, *at_col = cols + c * step;
        const REAL *row_slope = row_slopes + r * step, *col_slope = col_slopes + c * step;
        for (int i = 0; i < n; i++) {
          REAL splat = at_row[i] * at_col[i], grad_splat = grad[i] * mine[i] + reversed[i] * others[i];
          to_mine[i] += grad[i] * splat;
          to_others[i] += reversed[i] * splat;
          grad_row[i] += t * (grad_splat * at_col[i] * row_slope[i]);
          grad_col[i] += t * (grad_splat * at_row[i] * col_slope[i]);
        }
      }
  }
  for (int i = 0; i < n && grad_angle; i++)
    grad_angle[i] = scale * ((grad_row[i] * row_speed[i] + grad_col[i] * col_speed[i]) * (REAL)-0.5);
  if (!grad_weight) return;
  for (int i = 0; i < n && taps == 1; i++) grad_weight[i] = 0;
  for (int t = 0; t < size; t++)
    for (int i = 0; i < n; i++) {
      if (taps == 1) grad_weight[i] += grad_tap[t * step + i];
      else grad_weight[i * taps + t] = grad_tap[t * step + i];
    }
}

#define STORE(type, convert)                                                                              \
  {                                                                                                       \
    type *to = (type *)job->kernel + at;                                                                  \
    if (job->step_slice == 1)                                                                             \
      for (int j = 0; j < positions; j++)                                                                 \
        for (int i = 0; i < n; i++) to[j * job->step_position + i] = (type)convert(kernel[j * step + i]); \
    else                                                                                                  \
      for (int i = 0; i < n; i++)                                                                         \
        for (int j = 0; j < positions; j++) to[i * positions + j] = (type)convert(kernel[j * step + i]);  \
  }

#define LOAD(type, convert)                                                                                 \
  {                                                                                                         \
    const type *from = (const type *)job->kernel + at;                                                      \
    if (job->step_slice == 1)                                                                               \
      for (int j = 0; j < positions; j++)                                                                   \
        for (int i = 0; i < n; i++) kernel[j * step + i] = (REAL)convert(from[j * job->step_position + i]); \
    else                                                                                                    \
      for (int i = 0; i < n; i++)                                                                           \
        for (int j = 0; j < positions; j++) kernel[j * step + i] = (REAL)convert(from[i * positions + j]);  \
  }

/* Between positions and the kernels in memory, which begin at the number `at`. Functions of their own: inlined
 * everywhere, the compiler takes five times as long. */
CLONED static void NAME(store)(const Job *job, const REAL *restrict kernel, int64_t at, int positions, int n,
                               int step) {
  switch (job->type) {
    case FLOAT32: STORE(float, ) break;
    case FLOAT64: STORE(double, ) break;
    case BFLOAT16: STORE(uint16_t, to_bf16) break;
    case FLOAT16: STORE(uint16_t, to_f16) break;
  }
}

CLONED static void NAME(load)(const Job *job, REAL *restrict kernel, int64_t at, int positions, int n, int step) {
  switch (job->type) {
    case FLOAT32: LOAD(float, ) break;
    case FLOAT64: LOAD(double, ) break;
    case BFLOAT16: LOAD(uint16_t, from_bf16) break;
    case FLOAT16: LOAD(uint16_t, from_f16) break;
  }
}
#undef STORE
#undef LOAD

/* The weights of the taps, of one weight for a slice and the profile of their row. */
INLINE void NAME(with_profile)(const REAL *restrict weight, const REAL *restrict profile, int size, REAL *restrict made,
                               int n) {
  for (int i = 0; i < n; i++)
    for (int t = 0; t < size; t++) made[i * size + t] = weight[i] * profile[t];
}

/* From the gradients of the taps' weights those of the weights, and that of the profile, added up in `sums`. */
INLINE void NAME(to_profile)(const REAL *restrict weight, const REAL *restrict profile, const REAL *restrict grad,
                             int size, REAL *restrict grad_weight, double *restrict sums, int n) {
  for (int i = 0; i < n && grad_weight; i++) {
    REAL sum = 0;
    for (int t = 0; t < size; t++) sum += grad[i * size + t] * profile[t];
    grad_weight[i] = sum;
  }
  for (int t = 0; t < size; t++) {
    REAL sum = 0;
    for (int i = 0; i < n; i++) sum += grad[i * size + t] * weight[i];
    sums[t] += sum;
  }
}

INLINE void NAME(blocks)(const Job *job, int64_t first, int64_t last, int backward, int size, int closed) {
  REAL kernel[POSITIONS], made[LINES], grad_made[LINES];
  int positions = size * size, step = POSITIONS / positions < BLOCK ? POSITIONS / positions : BLOCK;
  int given = job->taps == 1 ? 1 : size, taps = job->profile ? size : given;
  int64_t row = job->rows == 1 ? 0 : first, end_row = job->rows == 1 ? 1 : last;
  int64_t from = job->rows == 1 ? first : 0, to = job->rows == 1 ? last : job->length;
  REAL scale = (REAL)job->scale;
  for (; row < end_row; row++) {
    const REAL *profile = job->profile ? (const REAL *)job->profile + row * size : NULL;
    double sums[LARGEST] = {0};
    for (int64_t i = from; i < to; i += step) {
      int n = to - i < step ? (int)(to - i) : step;
      int64_t slice = row * job->length + i, at = row * job->step_row + i * job->step_slice;
      const REAL *own = (const REAL *)job->weight + slice * given, *angle = (const REAL *)job->angle + slice;
      const REAL *weight = own;
      if (profile) {
        NAME(with_profile)(own, profile, size, made, n);
        weight = made;
      }
      if (!backward) {
        if (closed) NAME(forward_3)(weight, taps, angle, kernel, n, step);
        else NAME(forward_any)(weight, taps, angle, job->square, size, kernel, n, step);
        NAME(store)(job, kernel, at, positions, n, step);
        continue;
      }
      REAL *grad_own = job->grad_weight ? (REAL *)job->grad_weight + slice * given : NULL;
      REAL *grad_weight = profile ? (grad_own || job->grad_profile ? grad_made : NULL) : grad_own;
      REAL *grad_angle = job->grad_angle ? (REAL *)job->grad_angle + slice : NULL;
      NAME(load)(job, kernel, at, positions, n, step);
      if (closed) NAME(backward_3)(weight, taps, angle, kernel, scale, grad_weight, grad_angle, n, step);
      else NAME(backward_any)(weight, taps, angle, job->square, size, kernel, scale, grad_weight, grad_angle, n, step);
      if (profile && grad_weight) NAME(to_profile)(own, profile, grad_made, size, grad_own, sums, n);
    }
    if (backward && job->grad_profile)
      for (int t = 0; t < size; t++) ((REAL *)job->grad_profile)[row * size + t] = (REAL)sums[t];
  }
}

/* Sizes known to the compiler, for the loops over rows, columns and taps to be unrolled. */
CLONED static void NAME(forward)(const Job *job, int64_t first, int64_t last) {
  if (job->size == 3 && !job->square) NAME(blocks)(job, first, last, 0, 3, 1);
  else if (job->size == 3) NAME(blocks)(job, first, last, 0, 3, 0);
  else if (job->size == 5) NAME(blocks)(job, first, last, 0, 5, 0);
  else NAME(blocks)(job, first, last, 0, job->size, 0);
}

CLONED static void NAME(backward)(const Job *job, int64_t first, int64_t last) {
  if (job->size == 3 && !job->square) NAME(blocks)(job, first, last, 1, 3, 1);
  else if (job->size == 3) NAME(blocks)(job, first, last, 1, 3, 0);
  else if (job->size == 5) NAME(blocks)(job, first, last, 1, 5, 0);
  else NAME(blocks)(job, first, last, 1, job->size, 0);
}
