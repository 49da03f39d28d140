// What proposals teach, and what came of them: the same as shard/speculation/calibration.py and Drafter.learn in torch
// operations, of which each takes longer than all of this.

#include <stdlib.h>

#include "calibrate.h"

static void add_evidence(const Ratio *ratio, const float *above, const float *below) {
    for (long i = 0; i < ratio->size; i++) {
        ratio->above[i] += (1 - ratio->kept) * (ratio->prior[i] - ratio->above[i]) + above[i];
        ratio->below[i] += (1 - ratio->kept) * (ratio->weight - ratio->below[i]) + below[i];
    }
}

// Of sequences in slots [n], of which heads said ids and probabilities [slots, depth, width]; the ratio is [depth, width].
void observe_heads(const Ratio *ratio, const Outcome *outcome, const float *probabilities, const int64_t *slots) {
    float *right = calloc((size_t)ratio->size * 2, sizeof(float)), *said = right + ratio->size;
    for (long s = 0; s < outcome->n; s++)
        for (long d = 0; d < outcome->depth && d < outcome->known[s]; d++)
            for (long w = 0; w < outcome->width; w++) {
                const long place = d * outcome->width + w, i = slots[s] * ratio->size + place;
                right[place] += outcome->ids[i] == outcome->tokens[s * outcome->stride + d];
                said[place] += probabilities[i];
            }
    add_evidence(ratio, right, said);
    free(right);
}

// Of sequences in slots [n], whose continuations, ids [slots, depth], stood behind matches [slots]; the ratio is [matches, depth].
void observe_lookup(const Ratio *ratio, const Outcome *outcome, const int64_t *matches, const int64_t *slots, const Own *own) {
    float *right = calloc((size_t)ratio->size * 2, sizeof(float)), *tested = right + ratio->size;
    for (long s = 0; s < outcome->n; s++) {
        const int64_t *ids = outcome->ids + slots[s] * outcome->depth, *tokens = outcome->tokens + s * outcome->stride;
        const long match = matches[slots[s]], place = match * outcome->depth;
        if (match <= 0 || outcome->known[s] <= 0) continue;
        float *own_right = own->right + slots[s], *own_said = own->said + slots[s];
        *own_right = own->weight + (*own_right - own->weight) * own->kept + (ids[0] == tokens[0]);
        *own_said = own->weight + (*own_said - own->weight) * own->kept + ratio->above[place] / ratio->below[place];
        // A token counts where those before it were right.
        for (long d = 0; d < outcome->depth && d < outcome->known[s]; d++) {
            tested[place + d] += 1;
            if (ids[d] != tokens[d]) break;
            right[place + d] += 1;
        }
    }
    add_evidence(ratio, right, tested);
    free(right);
}

// Probabilities [depth] of what follows a match of the sequence in a slot; the ratio is [matches, depth].
void estimate_lookup(const Ratio *ratio, const Own *own, int64_t match, int64_t slot, float *out, long depth, float most) {
    for (long d = 0; d < depth; d++) {
        float p = ratio->above[match * depth + d] / ratio->below[match * depth + d];
        if (d == 0) p *= own->right[slot] / own->said[slot];
        out[d] = p < most ? p : most;
    }
}

// Checked and accepted drafts by method and depth, counts [n, 2, methods, deepest], which are 0 before. methods [slots,
// tree_size] are those of the drafts, from 1.
void count_drafts(const Checks *checks, const int64_t *methods, const int64_t *slots, int64_t *counts, long tree_size, long num_methods,
                  long deepest) {
    for (long s = 0; s < checks->n; s++) {
        const int64_t *parents = checks->parents + s * (checks->rows - 1), *path = checks->path + s * checks->stride;
        int64_t *checked = counts + s * 2 * num_methods * deepest, *accepted = checked + num_methods * deepest;
        // Of each row; the root has no method.
        long depth[checks->rows], cell[checks->rows];
        depth[0] = 0;
        for (long row = 1; row < checks->rows && row <= checks->checked[s]; row++) {
            depth[row] = depth[parents[row - 1]] + 1;
            cell[row] = (methods[slots[s] * tree_size + row - 1] - 1) * deepest + depth[row] - 1;
            checked[cell[row]]++;
        }
        for (long i = 1; i <= checks->accepted[s]; i++) accepted[cell[path[i]]]++;
    }
}
