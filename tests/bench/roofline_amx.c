/* TDPBF16PS, four sums as the kernel has them. */
#include "roofline.h"

#include <immintrin.h>
#include <string.h>

static double peak(uint64_t rounds)
{
    _Alignas(64) unsigned char config[64] = {1};
    _Alignas(64) unsigned char zeros[16 * 64];
    for (int i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64; /* bytes of a row */
        config[48 + i] = 16;     /* rows */
    }
    memset(zeros, 0, sizeof(zeros));
    __asm__ volatile("" ::"m"(config), "m"(zeros)); /* GCC's wrappers do not say what they read */
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (uint64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, zeros, 64);
    _tile_release();
    return (double)rounds * 4 * 16 * 16 * 32 * 2;
}

const struct roofline_unit roofline_amx = {"amx", "amx_bf16", peak, NULL};
