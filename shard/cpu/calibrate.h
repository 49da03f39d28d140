#ifndef DRAFTHOUSE_CALIBRATE_H
#define DRAFTHOUSE_CALIBRATE_H

#include <stdint.h>

// A ratio of two sums by place, that forgets: `kept` of each step's evidence is left after the next, and what is forgotten
// is replaced by `prior`, which weighs as much as `weight` observations.
typedef struct {
    float *above, *below;
    const float *prior;
    long size;
    float kept, weight;
} Ratio;

// A sequence's first tokens, by slot: those that were right and what all sequences said of them.
typedef struct {
    float *right, *said;
    float kept, weight;
} Own;

// n proposals: ids were guesses of the tokens [n, …], rows `stride` apart, of which the first known[s] are true ones.
typedef struct {
    const int64_t *ids, *tokens, *known;
    long n, depth, width, stride;
} Outcome;

// n trees of up to `rows` rows: parents [n, rows - 1]; path [n, …], rows `stride` apart, and how many drafts on it were
// accepted [n], of so many checked [n].
typedef struct {
    const int64_t *parents, *path, *accepted, *checked;
    long n, rows, stride;
} Checks;

// calibrate.c says what these do.
void observe_heads(const Ratio *ratio, const Outcome *outcome, const float *probabilities, const int64_t *slots);
void observe_lookup(const Ratio *ratio, const Outcome *outcome, const int64_t *matches, const int64_t *slots, const Own *own);
void estimate_lookup(const Ratio *ratio, const Own *own, int64_t match, int64_t slot, float *out, long depth, float most);
void count_drafts(const Checks *checks, const int64_t *methods, const int64_t *slots, int64_t *counts, long tree_size, long num_methods,
                  long deepest);

#endif
