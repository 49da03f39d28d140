// How the threads of a parallel region share the pieces of a phase. Each begins with a range of its own, whose pieces it takes
// one after another, and helps with others' when that is done. A phase is over when its pieces are done, by whomever: a thread
// that the system does not let run holds nobody up, unless it has begun a piece. With a fixed share for each, every phase would
// wait for the slowest core, and a step has hundreds of them; with one queue for all, nobody would read two neighbouring
// pieces, and the processor, which asks for memory ahead along a stream, would begin anew with each.

#ifndef DRAFTHOUSE_TEAM_H
#define DRAFTHOUSE_TEAM_H

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "vectors.h"

// Looks at a phase before a thread lets others have its core; some tens of microseconds.
#define SPINS 1000

// So many ranges at most; with more threads some share one.
#define RANGES 4

// Zero before the region begins.
typedef struct {
    _Alignas(64) atomic_long done;
    struct { _Alignas(64) atomic_long next; } ranges[RANGES];
} Phase;

// A thread's way through the phases, which are the same for all and in the same order.
typedef struct {
    Phase *phase;
    long own, num_ranges, left_behind, holds;
} Worker;

INLINE void relax(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

// [first, last) of n things in piece number `piece` of `pieces`.
INLINE long cut(long n, long piece, long pieces) {
    return n * piece / pieces;
}

// The calling thread at the first phase.
INLINE Worker this_worker(Phase *phases) {
    const long threads = omp_get_num_threads(), num_ranges = threads < RANGES ? threads : RANGES;
    return (Worker){phases, omp_get_thread_num() % num_ranges, num_ranges, 0, 0};
}

// The next of `count` pieces; -1 when all are done, by whomever, and the next phase begins.
INLINE long claim(Worker *w, long count) {
    Phase *phase = w->phase;
    if (w->holds) atomic_fetch_add_explicit(&phase->done, 1, memory_order_release);
    for (; w->left_behind < w->num_ranges; w->left_behind++) {
        const long range = (w->own + w->left_behind) % w->num_ranges;
        const long taken = atomic_fetch_add_explicit(&phase->ranges[range].next, 1, memory_order_relaxed);
        const long piece = cut(count, range, w->num_ranges) + taken;
        w->holds = piece < cut(count, range + 1, w->num_ranges);
        if (w->holds) return piece;
    }
    for (long spins = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < count; spins++)
        if (spins < SPINS) relax();
        else sched_yield();
    w->phase++;
    w->left_behind = 0;
    return -1;
}

#define SHARE(worker, piece, count) for (long piece; (piece = claim(worker, count)) >= 0;)

#endif
