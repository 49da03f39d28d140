// What follows the choice of tokens in a step: which drafts are right, tokens appended, the next drafts kept. The same as
// shard/speculation/verify.py and shard/states.py in torch operations, of which each takes longer than all of this. Integers are
// int64 and arrays contiguous where nothing else is said.

#include <string.h>

#include "slots.h"

// stops [num_stops]: behind the last one there is room, filled with -1.
static int is_stop(const int64_t *stops, long num_stops, int64_t token) {
    for (long i = 0; i < num_stops && stops[i] >= 0; i++)
        if (stops[i] == token) return 1;
    return 0;
}

// The longest right path of a tree of up to `rows` rows: target and path [rows], drafts and parents [rows - 1]; its length.
static long right_path(const int64_t *target, const int64_t *drafts, const int64_t *parents, int64_t num_drafts, int64_t *path, long rows) {
    int64_t depth[rows];
    long num_right = 0;
    for (long i = 0; i < rows; i++) path[i] = rows - 1;
    path[0] = depth[0] = 0;
    for (long row = 1; row <= num_drafts && row < rows; row++) {
        const int64_t parent = parents[row - 1];
        // Below zero: not right.
        depth[row] = depth[parent] >= 0 && drafts[row - 1] == target[parent] ? depth[parent] + 1 : -1;
        // Of equal siblings the first is taken.
        if (depth[row] > num_right) path[++num_right] = row;
    }
    return num_right;
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

// Of n sequences in slots [n]: the tokens that the model puts after rows, by cells [n, rows]; trees of up to `rows` rows, drafts
// and parents [n, rows - 1], num_drafts [n]; stops [slots, num_stops].
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
    int64_t target[rows], token_ids[rows], path[rows];
    for (long s = 0; s < put->n; s++) {
        const int64_t slot = put->slots[s], num_drafts = put->num_drafts[s];
        for (long row = 0; row < rows; row++) target[row] = put->tokens[put->cells[s * rows + row]];
        const long num_right = right_path(target, put->drafts + s * (rows - 1), put->parents + s * (rows - 1), num_drafts, path, rows);
        for (long i = 0; i < rows; i++) token_ids[i] = target[path[i]];
        const int64_t left = kept->max_num_tokens[slot] - kept->num_tokens[slot], room = left > 0 ? left : 0;
        int64_t emitted = 0;
        int stopped = 0;
        while (emitted <= num_right && emitted < room && !stopped)
            stopped = is_stop(put->stops + slot * put->num_stops, put->num_stops, token_ids[emitted++]);
        const uint8_t finished = num_drafts >= 0 && (stopped || emitted == room);
        // Below zero: its sequence has ended.
        if (num_drafts < 0) emitted = 0;
        memcpy(out->token_ids + s * out->depth, token_ids, sizeof(int64_t) * (size_t)out->depth);
        memcpy(out->path + s * out->depth, path, sizeof(int64_t) * (size_t)out->depth);
        append(kept, &slot, token_ids, &emitted, &finished, 1, rows);
        out->num_emitted[s] = emitted;
        out->num_accepted[s] = num_right < emitted ? num_right : emitted;
        out->finished[s] = finished;
    }
}
