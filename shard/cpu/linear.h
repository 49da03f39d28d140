#ifndef DRAFTHOUSE_LINEAR_H
#define DRAFTHOUSE_LINEAR_H

#include "team.h"
#include "vectors.h"

// Outputs of a packed weight that lie together.
#define PANEL (2 * LANES)

// x [n, in] with rows x_stride apart, weight packed, bias as long as the padded outputs or null, out [n, num_out rounded
// up to a panel] with rows out_stride apart.
typedef struct {
    const float *x;
    const bf16 *weight;
    const float *bias;
    float *out;
    long n, in, num_out, x_stride, out_stride;
} Product;

// A phase of its own.
void product(const Product *p, Worker *worker);

#endif
