/* Attention with AVX-512 BF16: sums of products of pairs by vdpbf16ps. See attend_bf16.inc. */
#include "cpu/vec_avx512.inc"

#include "cpu/attend_bf16.inc"

/* ---- scores ---- */

/* nr rows against nv vectors of tokens; nr and nv are constants at every call. */
INLINE void scores_at(uint32_t nr, uint32_t nv, const struct state *st, uint32_t tile, uint32_t j0)
{
    const size_t dq2 = st->dq2;
    const pair_t *q = st->q + tile * dq2;
    const pair_t *k = st->k + j0 * VEC_LANES;
    vec s[TILE_ROWS][VECS];
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nv; j++) {
            s[i][j] = vec_zero();
        }
    }
    const struct share share = share_of(&st->tiles, tile, j0 == 0 ? dq2 : 0);
    for (size_t d = 0; d < dq2; d++, k += st->k_stride) {
        if (st->tiles.ahead.v_now != NULL) {
            ask_for(&st->tiles.ahead, st->tiles.ahead.v_now + d * BLOCK * sizeof(pair_t),
                    BLOCK * sizeof(pair_t));
        } else if (in_share(share, d)) {
            ask_for(&st->tiles.ahead, st->tiles.ahead.k + d * st->tiles.ahead.k_step,
                    BLOCK * sizeof(pair_t));
        }
        __m512bh key[VECS];
        for (uint32_t j = 0; j < nv; j++) {
            key[j] = (__m512bh)_mm512_loadu_si512(k + j * VEC_LANES);
        }
        for (uint32_t i = 0; i < nr; i++) {
            __m512bh query = (__m512bh)_mm512_set1_epi32((int)q[i * dq2 + d]);
            for (uint32_t j = 0; j < nv; j++) {
                s[i][j] = _mm512_dpbf16_ps(s[i][j], query, key[j]);
            }
        }
    }
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nv; j++) {
            vec_store(st->tiles.s + i * BLOCK + (j0 + j) * VEC_LANES, s[i][j]);
        }
    }
}

INLINE void scores(uint32_t nr, const struct state *st, uint32_t tile, uint32_t nv)
{
    if (nv == VECS) {
        scores_at(nr, VECS, st, tile, 0);
        return;
    }
    for (uint32_t j = 0; j < nv; j++) {
        scores_at(nr, 1, st, tile, j);
    }
}

/* ---- values ---- */

/* nr rows, nd vectors of dims; nr and nd are constants at every call. */
INLINE void values_at(uint32_t nr, uint32_t nd, const struct state *st, uint32_t tile,
                      uint32_t pairs, size_t d)
{
    const struct tiles *tiles = &st->tiles;
    const pair_t *v = st->v + d;
    const pair_t *p = (const pair_t *)(const void *)tiles->s;
    vec acc[TILE_ROWS][2 * VECS];
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            acc[i][j] = vec_load(tiles->o + (tile + i) * tiles->dvp + d + j * VEC_LANES);
        }
    }
    const struct share share = share_of(tiles, tile, pairs);
    for (uint32_t t = 0; t < pairs; t++, v += tiles->dvp) {
        if (tiles->ahead.v_now != NULL && share.to != 0) {
            for (uint32_t i = 0; i < nd; i += VECS) { /* as many rows of 64 tokens */
                ask_for(&tiles->ahead,
                        tiles->ahead.k + (d / 2 + t + i / VECS * PAIRS) * tiles->ahead.k_step,
                        BLOCK * sizeof(pair_t));
            }
        } else if (in_share(share, t)) {
            ask_for(&tiles->ahead, tiles->ahead.v + (t * tiles->rows.dv + d) * sizeof(pair_t),
                    nd * VEC_LANES * sizeof(pair_t));
        }
        __m512bh value[2 * VECS];
        for (uint32_t j = 0; j < nd; j++) {
            value[j] = (__m512bh)_mm512_loadu_si512(v + j * VEC_LANES);
        }
        for (uint32_t i = 0; i < nr; i++) {
            __m512bh weight = (__m512bh)_mm512_set1_epi32((int)p[i * BLOCK + t]);
            for (uint32_t j = 0; j < nd; j++) {
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], weight, value[j]);
            }
        }
    }
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            vec_store(tiles->o + (tile + i) * tiles->dvp + d + j * VEC_LANES, acc[i][j]);
        }
    }
}

INLINE void values(uint32_t nr, const struct state *st, uint32_t tile, uint32_t nv)
{
    const uint32_t pairs = nv * (VEC_LANES / 2);
    size_t d = 0;
    /* One row or two leave registers for twice the dims, and sums of one wait for each other. */
    for (; nr <= 2 && d + 2 * VECS * VEC_LANES <= st->tiles.dvp; d += 2 * VECS * VEC_LANES) {
        values_at(nr, 2 * VECS, st, tile, pairs, d);
    }
    for (; d + VECS * VEC_LANES <= st->tiles.dvp; d += VECS * VEC_LANES) {
        values_at(nr, VECS, st, tile, pairs, d);
    }
    for (; d < st->tiles.dvp; d += VEC_LANES) {
        values_at(nr, 1, st, tile, pairs, d);
    }
}

#include "cpu/attend_tiles.inc"

#include "cpu/attend_loop.inc"

static bool available(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}

const struct relay_cpu_isa relay_cpu_isa_avx512bf16 = {
    .name = "avx512bf16",
    .available = available,
    .supports = supports,
    .packs_pages = true,
    .block_tokens = BLOCK,
    .packed_rows_max = 512,
    .scratch_bytes = scratch_bytes,
    .attend = attend,
    .merge = relay_cpu_merge_avx512,
};
