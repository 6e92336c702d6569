/* VDPBF16PS. */
#include "roofline.h"

#include <immintrin.h>

#define SUMS      24
#define OPAQUE(x) __asm__ volatile("" : "+v"(x))

static double peak(uint64_t rounds)
{
    __m512 sum[SUMS];
    __m512i a = _mm512_set1_epi32(0x3f003f00), b = a;
    for (int i = 0; i < SUMS; i++) {
        sum[i] = _mm512_setzero_ps();
    }
    for (uint64_t r = 0; r < rounds; r++) { /* sums in registers only if it is unrolled */
        OPAQUE(a);
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) {
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b);
        }
    }
    for (int i = 0; i < SUMS; i++) {
        OPAQUE(sum[i]);
    }
    return (double)rounds * SUMS * 16 * 4;
}

const struct roofline_unit roofline_avx512bf16 = {"avx512bf16", "dpbf16", peak, NULL};
