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
// - Of pairs of bfloat16: a panel holds for each pair of inputs a word for each output, with the first input's value in its
//   low half and the second's in its high half. In int8 it holds for each vector of outputs the first input's values, then
//   the second's. A last input without a second one is held as the outputs in their order.

#include "linear.h"

// Weights that meet all rows before the next ones: they are to stay in the second-level cache.
#define GROUP_BYTES 131072
// Into so many pieces for each thread a product is cut at least.
#define PIECES 16
// Registers for sums: what the shapes of `strips` need at most. Rows of a strip meet a weight together, when it comes from
// memory; those of the next strip find it in the cache.
#define MOST_PANELS 4
#if LANES == 16
#define MOST_ROWS 12
#else
#define MOST_ROWS 6
#endif

#if HAS_DOTS

INLINE Factors inputs_at(const Input *x, const int is_single) {
    uint32_t pair = *x;
    if (!is_single) memcpy(&pair, x, sizeof pair);
    return pair - (Words){0};
}

INLINE Factors first_of_pair(const int8_t *at) {
    // A number of 8 bits as a float has nothing below its upper half, which is bfloat16.
    return (Words)widen_integers(at) >> 16;
}

INLINE void read_panel(const char *at, Factors *low, Factors *high, const int bytes, const int is_single) {
    const int8_t *integers = (const int8_t *)at;
    if (is_single) {
        *low = bytes == 1 ? first_of_pair(integers) : (Words)widen_all((const bf16 *)at) >> 16;
        *high = bytes == 1 ? first_of_pair(integers + LANES) : (Words)widen_all((const bf16 *)at + LANES) >> 16;
    } else if (bytes == 1) {
        *low = first_of_pair(integers) | (Words)widen_integers(integers + LANES);
        *high = first_of_pair(integers + 2 * LANES) | (Words)widen_integers(integers + 3 * LANES);
    } else {
        *low = *(const Words *)at;
        *high = *((const Words *)at + 1);
    }
}

#else

// How far ahead the weights are asked for, in bytes: into the first-level cache, and before that from memory into the second.
// Only here: the few operations on pairs wait for memory anyway, and asking for it made their steps a tenth slower.
#define AHEAD (64 * PANEL)
#define FROM_MEMORY (256 * PANEL)

INLINE Factors inputs_at(const Input *x, const int is_single) {
    (void)is_single;
    return all(*x);
}

INLINE void read_panel(const char *at, Factors *low, Factors *high, const int bytes, const int is_single) {
    (void)is_single;
    __builtin_prefetch(at + FROM_MEMORY, 0, 2);
    __builtin_prefetch(at + AHEAD);
    if (bytes == 1) {
        *low = widen_integers((const int8_t *)at);
        *high = widen_integers((const int8_t *)at + LANES);
    } else {
        const Words words = *(const Words *)at;
        *low = (Floats)(words << 16);
        *high = (Floats)(words & 0xffff0000u);
    }
}

#endif

INLINE Floats activated(const Gate gate, Floats x) {
    if (gate == GELU) return x * (0.5f * (1 + tanh_all(0.7978845608f * (x + 0.044715f * x * x * x))));
    return x * sigmoid(x);
}

typedef Floats Sums[MOST_PANELS][MOST_ROWS];

// The part of the next inputs in `panels` x `rows` sums; a single one where the last has no second.
INLINE void add_inputs(const Product *p, const char *weight, const Input *x, Sums low, Sums high, const int panels, const int rows,
                       const int bytes, const int is_single) {
    Factors even[MOST_PANELS], odd[MOST_PANELS];
    UNROLL for (int q = 0; q < panels; q++) {
        const char *at = weight + q * p->in * PANEL * bytes;
        read_panel(at, &even[q], &odd[q], bytes, is_single);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const Factors value = inputs_at(x + r * p->x_stride, is_single);
        UNROLL for (int q = 0; q < panels; q++) {
            low[q][r] = add_product(low[q][r], even[q], value);
            high[q][r] = add_product(high[q][r], odd[q], value);
        }
    }
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
    const char *weight = (const char *)p->weight + panel * input * p->in;
    Sums low, high;
    UNROLL for (int q = 0; q < panels; q++)
        UNROLL for (int r = 0; r < rows; r++) low[q][r] = high[q][r] = (Floats){0};
    long k = 0;
    for (; k + TOGETHER <= p->in; k += TOGETHER) add_inputs(p, weight + k * input, x + k, low, high, panels, rows, bytes, 0);
    if (k < p->in) add_inputs(p, weight + k * input, x + k, low, high, panels, rows, bytes, 1);
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
    // As even as can be: a strip of one or two rows costs nearly as much as one of four.
    const long count = (p->n + MOST_ROWS - 1) / MOST_ROWS;
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
    const long panels = round_up(p->num_out, PANEL) / PANEL, bytes = p->scales ? 1 : 2;
    const long most = GROUP_BYTES / (bytes * PANEL * p->in) + 1, share = (panels - 1) / (PIECES * omp_get_num_threads()) + 1;
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
// wide_x and wide_out are scratch of [n, in] and [n, num_out rounded up to a panel] floats; out may be null: then wide_out is
// the result.
void linear(const bf16 *x, const void *weight, const float *scales, const float *bias, bf16 *out, float *wide_x, float *wide_out,
            long n, long in, long num_out, long gate) {
    const long stride = round_up(num_out, PANEL);
    Phase phases[3] = {{0}};
    #pragma omp parallel if (n * in * num_out > 65536)
    {
        Worker worker = this_worker(phases);
        const Product p = {inputs_of(x, wide_x, n, in, &worker), weight, scales, bias, wide_out, n, in,
                           gate ? 2 * round_up(num_out, LANES) : num_out, in, stride, (Gate)gate};
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

// A packed weight -> its transpose [in, outputs rounded up to a panel] in bfloat16, as libraries multiply it; numbers of 8 bits
// without their scales.
void unpack(const void *weight, bf16 *out, long in, long panels, long bytes) {
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
