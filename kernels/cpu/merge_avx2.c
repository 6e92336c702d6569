/* Merging with AVX2. See merge.inc. */
#include "cpu/vec_avx2.inc"

#include "cpu/vec_exp2.inc"

#include "cpu/merge.inc"

void relay_cpu_merge_avx2(const struct relay_cpu_merge *work)
{
    merge_row(work);
}
