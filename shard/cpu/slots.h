#ifndef DRAFTHOUSE_SLOTS_H
#define DRAFTHOUSE_SLOTS_H

#include <stdint.h>

// What is kept of each sequence between steps, a row per slot, as in shard/states.py: texts [slots, length]; draft_ids and
// draft_parents [slots, tree_size], of which num_drafts count; the others [slots].
typedef struct {
    int64_t *texts, *num_tokens, *max_num_tokens, *draft_ids, *draft_parents, *num_drafts;
    uint8_t *finished;
    long length, tree_size;
} Slots;

// decide.c says what these do.
void append(const Slots *kept, const int64_t *slots, const int64_t *tokens, const int64_t *num_emitted, const uint8_t *finished, long n,
            long stride);
void set_drafts(const Slots *kept, const int64_t *slots, const int64_t *ids, const int64_t *parents, const int64_t *counts, long n);
void bound_drafts(const Slots *kept, const int64_t *slots, const int64_t *wanted, const int64_t *deepest, int64_t *lengths, int64_t *drafts,
                  int64_t *depths, long n);

#endif
