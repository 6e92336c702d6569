/* attend_amx.c as it stands, its tile instructions replaced by loops: for machines that have
 * AVX-512 BF16 and no AMX. One thread. */
#include "amx_emulated.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static unsigned char emulated[8][16][64];

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config)  ((void)(config))
#define _tile_release()           ((void)0)
#define _tile_zero(t)             memset(emulated[t], 0, sizeof(emulated[t]))
#define _tile_loadd(t, at, step)  tile_copy(t, (void *)(uintptr_t)(at), step, false)
#define _tile_stored(t, at, step) tile_copy(t, at, step, true)
#define _tile_dpbf16ps(sum, a, b) tile_multiply(sum, a, b)
#define RELAY_AMX_EMULATED

#include <stdbool.h>

static void tile_copy(int t, void *at, size_t step, bool store)
{
    for (size_t r = 0; r < 16; r++) {
        unsigned char *row = (unsigned char *)at + r * step;
        memcpy(store ? row : emulated[t][r], store ? emulated[t][r] : row, 64);
    }
}

static float bf16_at(const unsigned char *row, int i)
{
    uint16_t half;
    uint32_t bits;
    float f;
    memcpy(&half, row + 2 * i, sizeof(half));
    bits = (uint32_t)half << 16;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* sum[m][n] += a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1] */
static void tile_multiply(int sum, int a, int b)
{
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float s;
            memcpy(&s, emulated[sum][m] + 4 * n, sizeof(s));
            for (int k = 0; k < 16; k++) {
                s += bf16_at(emulated[a][m], 2 * k) * bf16_at(emulated[b][k], 2 * n);
                s += bf16_at(emulated[a][m], 2 * k + 1) * bf16_at(emulated[b][k], 2 * n + 1);
            }
            memcpy(emulated[sum][m] + 4 * n, &s, sizeof(s));
        }
    }
}

#include "cpu/attend_amx.c"

const struct relay_cpu_isa amx_emulated = {
    .name = "amx_emulated",
    .supports = supports_whole_tiles,
    .packs_pages = true,
    .block_tokens = BLOCK,
    .scratch_bytes = scratch_bytes,
    .attend = attend_with_tiles,
};
