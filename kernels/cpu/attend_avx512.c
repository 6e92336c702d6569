/* float32 attention with AVX-512. See attend_f32.inc. */
#include "cpu/vec_avx512.inc"

/* 24 sums at six rows. */
#define TILE_VECS(nr) 4u
#define DIRECT_ROWS   66u
#include "cpu/attend_f32.inc"

static bool available(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct relay_cpu_isa relay_cpu_isa_avx512 = {
    .name = "avx512",
    .available = available,
    .packs_pages = true,
    .block_tokens = BLOCK,
    .packed_rows_max = 512,
    .scratch_bytes = scratch_bytes,
    .attend = attend,
    .merge = relay_cpu_merge_avx512,
};
