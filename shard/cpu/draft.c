// Drafting on CPU: looking a text's last tokens up in itself, and the most probable drafts of what lookup and heads say.
// The same as shard/speculation/ngram.py and tree.py in torch operations, of which each takes longer than all of this.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "draft.h"

// As in tree.py: a child is less probable than its parent by at least this in logarithms, and no guess is impossible.
#define LESS 1e-3f
#define LEAST_PROBABILITY 1e-9f

// The first `length` of text -> guesses [ahead]; returns the length of the match, 0 below `least`.
long look_up(const int64_t *text, int64_t length, int64_t *guesses, long least, long most, long ahead) {
    const long last = length - 1;
    long match = 0, start = 0;
    // The most recent of the longest.
    for (long end = last - 1; end >= 0 && match < most; end--) {
        // So it is at most places.
        if (text[end] != text[last]) continue;
        long same = 1;
        while (same < most && same <= end && text[end - same] == text[last - same]) same++;
        if (same > match) match = same, start = end + 1;
    }
    // Where the match runs into the end of the text it goes on from its own start.
    const long period = length - start > 0 ? length - start : 1;
    for (long i = 0; i < ahead; i++) guesses[i] = match ? text[start + i % period] : 0;
    return match < least ? 0 : match;
}

typedef struct {
    int64_t id;
    float log_p;
    long parent, depth, method, continues;
} Node;

// The children of the node in row `row` of the tree; returns how many there are now.
static long add_children(const Said *said, const Tree *tree, long row, const Node *node, Node *open, long count) {
    const long at = node->depth;
    if (at >= said->depth || at >= tree->max_depth) return count;
    const int64_t *ids = said->ids + at * said->width;
    const float *probabilities = said->probabilities + at * said->width;
    float agreed = 0, mixed = 0, rest = 1;
    if (node->continues) {
        for (long w = 0; w < said->width; w++)
            if (probabilities[w] > 0 && ids[w] == said->guesses[at]) agreed += probabilities[w];
        const float believed = fminf(fmaxf(said->believed[at], LEAST_PROBABILITY), 1);
        // The guess is as likely as the more confident of both says; the heads' other candidates share what is left.
        mixed = fmaxf(believed, agreed);
        rest = fminf(fmaxf((1 - mixed) / fmaxf(1 - agreed, LEAST_PROBABILITY), LEAST_PROBABILITY), 1);
    }
    int is_there = 0;
    for (long w = 0; w < said->width; w++) {
        if (probabilities[w] <= 0) continue;
        const int agrees = node->continues && ids[w] == said->guesses[at];
        const float p = agrees ? mixed : fminf(fmaxf(probabilities[w], LEAST_PROBABILITY), 1) * rest;
        const Node child = {ids[w], node->log_p + logf(p) - LESS, row, at + 1, agrees ? NGRAM | MEDUSA : MEDUSA, agrees};
        is_there |= agrees;
        if (child.log_p >= tree->least_log_p) open[count++] = child;
    }
    if (node->continues && !is_there) {
        const Node child = {said->guesses[at], node->log_p + logf(mixed) - LESS, row, at + 1, NGRAM, 1};
        if (child.log_p >= tree->least_log_p) open[count++] = child;
    }
    return count;
}

// The most probable drafts as a tree: of what may follow the tree so far, the most probable one at a time; returns their number.
long best_tree(const Said *said, const Tree *tree) {
    Node *open = malloc(sizeof(Node) * (size_t)((tree->size + 1) * (said->width + 1)));
    const Node root = {.continues = said->is_match};
    long count = add_children(said, tree, 0, &root, open, 0), row = 0;
    const long most = tree->max_drafts < tree->size ? tree->max_drafts : tree->size;
    while (count && row < most) {
        long best = 0;
        for (long i = 1; i < count; i++)
            if (open[i].log_p > open[best].log_p) best = i;
        const Node node = open[best];
        // Equals stay in their order.
        memmove(open + best, open + best + 1, sizeof(Node) * (size_t)(--count - best));
        tree->ids[row] = node.id;
        tree->parents[row] = node.parent;
        tree->methods[row] = node.method;
        tree->log_ps[row] = node.log_p;
        count = add_children(said, tree, ++row, &node, open, count);
    }
    free(open);
    return row;
}

// The tree [size] of a lookup alone, of guesses and their probabilities [depth], each given those before it; returns how many
// drafts are at least `least` probable.
long chain(const int64_t *guesses, const float *probabilities, int64_t *ids, int64_t *parents, float *log_ps, long depth, long size,
           float least) {
    float path = 1;
    long worth = 0;
    for (long i = 0; i < size; i++) {
        path *= i < depth ? probabilities[i] : 0;
        worth += i < depth && path >= least;
        ids[i] = i < depth ? guesses[i] : 0;
        parents[i] = i;
        log_ps[i] = logf(path);
    }
    return worth;
}

typedef struct {
    float log_p;
    long place;
} Draft;

static int by_probability(const void *left, const void *right) {
    const Draft *a = left, *b = right;
    if (a->log_p != b->log_p) return a->log_p > b->log_p ? -1 : 1;
    return (a->place > b->place) - (a->place < b->place);
}

// How many of the first counts[s] drafts of each tree [n, size] are taken: over all trees so many of the most probable ones
// that what they bring, less what they cost, is most. Where all cost the same those that are there are taken.
void worth_most(const float *log_ps, const int64_t *counts, int64_t *taken, const Prices *prices, long n, long size) {
    if (prices->count < 2) {
        memcpy(taken, counts, sizeof(int64_t) * (size_t)n);
        return;
    }
    Draft *drafts = malloc(sizeof(Draft) * (size_t)(n * size + 1));
    long count = 0, best = 0;
    for (long s = 0; s < n; s++) {
        taken[s] = 0;
        for (long i = 0; i < counts[s]; i++) drafts[count++] = (Draft){log_ps[s * size + i], s * size + i};
    }
    qsort(drafts, (size_t)count, sizeof(Draft), by_probability);
    double total = 0, most = 0;
    for (long i = 0, price = 0; i < count; i++) {
        while (price + 1 < prices->count && prices->firsts[price + 1] <= i) price++;
        total += exp(drafts[i].log_p) - prices->prices[price];
        if (total > most) most = total, best = i + 1;
    }
    for (long i = 0; i < best; i++) taken[drafts[i].place / size]++;
    free(drafts);
}
