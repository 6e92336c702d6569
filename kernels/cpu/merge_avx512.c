/* Merging with AVX-512. See merge.inc. */
#include "cpu/vec_avx512.inc"

#include "cpu/vec_exp2.inc"

#include "cpu/merge.inc"

void relay_cpu_merge_avx512(const struct relay_cpu_merge *work)
{
    merge_row(work);
}
