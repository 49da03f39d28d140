#ifndef DRAFTHOUSE_NORM_H
#define DRAFTHOUSE_NORM_H

#include "vectors.h"

// 1 / sqrt(mean(x^2) + eps) over `size` values.
INLINE float norm_scale(const float *x, long size, float eps) {
    Floats sums = {0};
    long i = 0;
    for (; i + LANES <= size; i += LANES) sums += *(const Floats *)(x + i) * *(const Floats *)(x + i);
    float sum = total(sums);
    for (; i < size; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
INLINE void norm_row(const float *x, const float *weight, float *out, long size, float eps) {
    const float scale = norm_scale(x, size, eps);
    long i = 0;
    for (; i + LANES <= size; i += LANES) *(Floats *)(out + i) = *(const Floats *)(x + i) * scale * *(const Floats *)(weight + i);
    for (; i < size; i++) out[i] = x[i] * scale * weight[i];
}

// Rotates one head of `dim` values: x * cos + (halves of x swapped) * sin, sin signed.
INLINE void rotate_head(float *x, const float *cos, const float *sin, long dim) {
    const long half = dim / 2;
    for (long i = 0; i < half; i++) {
        const float low = x[i], high = x[half + i];
        x[i] = low * cos[i] + high * sin[i];
        x[half + i] = high * cos[half + i] + low * sin[half + i];
    }
}

#endif
