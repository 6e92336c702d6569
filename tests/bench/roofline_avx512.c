/* AVX-512. */
#include "cpu/vec_avx512.inc"

#define SUMS 24
#include "roofline_f32.inc"

const struct roofline_unit roofline_avx512 = {"avx512", "fma_avx512", peak, exps};
