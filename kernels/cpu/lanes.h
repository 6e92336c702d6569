/* Four floats side by side, in C: the vector types that gcc and clang share, no intrinsics.
 *
 * Every operation acts on each lane alone, so a lane's bits do not depend on its neighbours; this
 * is what batch invariance of the kernels built on it rests on. Files that include it are compiled
 * with -ffp-contract=off, so that a main loop and its remainder round alike. Pure; any thread. */
#ifndef RELAY_CPU_LANES_H
#define RELAY_CPU_LANES_H

#include <math.h>
#include <stdint.h>

#define LANES 4u

typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
typedef uint32_t v4u __attribute__((vector_size(16)));
typedef float v4f_mem __attribute__((vector_size(16), may_alias));

#define LANES_INLINE static inline __attribute__((always_inline))

LANES_INLINE v4f lanes_load(const float *p) /* 16-byte aligned */
{
    return *(const v4f_mem *)p;
}

LANES_INLINE void lanes_store(float *p, v4f v) /* 16-byte aligned */
{
    *(v4f_mem *)p = v;
}

LANES_INLINE v4f lanes_splat(float x)
{
    return (v4f){x, x, x, x};
}

/* Lane by lane: mask all ones takes a, all zeros takes b. */
LANES_INLINE v4f lanes_select(v4i mask, v4f a, v4f b)
{
    return (v4f)((mask & (v4i)a) | (~mask & (v4i)b));
}

/* The larger; a where b is NaN. */
LANES_INLINE v4f lanes_max(v4f a, v4f b)
{
    v4f max;
    for (uint32_t i = 0; i < LANES; i++) { /* the form that becomes one instruction */
        max[i] = b[i] > a[i] ? b[i] : a[i];
    }
    return max;
}

/* Lane i of the result is the sum of the four lanes of the i-th argument, as (0 + 2) + (1 + 3). */
LANES_INLINE v4f lanes_sum4(v4f a, v4f b, v4f c, v4f d)
{
    v4f x = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    v4f y = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(x, y, 0, 1, 4, 5) + __builtin_shufflevector(x, y, 2, 3, 6, 7);
}

/* 2^x for x <= 127. Relative error below 1.5e-7, exactly 1 for 0, 0 below -126 and for -inf, NaN
 * for NaN. 2^x = 2^n * (1 + f * q(f)) with n = round(x), f = x - n in [-0.5, 0.5]; q is the
 * interpolant of (2^f - 1) / f at six Chebyshev nodes, 5.1e-9 from it before rounding. */
LANES_INLINE v4f lanes_exp2(v4f x)
{
    const v4f magic = lanes_splat(0x1.8p23f); /* pushes the fraction out of the mantissa */
    v4f shifted = x + magic;
    v4f f = x - (shifted - magic);
    v4f q = lanes_splat(0x1.44138ap-13f);
    q = q * f + lanes_splat(0x1.5f0890p-10f);
    q = q * f + lanes_splat(0x1.3b2a54p-7f);
    q = q * f + lanes_splat(0x1.c6af6cp-5f);
    q = q * f + lanes_splat(0x1.ebfbe0p-3f);
    q = q * f + lanes_splat(0x1.62e430p-1f);
    v4f mantissa = q * f + lanes_splat(1.0f);
    v4u exponent = ((v4u)shifted << 23) + (v4u){0x3f800000u, 0x3f800000u, 0x3f800000u, 0x3f800000u};
    v4i tiny = x < lanes_splat(-126.0f);
    return (v4f)(~tiny & (v4i)(mantissa * (v4f)exponent));
}

/* tanh(x). Relative error below 4e-7, NaN for NaN. Odd polynomial below 0.6, where 1 - 2 / (e + 1)
 * would cancel; above 10 it is 1 in float32. */
LANES_INLINE v4f lanes_tanh(v4f x)
{
    const v4i sign_bit = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
    v4i sign = (v4i)x & sign_bit;
    v4f a = (v4f)((v4i)x & ~sign_bit);
    a = lanes_select(a > lanes_splat(10.0f), lanes_splat(10.0f), a);
    v4f z = a * a;
    v4f p = lanes_splat(-0x1.9ada60p-8f);
    p = p * z + lanes_splat(0x1.59e1c8p-6f);
    p = p * z + lanes_splat(-0x1.b955dcp-5f);
    p = p * z + lanes_splat(0x1.110ee0p-3f);
    p = p * z + lanes_splat(-0x1.555554p-2f);
    v4f small = a + a * (z * p);
    v4f e = lanes_exp2(a * lanes_splat(0x1.715476p+1f)); /* 2 log2(e) */
    v4f large = lanes_splat(1.0f) - lanes_splat(2.0f) / (e + lanes_splat(1.0f));
    v4f t = lanes_select(a < lanes_splat(0.6f), small, large);
    return (v4f)((v4i)t | sign);
}

#endif
