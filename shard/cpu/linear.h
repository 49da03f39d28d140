#ifndef DRAFTHOUSE_LINEAR_H
#define DRAFTHOUSE_LINEAR_H

#include "team.h"
#include "vectors.h"

// Outputs of a packed weight that lie together.
#define PANEL (2 * LANES)

// x [n, in] with rows x_stride apart, weight packed: in int8 if there are scales of the outputs, else in bfloat16. Scales and
// bias are as long as the padded outputs, or null; out [n, num_out rounded up to a panel] with rows out_stride apart.
typedef struct {
    const Input *x;
    const void *weight;
    const float *scales, *bias;
    float *out;
    long n, in, num_out, x_stride, out_stride;
} Product;

// A phase of its own.
void product(const Product *p, Worker *worker);

#endif
