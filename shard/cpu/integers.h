// Inputs as integers, for weights in int8, where the processor multiplies bytes and adds four products to an integer: twice the
// arithmetic of floats, though an input is two bytes, and no weight has to be widened.
//
// An input is a number of 16 bits times a scale. Those of a group share one, so that an input far above the others leaves all
// other groups as exact as they were: each is moved by at most a 65278th of the greatest of its group, where bfloat16 moves each
// by up to a 512th of itself. Sums within a group are exact, those of groups are floats, one after another: a row's result does
// not depend on the rows beside it.

#ifndef DRAFTHOUSE_INTEGERS_H
#define DRAFTHOUSE_INTEGERS_H

#include "sums.h"

// 127 * 256 + 127.
#define MOST_INTEGER 32639.0f

// Of the first `size` of x, up to a group.
INLINE void make_group(const Input *x, long size, Group *to) {
    Input padded[GROUP];
    if (size < GROUP) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, sizeof(Input) * (size_t)size);
        x = padded;
    }
    // As integers magnitudes have the same order, and what is no number is above all.
    Words most = {0};
    for (long i = 0; i < GROUP; i += LANES) {
        const Words bits = (Words)floats_of(x + i) & 0x7fffffffu, is_more = (Words)(bits > most);
        most = (bits & is_more) | (most & ~is_more);
    }
    uint32_t greatest = 0;
    for (int i = 0; i < LANES; i++) greatest = most[i] > greatest ? most[i] : greatest;
    const float magnitude = ((union { uint32_t bits; float number; }){greatest}).number;
    // What is less than any float that matters is nothing: its inverse would be none.
    const float factor = magnitude > 1e-30f ? MOST_INTEGER / magnitude : 0;
    // Added to a smaller float this leaves the nearest integer in its last bits.
    const Floats round = all(12582912.0f);
    Ints sums = {0};
    for (long i = 0; i < GROUP; i += LANES) {
        const Ints integers = (Ints)(floats_of(x + i) * factor + round) - (Ints)round;
        const Ints high = (integers + 128) >> 8, low = integers - (high << 8);
        sums += integers;
        for (int j = 0; j < LANES; j++) to->high[i + j] = (int8_t)high[j], to->low[i + j] = (int8_t)low[j];
    }
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    to->scale = magnitude / MOST_INTEGER;
    to->offset = -128 * sum;
}

INLINE Words add_bytes(Words sums, Words weights, Words inputs) {
    // By its name: immintrin.h takes long to compile.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(inputs));
    return sums;
}

// The same four bytes everywhere.
INLINE Words repeated(const int8_t *quad) {
    uint32_t bits;
    memcpy(&bits, quad, sizeof bits);
    return bits - (Words){0};
}

// How far ahead the weights are asked for, in bytes, from memory into the second-level cache.
#define QUADS_AHEAD (256 * PANEL)

// All inputs in `panels` x `rows` sums, group by group.
INLINE void add_groups(const Product *p, const char *weight, long row, Sums low, Sums high, const int panels, const int rows) {
    const long in = round_up(p->in, QUAD), groups = num_groups(p->in);
    const Group *x = p->groups + row * groups;
    for (long first = 0; first < in; first += GROUP, x++) {
        Words coarse[2][MOST_PANELS][MOST_INTEGER_ROWS], fine[2][MOST_PANELS][MOST_INTEGER_ROWS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int q = 0; q < panels; q++) {
                coarse[0][q][r] = coarse[1][q][r] = (Words){0};
                fine[0][q][r] = fine[1][q][r] = (uint32_t)x[r * groups].offset - (Words){0};
            }
        const long size = in - first < GROUP ? in - first : GROUP;
        for (long k = 0; k < size; k += QUAD) {
            Words even[MOST_PANELS], odd[MOST_PANELS];
            UNROLL for (int q = 0; q < panels; q++) {
                const char *at = weight + (q * in + first + k) * PANEL;
                __builtin_prefetch(at + QUADS_AHEAD, 0, 2), __builtin_prefetch(at + QUADS_AHEAD + 64, 0, 2);
                even[q] = *(const Words *)at;
                odd[q] = *((const Words *)at + 1);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const Words more = repeated(x[r * groups].high + k), less = repeated(x[r * groups].low + k);
                UNROLL for (int q = 0; q < panels; q++) {
                    coarse[0][q][r] = add_bytes(coarse[0][q][r], even[q], more);
                    coarse[1][q][r] = add_bytes(coarse[1][q][r], odd[q], more);
                    fine[0][q][r] = add_bytes(fine[0][q][r], even[q], less);
                    fine[1][q][r] = add_bytes(fine[1][q][r], odd[q], less);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int q = 0; q < panels; q++) {
                const Ints even = (Ints)((coarse[0][q][r] << 8) + fine[0][q][r]), odd = (Ints)((coarse[1][q][r] << 8) + fine[1][q][r]);
                low[q][r] += __builtin_convertvector(even, Floats) * x[r * groups].scale;
                high[q][r] += __builtin_convertvector(odd, Floats) * x[r * groups].scale;
            }
    }
}

#endif
