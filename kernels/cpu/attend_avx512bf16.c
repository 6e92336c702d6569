/* Attention of one item for one KV head with AVX-512 BF16: bf16 q, K, V and weights, float32 sums.
 *
 * K/V is walked in blocks of 64 tokens on the grid that starts at the segment's first token. A
 * block is packed once into pairs, for all packed rows: K as [dqk/2][64 tokens] pairs of dims, V as
 * [32 token pairs][dv] pairs of tokens. Then tiles of up to six rows:
 *
 *   scores   lanes are tokens: s[t] = sum over dim pairs, ascending, of vdpbf16ps
 *   softmax  base 2; the maximum moves, and o and l with it, only when it rises by more than 8,
 * which keeps weights below 2^8; sums stay in 16 lanes until the end values   lanes are dims: o[d]
 * += sum over token pairs, ascending, of vdpbf16ps with weights rounded to bf16; l is summed from
 * the weights before rounding
 *
 * A packed row's operations and their order depend on its own interval alone: tokens that it does
 * not see have weight 0, which changes no bit of a sum of finite numbers. Where V is not finite,
 * rows are done one by one with only the tokens they see. */
#include "cpu/attend_rows.h"

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define BLOCK     64u
#define LANES     16u
#define VECS      (BLOCK / LANES)
#define PAIRS     (BLOCK / 2u)
#define TILE_ROWS 6u
#define RISE_MAX  8.0f
#define INLINE    static inline __attribute__((always_inline))
#define NO_INLINE static __attribute__((noinline))

typedef uint32_t pair_t; /* two bf16, the lower index in the lower half */

struct state {
    struct relay_cpu_rows rows;
    size_t dq2;      /* pairs of dims of a key */
    size_t dvp;      /* dims of a value, up to whole vectors */
    pair_t *q;       /* [n][dq2] */
    float *o;        /* [n][dvp] */
    float *m;        /* [n] base 2 */
    float *l;        /* [n][16] */
    pair_t *k_block; /* [dq2][64] */
    pair_t *v_block; /* [32][dvp] */
    pair_t *p;       /* [TILE_ROWS][32] weights of a tile */
};

struct block {
    uint32_t begin, end; /* segment tokens, at most 64, begin on the grid or the item's first */
    uint32_t at;         /* the block's first token on the grid */
    bool v_finite;       /* known only where some row sees less than all */
};

static size_t layout(struct state *st, const struct relay_shape *shape, unsigned char *base,
                     uint32_t n)
{
    size_t used = 0;
    relay_cpu_rows_layout(&st->rows, shape, base, &used, n);
    st->dq2 = st->rows.dqk / 2;
    st->dvp = (st->rows.dv + LANES - 1) / LANES * LANES;
    st->m = relay_cpu_carve(base, &used, n * sizeof(float));
    st->p = relay_cpu_carve(base, &used, TILE_ROWS * PAIRS * sizeof(pair_t));
    st->k_block = relay_cpu_carve(base, &used, st->dq2 * BLOCK * sizeof(pair_t));
    st->v_block = relay_cpu_carve(base, &used, PAIRS * st->dvp * sizeof(pair_t));
    st->q = relay_cpu_carve(base, &used, n * st->dq2 * sizeof(pair_t));
    st->o = relay_cpu_carve(base, &used, n * st->dvp * sizeof(float));
    st->l = relay_cpu_carve(base, &used, n * LANES * sizeof(float));
    return used;
}

static size_t scratch_bytes(const struct relay_shape *shape, uint32_t packed_rows,
                            uint32_t block_tokens)
{
    struct state st;
    (void)block_tokens;
    return layout(&st, shape, NULL, packed_rows);
}

/* ---- packing ---- */

/* 16 rows of 16 pairs to 16 columns: out[c] lane r = row r, pair c. */
INLINE void transpose(__m512i r[16])
{
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* r[4g + c] holds, by 128-bit lane j, column 4j + c of rows 4g..4g+3. */
    for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i b = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i d = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
        __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    for (int i = 0; i < 16; i++) {
        r[i] = t[i];
    }
}

/* Keys of up to 16 tokens, src[i] NULL = none, into column group `to` of k_block. */
INLINE void pack_keys_16(const unsigned char *const src[16], size_t dq2, pair_t *to)
{
    for (size_t d = 0; d < dq2; d += 16) {
        __m512i r[16];
        size_t left = dq2 - d < 16 ? dq2 - d : 16;
        __mmask16 mask = (__mmask16)((1u << left) - 1u);
        for (int i = 0; i < 16; i++) {
            r[i] = src[i] == NULL ? _mm512_setzero_si512()
                                  : _mm512_maskz_loadu_epi32(mask, src[i] + d * sizeof(pair_t));
        }
        transpose(r);
        for (size_t i = 0; i < left; i++) {
            _mm512_store_si512(to + (d + i) * BLOCK, r[i]);
        }
    }
}

/* Values of tokens a and b (NULL = zeros) into one row of v_block. */
INLINE void pack_values_2(const unsigned char *a, const unsigned char *b, size_t dv, size_t dvp,
                          pair_t *to)
{
    for (size_t d = 0; d < dvp; d += LANES) {
        size_t left = dv - d < LANES ? dv - d : LANES;
        __mmask16 mask = (__mmask16)((1u << left) - 1u);
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

/* Asks for what the next block will read, a bit with every group packed. */
INLINE void prefetch_rows(const unsigned char *const src[BLOCK], uint32_t from, uint32_t count,
                          size_t bytes)
{
    for (uint32_t i = from; i < from + count; i++) {
        for (size_t at = 0; src[i] != NULL && at < bytes; at += 64) {
            _mm_prefetch((const char *)src[i] + at, _MM_HINT_T1);
        }
    }
}

static bool values_finite(const struct state *st)
{
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    for (size_t i = 0; i < PAIRS * st->dvp; i += LANES) {
        __m512i x = _mm512_and_si512(_mm512_load_si512(st->v_block + i), exponent);
        if (_mm512_cmpeq_epi16_mask(x, exponent) != 0) {
            return false;
        }
    }
    return true;
}

static void pack_block(const struct state *st, const struct block *b, const struct block *next)
{
    const struct relay_kv_layer *kv = &st->rows.work->problem->kv;
    bool v_from_k = st->rows.work->problem->shape->kind.v_from_k;
    const unsigned char *k[BLOCK], *v[BLOCK], *next_k[BLOCK], *next_v[BLOCK];
    find_rows(&st->rows, b, kv->k, st->rows.dqk, k);
    find_rows(&st->rows, next, kv->k, st->rows.dqk, next_k);
    if (v_from_k) {
        memcpy(v, k, sizeof(v));
    } else {
        find_rows(&st->rows, b, kv->v, st->rows.dv, v);
        find_rows(&st->rows, next, kv->v, st->rows.dv, next_v);
    }
    uint32_t groups = (b->end - b->at + LANES - 1) / LANES;
    for (uint32_t g = 0; g < groups; g++) {
        pack_keys_16(k + g * LANES, st->dq2, st->k_block + g * LANES);
        prefetch_rows(next_k, g * LANES, LANES, st->rows.dqk * 2);
        for (uint32_t t = g * LANES; t < (g + 1) * LANES; t += 2) {
            pack_values_2(v[t], v[t + 1], st->rows.dv, st->dvp, st->v_block + t / 2 * st->dvp);
        }
        if (!v_from_k) {
            prefetch_rows(next_v, g * LANES, LANES, st->rows.dv * 2);
        }
    }
    /* Tiles may walk the whole block: weight 0 times what an older block left could be NaN. */
    memset(st->v_block + groups * LANES / 2 * st->dvp, 0,
           (VECS - groups) * LANES / 2 * st->dvp * sizeof(pair_t));
}

/* ---- scores ---- */

/* nr rows against nv vectors of tokens; nr and nv are constants at every call. */
INLINE void scores_at(uint32_t nr, uint32_t nv, const struct state *st, uint32_t tile,
                      __m512 s[TILE_ROWS][VECS])
{
    const pair_t *q = st->q + tile * st->dq2;
    const pair_t *k = st->k_block;
    const size_t dq2 = st->dq2;
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nv; j++) {
            s[i][j] = _mm512_setzero_ps();
        }
    }
    for (size_t d = 0; d < dq2; d++, k += BLOCK) {
        __m512bh key[VECS];
        for (uint32_t j = 0; j < nv; j++) {
            key[j] = (__m512bh)_mm512_load_si512(k + j * LANES);
        }
        for (uint32_t i = 0; i < nr; i++) {
            __m512bh query = (__m512bh)_mm512_set1_epi32((int)q[i * dq2 + d]);
            for (uint32_t j = 0; j < nv; j++) {
                s[i][j] = _mm512_dpbf16_ps(s[i][j], query, key[j]);
            }
        }
    }
}

/* ---- softmax ---- */

/* 2^x: relative error below 2e-7, 0 for x <= -150 and -inf, NaN for NaN. The polynomial is that of
 * lanes_exp2. */
INLINE __m512 exp2_16(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* the second operand where one is NaN */
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 q = _mm512_set1_ps(0x1.44138ap-13f);
    q = _mm512_fmadd_ps(q, f, _mm512_set1_ps(0x1.5f0890p-10f));
    q = _mm512_fmadd_ps(q, f, _mm512_set1_ps(0x1.3b2a54p-7f));
    q = _mm512_fmadd_ps(q, f, _mm512_set1_ps(0x1.c6af6cp-5f));
    q = _mm512_fmadd_ps(q, f, _mm512_set1_ps(0x1.ebfbe0p-3f));
    q = _mm512_fmadd_ps(q, f, _mm512_set1_ps(0x1.62e430p-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(q, f, _mm512_set1_ps(1.0f)), n);
}

/* tanh(x) as 1 - 2 / (2^(2 log2(e) |x|) + 1), by a polynomial where that cancels: see lanes_tanh.
 */
INLINE __m512 tanh_16(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 a = _mm512_min_ps(_mm512_set1_ps(10.0f), _mm512_abs_ps(x));
    __m512 z = _mm512_mul_ps(a, a);
    __m512 p = _mm512_set1_ps(-0x1.9ada60p-8f);
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.59e1c8p-6f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-0x1.b955dcp-5f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0x1.110ee0p-3f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-0x1.555554p-2f));
    __m512 small = _mm512_fmadd_ps(a, _mm512_mul_ps(z, p), a);
    __m512 e = exp2_16(_mm512_mul_ps(a, _mm512_set1_ps(0x1.715476p+1f)));
    __m512 large = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    __mmask16 is_small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.6f), _CMP_LT_OQ);
    __m512 t = _mm512_mask_blend_ps(is_small, large, small);
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x), _mm512_castps_si512(t), 0xca));
}

/* Lanes of vector j of the block that a row sees. */
INLINE __mmask16 seen(struct relay_cpu_interval see, uint32_t first)
{
    uint32_t lo = see.lo > first ? see.lo - first : 0;
    uint32_t hi = see.hi > first ? see.hi - first : 0;
    lo = lo < LANES ? lo : LANES;
    hi = hi < LANES ? hi : LANES;
    return (__mmask16)(((1u << hi) - 1u) & ~((1u << lo) - 1u));
}

NO_INLINE void rescale(float *o, size_t dvp, float *l, float factor)
{
    __m512 f = _mm512_set1_ps(factor);
    for (size_t d = 0; d < dvp; d += LANES) {
        _mm512_store_ps(o + d, _mm512_mul_ps(_mm512_load_ps(o + d), f));
    }
    _mm512_store_ps(l, _mm512_mul_ps(_mm512_load_ps(l), f));
}

/* One row's scores to weights, as pairs of bf16; m, l and o of the row follow the maximum. */
INLINE void softmax_row(const struct state *st, const struct block *b, uint32_t row, uint32_t nv,
                        __m512 s[VECS], pair_t *p)
{
    const struct relay_cpu_rows *rows = &st->rows;
    const __m512 minus_inf = _mm512_set1_ps(-INFINITY);
    struct relay_cpu_interval see = rows->see[row];
    __m512 most = minus_inf;
    for (uint32_t j = 0; j < nv; j++) {
        __m512 x = _mm512_mul_ps(s[j], _mm512_set1_ps(rows->score_scale));
        if (rows->softcap != 0.0f) {
            x = _mm512_mul_ps(_mm512_set1_ps(rows->softcap), tanh_16(x));
        }
        if (rows->slope[row] != 0.0f) {
            const __m512 lane =
                _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            __m512 t = _mm512_add_ps(lane, _mm512_set1_ps((float)(b->at + j * LANES)));
            t = _mm512_sub_ps(t, _mm512_set1_ps(rows->origin[row]));
            x = _mm512_fmadd_ps(t, _mm512_set1_ps(rows->slope[row]), x);
        }
        x = _mm512_mask_blend_ps(seen(see, b->at + j * LANES), minus_inf, x);
        s[j] = x;
        most = _mm512_max_ps(x, most);
    }
    float m = st->m[row];
    float risen = _mm512_reduce_max_ps(most);
    if (risen > m + RISE_MAX || (m == -INFINITY && risen > -INFINITY)) {
        float factor = m == -INFINITY ? 0.0f : _mm512_cvtss_f32(exp2_16(_mm512_set1_ps(m - risen)));
        if (m != -INFINITY) {
            rescale(st->o + row * st->dvp, st->dvp, st->l + row * LANES, factor);
        }
        m = st->m[row] = risen;
    }
    __m512 from = _mm512_set1_ps(m == -INFINITY ? 0.0f : m); /* -inf - -inf would be NaN */
    __m512 sum = _mm512_load_ps(st->l + row * LANES);
    for (uint32_t j = 0; j < nv; j++) {
        s[j] = exp2_16(_mm512_sub_ps(s[j], from));
        sum = _mm512_add_ps(sum, s[j]);
        _mm256_store_si256((__m256i *)(void *)(p + j * LANES / 2),
                           (__m256i)_mm512_cvtneps_pbh(s[j]));
    }
    _mm512_store_ps(st->l + row * LANES, sum);
}

/* ---- values ---- */

/* nr rows, nd vectors of dims; nr and nd are constants at every call. */
INLINE void values_at(uint32_t nr, uint32_t nd, const struct state *st, uint32_t tile,
                      uint32_t pairs, size_t d)
{
    const pair_t *v = st->v_block + d;
    const pair_t *p = st->p;
    __m512 acc[TILE_ROWS][4];
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            acc[i][j] = _mm512_load_ps(st->o + (tile + i) * st->dvp + d + j * LANES);
        }
    }
    for (uint32_t t = 0; t < pairs; t++, v += st->dvp) {
        __m512bh value[4];
        for (uint32_t j = 0; j < nd; j++) {
            value[j] = (__m512bh)_mm512_load_si512(v + j * LANES);
        }
        for (uint32_t i = 0; i < nr; i++) {
            __m512bh weight = (__m512bh)_mm512_set1_epi32((int)p[i * PAIRS + t]);
            for (uint32_t j = 0; j < nd; j++) {
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], weight, value[j]);
            }
        }
    }
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            _mm512_store_ps(st->o + (tile + i) * st->dvp + d + j * LANES, acc[i][j]);
        }
    }
}

INLINE void values(uint32_t nr, const struct state *st, uint32_t tile, uint32_t pairs)
{
    size_t d = 0;
    for (; d + 4 * LANES <= st->dvp; d += 4 * LANES) {
        values_at(nr, 4, st, tile, pairs, d);
    }
    for (; d < st->dvp; d += LANES) {
        values_at(nr, 1, st, tile, pairs, d);
    }
}

/* One row with exactly the tokens it sees, in the order and with the operations of values_at: for
 * blocks whose V has infinities or NaNs that other rows must not get. */
NO_INLINE void values_exact(const struct state *st, const struct block *b, uint32_t row,
                            const pair_t *p)
{
    struct relay_cpu_interval see = st->rows.see[row];
    uint32_t lo = see.lo > b->at ? see.lo - b->at : 0;
    uint32_t hi = see.hi > b->at ? see.hi - b->at : 0;
    hi = hi < BLOCK ? hi : BLOCK;
    for (uint32_t t = 0; t < PAIRS; t++) {
        bool even = 2 * t >= lo && 2 * t < hi;
        bool odd = 2 * t + 1 >= lo && 2 * t + 1 < hi;
        if (!even && !odd) {
            continue;
        }
        int keep = (int)((even ? 0xffffu : 0u) | (odd ? 0xffff0000u : 0u));
        __m512bh weight = (__m512bh)_mm512_set1_epi32((int)p[t]);
        for (size_t d = 0; d < st->dvp; d += LANES) {
            float *o = st->o + row * st->dvp + d;
            __m512i value = _mm512_and_si512(_mm512_load_si512(st->v_block + t * st->dvp + d),
                                             _mm512_set1_epi32(keep));
            _mm512_store_ps(o, _mm512_dpbf16_ps(_mm512_load_ps(o), weight, (__m512bh)value));
        }
    }
}

/* ---- tiles and blocks ---- */

INLINE void tile_at(uint32_t nr, uint32_t nv, const struct state *st, const struct block *b,
                    uint32_t tile)
{
    __m512 s[TILE_ROWS][VECS];
    scores_at(nr, nv, st, tile, s);
    for (uint32_t i = 0; i < nr; i++) {
        softmax_row(st, b, tile + i, nv, s[i], st->p + i * PAIRS);
    }
    if (b->v_finite) {
        values(nr, st, tile, nv * LANES / 2);
    } else {
        for (uint32_t i = 0; i < nr; i++) {
            values_exact(st, b, tile + i, st->p + i * PAIRS);
        }
    }
}

NO_INLINE void tile_6x4(const struct state *st, const struct block *b, uint32_t tile)
{
    tile_at(6, 4, st, b, tile);
}

#define TILE_NV(nr)                                                                                \
    NO_INLINE void tile_##nr(const struct state *st, const struct block *b, uint32_t tile,         \
                             uint32_t nv)                                                          \
    {                                                                                              \
        switch (nv) {                                                                              \
        case 1:                                                                                    \
            tile_at(nr, 1, st, b, tile);                                                           \
            break;                                                                                 \
        case 2:                                                                                    \
            tile_at(nr, 2, st, b, tile);                                                           \
            break;                                                                                 \
        default:                                                                                   \
            tile_at(nr, 4, st, b, tile);                                                           \
            break;                                                                                 \
        }                                                                                          \
    }
TILE_NV(1)
TILE_NV(2)
TILE_NV(3)
TILE_NV(4)
TILE_NV(5)
#undef TILE_NV

static void tile_rows(const struct state *st, const struct block *b, uint32_t tile, uint32_t nr,
                      uint32_t nv)
{
    switch (nr) {
    case 1:
        tile_1(st, b, tile, nv);
        break;
    case 2:
        tile_2(st, b, tile, nv);
        break;
    case 3:
        tile_3(st, b, tile, nv);
        break;
    case 4:
        tile_4(st, b, tile, nv);
        break;
    case 5:
        tile_5(st, b, tile, nv);
        break;
    default:
        tile_6x4(st, b, tile);
        break;
    }
}

/* Does some row see less of the block than the whole of it? */
static bool is_masked(const struct state *st, const struct block *b)
{
    if (!st->rows.work->item->masked) {
        return false;
    }
    for (uint32_t i = 0; i < st->rows.n; i += st->rows.group) {
        if (st->rows.see[i].lo > b->begin || st->rows.see[i].hi < b->end) {
            return true;
        }
    }
    return false;
}

/* The block that holds token t, cut to the item. */
static struct block block_at(const struct relay_item *item, uint32_t t)
{
    uint32_t at = t / BLOCK * BLOCK;
    uint32_t end = item->token_end - at < BLOCK ? item->token_end : at + BLOCK;
    return (struct block){.begin = t < end ? t : end, .end = end, .at = at, .v_finite = true};
}

static void attend(const struct relay_cpu_attend *work)
{
    const struct relay_problem *problem = work->problem;
    const struct relay_item *item = work->item;
    const struct relay_layer_kind *kind = &problem->shape->kind;
    struct state st = {.rows = {.work = work}};
    st.rows.segment = &problem->plan->segments[item->segment];
    st.rows.group = kind->num_q_heads / kind->num_kv_heads;
    st.rows.n = item->row_count * st.rows.group;
    const uint32_t n = st.rows.n;
    layout(&st, problem->shape, work->scratch, n);
    relay_cpu_rows_begin(&st.rows, work, n);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(st.q + i * st.dq2, relay_cpu_rows_q(&st.rows, i), st.dq2 * sizeof(pair_t));
        st.m[i] = -INFINITY;
    }
    memset(st.o, 0, n * st.dvp * sizeof(float));
    memset(st.l, 0, n * LANES * sizeof(float));
    struct block b = block_at(item, item->token_begin);
    while (b.begin < item->token_end) {
        struct block next = block_at(item, b.end);
        pack_block(&st, &b, b.end < item->token_end ? &next : &(struct block){0});
        b.v_finite = !is_masked(&st, &b) || values_finite(&st);
        uint32_t nv = (b.end - b.at + LANES - 1) / LANES;
        nv = nv == 3 ? 4 : nv;
        for (uint32_t tile = 0; tile < n; tile += TILE_ROWS) {
            uint32_t nr = n - tile < TILE_ROWS ? n - tile : TILE_ROWS;
            tile_rows(&st, &b, tile, nr, nv);
        }
        b = next;
    }
    for (uint32_t i = 0; i < n; i++) {
        float l = _mm512_reduce_add_ps(_mm512_load_ps(st.l + i * LANES));
        relay_cpu_rows_end(&st.rows, i, st.o + i * st.dvp, st.m[i], l);
    }
}

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
    .block_tokens = BLOCK,
    .packed_rows_max = 512,
    .scratch_bytes = scratch_bytes,
    .attend = attend,
};
