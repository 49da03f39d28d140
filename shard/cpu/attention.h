#ifndef DRAFTHOUSE_ATTENTION_H
#define DRAFTHOUSE_ATTENTION_H

#include "team.h"
#include "vectors.h"

// Where the n spans of a step stand. Span s has counts[s] rows from row firsts[s] of the step on, the first of them at
// the first position that is not committed; positions are those of all rows of the step. Its block ids are
// tables[begins[s]] and on. Where trees[s] >= 0 its rows are a tree below the first one and their keys and values are
// step rows; ancestors[trees[s] + r * most_rows + j] is 1 if row j is row r or lies on its way from the first. Where it is
// -1 the rows follow one another and their keys and values are in the pages.
typedef struct {
    const int32_t *tables, *begins, *firsts, *counts, *trees;
    const int64_t *positions;
    const uint8_t *ancestors;
    long n, most_rows;
} Spans;

// pages: [K or V, block, kv_head, place, dim], V value_offset elements behind K. step_rows: [row, 2 * kv_heads, dim].
// A row sees its last `window` positions, itself included; with a softcap c > 0 a score s becomes c * tanh(s / c).
typedef struct {
    bf16 *pages, *step_rows;
    long value_offset, heads, kv_heads, dim, block_size, window;
    float scale, softcap;
} Cache;

// queries [N, heads, dim], rotated, rows query_stride apart -> out [N, heads, dim]. A phase of its own.
void attend_spans(const Cache *cache, const Spans *spans, const float *queries, long query_stride, Input *out, Worker *worker);

// Where a row's keys of one kv head go; its values are `value_offset` (pages) or kv_heads * dim (step rows) behind.
INLINE bf16 *page_of(const Cache *c, long physical_slot, long kv_head) {
    return c->pages + ((physical_slot / c->block_size * c->kv_heads + kv_head) * c->block_size + physical_slot % c->block_size) * c->dim;
}

INLINE bf16 *step_row_of(const Cache *c, long row, long kv_head) {
    return c->step_rows + (row * 2 * c->kv_heads + kv_head) * c->dim;
}

#endif
