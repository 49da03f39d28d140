// Collectives of ranks on one machine. Each copies its part to memory that all share, says so by a number that only it writes,
// and reads the parts of the others when theirs say so. A layer's sum is a few kilobytes: over sockets it is two wakings of
// threads of the library, here a look at another core's cache.

#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "team.h"

// Bytes of a part: what is larger is exchanged part by part, and a few of these stay in a core's cache.
#define PART_BYTES (256L << 10)

// How many parts a rank has begun, its own copied, and how many ranks sleep until it begins another one.
typedef struct {
    _Alignas(64) atomic_uint begun;
    atomic_uint sleepers;
} Flag;

// A rank's view of the memory that the ranks of one machine share: a flag each, then two parts each, used in turns, so that one
// can be written while the other is still read. `count` are the parts that this rank has begun.
typedef struct {
    Flag *flags;
    long rank, size;
    double timeout_s;
    uint32_t count, has_failed;
} Ranks;

// In the order of shard/cpu/collectives.py.
typedef enum { FLOAT32, FLOAT64, BFLOAT16, INT64 } Number;

// Looks, after the first SPINS, between which others may have the core, before a rank sleeps: some hundreds of microseconds.
#define YIELDS 1000
// Below a second.
#define MOST_SLEEP_S .5

static long futex(atomic_uint *word, int operation, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, operation, value, timeout, 0, 0);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Numbers go around.
INLINE int is_reached(uint32_t begun, uint32_t count) {
    return (int32_t)(begun - count) >= 0;
}

// Until a rank has begun `count` parts. After a time without it the group has failed, and nothing waits any more.
static void wait_for(Ranks *ranks, long rank, uint32_t count) {
    Flag *flag = ranks->flags + rank;
    for (long looks = 0; looks < SPINS && !ranks->has_failed; looks++) {
        if (is_reached(atomic_load(&flag->begun), count)) return;
        relax();
    }
    const double end = seconds() + ranks->timeout_s;
    // Who has the core meanwhile may keep it for milliseconds.
    for (long looks = 0; looks < YIELDS && !ranks->has_failed && seconds() < end; looks++) {
        if (is_reached(atomic_load(&flag->begun), count)) return;
        sched_yield();
    }
    while (!ranks->has_failed) {
        const long left_ns = (long)(1e9 * fmin(fmax(end - seconds(), 0), MOST_SLEEP_S));
        atomic_fetch_add(&flag->sleepers, 1);
        const uint32_t begun = atomic_load(&flag->begun);
        if (!is_reached(begun, count)) futex(&flag->begun, FUTEX_WAIT, begun, &(struct timespec){.tv_nsec = left_ns});
        atomic_fetch_sub(&flag->sleepers, 1);
        if (is_reached(atomic_load(&flag->begun), count)) return;
        ranks->has_failed = seconds() >= end;
    }
}

static void wait_for_all(Ranks *ranks, uint32_t count) {
    for (long rank = 0; rank < ranks->size; rank++) wait_for(ranks, rank, count);
}

static char *part_of(const Ranks *ranks, long rank) {
    return (char *)(ranks->flags + ranks->size) + ((ranks->count & 1) * ranks->size + rank) * PART_BYTES;
}

// Begins this rank's next part, with x or (null) to read others'. Nobody reads what lay there before: who has begun the part
// before this one has read all of the one before that. Who has failed says nothing more, so that those who come late fail too.
static void begin(Ranks *ranks, const void *x, long bytes) {
    Flag *own = ranks->flags + ranks->rank;
    ranks->count++;
    if (x) wait_for_all(ranks, ranks->count - 1);
    if (ranks->has_failed) return;
    if (x) memcpy(part_of(ranks, ranks->rank), x, (size_t)bytes);
    atomic_store(&own->begun, ranks->count);
    if (atomic_load(&own->sleepers)) futex(&own->begun, FUTEX_WAKE, INT_MAX, 0);
}

#define SUM(type)                                                                                      \
    for (long rank = 0; rank < ranks->size; rank++) {                                                  \
        const type *part = (const type *)part_of(ranks, rank);                                         \
        type *restrict sum = x;                                                                        \
        for (long i = 0; i < n; i++) sum[i] = rank ? sum[i] + part[i] : part[i];                       \
    }

static void add_parts(const Ranks *ranks, void *x, long n, Number number) {
    switch (number) {
        case FLOAT32: SUM(float) break;
        case FLOAT64: SUM(double) break;
        case INT64: SUM(uint64_t) break;
        case BFLOAT16:
            for (long i = 0; i < n; i++) {
                float sum = 0;
                for (long rank = 0; rank < ranks->size; rank++) sum += widen(((const bf16 *)part_of(ranks, rank))[i]);
                ((bf16 *)x)[i] = narrow(sum);
            }
    }
}

// The sum of each of n numbers over the ranks, in place, with the same bits on each.
void sum_over_ranks(Ranks *ranks, void *x, long n, Number number) {
    const long bytes = number == BFLOAT16 ? 2 : number == FLOAT32 ? 4 : 8;
    for (long most = PART_BYTES / bytes, first = 0; first < n; first += most) {
        char *here = (char *)x + first * bytes;
        const long count = n - first < most ? n - first : most;
        begin(ranks, here, count * bytes);
        wait_for_all(ranks, ranks->count);
        add_parts(ranks, here, count, number);
    }
}

// x of each rank -> out [size, bytes].
void gather_from_ranks(Ranks *ranks, const char *x, char *out, long bytes) {
    for (long first = 0; first < bytes; first += PART_BYTES) {
        const long count = bytes - first < PART_BYTES ? bytes - first : PART_BYTES;
        begin(ranks, x + first, count);
        for (long rank = 0; rank < ranks->size; rank++) {
            wait_for(ranks, rank, ranks->count);
            memcpy(out + rank * bytes + first, part_of(ranks, rank), (size_t)count);
        }
    }
}

// x of rank 0, which waits for nobody but who still reads.
void send_to_ranks(Ranks *ranks, char *x, long bytes) {
    for (long first = 0; first < bytes; first += PART_BYTES) {
        const long count = bytes - first < PART_BYTES ? bytes - first : PART_BYTES;
        begin(ranks, ranks->rank ? 0 : x + first, count);
        if (ranks->rank) {
            wait_for(ranks, 0, ranks->count);
            memcpy(x + first, part_of(ranks, 0), (size_t)count);
        }
    }
}

// What ranks share, zero at first.
long shared_bytes(long size) {
    return size * ((long)sizeof(Flag) + 2 * PART_BYTES);
}
