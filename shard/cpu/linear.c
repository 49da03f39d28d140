// x @ weight.T + bias in float32 with the weight in bfloat16 or int8. Compiled for the machine at hand by build.py; called
// through kernels.py and decoder.c.
//
// The weight is packed once, in panels of two vectors of outputs, so that a step reads each weight once, two bytes a value
// or one, one after another. In int8 each sum is multiplied with its output's scale at the end. How a panel lies follows
// from the arithmetic that the processor has:
//
// - Of floats only: in bfloat16 a panel holds for each input LANES words, each with the value of output j in its low half and
//   that of output j + LANES in its high half: a shift makes floats of the first, a mask of the second. In int8 it holds the
//   outputs in their order.
// - Of integers, for weights in int8 (integers.h): a panel holds for each four inputs those of an output one after another,
//   with 128 added to them.
// - Of pairs of bfloat16: a panel holds for each pair of inputs a word for each output, with the first input's value in its
//   low half and the second's in its high half. A last input without a second one is held as the outputs in their order.

#include "factors.h"
#include "integers.h"

// Weights that meet all rows before the next ones: they are to stay in the second-level cache.
#define CACHED_BYTES 131072
// Into so many pieces for each thread a product is cut at least.
#define PIECES 16

INLINE Floats activated(const Gate gate, Floats x) {
    if (gate == GELU) return x * (0.5f * (1 + tanh_all(0.7978845608f * (x + 0.044715f * x * x * x))));
    return x * sigmoid(x);
}

// A panel's outputs of a row.
INLINE void finish(const Product *p, long row, long output, Floats low, Floats high) {
    const long at = row * p->out_stride;
    if (p->gate) {
        store_inputs((Input *)p->out + at + output / 2, activated(p->gate, low) * high);
    } else {
        Floats *out = (Floats *)((float *)p->out + at + output);
        out[0] = low;
        out[1] = high;
    }
}

// `panels` x `rows` of the result, of weights of so many `bytes`; all are constants, so that the sums stay in registers.
// Each output is one sum over the inputs in their order, whatever the shape: a row's result does not depend on the number
// of rows.
INLINE void tile(const Product *p, long panel, long row, const int panels, const int rows, const int bytes) {
    const Input *x = p->x + row * p->x_stride;
    const long input = PANEL * bytes;
    Sums low, high;
    UNROLL for (int q = 0; q < panels; q++)
        UNROLL for (int r = 0; r < rows; r++) low[q][r] = high[q][r] = (Floats){0};
    if (HAS_BYTES && bytes == 1) {
        add_groups(p, (const char *)p->weight + panel * PANEL * round_up(p->in, QUAD), row, low, high, panels, rows);
    } else {
        const char *weight = (const char *)p->weight + panel * input * p->in;
        long k = 0;
        for (; k + TOGETHER <= p->in; k += TOGETHER) add_inputs(p, weight + k * input, x + k, low, high, panels, rows, bytes, 0);
        if (k < p->in) add_inputs(p, weight + k * input, x + k, low, high, panels, rows, bytes, 1);
    }
    UNROLL for (int q = 0; q < panels; q++) {
        const long output = (panel + q) * PANEL;
        Floats bias[2] = {{0}};
        if (p->bias) memcpy(bias, p->bias + output, sizeof bias);
        UNROLL for (int r = 0; r < rows; r++) {
            if (bytes == 1) {
                low[q][r] *= *(const Floats *)(p->scales + output);
                high[q][r] *= *(const Floats *)(p->scales + output + LANES);
            }
            finish(p, row + r, output, low[q][r] + bias[0], high[q][r] + bias[1]);
        }
    }
}

// Panels from `first` to `last` of `rows` rows, so many panels at a time that there are sums enough to hide the latency
// of a multiply-add.
INLINE void strip(const Product *p, long first, long last, long row, const int panels, const int rows, const int bytes) {
    for (; first + panels <= last; first += panels) tile(p, first, row, panels, rows, bytes);
    for (; first < last; first++) tile(p, first, row, 1, rows, bytes);
}

#define STRIP(panels, rows) \
    case rows: strip(p, first, last, row, panels, rows, bytes); break;

INLINE void strips(const Product *p, long first, long last, const int bytes) {
    const long most = HAS_BYTES && bytes == 1 ? MOST_INTEGER_ROWS : MOST_ROWS;
    // As even as can be: a strip of one or two rows costs nearly as much as one of four.
    const long count = (p->n + most - 1) / most;
    for (long i = 0; i < count; i++) {
        const long row = cut(p->n, i, count);
        switch (cut(p->n, i + 1, count) - row) {
#if MOST_ROWS == 12
            STRIP(1, 12) STRIP(1, 11) STRIP(1, 10) STRIP(1, 9) STRIP(1, 8) STRIP(1, 7)
#endif
            STRIP(1, 6) STRIP(1, 5) STRIP(1, 4) STRIP(2, 3) STRIP(3, 2) STRIP(4, 1)
        }
    }
}

static void strips_of_bf16(const Product *p, long first, long last) {
    strips(p, first, last, 2);
}

static void strips_of_int8(const Product *p, long first, long last) {
    strips(p, first, last, 1);
}

void product(const Product *p, Worker *worker) {
    if (HAS_BYTES && p->scales)
        SHARE(worker, row, p->n) {
            Group *to = p->groups + row * num_groups(p->in);
            const Input *x = p->x + row * p->x_stride;
            for (long i = 0; i < p->in; i += GROUP) make_group(x + i, p->in - i < GROUP ? p->in - i : GROUP, to++);
        }
    const long panels = round_up(p->num_out, PANEL) / PANEL, bytes = p->scales ? 1 : 2;
    const long most = CACHED_BYTES / (bytes * PANEL * p->in) + 1, share = (panels - 1) / (PIECES * omp_get_num_threads()) + 1;
    const long pieces = (panels + (share < most ? share : most) - 1) / (share < most ? share : most);
    void (*const take)(const Product *, long, long) = p->scales ? strips_of_int8 : strips_of_bf16;
    SHARE(worker, piece, pieces) take(p, cut(panels, piece, pieces), cut(panels, piece + 1, pieces));
}

// For whom packs weights: vectors are so long, and so many inputs lie together.
long lanes(void) {
    return LANES;
}

long together(void) {
    return TOGETHER;
}

// Inputs of a weight in int8 that lie together, and bytes that a row of `in` of them takes as integers; 0: they stay what they are.
long integers_together(void) {
    return HAS_BYTES ? QUAD : 0;
}

long bytes_of_row(long in) {
    return HAS_BYTES ? num_groups(in) * (long)sizeof(Group) : 0;
}

// x [n, in] as a product reads it; where that is in floats, in a phase of its own, in `wide`.
INLINE const Input *inputs_of(const bf16 *x, float *wide, long n, long in, Worker *worker) {
#if HAS_DOTS
    (void)wide, (void)n, (void)in, (void)worker;
    return x;
#else
    SHARE(worker, row, n) {
        for (long i = row * in; i < (row + 1) * in; i++) wide[i] = widen(x[i]);
    }
    return wide;
#endif
}

// x [n, in] in bfloat16 -> out [n, num_out], in float32 or rounded to bfloat16; with a gate num_out counts what comes of it.
// wide_x and wide_out are scratch of [n, in] and [n, num_out rounded up to a panel] floats, groups of n rows; out may be null:
// then wide_out is the result.
void linear(const bf16 *x, const void *weight, const float *scales, const float *bias, bf16 *out, float *wide_x, float *wide_out,
            Group *groups, long n, long in, long num_out, long gate) {
    const long stride = round_up(num_out, PANEL);
    Phase phases[4] = {{0}};
    #pragma omp parallel if (n * in * num_out > 65536)
    {
        Worker worker = this_worker(phases);
        const Product p = {inputs_of(x, wide_x, n, in, &worker), weight, scales, bias, wide_out, n, in,
                           gate ? 2 * round_up(num_out, LANES) : num_out, in, stride, (Gate)gate, groups};
        product(&p, &worker);
        if (out) {
            SHARE(&worker, row, n) {
                const long at = row * stride;
                for (long i = 0; i < num_out; i++) out[row * num_out + i] = gate ? rounded(((Input *)wide_out)[at + i]) : narrow(wide_out[at + i]);
            }
        }
    }
}

#if !HAS_DOTS

static void unpack_integers(const uint8_t *weight, bf16 *out, long in, long panels) {
    #pragma omp parallel for schedule(static)
    for (long panel = 0; panel < panels; panel++)
        for (long k = 0; k < in; k += QUAD)
            for (int part = 0; part < 2; part++) {
                const Words four = *((const Words *)(weight + (panel * round_up(in, QUAD) + k) * PANEL) + part) ^ 0x80808080u;
                for (int j = 0; j < QUAD && k + j < in; j++) {
                    const Ints integers = (Ints)(four << (24 - 8 * j)) >> 24;
                    ((Halves *)(out + ((k + j) * panels + panel) * PANEL))[part] = narrow_all(__builtin_convertvector(integers, Floats));
                }
            }
}

// A packed weight -> its transpose [in, outputs rounded up to a panel] in bfloat16, as libraries multiply it; numbers of 8 bits
// without their scales.
void unpack(const void *weight, bf16 *out, long in, long panels, long bytes) {
    if (HAS_BYTES && bytes == 1) {
        unpack_integers(weight, out, in, panels);
        return;
    }
    #pragma omp parallel for schedule(static)
    for (long panel = 0; panel < panels; panel++) {
        for (long k = 0; k < in; k++) {
            Factors low, high;
            read_panel((const char *)weight + (panel * in + k) * PANEL * bytes, &low, &high, bytes, 0);
            Halves *to = (Halves *)(out + (k * panels + panel) * PANEL);
            to[0] = narrow_all(low);
            to[1] = narrow_all(high);
        }
    }
}

#endif
