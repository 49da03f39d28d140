// x @ weight.T + bias in bfloat16 with float32 sums, for processors that have no bfloat16 arithmetic of their own.
// The weight stays as the checkpoint has it, [out, in]: it is read once, two bytes a value, and widened in registers.
// Compiled for the machine at hand by build.py; called through kernels.py, which checks shapes and layouts.

#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef float Floats __attribute__((vector_size(32), may_alias));
typedef float Half __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(32), may_alias));
typedef uint32_t LooseWords __attribute__((vector_size(32), may_alias, aligned(2)));
// Without this -ffast-math sums the two halves of a word first: three operations in place of two fused ones.
#pragma GCC optimize("no-associative-math")
#define INLINE static inline __attribute__((always_inline))

// A register holds eight words of two values each. A shift makes floats of the low halves, a mask of the high ones; so
// x is kept in that order too: of each block of 16 values the even ones, then the odd ones.
#define BLOCK 16
// One tile of the result: 2 x 4 registers of sums are enough to hide the latency of a fused multiply-add, and with the
// weights in both halves they fit the 16 registers of AVX2.
#define OUTPUTS 2
#define ROWS 4
// Weights that meet four rows of x before the next four: they are to stay in the second-level cache, x in the first.
#define GROUP_BYTES 131072

typedef union { uint32_t bits; float number; } Value;

INLINE float widen(bf16 value) {
    return ((Value){.bits = (uint32_t)value << 16}).number;
}

// To the nearest, ties to even; finite numbers only.
INLINE bf16 narrow(float value) {
    const uint32_t bits = ((Value){.number = value}).bits;
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float total(Floats v) {
    const union { Floats all; Half half[2]; } parts = {v};
    const Half sum = parts.half[0] + parts.half[1];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

typedef struct {
    const float *x;
    const bf16 *weight, *bias;
    bf16 *out;
    long in, padded, num_out;
} Product;

// The share that one block of the inputs has in a tile.
INLINE void add_block(Floats sums[OUTPUTS][ROWS], const float *x, long padded, const bf16 *weights, long stride, const int outputs,
                      const int rows) {
    Floats even[OUTPUTS], odd[OUTPUTS];
    for (int o = 0; o < outputs; o++) {
        const Words words = *(const LooseWords *)(weights + o * stride);
        even[o] = (Floats)(words << 16);
        odd[o] = (Floats)(words & 0xffff0000u);
    }
    for (int r = 0; r < rows; r++) {
        const Floats x_even = *(const Floats *)(x + r * padded), x_odd = *(const Floats *)(x + r * padded + BLOCK / 2);
        for (int o = 0; o < outputs; o++) sums[o][r] += even[o] * x_even;
        for (int o = 0; o < outputs; o++) sums[o][r] += odd[o] * x_odd;
    }
}

// outputs x rows of the result; both are constants, so that the sums stay in registers.
INLINE void tile(const Product *p, long output, long row, const int outputs, const int rows) {
    const long whole = p->in / BLOCK * BLOCK;
    const float *x = p->x + row * p->padded;
    const bf16 *weights = p->weight + output * p->in;
    Floats sums[OUTPUTS][ROWS];
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < rows; r++) sums[o][r] = (Floats){0};
    for (long i = 0; i < whole; i += BLOCK) {
        // The same place of the next tile: left to the processor, 1 to 8 rows take a quarter longer.
        for (int o = 0; o < outputs; o++) __builtin_prefetch(weights + (outputs + o) * p->in + i);
        add_block(sums, x + i, p->padded, weights + i, p->in, outputs, rows);
    }
    if (whole < p->in) {
        bf16 ends[OUTPUTS][BLOCK] = {{0}};
        for (int o = 0; o < outputs; o++) memcpy(ends[o], weights + o * p->in + whole, sizeof(bf16) * (size_t)(p->in - whole));
        add_block(sums, x + whole, p->padded, ends[0], BLOCK, outputs, rows);
    }
    for (int o = 0; o < outputs; o++) {
        const float bias = p->bias ? widen(p->bias[output + o]) : 0;
        for (int r = 0; r < rows; r++) p->out[(row + r) * p->num_out + output + o] = narrow(total(sums[o][r]) + bias);
    }
}

// The outputs from `first` to `last` of `rows` rows.
INLINE void strip(const Product *p, long first, long last, long row, const int rows) {
    long output = first;
    for (; output + OUTPUTS <= last; output += OUTPUTS) tile(p, output, row, OUTPUTS, rows);
    for (; output < last; output++) tile(p, output, row, 1, rows);
}

// x [n, in], weight [num_out, in], bias [num_out] or null -> out [n, num_out]. scratch: n * (in rounded up to BLOCK)
// floats, aligned to 32 bytes.
void linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, float *scratch, long n, long in, long num_out) {
    const long padded = (in + BLOCK - 1) / BLOCK * BLOCK;
    const Product product = {scratch, weight, bias, out, in, padded, num_out};
    const long tiles = (num_out + OUTPUTS - 1) / OUTPUTS;
    const long group = GROUP_BYTES / (2 * OUTPUTS * in) * OUTPUTS + OUTPUTS;
    // Few rows are widened by one thread: to meet the others once more costs more, above all beside other processes.
    #pragma omp parallel for if (n * in > 65536)
    for (long row = 0; row < n; row++)
        for (long i = 0; i < padded; i++)
            scratch[row * padded + i / BLOCK * BLOCK + i % 2 * (BLOCK / 2) + i % BLOCK / 2] = i < in ? widen(x[row * in + i]) : 0;
    #pragma omp parallel if (n * in * num_out > 65536)
    {
        // Each thread has one run of outputs, equal to a tile: groups dealt out would leave one thread waiting.
        const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
        const long stop = tiles * (thread + 1) / threads * OUTPUTS, end = stop < num_out ? stop : num_out;
        for (long first = tiles * thread / threads * OUTPUTS; first < end; first += group) {
            const long last = first + group < end ? first + group : end;
            long row = 0;
            for (; row + ROWS <= n; row += ROWS) strip(&product, first, last, row, ROWS);
            switch (n - row) {
            case 3: strip(&product, first, last, row, 3); break;
            case 2: strip(&product, first, last, row, 2); break;
            case 1: strip(&product, first, last, row, 1); break;
            }
        }
    }
}
