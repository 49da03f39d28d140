// What follows the choice of tokens in a step: which drafts are right, tokens appended, the next drafts kept. The same as
// shard/speculation/verify.py and shard/states.py in torch operations, of which each takes longer than all of this. Integers are
// int64 and arrays contiguous where nothing else is said.

#include <string.h>

#include "slots.h"

// Trees of n sequences with up to `rows` rows: target [n, rows], drafts and parents [n, rows - 1], the others [n]; stops
// [n, num_stops].
typedef struct {
    const int64_t *target, *drafts, *parents, *num_drafts, *num_tokens, *max_num_tokens, *stops;
    long n, rows, num_stops;
} Checked;

// As in Verdict: token_ids and path [n, rows], the others [n].
typedef struct {
    int64_t *token_ids, *path, *num_emitted, *num_accepted;
    uint8_t *finished;
} Verdicts;

static int is_stop(const Checked *in, long s, int64_t token) {
    const int64_t *stops = in->stops + s * in->num_stops;
    // Behind the last one there is room, filled with -1.
    for (long i = 0; i < in->num_stops && stops[i] >= 0; i++)
        if (stops[i] == token) return 1;
    return 0;
}

// depth: room for `rows` numbers.
static void verify(const Checked *in, const Verdicts *out, int64_t *depth) {
    for (long s = 0; s < in->n; s++) {
        const int64_t *target = in->target + s * in->rows, *drafts = in->drafts + s * (in->rows - 1), *parents = in->parents + s * (in->rows - 1);
        int64_t *path = out->path + s * in->rows, *token_ids = out->token_ids + s * in->rows;
        for (long i = 0; i < in->rows; i++) path[i] = in->rows - 1;
        long num_right = 0;
        path[0] = depth[0] = 0;
        for (long row = 1; row <= in->num_drafts[s] && row < in->rows; row++) {
            const int64_t parent = parents[row - 1];
            // Below zero: not right.
            depth[row] = depth[parent] >= 0 && drafts[row - 1] == target[parent] ? depth[parent] + 1 : -1;
            // Of equal siblings the first is taken.
            if (depth[row] > num_right) path[++num_right] = row;
        }
        for (long i = 0; i < in->rows; i++) token_ids[i] = target[path[i]];
        const int64_t left = in->max_num_tokens[s] - in->num_tokens[s], room = left > 0 ? left : 0;
        long emitted = 0, stopped = 0;
        while (emitted <= num_right && emitted < room && !stopped) stopped = is_stop(in, s, token_ids[emitted++]);
        const int is_present = in->num_drafts[s] >= 0;
        out->num_emitted[s] = is_present ? emitted : 0;
        out->num_accepted[s] = num_right < out->num_emitted[s] ? num_right : out->num_emitted[s];
        out->finished[s] = is_present && (stopped || emitted == room);
    }
}

// Appends the first num_emitted[i] of tokens [n, width], rows `stride` apart, to each of the slots [n].
void append(const Slots *kept, const int64_t *slots, const int64_t *tokens, const int64_t *num_emitted, const uint8_t *finished, long n,
            long stride) {
    for (long i = 0; i < n; i++) {
        const int64_t slot = slots[i];
        int64_t *end = kept->texts + slot * kept->length + kept->num_tokens[slot];
        memcpy(end, tokens + i * stride, sizeof(int64_t) * (size_t)num_emitted[i]);
        kept->num_tokens[slot] += num_emitted[i];
        kept->num_drafts[slot] = 0;
        kept->finished[slot] |= finished[i];
    }
}

// Makes trees pending of n slots: ids and parents [n, tree_size], counts [n].
void set_drafts(const Slots *kept, const int64_t *slots, const int64_t *ids, const int64_t *parents, const int64_t *counts, long n) {
    const long size = kept->tree_size;
    for (long i = 0; i < n; i++) {
        memcpy(kept->draft_ids + slots[i] * size, ids + i * size, sizeof(int64_t) * (size_t)size);
        memcpy(kept->draft_parents + slots[i] * size, parents + i * size, sizeof(int64_t) * (size_t)size);
        kept->num_drafts[slots[i]] = counts[i];
    }
}

// Of sequences in slots [n], of whom so many drafts are wanted, so deep: the tokens they have, and how many drafts, how deep,
// may be made.
void bound_drafts(const Slots *kept, const int64_t *slots, const int64_t *wanted, const int64_t *deepest, int64_t *lengths, int64_t *drafts,
                  int64_t *depths, long n) {
    for (long i = 0; i < n; i++) {
        const int64_t slot = slots[i], left = kept->max_num_tokens[slot] - kept->num_tokens[slot] - 1;
        lengths[i] = kept->num_tokens[slot];
        depths[i] = kept->finished[slot] || left < 0 ? 0 : left < deepest[i] ? left : deepest[i];
        drafts[i] = depths[i] > 0 ? wanted[i] : 0;
    }
}

// Of n sequences in slots [n]: the tokens that the model puts after rows, by cells [n, rows], with drafts, parents and num_drafts
// as in Checked; stops [slots, num_stops].
typedef struct {
    const int64_t *slots, *tokens, *cells, *drafts, *parents, *num_drafts, *stops;
    long n, rows, num_stops;
} Put;

// As in Decision: token_ids and path [n, depth], the others [n].
typedef struct {
    int64_t *token_ids, *path, *num_emitted, *num_accepted, *finished;
    long depth;
} Decided;

// Verifies, and appends what comes of it.
void decide(const Slots *kept, const Put *put, const Decided *out) {
    const long rows = put->rows;
    int64_t target[rows], token_ids[rows], path[rows], depth[rows];
    for (long s = 0; s < put->n; s++) {
        const int64_t slot = put->slots[s];
        for (long row = 0; row < rows; row++) target[row] = put->tokens[put->cells[s * rows + row]];
        uint8_t finished;
        const Checked checked = {
            target, put->drafts + s * (rows - 1), put->parents + s * (rows - 1), put->num_drafts + s, kept->num_tokens + slot,
            kept->max_num_tokens + slot, put->stops + slot * put->num_stops, 1, rows, put->num_stops,
        };
        verify(&checked, &(Verdicts){token_ids, path, out->num_emitted + s, out->num_accepted + s, &finished}, depth);
        memcpy(out->token_ids + s * out->depth, token_ids, sizeof(int64_t) * (size_t)out->depth);
        memcpy(out->path + s * out->depth, path, sizeof(int64_t) * (size_t)out->depth);
        append(kept, &slot, token_ids, out->num_emitted + s, &finished, 1, rows);
        out->finished[s] = finished;
    }
}
