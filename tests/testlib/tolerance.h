/* How far a result may be from the fp64 oracle: the one table of the project. Pure; any thread.
 *
 * u is a type's unit roundoff, half the gap between neighbours relative to their size: 2^-24 for
 * F32, 2^-11 for F16, 2^-8 for BF16 (8 significant bits), 2^-4 for F8_E4M3 (4 bits). A value
 * rounded once to the type is off by at most u of itself.
 *
 * Backends other than ref accumulate in float32, e = 2^-24. The terms and where they come from:
 *
 *  scores   a sum of D products is off by at most D e sum|q k| when added one after the other, and
 *           by about sqrt(D) e sum|q k| in practice, since the errors have either sign; backends
 * add in 8 or more lanes, D / 8 + 3 additions long. D <= 576: 75 e bounds it rigorously; softcap
 * and ALiBi round twice more. 80 e of the score's magnitude. weights  p = exp(s - m): the error of
 * s, and 2 ulp of the exponential (4 e). sums     l and out add up to 4096 + weights per split in
 * lanes and blocks of 64; the errors have either sign, so sqrt(n) e applies: 64 e, and one ulp per
 * merged partial: 96 e.
 *
 * Errors of weights and sums move out by that fraction of sum p|v|, not of |out|, which may be near
 * 0: the checks per element use both magnitudes, which the oracle knows. Where P is rounded to 16
 * bits before the product with V, each weight is off by another u of that type. */
#ifndef RELAY_TESTLIB_TOLERANCE_H
#define RELAY_TESTLIB_TOLERANCE_H

#include <relay/types.h>

#define TOLERANCE_EPS     0x1p-24 /* e */
#define TOLERANCE_SCORE   80.0    /* e, of sum |q k| */
#define TOLERANCE_SUM     100.0   /* e, of sum p |v|: weights and sums */
#define TOLERANCE_P_BF16  0x1p-8  /* of sum p |v| when P is rounded to BF16 */
#define TOLERANCE_P_F16   0x1p-11 /* to F16 */
#define TOLERANCE_ONE_LSE 8.0     /* e, of |lse|: the logarithm, the addition and the store */

struct tolerance {
    /* One element: |error| <= out |out| + (sum + 2 score S) sum p|v| + least, S = sum |q k|. */
    double out;   /* u of the out dtype */
    double sum;   /* includes P's rounding */
    double score; /* 80 e; a weight moves by exp(error) - 1, numerator and denominator: twice */
    double least; /* half the smallest subnormal of the out dtype, and of float32 sums */
    /* A tensor: |error|_2 <= rel_l2 |out|_2, and max |error| <= max_abs max |out|. Each element is
     * within u of itself, so is the whole: u. The float32 terms are fractions of sum p|v|, which
     * for n random values is sqrt(n) |out|: 64 at n = 4096 times about 16 e: 2^-14. With P rounded
     * to 16 bits the n errors average as the values themselves do: u more, doubled for the maximum
     * over elements as neighbours differ by up to the largest. */
    double rel_l2;
    double max_abs;
    /* |error of LSE| <= lse_abs + lse_rel |lse| + score S. l is summed from unrounded weights. */
    double lse_abs;
    double lse_rel;
};

/* p_unit: u of the type that P is rounded to, 0 where it is not. */
static inline struct tolerance tolerance_of(enum relay_dtype out_dtype, double p_unit)
{
    struct tolerance t;
    t.sum = TOLERANCE_SUM * TOLERANCE_EPS + p_unit;
    t.score = TOLERANCE_SCORE * TOLERANCE_EPS;
    t.lse_abs = TOLERANCE_SUM * TOLERANCE_EPS;
    t.lse_rel = TOLERANCE_ONE_LSE * TOLERANCE_EPS;
    switch (out_dtype) {
    case RELAY_DTYPE_F16:
        t.out = 0x1p-11;
        t.least = 0x1p-25;
        break;
    case RELAY_DTYPE_BF16:
        t.out = 0x1p-8;
        t.least = 0x1p-134;
        break;
    case RELAY_DTYPE_F8_E4M3:
        t.out = 0x1p-4;
        t.least = 0x1p-10;
        break;
    case RELAY_DTYPE_F32:
    case RELAY_DTYPE_UNSPECIFIED:
    default:
        t.out = 0x1p-24;
        t.least = 0x1p-150;
        break;
    }
    /* Rounding goes through float32 first, which adds its own u; and sums below the smallest normal
     * float32 may be flushed. */
    t.out += 0x1p-24;
    t.least += 0x1p-126;
    t.rel_l2 = t.out + 0x1p-14 + p_unit;
    t.max_abs = t.out + 0x1p-13 + 2.0 * p_unit;
    return t;
}

#endif
