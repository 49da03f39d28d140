// What a decode step does on CPU between its matrix products, in bfloat16 with float32 arithmetic.
// Compiled for the machine at hand by build.py; called through kernels.py, which checks shapes and layouts.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t bf16;
#define INLINE static inline __attribute__((always_inline))

INLINE float widen(bf16 value) {
    union { uint32_t bits; float number; } v = {.bits = (uint32_t)value << 16};
    return v.number;
}

// To the nearest, ties to even; finite numbers only.
INLINE bf16 narrow(float value) {
    union { float number; uint32_t bits; } v = {.number = value};
    return (bf16)((v.bits + 0x7fff + ((v.bits >> 16) & 1)) >> 16);
}

// out = x / sqrt(mean(x^2) + eps) * weight; x and out are [n, size].
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *out, long n, long size, float eps) {
    #pragma omp parallel for if (n * size > 65536)
    for (long row = 0; row < n; row++) {
        const bf16 *in = x + row * size;
        float sum = 0;
        for (long i = 0; i < size; i++) sum += widen(in[i]) * widen(in[i]);
        const float scale = 1.0f / sqrtf(sum / (float)size + eps);
        for (long i = 0; i < size; i++) out[row * size + i] = narrow(widen(in[i]) * scale * widen(weight[i]));
    }
}

// out = silu(gate) * up; gate_up is [n, 2 * width], gate first, out [n, width].
void silu_mul(const bf16 *gate_up, bf16 *out, long n, long width) {
    #pragma omp parallel for if (n * width > 32768)
    for (long row = 0; row < n; row++) {
        const bf16 *gate = gate_up + row * 2 * width, *up = gate + width;
        for (long i = 0; i < width; i++) {
            const float g = widen(gate[i]);
            out[row * width + i] = narrow(g / (1.0f + expf(-g)) * widen(up[i]));
        }
    }
}

// Rotates the first `heads` heads of each row in place: x * cos + (halves of x swapped) * sin, sin signed.
// x is [n, …] with `stride` elements from row to row, cos and sin are [n, dim].
void rotate(bf16 *x, const bf16 *cos, const bf16 *sin, long n, long stride, long heads, long dim) {
    const long half = dim / 2;
    #pragma omp parallel for if (n * heads * dim > 65536)
    for (long row = 0; row < n; row++)
        for (long head = 0; head < heads; head++) {
            bf16 *low = x + row * stride + head * dim, *high = low + half;
            const bf16 *c = cos + row * dim, *s = sin + row * dim;
            for (long i = 0; i < half; i++) {
                const float a = widen(low[i]), b = widen(high[i]);
                low[i] = narrow(a * widen(c[i]) + b * widen(s[i]));
                high[i] = narrow(b * widen(c[half + i]) + a * widen(s[half + i]));
            }
        }
}

// Scores of one key for all m queries; the one place where a key is widened, so that heads share its reading.
INLINE void score_key(const float *queries, long m, const bf16 *key, float *scores, long width, const int dim) {
    float k[dim];
    for (int i = 0; i < dim; i++) k[i] = widen(key[i]);
    for (long q = 0; q < m; q++) {
        float dot = 0;
        for (int i = 0; i < dim; i++) dot += queries[q * dim + i] * k[i];
        scores[q * width] = dot;
    }
}

typedef struct {
    const bf16 *qkv, *pages;
    bf16 *out, *step_rows;
    long qkv_stride, value_offset, heads, kv_heads, block_size;
    long ancestors_stride, window;
    float scale, softcap;
} Step;

// One sequence: `rows` rows from `first` on, a tree below row `first`, which follows `length` committed positions.
typedef struct {
    const int32_t *table;
    const uint8_t *ancestors;
    long first, rows, length;
} Sequence;

// Scores to weights that sum to one. The scores are those of `paged` committed keys, of which a row sees those from
// `from` on, then of the step's own rows, of which it sees those that are `visible`; it sees at least one of them.
static void softmax(float *scores, long from, long paged, const uint8_t *visible, long rows, float softcap) {
    float *own = scores + paged, most = -FLT_MAX, sum = 0;
    if (softcap > 0)
        for (long t = from; t < paged + rows; t++) {
            // Behind 15 the tangent is 1 in float32, and the exponential stays far from what overflows.
            const float x = fminf(fmaxf(scores[t] / softcap, -15), 15);
            scores[t] = softcap - 2 * softcap / (expf(2 * x) + 1);
        }
    for (long t = from; t < paged; t++) most = scores[t] > most ? scores[t] : most;
    for (long r = 0; r < rows; r++) most = visible[r] && own[r] > most ? own[r] : most;
    for (long t = 0; t < from; t++) scores[t] = 0;
    for (long t = from; t < paged; t++) sum += scores[t] = expf(scores[t] - most);
    for (long r = 0; r < rows; r++) {
        const float weight = expf(visible[r] ? own[r] - most : 0);
        sum += own[r] = visible[r] ? weight : 0;
    }
    for (long t = from; t < paged + rows; t++) scores[t] /= sum;
}

// sums += weights * values for `count` queries (a constant, so that their sums stay in registers) and n values.
INLINE void add_values(float *sums, const float *weights, long width, const bf16 *values, long n, long stride, const int count,
                       const int dim) {
    float local[count][dim];
    for (int q = 0; q < count; q++) for (int i = 0; i < dim; i++) local[q][i] = sums[q * dim + i];
    for (long t = 0; t < n; t++)
        for (int i = 0; i < dim; i++) {
            const float value = widen(values[t * stride + i]);
            for (int q = 0; q < count; q++) local[q][i] += weights[q * width + t] * value;
        }
    for (int q = 0; q < count; q++) for (int i = 0; i < dim; i++) sums[q * dim + i] = local[q][i];
}

// One sequence and kv head: a row sees its ancestors, itself and what is committed, as far back as the window reaches.
// All heads of the kv group and all rows share one pass over the values, and over the keys as far as the cache allows.
INLINE void attend_one(const Step *step, const Sequence *sequence, long kv_head, const int dim) {
    const long first = sequence->first, rows = sequence->rows, length = sequence->length, window = step->window;
    const long block_size = step->block_size, group = step->heads / step->kv_heads, m = rows * group;
    const long page = block_size * dim, page_stride = step->kv_heads * page;
    // The first row reaches back farthest: blocks that it does not see are not read.
    const long begin = window > length ? 0 : (length - window + 1) / block_size * block_size;
    const long paged = length - begin, width = paged + rows;
    const bf16 *keys = step->pages + kv_head * page, *values = keys + step->value_offset;
    const bf16 *own = step->qkv + first * step->qkv_stride + (step->heads + kv_head) * dim;
    const int32_t *table = sequence->table + begin / block_size;
    float *queries = malloc(sizeof(float) * (size_t)(m * (2 * dim + width)));
    float *sums = queries + m * dim, *scores = sums + m * dim;
    for (long q = 0; q < m; q++) {
        const bf16 *in = step->qkv + (first + q / group) * step->qkv_stride + (kv_head * group + q % group) * dim;
        for (int i = 0; i < dim; i++) queries[q * dim + i] = widen(in[i]) * step->scale;
        for (int i = 0; i < dim; i++) sums[q * dim + i] = 0;
    }
    // As many queries at a time as stay in the first-level cache beside the keys: 16 KiB of them.
    for (long q = 0, some = 4096 / dim > 0 ? 4096 / dim : 1; q < m; q += some) {
        const long count = m - q < some ? m - q : some;
        const float *in = queries + q * dim;
        float *to = scores + q * width;
        for (long start = 0, block = 0; start < paged; start += block_size, block++) {
            const long n = paged - start < block_size ? paged - start : block_size;
            for (long t = 0; t < n; t++)
                score_key(in, count, keys + table[block] * page_stride + t * dim, to + start + t, width, dim);
        }
        for (long r = 0; r < rows; r++) score_key(in, count, own + r * step->qkv_stride, to + paged + r, width, dim);
    }
    for (long r = 0; r < rows; r++) {
        const bf16 *key = own + r * step->qkv_stride, *value = key + step->kv_heads * dim;
        bf16 *kept = step->step_rows + ((first + r) * 2 * step->kv_heads + kv_head) * dim;
        for (int i = 0; i < dim; i++) kept[i] = key[i], kept[step->kv_heads * dim + i] = value[i];
    }
    long depths[rows];
    uint8_t visible[rows];
    for (long r = 0; r < rows; r++) {
        const uint8_t *line = sequence->ancestors + r * step->ancestors_stride;
        long depth = -1, from = 0;
        for (long j = 0; j < rows; j++) depth += line[j];
        depths[r] = depth;
        // Ancestors come before their row: their depths are known.
        for (long j = 0; j < rows; j++) visible[j] = line[j] && depths[j] > depth - window;
        if (length + depth >= window) from = length + depth - window + 1 - begin;
        if (from > paged) from = paged;
        for (long q = r * group; q < (r + 1) * group; q++)
            softmax(scores + q * width, from, paged, visible, rows, step->softcap);
    }
    for (long q = 0; q < m;) {
        const long left = m - q;
        const float *weights = scores + q * width;
        // Pages, then the step's own rows, with as many queries at a time as there are registers for.
        #define ADD(count) { \
            for (long start = 0, block = 0; start < paged; start += block_size, block++) { \
                const long n = paged - start < block_size ? paged - start : block_size; \
                add_values(sums + q * dim, weights + start, width, values + table[block] * page_stride, n, dim, count, dim); \
            } \
            add_values(sums + q * dim, weights + paged, width, own + step->kv_heads * dim, rows, step->qkv_stride, count, dim); \
            q += count; \
        }
        if (left >= 4) ADD(4) else if (left == 3) ADD(3) else if (left == 2) ADD(2) else ADD(1)
        #undef ADD
    }
    for (long q = 0; q < m; q++) {
        bf16 *to = step->out + ((first + q / group) * step->heads + kv_head * group + q % group) * dim;
        for (int i = 0; i < dim; i++) to[i] = narrow(sums[q * dim + i]);
    }
    free(queries);
}

// Attention of n sequences over their pages and their own rows of this step.
// qkv: [N, heads + 2 * kv_heads, dim], rotated; pages: [K or V, block, kv_head, place, dim]; out: [N, heads, dim];
// step_rows: [N, 2 * kv_heads, dim], where the rows' own keys and values are kept until they are committed;
// ancestors: by sequence (tree_stride bytes from one to the next, 0 if all share one), then row r, then row j, with
// ancestors_stride bytes from row to row: 1 if row j is row r or lies on its way from the first row.
// A row sees its last `window` positions, itself included; with a softcap c > 0 a score s becomes c * tanh(s / c).
void attend(const bf16 *qkv, const bf16 *pages, bf16 *out, bf16 *step_rows, const int32_t *tables, const int32_t *firsts, const int32_t *counts,
            const int32_t *lengths, const uint8_t *ancestors, long n, long table_stride, long tree_stride, long ancestors_stride,
            long value_offset, long heads, long kv_heads, long dim, long block_size, long window, float scale, float softcap) {
    const Step step = {qkv, pages, out, step_rows, (heads + 2 * kv_heads) * dim, value_offset, heads, kv_heads, block_size,
                       ancestors_stride, window, scale, softcap};
    #pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < n * kv_heads; task++) {
        const long s = task / kv_heads, kv_head = task % kv_heads;
        const Sequence sequence = {tables + s * table_stride, ancestors + s * tree_stride, firsts[s], counts[s], lengths[s]};
        switch (dim) {
        case 64: attend_one(&step, &sequence, kv_head, 64); break;
        case 128: attend_one(&step, &sequence, kv_head, 128); break;
        case 256: attend_one(&step, &sequence, kv_head, 256); break;
        default: attend_one(&step, &sequence, kv_head, (int)dim);
        }
    }
}
