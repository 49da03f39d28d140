#ifndef DRAFTHOUSE_COLLECTIVES_H
#define DRAFTHOUSE_COLLECTIVES_H

#include <stdatomic.h>
#include <stdint.h>

// Bytes of a part: what is larger is exchanged part by part, and a few of these stay in a core's cache.
#define PART_BYTES (256L << 10)

// How many parts a rank has given so far, and how many ranks sleep until there is another one.
typedef struct {
    _Alignas(64) atomic_uint given;
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

// The sum of each of n numbers over the ranks, in place, with the same bits on each.
void sum_over_ranks(Ranks *ranks, void *x, long n, Number number);

#endif
