// The best of wide rows: the same as shard/sampler.py and shard/medusa/best.py in torch operations, which pass over a row several
// times. What is no number is never the best.

#include <math.h>
#include <stdlib.h>

#include "vectors.h"

// Columns of a row whose maximum is taken before the next ones are looked at.
#define BLOCK (16 * LANES)

static float maximum(const float *x, long size) {
    float best = -INFINITY;
    if (size < LANES) {
        for (long i = 0; i < size; i++) best = x[i] > best ? x[i] : best;
        return best;
    }
    Floats most = all(-INFINITY);
    for (long i = 0; i + LANES <= size; i += LANES) {
        const Floats next = *(const Floats *)(x + i);
        const Ints is_more = next > most;
        most = (Floats)(((Ints)next & is_more) | ((Ints)most & ~is_more));
    }
    for (long lane = 0; lane < LANES; lane++) best = most[lane] > best ? most[lane] : best;
    for (long i = size / LANES * LANES; i < size; i++) best = x[i] > best ? x[i] : best;
    return best;
}

// The greatest of each row of scores [n, size], rows `stride` apart, and its place, the first of equals.
void first_max(const float *scores, float *best, int64_t *places, long n, long size, long stride) {
    #pragma omp parallel for if (n > 1)
    for (long row = 0; row < n; row++) {
        const float *x = scores + row * stride;
        float most = -INFINITY;
        long block = 0;
        for (long start = 0; start < size; start += BLOCK) {
            const long width = size - start < BLOCK ? size - start : BLOCK;
            const float here = maximum(x + start, width);
            if (here > most) most = here, block = start;
        }
        long place = block;
        while (place + 1 < size && x[place] != most) place++;
        best[row] = most;
        places[row] = place;
    }
}

// The first `count` so far, best first, the first of equals before the others.
typedef struct {
    float *values;
    int64_t *places;
    long count, most;
} First;

INLINE void insert(First *first, float value, int64_t place) {
    if (value != value) value = -INFINITY;
    if (first->count == first->most && !(value > first->values[first->count - 1])) return;
    long at = first->count < first->most ? first->count++ : first->count - 1;
    for (; at && value > first->values[at - 1]; at--) {
        first->values[at] = first->values[at - 1];
        first->places[at] = first->places[at - 1];
    }
    first->values[at] = value;
    first->places[at] = place;
}

static int ascending(const void *left, const void *right) {
    const int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

// log(sum(exp(x))), of which `most` is the greatest.
static float log_sum_exp(const float *x, long size, float most) {
    if (most == -INFINITY) return most;
    Floats sums = {0};
    long i = 0;
    for (; i + LANES <= size; i += LANES) sums += exp_negative(*(const Floats *)(x + i) - most);
    float sum = total(sums);
    for (; i < size; i++) sum += expf(x[i] - most);
    return most + logf(sum);
}

// Of each row of scores [n, size], rows `stride` apart, the `width` greatest, which are no more than there are: their columns and
// values [n, width]; and log(sum(exp)) of all [n].
void best_of_rows(const float *scores, int64_t *columns, float *values, float *log_sums, long n, long size, long stride, long width) {
    #pragma omp parallel for if (n > 1)
    for (long row = 0; row < n; row++) {
        const float *x = scores + row * stride;
        // A column comes after the best one of its own block, so the best columns lie in the best blocks.
        float maxima[width];
        int64_t blocks[width];
        First best_blocks = {maxima, blocks, 0, width}, best = {values + row * width, columns + row * width, 0, width};
        for (long start = 0; start < size; start += BLOCK)
            insert(&best_blocks, maximum(x + start, size - start < BLOCK ? size - start : BLOCK), start);
        log_sums[row] = log_sum_exp(x, size, maxima[0]);
        // In their order, so that of equals the first column is seen first.
        qsort(blocks, (size_t)best_blocks.count, sizeof(int64_t), ascending);
        for (long block = 0; block < best_blocks.count; block++)
            for (long i = blocks[block]; i < blocks[block] + BLOCK && i < size; i++) insert(&best, x[i], i);
    }
}
