/* line_kernel and its gradients for a CPU: plain C, called by ctypes; `rotateconv.kernels.fused` has the formulas.
 *
 * A block of slices at a time, [position][slice] in memory, in loops over the slices that a compiler vectorizes. Every
 * slice is computed by the same operations wherever it lies (-ffp-contract=off, no -ffast-math), so the numbers depend
 * neither on the order in memory nor on the threads, and NaN and infinity go where they go in the tensor operations.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "line.h"
#if !defined(_WIN32)
#define THREADS
#include <pthread.h>
#endif

/* Where the compiler can do it, one library for every processor of the family: the widest vectors are chosen at load.
 * Not under a sanitizer, with which each version takes minutes to compile. */
#if defined(CLONES) && defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif
#define INLINE static inline __attribute__((always_inline))

enum { VERSION = 3, BLOCK = 64, POSITIONS = 8192, LINES = 768, MOST_THREADS = 64 };

/* One call. The slices are (rows, length); the kernels of a row lie step_slice and step_position numbers apart. */
typedef struct Job {
  const void *weight, *angle; /* (rows, length, taps) and (rows, length), contiguous, float or double */
  const void *profile;        /* (rows, size), or NULL */
  void *kernel;               /* written in the forward pass, its gradient in the backward pass */
  void *grad_weight, *grad_angle, *grad_profile; /* NULL where they are not asked for */
  double scale;                   /* of the gradient of the angle */
  int64_t rows, length, step_row, step_slice, step_position;
  int size, taps, square, type;
  void (*run)(const struct Job *, int64_t first, int64_t last); /* in the rows, or in the length of a single row */
} Job;

INLINE float bits_to_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t float_to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

INLINE float from_bf16(uint16_t x) { return bits_to_float((uint32_t)x << 16); }

INLINE uint16_t to_bf16(float x) { /* to the nearest, ties to even */
  uint32_t bits = float_to_bits(x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

INLINE float from_f16(uint16_t x) {
  uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = (uint32_t)(x & 0x7fff);
  float normal = bits_to_float((rest << 13) + (0xe0u << 23)) * 0x1p-112f; /* an exponent of 31 becomes inf or NaN */
  float tiny = bits_to_float(rest | (126u << 23)) - 0.5f;                 /* below the normal numbers */
  return bits_to_float(sign | float_to_bits(rest < 0x400 ? tiny : normal));
}

INLINE uint16_t to_f16(float x) { /* to the nearest, ties to even: an addition rounds where float16's last digit is */
  uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffff, exponent = bits & 0x7f800000;
  float clipped = fabsf(x) * 0x1p+112f * 0x1p-110f; /* too large for float16 becomes infinite */
  float unit = bits_to_float((exponent < 0x38800000 ? 0x38800000 : exponent) + 0x07800000);
  uint32_t sum = float_to_bits(unit + clipped);
  uint32_t rounded = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
  return (uint16_t)(((bits >> 16) & 0x8000) | (magnitude > 0x7f800000 ? 0x7e00 : rounded));
}

/* Both, by two short polynomials (Cephes) in the remainder by π/2, which float64 makes exact enough; else by libm. */
INLINE void sincos_float(const float *restrict x, float *restrict sin_x, float *restrict cos_x, int n) {
  int far = 0;
  for (int i = 0; i < n; i++) far |= !(fabsf(x[i]) < 1e6f); /* NaN and infinity too */
  if (far) {
    for (int i = 0; i < n; i++) { sin_x[i] = sinf(x[i]); cos_x[i] = cosf(x[i]); }
    return;
  }
  for (int i = 0; i < n; i++) {
    float turns = x[i] * 0.636619772367581343f;
    int32_t quarter = (int32_t)(turns + (turns < 0 ? -0.5f : 0.5f));
    float r = (float)((double)x[i] - (double)quarter * 1.5707963267948966), z = r * r;
    float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    float c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1;
    float first = quarter & 1 ? c : s, second = quarter & 1 ? s : c;
    sin_x[i] = quarter & 2 ? -first : first;
    cos_x[i] = (quarter + 1) & 2 ? -second : second;
  }
}

INLINE void sincos_double(const double *restrict x, double *restrict sin_x, double *restrict cos_x, int n) {
  for (int i = 0; i < n; i++) { sin_x[i] = sin(x[i]); cos_x[i] = cos(x[i]); }
}

#define REAL float
#define NAME(name) name##_float
#define EPSILON 1.1920928955078125e-07f
#include "line_real.h"
#undef REAL
#undef NAME
#undef EPSILON
#undef CLONED /* float64 is for checks: once is enough */
#define CLONED
#define REAL double
#define NAME(name) name##_double
#define EPSILON 2.220446049250313e-16
#include "line_real.h"

#ifdef THREADS
typedef struct { const Job *job; int64_t first, last; } Share;

static void *run_share(void *argument) {
  const Share *share = argument;
  share->job->run(share->job, share->first, share->last);
  return NULL;
}
#endif

/* Share the rows, or the slices of a single row, among threads that live for this call. */
static void run(const Job *job, int threads) {
  int64_t count = job->rows == 1 ? job->length : job->rows;
  if (job->profile && job->rows == 1) threads = 1; /* the gradient of a profile is a sum over its row */
#ifdef THREADS
  Share shares[MOST_THREADS];
  pthread_t ids[MOST_THREADS];
  int started[MOST_THREADS];
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  if (threads > count) threads = (int)count;
  for (int i = 1; i < threads; i++) {
    shares[i] = (Share){job, count * i / threads, count * (i + 1) / threads};
    started[i] = pthread_create(&ids[i], NULL, run_share, &shares[i]) == 0;
  }
  if (threads > 1) {
    job->run(job, 0, count / threads);
    for (int i = 1; i < threads; i++) {
      if (started[i]) pthread_join(ids[i], NULL);
      else run_share(&shares[i]);
    }
    return;
  }
#else
  (void)threads;
#endif
  job->run(job, 0, count);
}

int rotateconv_version(void) { return VERSION; }
int rotateconv_largest(void) { return LARGEST; }

static Job make_job(const Call *call, const void *weight, const void *angle, const void *profile, void *kernel) {
  int64_t positions = (int64_t)call->size * call->size;
  Job job = {.weight = weight, .angle = angle, .profile = profile, .kernel = kernel, .scale = call->scale,
             .rows = call->rows, .length = call->length, .size = call->size, .taps = call->taps,
             .square = call->square, .type = call->type};
  job.step_row = positions * job.length;
  job.step_slice = call->last ? 1 : positions;
  job.step_position = call->last ? job.length : 1;
  if (!call->last && !profile) { job.length *= job.rows; job.rows = 1; }
  return job;
}

void rotateconv_line_forward(const Call *call, const void *weight, const void *angle, const void *profile,
                             void *kernel) {
  Job job = make_job(call, weight, angle, profile, kernel);
  job.run = call->is_double ? forward_double : forward_float;
  run(&job, call->threads);
}

void rotateconv_line_backward(const Call *call, const void *weight, const void *angle, const void *profile,
                              const void *grad, void *grad_weight, void *grad_angle, void *grad_profile) {
  Job job = make_job(call, weight, angle, profile, (void *)grad);
  job.grad_weight = grad_weight;
  job.grad_angle = grad_angle;
  job.grad_profile = grad_profile;
  job.run = call->is_double ? backward_double : backward_float;
  run(&job, call->threads);
}
