#ifndef DRAFTHOUSE_LINEAR_H
#define DRAFTHOUSE_LINEAR_H

#include "team.h"
#include "vectors.h"

// Outputs of a packed weight that lie together.
#define PANEL (2 * LANES)

// Inputs that share a scale: so many that their sum, times 256, is a number of 32 bits.
#define GROUP 128
// Inputs that are multiplied at once.
#define QUAD 4

// Inputs are (256 * high + low) * scale. Weights lie with 128 added to them, as the processor wants one side without signs:
// `offset` takes what that adds to a sum away.
typedef struct {
    float scale;
    int32_t offset;
    int8_t high[GROUP], low[GROUP];
} Group;

INLINE long num_groups(long in) {
    return (in + GROUP - 1) / GROUP;
}

// What the gate of an MLP goes through before it is multiplied: gelu by its tanh approximation.
typedef enum { NO_GATE, SILU, GELU } Gate;

// x [n, in] with rows x_stride apart, weight packed: in int8 if there are scales of the outputs, else in bfloat16. Scales and
// bias are as long as the padded outputs, or null; out [n, num_out rounded up to a panel] of floats with rows out_stride apart.
// With a gate the outputs are its vectors and those that it is multiplied with by turns, and out is what comes of them, the
// next product's x: [n, half of that] of inputs. groups: room for those of n rows, where weights in int8 are multiplied with
// integers.
typedef struct {
    const Input *x;
    const void *weight;
    const float *scales, *bias;
    void *out;
    long n, in, num_out, x_stride, out_stride;
    Gate gate;
    Group *groups;
} Product;

// Two phases at most.
void product(const Product *p, Worker *worker);

#endif
