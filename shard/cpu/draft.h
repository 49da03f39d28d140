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

// What heads and lookup say of a sequence: ids and probabilities [depth, width]; guesses and believed [depth], which mean nothing
// without a match. Where a probability is 0 there is no candidate.
typedef struct {
    const int64_t *ids;
    const float *probabilities;
    const int64_t *guesses;
    const float *believed;
    int is_match;
    long depth, width;
} Said;

// Bounds, and drafts [size] as in DraftTree.
typedef struct {
    int64_t *ids, *parents, *methods;
    float *log_ps;
    long max_drafts, max_depth, size;
    float least_log_p;
} Tree;

// draft.c says what these do.
long look_up(const int64_t *text, int64_t length, int64_t *guesses, long least, long most, long ahead);
long chain(const int64_t *guesses, const float *probabilities, int64_t *ids, int64_t *parents, float *log_ps, long depth, long size,
           float least);
long best_tree(const Said *said, const Tree *tree);
void worth_most(const float *log_ps, const int64_t *counts, int64_t *taken, const Prices *prices, long n, long size);

#endif
