/* AVX2 and FMA. */
#include "cpu/vec_avx2.inc"

#define SUMS 12
#include "roofline_f32.inc"

const struct roofline_unit roofline_avx2 = {"avx2", "fma_avx2", peak, exps};
