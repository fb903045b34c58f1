/* What line.c offers: to Python, where `rotateconv.native` says the same by ctypes, and to node.cpp. */
#ifndef ROTATECONV_LINE_H
#define ROTATECONV_LINE_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { LARGEST = 63 };                        /* k: there is room for no larger kernel */
enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 }; /* of kernels in memory */

/* What the calls of a layer have in common: `native.Call` has the same fields. */
typedef struct Call {
  double scale;         /* of the gradient of the angle */
  int64_t rows, length; /* of the slices; with `last` the length is the innermost dimension of the kernels in memory */
  int size, taps, square, type, last, is_double, threads;
} Call;

/* Weights (rows, length, taps) and angles (rows, length), contiguous; kernels and their gradients as `last` says.
 * With a profile (rows, size), else NULL, a weight (rows, length, 1) is multiplied with its row's. */
void rotateconv_line_forward(const Call *call, const void *weight, const void *angle, const void *profile,
                             void *kernel);

/* A gradient that is not asked for is NULL. */
void rotateconv_line_backward(const Call *call, const void *weight, const void *angle, const void *profile,
                              const void *grad, void *grad_weight, void *grad_angle, void *grad_profile);

#ifdef __cplusplus
}
#endif
#endif
