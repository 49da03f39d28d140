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

#endif
