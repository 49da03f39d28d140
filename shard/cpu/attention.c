// Attention of a step's rows over their pages and over each other, in float32 over keys and values in bfloat16; queries are
// as products read them.
//
// A row's weights lie in the order of its text: what is committed, then its own path through the draft tree. So they are
// summed in the same order whether a token was committed or is still a draft, and the result is the same to the last bit.

#include <float.h>
#include <stdlib.h>

#include "attention.h"

// So many pages before its turn a page is asked for.
#define PAGES_AHEAD 3
// Scores of the heads that are attended together: they are to stay in the second-level cache, beside pages.
#define SCORES_BYTES 131072
// Into so many pieces for each thread attention is cut, if there are so many heads.
#define PIECES 4
// Queries that meet a key or a value together: four sums of each are to stay in registers.
#if LANES == 8
#define MOST_QUERIES 3
#define FOR_EACH_COUNT(take) take(3) take(2) take(1)
#else
#define MOST_QUERIES 6
#define FOR_EACH_COUNT(take) take(6) take(5) take(4) take(3) take(2) take(1)
#endif

typedef float Quad __attribute__((vector_size(16), may_alias, aligned(4)));

#if LANES == 8
#define LOW(a, b) __builtin_shuffle(a, b, (Ints){0, 8, 1, 9, 4, 12, 5, 13})
#define HIGH(a, b) __builtin_shuffle(a, b, (Ints){2, 10, 3, 11, 6, 14, 7, 15})
#define LOW_PAIRS(a, b) __builtin_shuffle(a, b, (Ints){0, 1, 8, 9, 4, 5, 12, 13})
#define HIGH_PAIRS(a, b) __builtin_shuffle(a, b, (Ints){2, 3, 10, 11, 6, 7, 14, 15})
#else
#define LOW(a, b) __builtin_shuffle(a, b, (Ints){0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29})
#define HIGH(a, b) __builtin_shuffle(a, b, (Ints){2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31})
#define LOW_PAIRS(a, b) __builtin_shuffle(a, b, (Ints){0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29})
#define HIGH_PAIRS(a, b) __builtin_shuffle(a, b, (Ints){2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31})
#endif

// The sums of four vectors.
INLINE void totals(const Floats v[4], float *out) {
    const Floats first = LOW(v[0], v[1]) + HIGH(v[0], v[1]), second = LOW(v[2], v[3]) + HIGH(v[2], v[3]);
    const union { Floats all; Quad quads[LANES / 4]; } sums = {LOW_PAIRS(first, second) + HIGH_PAIRS(first, second)};
#if LANES == 8
    *(Quad *)out = sums.quads[0] + sums.quads[1];
#else
    *(Quad *)out = (sums.quads[0] + sums.quads[1]) + (sums.quads[2] + sums.quads[3]);
#endif
}

// Some rows of keys or values, `stride` apart, and where those lie that are wanted next: pages lie anywhere, so the
// processor does not see the next one coming, and it is asked for row by row while this one is read.
typedef struct {
    const bf16 *at, *next;
    long stride;
} Rows;

// All lines of the row that follows in `next`, into the second-level cache: the first has room for few lines under way, which
// the reading of this row needs.
INLINE void ask_for(Rows rows, long row, const long dim) {
    for (long i = 0; i < dim; i += 32) __builtin_prefetch(rows.next + row * rows.stride + i, 0, 2);
}

// Scores of `count` queries for n keys, four keys at a time: `count` is a constant, so that the sums stay in registers.
// What lies between n and the next multiple of four is written too.
INLINE void score_some(const Input *queries, Rows keys, long n, float *scores, long width, const long dim, const int count) {
    for (long t = 0; t < n; t += 4) {
        Floats sums[MOST_QUERIES][4];
        UNROLL for (int q = 0; q < count; q++)
            UNROLL for (int j = 0; j < 4; j++) sums[q][j] = (Floats){0};
        const bf16 *key[4];
        UNROLL for (int j = 0; j < 4; j++) key[j] = keys.at + (t + j < n ? t + j : n - 1) * keys.stride;
        UNROLL for (int j = 0; j < 4; j++) ask_for(keys, t + j, dim);
        for (long i = 0; i < dim; i += FACTORS) {
            UNROLL for (int j = 0; j < 4; j++) {
                const Factors k = factors_of(key[j] + i);
                UNROLL for (int q = 0; q < count; q++) sums[q][j] = add_product(sums[q][j], k, *(const Factors *)(queries + q * dim + i));
            }
        }
        UNROLL for (int q = 0; q < count; q++) totals(sums[q], scores + q * width + t);
    }
}

#define SCORE(count) \
    case count: score_some(queries, keys, n, scores, width, dim, count); break;

INLINE void score(const Input *queries, long m, Rows keys, long n, float *scores, long width, const long dim) {
    for (; m > 0; m -= MOST_QUERIES, queries += MOST_QUERIES * dim, scores += MOST_QUERIES * width) {
        switch (m < MOST_QUERIES ? m : MOST_QUERIES) { FOR_EACH_COUNT(SCORE) }
    }
}

// sums += the weighted values of n places for `count` queries, `vectors` of each value; both are constants.
INLINE void add_part(float *sums, const float *weights, long width, Rows values, long n, const long dim, const int vectors, const int count) {
    Floats local[MOST_QUERIES][4];
    UNROLL for (int q = 0; q < count; q++)
        UNROLL for (int i = 0; i < vectors; i++) local[q][i] = *(const Floats *)(sums + q * dim + i * LANES);
    for (long t = 0; t < n; t++) {
        ask_for(values, t, vectors * LANES);
        UNROLL for (int i = 0; i < vectors; i++) {
            const Floats value = widen_all(values.at + t * values.stride + i * LANES);
            UNROLL for (int q = 0; q < count; q++) local[q][i] += weights[q * width + t] * value;
        }
    }
    UNROLL for (int q = 0; q < count; q++)
        UNROLL for (int i = 0; i < vectors; i++) *(Floats *)(sums + q * dim + i * LANES) = local[q][i];
}

INLINE Rows behind(Rows rows, long offset) {
    return (Rows){rows.at + offset, rows.next + offset, rows.stride};
}

INLINE void add_some(float *sums, const float *weights, long width, Rows values, long n, const long dim, const int count) {
    long i = 0;
    for (; i + 4 * LANES <= dim; i += 4 * LANES)
        add_part(sums + i, weights, width, behind(values, i), n, dim, 4, count);
    for (; i < dim; i += LANES) add_part(sums + i, weights, width, behind(values, i), n, dim, 1, count);
}

#define ADD(count) \
    case count: add_some(sums, weights, width, values, n, dim, count); break;

INLINE void add_values(float *sums, long m, const float *weights, long width, Rows values, long n, const long dim) {
    for (; m > 0; m -= MOST_QUERIES, sums += MOST_QUERIES * dim, weights += MOST_QUERIES * width) {
        switch (m < MOST_QUERIES ? m : MOST_QUERIES) { FOR_EACH_COUNT(ADD) }
    }
}

// The two passes for heads of a length that the compiler knows, and of any.
typedef struct {
    void (*score)(const Input *queries, long m, Rows keys, long n, float *scores, long width, long dim);
    void (*add_values)(float *sums, long m, const float *weights, long width, Rows values, long n, long dim);
} Passes;

#define PASSES(name, length)                                                                                                \
    static void score_##name(const Input *queries, long m, Rows keys, long n, float *scores, long width, long dim) {       \
        score(queries, m, keys, n, scores, width, length);                                                                  \
    }                                                                                                                       \
    static void add_##name(float *sums, long m, const float *weights, long width, Rows values, long n, long dim) {         \
        add_values(sums, m, weights, width, values, n, length);                                                             \
    }                                                                                                                       \
    static const Passes name = {score_##name, add_##name};

PASSES(of_64, 64)
PASSES(of_128, 128)
PASSES(of_any, dim)

// Rows whose length is no multiple of a vector's are copied to where zeros follow them.
INLINE Rows padded_rows(Rows rows, long n, bf16 *scratch, long dim, long padded) {
    if (dim == padded) return rows;
    for (long t = 0; t < n; t++) memcpy(scratch + t * padded, rows.at + t * rows.stride, sizeof(bf16) * (size_t)dim);
    return (Rows){scratch, scratch, padded};
}

// Scores [from, to), to be multiplied with `scale`, to weights; all others before `end` to zero; returns one over their sum.
// A vector behind `to` is written too.
static float softmax(float *scores, long from, long to, long end, float scale, float softcap) {
    for (int i = 0; i < LANES; i++) scores[to + i] = -FLT_MAX;
    Floats most = all(-FLT_MAX), sum = {0};
    for (long t = from; t < to; t += LANES) {
        Floats s = *(Floats *)(scores + t);
        // What is behind the end stays the least there is.
        if (softcap > 0) *(Floats *)(scores + t) = s = choose(s == -FLT_MAX, s, softcap * tanh_all(s * (scale / softcap)));
        most = choose(s > most, s, most);
    }
    if (softcap > 0) scale = 1;
    float top = most[0];
    for (int i = 1; i < LANES; i++) top = most[i] > top ? most[i] : top;
    for (long t = from; t < to; t += LANES) sum += *(Floats *)(scores + t) = exp_negative((*(Floats *)(scores + t) - top) * scale);
    memset(scores, 0, sizeof(float) * (size_t)from);
    if (to < end) memset(scores + to, 0, sizeof(float) * (size_t)(end - to));
    return 1 / total(sum);
}

// Grows and stays with its thread: a step must not ask the system for memory.
static float *scratch(size_t floats) {
    static _Thread_local float *held;
    static _Thread_local size_t size;
    if (floats > size) {
        free(held);
        size = floats + floats / 2;
        held = aligned_alloc(64, (sizeof(float) * size + 63) / 64 * 64);
        memset(held, 0, sizeof(float) * size);
    }
    return held;
}

// The pages that some kv heads of a span read, in this order: all blocks' keys, then all blocks' values, and in a block head
// after head. What lies together is read together.
typedef struct {
    const Cache *cache;
    const int32_t *table;
    long blocks, first_head, num_heads;
} Pages;

INLINE const bf16 *page_at(const Pages *p, long index) {
    const long head = p->first_head + index % p->num_heads, block = index / p->num_heads, is_value = block >= p->blocks;
    return page_of(p->cache, p->table[block - is_value * p->blocks] * p->cache->block_size, head) + is_value * p->cache->value_offset;
}

INLINE Rows page_rows(const Pages *p, long index) {
    const long last = 2 * p->blocks * p->num_heads - 1;
    return (Rows){page_at(p, index), page_at(p, index + PAGES_AHEAD < last ? index + PAGES_AHEAD : last), p->cache->dim};
}

// Some kv heads of a span: all heads of their groups and all rows share one pass over the keys and one over the values.
static void attend_heads(const Cache *c, const Spans *spans, long span, long first_head, long num_heads, const float *queries,
                         long query_stride, Input *out) {
    const long dim = c->dim;
    const Passes *passes = dim == 64 ? &of_64 : dim == 128 ? &of_128 : &of_any;
    const long first = spans->firsts[span], rows = spans->counts[span], length = spans->positions[first], tree = spans->trees[span];
    const long group = c->heads / c->kv_heads, m = rows * group, padded = round_up(dim, FACTORS), block_size = c->block_size;
    // The first row reaches back farthest: blocks that it does not see are not read.
    const long begin = c->window > length ? 0 : (length - c->window + 1) / block_size * block_size;
    const long paged = (tree < 0 ? length + rows : length) - begin, own = tree < 0 ? 0 : rows, blocks = (paged + block_size - 1) / block_size;
    const Pages pages = {c, spans->tables + spans->begins[span] + begin / block_size, blocks, first_head, num_heads};
    const long width = round_up(paged + own, 4) + 2 * LANES, places = block_size > own ? block_size : own;
    const long own_stride = 2 * c->kv_heads * dim, all_m = num_heads * m;

    // Of each head m lines.
    float *sums = scratch((size_t)(2 * all_m * padded + all_m * width + places * padded)), *scores = sums + all_m * padded;
    Input *q = (Input *)(scores + all_m * width);
    bf16 *copies = (bf16 *)(q + all_m * padded), *path = copies + places * padded;
    memset(sums, 0, sizeof(float) * (size_t)(all_m * padded));
    memset(q, 0, sizeof(Input) * (size_t)(all_m * padded));
    if (padded > dim) memset(copies, 0, sizeof(bf16) * (size_t)(2 * places * padded));
    for (long i = 0; i < all_m; i++) {
        const float *in = queries + (first + i % m / group) * query_stride + ((first_head + i / m) * group + i % group) * dim;
        for (long d = 0; d < dim; d++) q[i * padded + d] = as_input(in[d]);
    }
    for (long block = 0; block < blocks; block++) {
        const long place = block * block_size, n = paged - place < block_size ? paged - place : block_size;
        for (long head = 0; head < num_heads; head++) {
            const Rows keys = padded_rows(page_rows(&pages, block * num_heads + head), n, copies, dim, padded);
            passes->score(q + head * m * padded, m, keys, n, scores + head * m * width + place, width, padded);
        }
    }
    float scale[all_m];
    for (long i = 0; i < all_m; i += group) {
        const long r = i % m / group;
        const bf16 *own_keys = step_row_of(c, first, first_head + i / m);
        float *own_scores = scores + i * width;
        long depth = own ? -1 : r;
        for (long j = 0; j < own; j++)
            if (spans->ancestors[tree + r * spans->most_rows + j])
                memcpy(path + ++depth * padded, own_keys + j * own_stride, sizeof(bf16) * (size_t)dim);
        if (own) passes->score(q + i * padded, group, (Rows){path, path, padded}, depth + 1, own_scores + paged, width, padded);
        const long position = length + depth - begin, from = position >= c->window ? position - c->window + 1 : 0;
        for (long j = 0; j < group; j++) scale[i + j] = softmax(own_scores + j * width, from, position + 1, paged, c->scale, c->softcap);
    }
    for (long block = 0; block < blocks; block++) {
        const long place = block * block_size, n = paged - place < block_size ? paged - place : block_size;
        for (long head = 0; head < num_heads; head++) {
            const Rows values = padded_rows(page_rows(&pages, (blocks + block) * num_heads + head), n, copies, dim, padded);
            passes->add_values(sums + head * m * padded, m, scores + head * m * width + place, width, values, n, padded);
        }
    }
    for (long i = 0; own && i < all_m; i += group) {
        const bf16 *own_values = step_row_of(c, first, first_head + i / m) + c->kv_heads * dim;
        long depth = -1;
        for (long j = 0; j < own; j++)
            if (spans->ancestors[tree + i % m / group * spans->most_rows + j])
                memcpy(path + ++depth * padded, own_values + j * own_stride, sizeof(bf16) * (size_t)dim);
        passes->add_values(sums + i * padded, group, scores + i * width + paged, width, (Rows){path, path, padded}, depth + 1, padded);
    }
    for (long i = 0; i < all_m; i++) {
        Input *to = out + ((first + i % m / group) * c->heads + (first_head + i / m) * group + i % group) * dim;
        for (long d = 0; d < dim; d++) to[d] = as_input(sums[i * padded + d] * scale[i]);
    }
}

void attend_spans(const Cache *c, const Spans *spans, const float *queries, long query_stride, Input *out, Worker *worker) {
    const long wanted = (PIECES * omp_get_num_threads() + spans->n - 1) / spans->n, parts = wanted < c->kv_heads ? wanted : c->kv_heads;
    SHARE(worker, piece, spans->n * parts) {
        const long span = piece / parts, last = cut(c->kv_heads, piece % parts + 1, parts);
        const long end = spans->positions[spans->firsts[span]] + spans->counts[span];
        const long bytes = spans->counts[span] * (c->heads / c->kv_heads) * end * (long)sizeof(float), most = SCORES_BYTES / bytes + 1;
        for (long head = cut(c->kv_heads, piece % parts, parts); head < last; head += most)
            attend_heads(c, spans, span, head, last - head < most ? last - head : most, queries, query_stride, out);
    }
}
