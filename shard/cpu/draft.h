#ifndef DRAFTHOUSE_DRAFT_H
#define DRAFTHOUSE_DRAFT_H

#include <stdint.h>

// As shard/speculation/__init__.py.
enum { NGRAM = 1, MEDUSA = 2 };

// What drafts cost, as in shard/speculation/prices.py: prices[i] from number firsts[i] on; none needs to be made that is less
// probable than `least`.
typedef struct {
    const int64_t *firsts;
    const double *prices;
    long count;
    float least;
} Prices;

// What heads and lookup say of n sequences. ids and probabilities [n, depth, width]; guesses and believed [n, depth];
// matches [n]. Where a probability is 0 there is no candidate. matches may be null: no lookup.
typedef struct {
    const int64_t *ids;
    const float *probabilities;
    const int64_t *guesses;
    const float *believed;
    const int64_t *matches;
    long n, depth, width;
} Said;

// Bounds by sequence, and drafts [n, size] as in DraftTree.
typedef struct {
    const int64_t *max_drafts, *max_depth;
    int64_t *ids, *parents, *methods, *counts;
    float *log_ps;
    long size;
    float least_log_p;
} Trees;

// draft.c says what these do.
void look_up(const int64_t *tokens, const int64_t *lengths, int64_t *guesses, int64_t *matches, long n, long stride, long least, long most,
             long ahead);
void chains(const int64_t *guesses, const float *probabilities, const int64_t *matches, const int64_t *max_drafts, int64_t *ids,
            int64_t *parents, int64_t *counts, float *log_ps, long n, long depth, long size, float least);
void best_trees(const Said *said, const Trees *trees);
void worth_most(const float *log_ps, const int64_t *counts, int64_t *taken, const Prices *prices, long n, long size);

#endif
