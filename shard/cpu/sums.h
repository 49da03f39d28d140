// How many sums of a product are taken together, for all arithmetics.

#ifndef DRAFTHOUSE_SUMS_H
#define DRAFTHOUSE_SUMS_H

#include "linear.h"

// Registers for sums: what the shapes of `strips` need at most. Rows of a strip meet a weight together, when it comes from
// memory; those of the next strip find it in the cache.
#define MOST_PANELS 4
#if LANES == 16
#define MOST_ROWS 12
#else
#define MOST_ROWS 6
#endif
// With integers a sum is in two registers.
#define MOST_INTEGER_ROWS 6

typedef Floats Sums[MOST_PANELS][MOST_ROWS];

#endif
