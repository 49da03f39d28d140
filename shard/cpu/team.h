// How the threads of a parallel region share the pieces of a phase. A piece belongs to whoever comes first, and a phase is
// over when its pieces are done: a thread that the system does not let run holds nobody up, unless it has begun a piece.
// With a fixed share for each, every phase would wait for the slowest core, and a step has hundreds of them.

#ifndef DRAFTHOUSE_TEAM_H
#define DRAFTHOUSE_TEAM_H

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "vectors.h"

// Looks at a phase before a thread lets others have its core; some tens of microseconds.
#define SPINS 1000

// Zero before the region begins.
typedef struct {
    _Alignas(64) atomic_long next, done;
} Phase;

// A thread's way through the phases, which are the same for all and in the same order.
typedef struct {
    Phase *phase;
    long holds;
} Worker;

INLINE void relax(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

// The next of `count` pieces; -1 when all are done, by whomever, and the next phase begins.
INLINE long claim(Worker *w, long count) {
    Phase *phase = w->phase;
    if (w->holds) atomic_fetch_add_explicit(&phase->done, 1, memory_order_release);
    const long piece = atomic_fetch_add_explicit(&phase->next, 1, memory_order_relaxed);
    w->holds = piece < count;
    if (w->holds) return piece;
    for (long spins = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < count; spins++)
        if (spins < SPINS) relax();
        else sched_yield();
    w->phase++;
    return -1;
}

#define SHARE(worker, piece, count) for (long piece; (piece = claim(worker, count)) >= 0;)

// [first, last) of n things in piece number `piece` of `pieces`.
INLINE long cut(long n, long piece, long pieces) {
    return n * piece / pieces;
}

#endif
