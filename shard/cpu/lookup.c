// A lookup's part of a step, whole: what it learns of the tokens that came, and what it proposes. The same as Drafter.learn and
// Drafter.draft without heads, of which each torch operation takes longer than all of this. Integers are int64, arrays
// contiguous.

#include <stdlib.h>
#include <string.h>

#include "calibrate.h"
#include "draft.h"
#include "slots.h"

// What is remembered of the last proposals, by slot: ids [slots, depth] behind matches [slots], and the methods of drafts
// [slots, tree_size]; what is believed of lookups; which matches count.
typedef struct {
    int64_t *ids, *matches, *methods;
    Ratio ratio;
    Own own;
    long num_slots, depth, tree_size, least_match, most_match;
    float most_sure;
} Lookup;

// Of n sequences in slots [n] the first num_decoding go on: of tokens and path [n, width] the first emitted [n] count. rows,
// parents, accepted and checked as in Checks. counts [n, 2, num_methods, depth] are 0; null where no draft was checked.
typedef struct {
    const int64_t *slots, *tokens, *emitted, *parents, *path, *accepted, *checked;
    int64_t *counts;
    long n, num_decoding, width, rows, num_methods;
} Came;

void learn(const Lookup *lookup, const Came *came, int is_pending) {
    if (is_pending) {
        const Outcome outcome = {lookup->ids, came->tokens, came->emitted, came->num_decoding, lookup->depth, 1, came->width};
        observe_lookup(&lookup->ratio, &outcome, lookup->matches, came->slots, &lookup->own);
    }
    if (came->counts) {
        const Checks checks = {came->parents, came->path, came->accepted, came->checked, came->n, came->rows, came->width};
        count_drafts(&checks, lookup->methods, came->slots, came->counts, lookup->tree_size, came->num_methods, lookup->depth);
    }
}

// Those at `places` [n] of `slots` want at most so many drafts, so deep.
typedef struct {
    const int64_t *slots, *places, *max_drafts, *max_depth;
    long n;
} Asked;

// Makes drafts [n, tree_size] pending, also returned as in DraftTree. Returns whether any could be made.
int propose(const Slots *kept, const Lookup *lookup, const Asked *asked, const Prices *prices, int64_t *ids, int64_t *parents,
            int64_t *counts) {
    const long n = asked->n, size = kept->tree_size, depth = lookup->depth;
    int64_t slots[n], lengths[n], drafts[n], depths[n], made[n];
    for (long i = 0; i < n; i++) slots[i] = asked->slots[asked->places[i]];
    bound_drafts(kept, slots, asked->max_drafts, asked->max_depth, lengths, drafts, depths, n);
    int is_any = 0;
    for (long i = 0; i < n; i++) is_any |= drafts[i] > 0;
    memset(ids, 0, sizeof(int64_t) * (size_t)(n * size));
    memset(parents, 0, sizeof(int64_t) * (size_t)(n * size));
    memset(counts, 0, sizeof(int64_t) * (size_t)n);
    if (is_any) {
        float *log_ps = malloc(sizeof(float) * (size_t)(n * size)), probabilities[depth];
        memset(lookup->matches, 0, sizeof(int64_t) * (size_t)lookup->num_slots);
        for (long i = 0; i < n; i++) {
            const int64_t slot = slots[i], most = drafts[i] < depths[i] ? drafts[i] : depths[i];
            int64_t *guesses = lookup->ids + slot * depth, *match = lookup->matches + slot;
            look_up(kept->texts + slot * kept->length, lengths + i, guesses, match, 1, 0, lookup->least_match, lookup->most_match, depth);
            estimate_lookup(&lookup->ratio, &lookup->own, match, &slot, probabilities, 1, depth, lookup->most_sure);
            chains(guesses, probabilities, match, &most, ids + i * size, parents + i * size, made + i, log_ps + i * size, 1, depth, size,
                   prices->least);
            for (long draft = 0; draft < size; draft++) lookup->methods[slot * size + draft] = NGRAM;
        }
        worth_most(log_ps, made, counts, prices, n, size);
        free(log_ps);
    }
    set_drafts(kept, slots, ids, parents, counts, n);
    return is_any;
}
