// The rows of a step, from what is kept of its sequences: the same as lay_out of shard/layout.py in torch operations, of which
// each takes longer than all of this. Integers are int64, arrays contiguous.

#include <string.h>

#include "slots.h"

// n sequences in slots [n], of whose drafts `allowed` [n] may be checked. The first num_decoding have counts[s] rows, at most
// `width`: their last token, then drafts. Rows of prompts follow, [num_chunk_rows], by slot and position.
typedef struct {
    const int64_t *slots, *allowed, *counts, *chunk_slots, *chunk_positions;
    long n, num_decoding, width, num_chunk_rows;
} Planned;

// As in StepLayout: token_ids and positions of all rows; num_drafts [n], drafts and parents [n, width - 1], on_path
// [n, width, width].
typedef struct {
    int64_t *token_ids, *positions, *num_drafts, *drafts, *parents;
    uint8_t *on_path;
} LaidOut;

void lay_out(const Slots *kept, const Planned *planned, const LaidOut *out) {
    const long width = planned->width;
    long row = 0;
    for (long s = 0; s < planned->n; s++) {
        const int64_t slot = planned->slots[s], pending = kept->num_drafts[slot], allowed = planned->allowed[s];
        const int64_t *text = kept->texts + slot * kept->length, last = kept->num_tokens[slot] - 1;
        int64_t *drafts = out->drafts + s * (width - 1), *parents = out->parents + s * (width - 1);
        uint8_t *on_path = out->on_path + s * width * width;
        memcpy(drafts, kept->draft_ids + slot * kept->tree_size, sizeof(int64_t) * (size_t)(width - 1));
        memcpy(parents, kept->draft_parents + slot * kept->tree_size, sizeof(int64_t) * (size_t)(width - 1));
        out->num_drafts[s] = kept->finished[slot] ? -1 : pending < allowed ? pending : allowed;
        memset(on_path, 0, (size_t)(width * width));
        for (long r = 0; r < width; r++) {
            if (r) memcpy(on_path + r * width, on_path + parents[r - 1] * width, (size_t)width);
            on_path[r * width + r] = 1;
            if (s >= planned->num_decoding || r >= planned->counts[s]) continue;
            long depth = -1;
            for (long above = 0; above <= r; above++) depth += on_path[r * width + above];
            out->token_ids[row] = r ? drafts[r - 1] : text[last];
            out->positions[row++] = last + depth;
        }
    }
    for (long i = 0; i < planned->num_chunk_rows; i++, row++) {
        out->positions[row] = planned->chunk_positions[i];
        out->token_ids[row] = kept->texts[planned->chunk_slots[i] * kept->length + planned->chunk_positions[i]];
    }
}
