// A drafter's part of a step, whole: what it learns of the tokens that came, and what it proposes. The same as TorchDrafting
// (shard/speculation/drafting.py) does in operations of which each takes longer than all of this. Integers are int64, arrays
// contiguous.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate.h"
#include "draft.h"
#include "slots.h"

// What is remembered of the last proposals, by slot: of lookups ids [slots, depth] behind matches [slots]; of heads said_ids and
// said [slots, heads, width]; the methods of drafts [slots, tree_size]. What is believed of lookups, of those of each sequence and
// of heads. most_match 0: nothing is looked up.
typedef struct {
    int64_t *ids, *matches, *said_ids;
    float *said;
    int64_t *methods;
    Ratio lookups;
    Own own;
    Ratio heads;
    long num_slots, depth, num_heads, width, tree_size, least_match, most_match;
    float surest_lookup, surest_head;
} Drafter;

// Of n sequences in slots [n] the first num_decoding go on: of tokens and path [n, stride] the first emitted [n] count. rows,
// parents, accepted and checked as in Checks. counts [n, 2, num_methods, depth] are 0; null where no draft was checked.
typedef struct {
    const int64_t *slots, *tokens, *emitted, *parents, *path, *accepted, *checked;
    int64_t *counts;
    long n, num_decoding, stride, rows, num_methods;
} Came;

// Whether there are lookups to learn from, and guesses of heads.
void learn(const Drafter *drafter, const Came *came, int from_lookups, int from_heads) {
    Outcome outcome = {drafter->ids, came->tokens, came->emitted, came->num_decoding, drafter->depth, 1, came->stride};
    if (from_lookups) observe_lookup(&drafter->lookups, &outcome, drafter->matches, came->slots, &drafter->own);
    if (from_heads) {
        outcome.ids = drafter->said_ids, outcome.depth = drafter->num_heads, outcome.width = drafter->width;
        observe_heads(&drafter->heads, &outcome, drafter->said, came->slots);
    }
    if (came->counts) {
        const Checks checks = {came->parents, came->path, came->accepted, came->checked, came->n, came->rows, came->stride};
        count_drafts(&checks, drafter->methods, came->slots, came->counts, drafter->tree_size, came->num_methods, drafter->depth);
    }
}

// Those at `places` [n] of `slots` want at most so many drafts, so deep. Heads say ids and probabilities [n, heads, width]; null:
// they were not asked.
typedef struct {
    const int64_t *slots, *places, *max_drafts, *max_depth, *ids;
    const float *probabilities;
    long n;
} Asked;

// The tree of the i-th of those asked, with heads; returns how many drafts it has. `sure` [depth] are the probabilities of its lookup.
static long tree_with_heads(const Drafter *drafter, const Asked *asked, long i, int64_t slot, const float *sure, const Tree *tree) {
    const long depth = drafter->depth, width = drafter->width, size = drafter->num_heads * width;
    const int64_t *ids = asked->ids + i * size;
    const float *probabilities = asked->probabilities + i * size;
    memcpy(drafter->said_ids + slot * size, ids, sizeof(int64_t) * (size_t)size);
    memcpy(drafter->said + slot * size, probabilities, sizeof(float) * (size_t)size);
    // Beyond the heads only lookup reaches.
    int64_t reaching_ids[depth * width];
    float reaching[depth * width];
    for (long place = 0; place < depth * width; place++) {
        const float p = place < size ? probabilities[place] * (drafter->heads.above[place] / drafter->heads.below[place]) : 0;
        reaching[place] = p < drafter->surest_head ? p : drafter->surest_head;
        reaching_ids[place] = place < size ? ids[place] : 0;
    }
    return best_tree(&(Said){reaching_ids, reaching, drafter->ids + slot * depth, sure, drafter->matches[slot] > 0, depth, width}, tree);
}

// Makes drafts [n, tree_size] pending, also returned as in DraftTree.
void propose(const Slots *kept, const Drafter *drafter, const Asked *asked, const Prices *prices, int64_t *ids, int64_t *parents,
             int64_t *counts) {
    const long n = asked->n, size = drafter->tree_size, depth = drafter->depth;
    int64_t slots[n], lengths[n], most[n], deepest[n], made[n];
    float *log_ps = malloc(sizeof(float) * (size_t)(n * size)), sure[depth];
    for (long i = 0; i < n; i++) slots[i] = asked->slots[asked->places[i]];
    bound_drafts(kept, slots, asked->max_drafts, asked->max_depth, lengths, most, deepest, n);
    memset(ids, 0, sizeof(int64_t) * (size_t)(n * size));
    memset(parents, 0, sizeof(int64_t) * (size_t)(n * size));
    // What was proposed before is forgotten.
    memset(drafter->matches, 0, sizeof(int64_t) * (size_t)drafter->num_slots);
    if (asked->ids) {
        const long num_said = drafter->num_slots * drafter->num_heads * drafter->width;
        for (long i = 0; i < num_said; i++) drafter->said_ids[i] = -1, drafter->said[i] = 0;
    }
    for (long i = 0; i < n; i++) {
        const int64_t slot = slots[i];
        int64_t *guesses = drafter->ids + slot * depth, *methods = drafter->methods + slot * size;
        int64_t *tree_ids = ids + i * size, *tree_parents = parents + i * size;
        if (drafter->most_match) {
            const int64_t *text = kept->texts + slot * kept->length;
            const long match = look_up(text, lengths[i], guesses, drafter->least_match, drafter->most_match, depth);
            drafter->matches[slot] = match;
            estimate_lookup(&drafter->lookups, &drafter->own, match, slot, sure, depth, drafter->surest_lookup);
        }
        // Of places without a draft too: the warm-up has drafts checked that nobody proposed.
        for (long draft = 0; draft < size; draft++) methods[draft] = NGRAM;
        if (asked->ids) {
            const float least_log_p = prices->least > 0 ? logf(prices->least) : -INFINITY;
            const Tree tree = {tree_ids, tree_parents, methods, log_ps + i * size, most[i], deepest[i], size, least_log_p};
            made[i] = tree_with_heads(drafter, asked, i, slot, sure, &tree);
        } else {
            const long worth = chain(guesses, sure, tree_ids, tree_parents, log_ps + i * size, depth, size, prices->least);
            // Of a chain drafts and depth are the same.
            const int64_t room = deepest[i] < most[i] ? deepest[i] : most[i];
            made[i] = !drafter->matches[slot] || room < 0 ? 0 : worth < room ? worth : room;
        }
    }
    worth_most(log_ps, made, counts, prices, n, size);
    free(log_ps);
    set_drafts(kept, slots, ids, parents, counts, n);
}
