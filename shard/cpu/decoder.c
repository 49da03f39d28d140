// The layers of a decoder for one step, in one call and one parallel region: between two matrix products a thread waits
// for the other threads and for nothing else. Compiled for the machine at hand by build.py; called through decoder.py, which
// says where the weights are.
//
// Activations are float32, and bfloat16 as inputs of products where the processor multiplies that; weights, keys and values
// are bfloat16. Every row is computed as if it were alone: a token does not depend on the rows beside it, on drafts or on
// how its prompt was cut.

#include <stdlib.h>

#include "attention.h"
#include "linear.h"
#include "norm.h"

// One layer; norms and biases that a family does not have are null. Biases, and scales of weights in int8 (else null), are
// as long as the padded outputs.
typedef struct {
    const float *input_norm, *q_norm, *k_norm, *attention_out_norm, *mlp_norm, *mlp_out_norm;
    const void *qkv, *o, *gate_up, *down;
    const float *qkv_scales, *o_scales, *gate_up_scales, *down_scales;
    const float *qkv_bias, *o_bias, *gate_up_bias, *down_bias;
    bf16 *pages, *step_rows;
    // Which of the step's rotations, and how far a row sees.
    long rotation, window;
} Layer;

// Radians per position of each pair of a head's values, [dim / 2], and what their cosine and sine are multiplied with.
typedef struct {
    const float *frequencies;
    double scale;
} Rotation;

typedef struct {
    const Layer *layers;
    const Rotation *rotations;
    const float *final_norm;
    long num_layers, num_rotations, hidden, heads, kv_heads, dim, width, block_size, value_offset, gate;
    float eps, scale, softcap;
} Decoder;

// The n rows of a step: the first num_step_rows keep their keys and values in the step buffer, the others write them to
// their physical slots. cos and sin: room for [rotation, n, dim]; the sine is signed.
typedef struct {
    long n, num_step_rows;
    const int64_t *physical_slots;
    float *cos, *sin;
    Spans spans;
} Step;

// x: the residual stream. y: what a half of a layer adds to it, of this rank. Both [n, hidden]; y's rows y_stride apart.
// normed [n, hidden]; wide: room for n rows of qkv and of attention, or of an MLP's width; products write whole panels. groups:
// of n rows of the widest input.
typedef struct {
    float *x, *y, *wide;
    Input *normed;
    bf16 *out;
    Group *groups;
    long y_stride;
} Buffers;

static void rotation(const Decoder *d, const Step *step, long row) {
    const long half = d->dim / 2;
    for (long r = 0; r < d->num_rotations; r++) {
        const float scale = (float)d->rotations[r].scale;
        float *cos = step->cos + (r * step->n + row) * d->dim, *sin = step->sin + (r * step->n + row) * d->dim;
        for (long i = 0; i < half; i++) {
            const float angle = (float)step->spans.positions[row] * d->rotations[r].frequencies[i];
            cos[i] = cos[half + i] = cosf(angle) * scale;
            sin[half + i] = sinf(angle) * scale;
            sin[i] = -sin[half + i];
        }
    }
}

static void add_half(const Decoder *d, const Buffers *b, long half, long row) {
    const Layer *layer = d->layers + half / 2;
    const float *bias = half % 2 ? layer->down_bias : layer->o_bias, *norm = half % 2 ? layer->mlp_out_norm : layer->attention_out_norm;
    float *x = b->x + row * d->hidden, *y = b->y + row * b->y_stride;
    if (bias)
        for (long i = 0; i < d->hidden; i++) y[i] += bias[i];
    if (norm) norm_row(y, norm, y, d->hidden, d->eps);
    for (long i = 0; i < d->hidden; i++) x[i] += y[i];
}

// Queries and keys are normalised and rotated, keys and values stored.
static void store(const Decoder *d, const Layer *layer, const Cache *cache, const Step *step, float *qkv, long row) {
    const float *cos = step->cos + (layer->rotation * step->n + row) * d->dim, *sin = step->sin + (layer->rotation * step->n + row) * d->dim;
    const int is_step = row < step->num_step_rows;
    for (long head = 0; head < d->heads + d->kv_heads; head++) {
        float *x = qkv + head * d->dim;
        const float *norm = head < d->heads ? layer->q_norm : layer->k_norm;
        if (norm) norm_row(x, norm, x, d->dim, d->eps);
        rotate_head(x, cos, sin, d->dim);
    }
    for (long head = 0; head < d->kv_heads; head++) {
        const float *key = qkv + (d->heads + head) * d->dim, *value = key + d->kv_heads * d->dim;
        bf16 *to = is_step ? step_row_of(cache, row, head) : page_of(cache, step->physical_slots[row], head);
        const long offset = is_step ? d->kv_heads * d->dim : d->value_offset;
        for (long i = 0; i < d->dim; i++) to[i] = narrow(key[i]), to[offset + i] = narrow(value[i]);
    }
}

static void attention_half(const Decoder *d, const Layer *layer, const Step *step, const Buffers *b, Worker *worker) {
    const long num_heads = d->heads + 2 * d->kv_heads, stride = round_up(num_heads * d->dim, PANEL), attended = d->heads * d->dim;
    const Cache cache = {layer->pages, layer->step_rows, d->value_offset, d->heads, d->kv_heads, d->dim, d->block_size,
                         layer->window, d->scale, d->softcap};
    float *qkv = b->wide;
    Input *out = (Input *)(qkv + step->n * stride);
    const Product project = {b->normed, layer->qkv, layer->qkv_scales, layer->qkv_bias, qkv, step->n, d->hidden, num_heads * d->dim, d->hidden, stride, NO_GATE, b->groups};
    product(&project, worker);
    SHARE(worker, row, step->n) store(d, layer, &cache, step, qkv + row * stride, row);
    attend_spans(&cache, &step->spans, qkv, stride, out, worker);
    const Product leave = {out, layer->o, layer->o_scales, 0, b->y, step->n, attended, d->hidden, attended, b->y_stride, NO_GATE, b->groups};
    product(&leave, worker);
}

static void mlp_half(const Decoder *d, const Layer *layer, const Step *step, const Buffers *b, Worker *worker) {
    const long width = round_up(d->width, LANES);
    const Product enter = {b->normed, layer->gate_up, layer->gate_up_scales, layer->gate_up_bias, b->wide, step->n, d->hidden, 2 * width,
                           d->hidden, width, (Gate)d->gate, b->groups};
    product(&enter, worker);
    const Product leave = {(const Input *)b->wide, layer->down, layer->down_scales, 0, b->y, step->n, d->width, d->hidden, width, b->y_stride,
                           NO_GATE, b->groups};
    product(&leave, worker);
}

// Kept from step to step; one step runs at a time.
static Phase *zero_phases(long count) {
    static Phase *held;
    static long size;
    if (count > size) {
        free(held);
        size = count;
        held = aligned_alloc(64, sizeof(Phase) * (size_t)size);
    }
    memset(held, 0, sizeof(Phase) * (size_t)count);
    return held;
}

// The halves of layers from `first` on, before `last`; half 2i is the attention of layer i, 2i + 1 its MLP. A half's result
// stays in y, so that ranks can sum it, and is added when the next one begins. With last beyond the last half the final
// norm is taken: out [n, hidden].
void run_halves(const Decoder *d, const Step *step, const Buffers *b, long first, long last) {
    Phase *phases = zero_phases((last - first) * 7);
    #pragma omp parallel
    {
        Worker worker = this_worker(phases);
        for (long half = first; half < last; half++) {
            const Layer *layer = d->layers + half / 2;
            const int is_end = half == 2 * d->num_layers;
            const float *norm = is_end ? d->final_norm : half % 2 ? layer->mlp_norm : layer->input_norm;
            SHARE(&worker, row, step->n) {
                if (half > 0) add_half(d, b, half - 1, row);
                else rotation(d, step, row);
                const float *x = b->x + row * d->hidden, scale = norm_scale(x, d->hidden, d->eps);
                if (is_end)
                    for (long i = 0; i < d->hidden; i++) b->out[row * d->hidden + i] = narrow(x[i] * scale * norm[i]);
                else
                    for (long i = 0; i < d->hidden; i++) b->normed[row * d->hidden + i] = as_input(x[i] * scale * norm[i]);
            }
            if (is_end) break;
            if (half % 2) mlp_half(d, layer, step, b, &worker);
            else attention_half(d, layer, step, b, &worker);
        }
    }
}
