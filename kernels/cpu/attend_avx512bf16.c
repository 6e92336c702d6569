/* Attention of one item for one KV head with AVX-512 BF16: bf16 q, K, V and weights, float32 sums.
 *
 * The scheme is that of attend_vec.inc, dims and tokens taken in pairs: K of a block is
 * [dqk/2][64 tokens] pairs of dims, V is [32 token pairs][dv] pairs of tokens, which is how packed
 * pages have them; from plain pages a block is packed once, for all packed rows. Weights are
 * rounded to bf16; l is summed from them before rounding. */
#include "cpu/vec_avx512.inc"

typedef uint32_t pair_t; /* two bf16, the lower index in the lower half */

/* A row's pairs of weights lie where its scores were. */
#define WEIGHTS_STORE(s, j, p)                                                                     \
    _mm256_storeu_si256((__m256i *)(void *)((s) + (j)*VEC_LANES / 2),                              \
                        (__m256i)_mm512_cvtneps_pbh(p))
#include "cpu/attend_vec.inc"

#define PAIRS (BLOCK / 2u)

struct state {
    struct tiles tiles;
    size_t dq2;      /* pairs of dims of a key */
    pair_t *q;       /* [n][dq2] */
    pair_t *k_room;  /* [dq2][64] */
    pair_t *v_room;  /* [32][dvp] */
    const pair_t *k; /* of the block: pairs of dims k_stride apart */
    const pair_t *v; /* [32][dvp] */
    size_t k_stride;
};

static void state_layout(struct state *st, const struct relay_shape *shape, unsigned char *base,
                         size_t *used, uint32_t n)
{
    (void)shape;
    st->dq2 = st->tiles.rows.dqk / 2;
    st->q = relay_cpu_carve(base, used, n * st->dq2 * sizeof(pair_t));
    st->k_room = relay_cpu_carve(base, used, st->dq2 * BLOCK * sizeof(pair_t));
    st->v_room = relay_cpu_carve(base, used, PAIRS * st->tiles.dvp * sizeof(pair_t));
}

static void state_begin(struct state *st)
{
    for (uint32_t i = 0; i < st->tiles.rows.n; i++) {
        memcpy(st->q + i * st->dq2, relay_cpu_rows_q(&st->tiles.rows, i), st->dq2 * sizeof(pair_t));
    }
}

/* ---- plain pages ---- */

/* Keys of up to 16 tokens, src[i] NULL = none, into column group `to` of k_room. */
INLINE void pack_keys_16(const unsigned char *const src[16], size_t dq2, pair_t *to)
{
    for (size_t d = 0; d < dq2; d += 16) {
        vec r[16];
        size_t left = dq2 - d < 16 ? dq2 - d : 16;
        for (int i = 0; i < 16; i++) {
            r[i] = src[i] == NULL ? vec_zero()
                                  : _mm512_maskz_loadu_ps(vec_lanes(0, (uint32_t)left),
                                                          src[i] + d * sizeof(pair_t));
        }
        vec_transpose(r);
        for (size_t i = 0; i < left; i++) {
            _mm512_store_ps(to + (d + i) * BLOCK, r[i]);
        }
    }
}

/* Values of tokens a and b (NULL = zeros) into one row of v_room. */
INLINE void pack_values_2(const unsigned char *a, const unsigned char *b, size_t dv, size_t dvp,
                          pair_t *to)
{
    for (size_t d = 0; d < dvp; d += VEC_LANES) {
        size_t left = dv - d < VEC_LANES ? dv - d : VEC_LANES;
        vec_mask mask = vec_lanes(0, (uint32_t)left);
        __m512i x = a == NULL ? _mm512_setzero_si512()
                              : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a + d * 2));
        __m512i y = b == NULL ? _mm512_setzero_si512()
                              : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b + d * 2));
        _mm512_store_si512(to + d, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
    }
}

/* Where the block's rows of K or V lie: src[i] for token at + i, NULL outside [begin, end). */
static void find_rows(const struct relay_cpu_rows *rows, const struct block *b, const void *base,
                      size_t dim, const unsigned char *src[BLOCK])
{
    uint32_t count;
    for (uint32_t i = 0; i < BLOCK; i++) {
        src[i] = NULL;
    }
    for (uint32_t t = b->begin; t < b->end; t += count) {
        const unsigned char *run = relay_cpu_page_run(rows, base, dim, t, b->end, &count);
        for (uint32_t i = 0; i < count; i++) {
            src[t - b->at + i] = run + (size_t)i * dim * 2;
        }
    }
}

static void load_plain(struct state *st, const struct block *b)
{
    const struct relay_cpu_rows *rows = &st->tiles.rows;
    const struct relay_kv_layer *kv = &rows->work->problem->kv;
    const unsigned char *k[BLOCK], *v[BLOCK];
    find_rows(rows, b, kv->k, rows->dqk, k);
    if (rows->work->problem->shape->kind.v_from_k) {
        memcpy(v, k, sizeof(v));
    } else {
        find_rows(rows, b, kv->v, rows->dv, v);
    }
    for (uint32_t t = 0; t < BLOCK; t += VEC_LANES) {
        pack_keys_16(k + t, st->dq2, st->k_room + t);
    }
    for (uint32_t t = 0; t < BLOCK; t += 2) {
        pack_values_2(v[t], v[t + 1], rows->dv, st->tiles.dvp, st->v_room + t / 2 * st->tiles.dvp);
    }
    st->k = st->k_room;
    st->k_stride = BLOCK;
    st->v = st->v_room;
}

/* ---- packed pages ---- */

/* The values of tokens [lo, hi) of a block, zeros for the others and past dv. */
static void copy_values(const struct state *st, const pair_t *v, uint32_t lo, uint32_t hi)
{
    const size_t dv = st->tiles.rows.dv;
    for (uint32_t t = 0; t < BLOCK; t += 2) {
        pair_t keep =
            (t >= lo && t < hi ? 0xffffu : 0u) | (t + 1 >= lo && t + 1 < hi ? 0xffff0000u : 0u);
        for (size_t d = 0; d < st->tiles.dvp; d += VEC_LANES) {
            size_t left = dv - d < VEC_LANES ? dv - d : VEC_LANES;
            __m512i x = _mm512_maskz_loadu_epi32(vec_lanes(0, (uint32_t)left), v + t / 2 * dv + d);
            _mm512_store_si512(st->v_room + t / 2 * st->tiles.dvp + d,
                               _mm512_and_si512(x, _mm512_set1_epi32((int)keep)));
        }
    }
}

static void load_packed(struct state *st, const struct block *b)
{
    const struct relay_cpu_rows *rows = &st->tiles.rows;
    const struct relay_problem *problem = rows->work->problem;
    size_t page_tokens = problem->plan->page_tokens;
    size_t in_page = b->at % page_tokens;
    const void *k = relay_cpu_page_head(rows, problem->kv.k, rows->dqk, b->at);
    const void *v = relay_cpu_page_head(rows, problem->kv.v, rows->dv, b->at);
    st->k = (const pair_t *)k + in_page;
    st->k_stride = page_tokens;
    st->v = (const pair_t *)v + in_page / 2 * rows->dv;
    if (b->begin != b->at || b->end != b->at + BLOCK || rows->dv != st->tiles.dvp) {
        copy_values(st, st->v, b->begin - b->at, b->end - b->at);
        st->v = st->v_room;
    }
}

static void block_load(struct state *st, const struct block *b)
{
    if (st->tiles.rows.packed) {
        load_packed(st, b);
    } else {
        load_plain(st, b);
    }
}

static bool block_finite(const struct state *st, const struct block *b)
{
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    (void)b;
    for (size_t i = 0; i < PAIRS * st->tiles.dvp; i += VEC_LANES) {
        __m512i x = _mm512_and_si512(_mm512_loadu_si512(st->v + i), exponent);
        if (_mm512_cmpeq_epi16_mask(x, exponent) != 0) {
            return false;
        }
    }
    return true;
}

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
    const struct share share = share_of(&st->tiles, tile, nv == VECS ? dq2 : 0);
    for (size_t d = 0; d < dq2; d++, k += st->k_stride) {
        if (in_share(share, d)) {
            ask_for(st->tiles.ahead.k + d * st->tiles.ahead.k_step, BLOCK * sizeof(pair_t));
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
    vec acc[TILE_ROWS][4];
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            acc[i][j] = vec_load(tiles->o + (tile + i) * tiles->dvp + d + j * VEC_LANES);
        }
    }
    const struct share share = share_of(tiles, tile, pairs);
    for (uint32_t t = 0; t < pairs; t++, v += tiles->dvp) {
        if (in_share(share, t)) {
            ask_for(tiles->ahead.v + (t * tiles->rows.dv + d) * sizeof(pair_t),
                    nd * VEC_LANES * sizeof(pair_t));
        }
        __m512bh value[4];
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

INLINE void values(uint32_t nr, const struct state *st, uint32_t tile, uint32_t pairs)
{
    size_t d = 0;
    for (; d + 4 * VEC_LANES <= st->tiles.dvp; d += 4 * VEC_LANES) {
        values_at(nr, 4, st, tile, pairs, d);
    }
    for (; d < st->tiles.dvp; d += VEC_LANES) {
        values_at(nr, 1, st, tile, pairs, d);
    }
}

/* One row with exactly the tokens it sees, in the order and with the operations of values_at: for
 * blocks whose V has infinities or NaNs that other rows must not get. */
NO_INLINE void values_exact(const struct state *st, const struct block *b, uint32_t row,
                            const pair_t *p)
{
    const struct tiles *tiles = &st->tiles;
    struct relay_cpu_interval see = tiles->rows.see[row];
    uint32_t lo = see.lo > b->at ? see.lo - b->at : 0;
    uint32_t hi = see.hi > b->at ? see.hi - b->at : 0;
    for (uint32_t t = 0; t < PAIRS; t++) {
        bool even = 2 * t >= lo && 2 * t < hi;
        bool odd = 2 * t + 1 >= lo && 2 * t + 1 < hi;
        if (!even && !odd) {
            continue;
        }
        int keep = (int)((even ? 0xffffu : 0u) | (odd ? 0xffff0000u : 0u));
        __m512bh weight = (__m512bh)_mm512_set1_epi32((int)p[t]);
        for (size_t d = 0; d < tiles->dvp; d += VEC_LANES) {
            float *o = tiles->o + row * tiles->dvp + d;
            __m512i value = _mm512_and_si512(_mm512_loadu_si512(st->v + t * tiles->dvp + d),
                                             _mm512_set1_epi32(keep));
            vec_store(o, _mm512_dpbf16_ps(vec_load(o), weight, (__m512bh)value));
        }
    }
}

/* ---- tiles ---- */

static void tile_weights(const struct state *st, const struct block *b, uint32_t tile, uint32_t nr,
                         uint32_t nv)
{
    for (uint32_t i = 0; i < nr; i++) {
        float *s = st->tiles.s + i * BLOCK;
        softmax_of(&st->tiles, b, tile + i, nv, s);
        if (!b->v_finite) {
            values_exact(st, b, tile + i, (const pair_t *)(const void *)s);
        }
    }
}

#define TILE(nr)                                                                                   \
    NO_INLINE void tile_##nr(const struct state *st, const struct block *b, uint32_t tile,         \
                             uint32_t nv)                                                          \
    {                                                                                              \
        const uint32_t pairs = nv * (VEC_LANES / 2u);                                              \
        scores(nr, st, tile, nv);                                                                  \
        tile_weights(st, b, tile, nr, nv);                                                         \
        if (b->v_finite) {                                                                         \
            values(nr, st, tile, pairs);                                                           \
        }                                                                                          \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#undef TILE

#include "cpu/attend_loop.inc"

static bool supports(const struct relay_shape *shape)
{
    /* Weights are rounded to bf16: no more than the output is. */
    return shape->kv_dtype == RELAY_DTYPE_BF16 && shape->io_dtype == RELAY_DTYPE_BF16 &&
           shape->out_dtype == RELAY_DTYPE_BF16;
}

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
};
