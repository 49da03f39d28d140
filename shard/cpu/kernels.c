// What a decode step does on CPU between matrix products that others take, in bfloat16 with float32 arithmetic.
// Compiled for the machine at hand by build.py; called through kernels.py, which checks shapes and layouts.

#include "attention.h"
#include "norm.h"

// out = x / sqrt(mean(x^2) + eps) * weight; x and out are [n, size].
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *out, long n, long size, float eps) {
    #pragma omp parallel for if (n * size > 65536)
    for (long row = 0; row < n; row++) {
        const bf16 *in = x + row * size;
        Floats sums = {0};
        long i = 0;
        for (; i + LANES <= size; i += LANES) sums += widen_all(in + i) * widen_all(in + i);
        float sum = total(sums);
        for (; i < size; i++) sum += widen(in[i]) * widen(in[i]);
        const float scale = 1.0f / sqrtf(sum / (float)size + eps);
        for (i = 0; i < size; i++) out[row * size + i] = narrow(widen(in[i]) * scale * widen(weight[i]));
    }
}

// out = silu(gate) * up; gate_up is [n, 2 * width], gate first, out [n, width].
void silu_mul(const bf16 *gate_up, bf16 *out, long n, long width) {
    #pragma omp parallel for if (n * width > 32768)
    for (long row = 0; row < n; row++) {
        const bf16 *gate = gate_up + row * 2 * width, *up = gate + width;
        long i = 0;
        for (; i + LANES <= width; i += LANES) {
            const Floats g = widen_all(gate + i), value = g * sigmoid(g) * widen_all(up + i);
            for (int j = 0; j < LANES; j++) out[row * width + i + j] = narrow(value[j]);
        }
        for (; i < width; i++) {
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

// The physical slot of each row of the spans, block id * block_size + place in the block.
void find_slots(const Spans *spans, long block_size, int64_t *physical_slots) {
    for (long s = 0; s < spans->n; s++)
        for (long row = spans->firsts[s]; row < spans->firsts[s] + spans->counts[s]; row++) {
            const long position = spans->positions[row];
            physical_slots[row] = spans->tables[spans->begins[s] + position / block_size] * block_size + position % block_size;
        }
}

// Copies the rows on the paths of the first n spans, path [n, …] with rows `stride` apart, of which num_kept[s] count, from
// the step buffer, steps [layer, max_rows, 2 * kv_heads, dim], to their slots in the pages of each layer, which are
// layer_stride elements apart and of which the values are value_offset behind the keys.
void commit(const bf16 *steps, bf16 *pages, const Spans *spans, const int64_t *path, const int64_t *num_kept, const int64_t *slots, long n,
            long stride, long layers, long max_rows, long layer_stride, long value_offset, long kv_heads, long dim, long block_size) {
    #pragma omp parallel for if (n * layers > 256)
    for (long layer = 0; layer < layers; layer++) {
        const Cache cache = {.pages = pages + layer * layer_stride, .kv_heads = kv_heads, .dim = dim, .block_size = block_size};
        for (long s = 0; s < n; s++)
            for (long i = 0; i < num_kept[s]; i++) {
                const long row = spans->firsts[s] + path[s * stride + i];
                for (long head = 0; head < kv_heads; head++) {
                    const bf16 *from = steps + ((layer * max_rows + row) * 2 * kv_heads + head) * dim;
                    bf16 *to = page_of(&cache, slots[row], head);
                    memcpy(to, from, sizeof(bf16) * (size_t)dim);
                    memcpy(to + value_offset, from + kv_heads * dim, sizeof(bf16) * (size_t)dim);
                }
            }
    }
}

// Attention of n rows, qkv [n, heads + 2 * kv_heads, dim], rotated -> out [n, heads, dim]. The first num_step_rows keep
// their keys and values in the step buffer, the others write them to their physical slots. wide: room for [n, 2 * heads,
// dim] floats.
void attend(const Cache *cache, const Spans *spans, const bf16 *qkv, bf16 *out, float *wide, const int64_t *physical_slots, long n,
            long num_step_rows) {
    const long query = cache->heads * cache->dim, kv = cache->kv_heads * cache->dim;
    Input *attended = (Input *)(wide + n * query);
    Phase phases[3] = {{0}};
    #pragma omp parallel
    {
        Worker worker = this_worker(phases);
        SHARE(&worker, row, n) {
            const bf16 *in = qkv + row * (query + 2 * kv), *own = in + query;
            for (long i = 0; i < query; i++) wide[row * query + i] = widen(in[i]);
            for (long head = 0; head < cache->kv_heads; head++) {
                bf16 *to = row < num_step_rows ? step_row_of(cache, row, head) : page_of(cache, physical_slots[row], head);
                const long offset = row < num_step_rows ? kv : cache->value_offset;
                const size_t size = sizeof(bf16) * (size_t)cache->dim;
                memcpy(to, own + head * cache->dim, size);
                memcpy(to + offset, own + kv + head * cache->dim, size);
            }
        }
        attend_spans(cache, spans, wide, query, attended, &worker);
        SHARE(&worker, row, n) {
            for (long i = row * query; i < (row + 1) * query; i++) out[i] = rounded(attended[i]);
        }
    }
}
