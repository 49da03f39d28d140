#ifndef DRAFTHOUSE_LINEAR_H
#define DRAFTHOUSE_LINEAR_H

#include "team.h"
#include "vectors.h"

// Outputs of a packed weight that lie together.
#define PANEL (2 * LANES)

// What the gate of an MLP goes through before it is multiplied: gelu by its tanh approximation.
typedef enum { NO_GATE, SILU, GELU } Gate;

// x [n, in] with rows x_stride apart, weight packed: in int8 if there are scales of the outputs, else in bfloat16. Scales and
// bias are as long as the padded outputs, or null; out [n, num_out rounded up to a panel] of floats with rows out_stride apart.
// With a gate the outputs are its vectors and those that it is multiplied with by turns, and out is what comes of them, the
// next product's x: [n, half of that] of inputs.
typedef struct {
    const Input *x;
    const void *weight;
    const float *scales, *bias;
    void *out;
    long n, in, num_out, x_stride, out_stride;
    Gate gate;
} Product;

// A phase of its own.
void product(const Product *p, Worker *worker);

#endif
