// Weights as factors, floats or pairs of bfloat16, which are made of what a panel holds on the way.

#ifndef DRAFTHOUSE_FACTORS_H
#define DRAFTHOUSE_FACTORS_H

#include "sums.h"

#if HAS_DOTS

INLINE Factors inputs_at(const Input *x, const int is_single) {
    uint32_t pair = *x;
    if (!is_single) memcpy(&pair, x, sizeof pair);
    return pair - (Words){0};
}

INLINE void read_panel(const char *at, Factors *low, Factors *high, const int bytes, const int is_single) {
    // Those in int8 are multiplied with integers.
    (void)bytes;
    if (is_single) {
        *low = (Words)widen_all((const bf16 *)at) >> 16;
        *high = (Words)widen_all((const bf16 *)at + LANES) >> 16;
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

#endif
