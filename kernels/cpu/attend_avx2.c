/* float32 attention with AVX2, FMA and F16C. See attend_f32.inc. */
#include "cpu/vec_avx2.inc"

/* 8 to 12 sums; three of sixteen registers are left for keys and a query. */
#define TILE_VECS(nr) ((nr) == 1 ? 8u : (nr) <= 3 ? 4u : 2u)
#define DIRECT_ROWS   36u
#include "cpu/attend_f32.inc"

#include <cpuid.h>

static bool available(void)
{
    unsigned a, b, c = 0, d;
    /* Not every compiler's builtin knows F16C. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

const struct relay_cpu_isa relay_cpu_isa_avx2 = {
    .name = "avx2",
    .available = available,
    .packs_pages = true,
    .block_tokens = BLOCK,
    .packed_rows_max = 512,
    .scratch_bytes = scratch_bytes,
    .attend = attend,
    .merge = relay_cpu_merge_avx2,
};
