// Vectors of the machine at hand, and bfloat16 in them. Sums are taken in the order in which they are written, so that a
// row's result does not depend on the rows beside it: files that include this are compiled without reassociation.

#ifndef DRAFTHOUSE_VECTORS_H
#define DRAFTHOUSE_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

// The processor multiplies bytes, and adds four products to an integer.
#ifdef __AVX512VNNI__
#define HAS_BYTES 1
#else
#define HAS_BYTES 0
#endif

// The processor multiplies pairs of bfloat16 values and adds both products to a float: twice the arithmetic of floats, where
// build.py leaves it in. There is none that does this and not the other.
#if defined __AVX512BF16__ && HAS_BYTES
#define HAS_DOTS 1
#else
#define HAS_DOTS 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t bf16;
typedef float Floats __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), may_alias, aligned(2)));
typedef bf16 Halves __attribute__((vector_size(2 * LANES), may_alias, aligned(2)));

INLINE long round_up(long n, long multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

INLINE float widen(bf16 value) {
    union { uint32_t bits; float number; } v = {.bits = (uint32_t)value << 16};
    return v.number;
}

// To the nearest, ties to even; finite numbers only.
INLINE bf16 narrow(float value) {
    union { float number; uint32_t bits; } v = {.number = value};
    return (bf16)((v.bits + 0x7fff + ((v.bits >> 16) & 1)) >> 16);
}

INLINE Halves narrow_all(Floats values) {
    const Words bits = (Words)values;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

INLINE Floats widen_all(const bf16 *values) {
    // Of a conversion GCC 12 makes four operations where there is one. By its name in the compiler: immintrin.h would take
    // most of the time that this library compiles.
#if defined __AVX512F__
    typedef short Shorts __attribute__((vector_size(32), aligned(2)));
    return (Floats)((Words)__builtin_ia32_pmovzxwd512_mask(*(const Shorts *)values, (Ints){0}, 0xffff) << 16);
#elif defined __AVX2__
    typedef short Shorts __attribute__((vector_size(16), aligned(2)));
    return (Floats)((Words)__builtin_ia32_pmovzxwd256(*(const Shorts *)values) << 16);
#else
    return (Floats)(__builtin_convertvector(*(const Halves *)values, Words) << 16);
#endif
}

INLINE Floats widen_integers(const int8_t *values) {
#if defined __AVX512F__
    typedef char Bytes __attribute__((vector_size(16), aligned(1)));
    return __builtin_convertvector((Ints)__builtin_ia32_pmovsxbd512_mask(*(const Bytes *)values, (Ints){0}, 0xffff), Floats);
#elif defined __AVX2__
    typedef char Bytes __attribute__((vector_size(16)));
    typedef int64_t Pair __attribute__((vector_size(16)));
    int64_t eight;
    memcpy(&eight, values, 8);
    return __builtin_convertvector((Ints)__builtin_ia32_pmovsxbd256((Bytes)(Pair){eight, 0}), Floats);
#else
    typedef int8_t Bytes __attribute__((vector_size(LANES), may_alias, aligned(1)));
    return __builtin_convertvector(*(const Bytes *)values, Floats);
#endif
}

// What sums of products are made of. Inputs are what is multiplied with a weight or a key: bfloat16 where the processor
// multiplies it, in pairs, else floats, which spares widening them each time. Factors are a vector of them.
#if HAS_DOTS

#define TOGETHER 2
typedef bf16 Input;
typedef Words Factors;

INLINE Input as_input(float value) {
    return narrow(value);
}

INLINE Floats floats_of(const Input *values) {
    return widen_all(values);
}

INLINE void store_inputs(Input *to, Floats values) {
    *(Halves *)to = narrow_all(values);
}

INLINE bf16 rounded(Input value) {
    return value;
}

INLINE Factors factors_of(const bf16 *values) {
    return *(const Words *)values;
}

INLINE Floats add_product(Floats sum, Factors a, Factors b) {
    // By its name: immintrin.h takes long to compile.
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

#else

#define TOGETHER 1
typedef float Input;
typedef Floats Factors;

INLINE Input as_input(float value) {
    return value;
}

INLINE Floats floats_of(const Input *values) {
    return *(const Floats *)values;
}

INLINE void store_inputs(Input *to, Floats values) {
    *(Floats *)to = values;
}

INLINE bf16 rounded(Input value) {
    return narrow(value);
}

INLINE Factors factors_of(const bf16 *values) {
    return widen_all(values);
}

INLINE Floats add_product(Floats sum, Factors a, Factors b) {
    return sum + a * b;
}

#endif

// Inputs in a vector of factors.
#define FACTORS (TOGETHER * LANES)

INLINE Floats all(float value) {
    return value - (Floats){0};
}

INLINE float total(Floats v) {
    float sum[LANES];
    memcpy(sum, &v, sizeof v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

// e^x for x <= 0, to two units of the last place; below -87 it is 0.
INLINE Floats exp_negative(Floats x) {
    const Floats scaled = x * 1.44269504f - 0.5f;
    const Ints n = __builtin_convertvector(scaled, Ints);
    const Floats whole = __builtin_convertvector(n, Floats);
    const Floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    // Cephes' expf.
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Floats)((Ints)(p * (Floats)((n + 127) << 23)) & (x >= -87.0f));
}

INLINE Floats magnitude(Floats x) {
    return (Floats)((Words)x & 0x7fffffffu);
}

INLINE Floats choose(Ints condition, Floats yes, Floats no) {
    return (Floats)(((Ints)yes & condition) | ((Ints)no & ~condition));
}

INLINE Floats tanh_all(Floats x) {
    const Floats e = exp_negative(-2 * magnitude(x)), t = (1 - e) / (1 + e);
    return choose(x < 0, -t, t);
}

INLINE Floats sigmoid(Floats x) {
    const Floats e = exp_negative(-magnitude(x));
    return choose(x < 0, e, all(1.0f)) / (1 + e);
}

#endif
