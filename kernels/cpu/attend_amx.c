/* Attention with AMX: products of tiles of 16 rows by TDPBF16PS, the softmax in AVX-512. See
 * attend_bf16.inc; packed pages are what its tiles want, K and V alike.
 *
 * A tile of queries or weights is 16 rows of 32 bf16, one of keys or values 16 rows of 16 pairs,
 * one of sums 16 by 16 float32. Rows are taken by 32 where there are so many: two tiles of queries
 * with two of keys fill the eight registers with four sums. */
#include "cpu/vec_avx512.inc"

#define TILE_ROWS    32u
#define ROWS_ROOM(n) (((n) + 15u) / 16u * 16u) /* tiles are loaded and stored whole */
#define TILES_WHOLE
#define TOKENS_READ(n) ((void)(n), BLOCK)
#include "cpu/attend_bf16.inc"

#ifndef RELAY_AMX_EMULATED
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18
#endif

#define STEP 32u /* bf16 of a row of queries or weights */
#define COLS 16u /* tokens or dims of a tile of sums */

struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tile instructions read memory that the compiler does not know they read: GCC's own wrappers
 * declare stores, and of a configuration its first eight bytes. What was written before must be
 * written. */
INLINE void settle(void)
{
    __asm__ volatile("" ::: "memory");
}

static void tiles_on(void)
{
    _Alignas(64) struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    settle();
    __asm__ volatile("" ::"m"(config)); /* all of it */
    _tile_loadconfig(&config);
}

/* ---- scores ---- */

/* 32 rows against tokens [t, t + 32) */
static void scores_2x2(const struct state *st, uint32_t tile, uint32_t t)
{
    const size_t q_step = st->dq2 * sizeof(pair_t);
    const size_t k_step = st->k_stride * sizeof(pair_t);
    const pair_t *q = st->q + tile * st->dq2;
    float *s = st->tiles.s + t;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t d = 0; d < st->dq2; d += STEP / 2) {
        const pair_t *k = st->k + d * st->k_stride + t;
        _tile_loadd(4, q + d, q_step);
        _tile_loadd(6, k, k_step);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, k + COLS, k_step);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, q + 16 * st->dq2 + d, q_step);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s, BLOCK * sizeof(float));
    _tile_stored(1, s + COLS, BLOCK * sizeof(float));
    _tile_stored(2, s + 16 * BLOCK, BLOCK * sizeof(float));
    _tile_stored(3, s + 16 * BLOCK + COLS, BLOCK * sizeof(float));
}

/* 16 rows against the block */
static void scores_1x4(const struct state *st, uint32_t tile)
{
    const size_t k_step = st->k_stride * sizeof(pair_t);
    const pair_t *q = st->q + tile * st->dq2;
    float *s = st->tiles.s;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t d = 0; d < st->dq2; d += STEP / 2) {
        const pair_t *k = st->k + d * st->k_stride;
        _tile_loadd(4, q + d, st->dq2 * sizeof(pair_t));
        _tile_loadd(5, k, k_step);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, k + COLS, k_step);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, k + 2 * COLS, k_step);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, k + 3 * COLS, k_step);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, s, BLOCK * sizeof(float));
    _tile_stored(1, s + COLS, BLOCK * sizeof(float));
    _tile_stored(2, s + 2 * COLS, BLOCK * sizeof(float));
    _tile_stored(3, s + 3 * COLS, BLOCK * sizeof(float));
}

/* ---- values ---- */

/* 32 rows, or 16 when `few`, of dims [d, d + 32): weights of a row are pairs in the first half of
 * its scores. */
INLINE void values_of(bool few, const struct state *st, uint32_t tile, size_t d)
{
    const size_t p_step = BLOCK * sizeof(float);
    const size_t v_step = st->tiles.dvp * sizeof(pair_t);
    const size_t o_step = st->tiles.dvp * sizeof(float);
    float *o = st->tiles.o + tile * st->tiles.dvp + d;
    float *o_16 = o + 16 * st->tiles.dvp;
    const float *p = st->tiles.s;
    _tile_loadd(0, o, o_step);
    _tile_loadd(1, o + COLS, o_step);
    if (!few) {
        _tile_loadd(2, o_16, o_step);
        _tile_loadd(3, o_16 + COLS, o_step);
    }
    for (uint32_t t = 0; t < PAIRS; t += STEP / 2) {
        const pair_t *v = st->v + t * st->tiles.dvp + d;
        _tile_loadd(4, p + t, p_step);
        _tile_loadd(6, v, v_step);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, v + COLS, v_step);
        _tile_dpbf16ps(1, 4, 7);
        if (!few) {
            _tile_loadd(5, p + 16 * BLOCK + t, p_step);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, o, o_step);
    _tile_stored(1, o + COLS, o_step);
    if (!few) {
        _tile_stored(2, o_16, o_step);
        _tile_stored(3, o_16 + COLS, o_step);
    }
}

/* ---- tiles ---- */

/* What this tile asks for of the next block. */
static void ask_ahead(const struct state *st, uint32_t tile)
{
    const struct tiles *tiles = &st->tiles;
    struct share k = share_of(tiles, tile, st->dq2);
    struct share v = share_of(tiles, tile, PAIRS);
    for (size_t d = k.from; d < k.to; d++) {
        ask_for(&tiles->ahead, tiles->ahead.k + d * tiles->ahead.k_step, BLOCK * sizeof(pair_t));
    }
    for (size_t t = v.from; t < v.to; t++) {
        ask_for(&tiles->ahead, tiles->ahead.v + t * tiles->rows.dv * sizeof(pair_t),
                tiles->rows.dv * sizeof(pair_t));
    }
}

/* Sums of all 64 tokens, nv or not: those past the block's end are masked, their values 0. */
static void tile_rows(const struct state *st, const struct block *b, uint32_t tile, uint32_t nr,
                      uint32_t nv)
{
    const bool few = nr <= 16;
    (void)nv;
    ask_ahead(st, tile);
    settle();
    if (few) {
        scores_1x4(st, tile);
    } else {
        scores_2x2(st, tile, 0);
        scores_2x2(st, tile, BLOCK / 2);
    }
    for (uint32_t i = 0; i < nr; i++) {
        float *s = st->tiles.s + i * BLOCK;
        softmax_of(&st->tiles, b, tile + i, VECS, s);
        if (!b->v_finite) {
            values_exact(st, b, tile + i, s);
        }
    }
    settle();
    for (size_t d = 0; b->v_finite && d < st->tiles.rows.dv; d += 2 * COLS) {
        if (few) {
            values_of(true, st, tile, d);
        } else {
            values_of(false, st, tile, d);
        }
    }
}

#include "cpu/attend_loop.inc"

/* Weights of rows past the last are bits of scores that nobody reads. */
static void attend_with_tiles(const struct relay_cpu_attend *work)
{
    tiles_on();
    attend(work);
    _tile_release();
}

static bool supports_whole_tiles(const struct relay_shape *shape)
{
    return supports(shape) && shape->kind.head_dim_qk % STEP == 0 &&
           shape->kind.head_dim_v % (2 * COLS) == 0;
}

#ifndef RELAY_AMX_EMULATED
/* The kernel keeps tiles for those who ask; it may refuse, as some sandboxes do. */
static bool available(void)
{
    unsigned a, b, c, d;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bf16") || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return false;
    }
    const unsigned amx = 1u << 22 | 1u << 24; /* AMX-BF16, AMX-TILE */
    return (d & amx) == amx &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

const struct relay_cpu_isa relay_cpu_isa_amx = {
    .name = "amx",
    .available = available,
    .supports = supports_whole_tiles,
    .packs_pages = true,
    .block_tokens = BLOCK,
    .packed_rows_max = 512,
    .scratch_bytes = scratch_bytes,
    .attend = attend_with_tiles,
    .merge = relay_cpu_merge_avx512,
};
#endif
