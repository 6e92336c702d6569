/* Attention of one item for one KV head, in portable C. Runs on the pool's threads; all it writes
 * is its scratch and its partial results.
 *
 * Packed rows are (row, query head of the group) pairs, row-major; they are walked in tiles of
 * four, one per lane of the softmax. K/V is walked in blocks on the grid that starts at the
 * segment's first token; a block is converted to float32 once and then read by every tile.
 *
 *   scores   s[t] = q . k[t] per lane: four partial sums over dims 0,4,8.. / 1,5,9.. / .., then
 *            (0 + 2) + (1 + 3)
 *   softmax  running maximum m and sum l per lane, base 2, vertical over the block's tokens
 *   values   o = o * 2^(m_old - m) + sum over t, in token order, of p[t] * v[t]
 *
 * A packed row's operations and their order depend on its own interval alone: how many rows share a
 * tile, an item or a launch changes only which of these run side by side. Tokens outside a row's
 * interval get p = 0, which changes neither m nor l, and are left out of the values loop, so that a
 * NaN there cannot come through as 0 * NaN. */
#include "cpu/attend_rows.h"
#include "cpu/lanes.h"

#include <stdbool.h>
#include <string.h>

/* Floats between two token rows of a block beyond the row itself: keeps the columns that the values
 * loop walks out of a few cache sets when the head dim is a power of two. */
#define ROW_PAD 16u

/* Everything one call of attend needs, laid out once. n = packed rows, n4 = up to whole tiles. */
struct state {
    struct relay_cpu_rows rows;
    const struct relay_shape *shape;
    uint32_t block_tokens;
    size_t k_stride; /* floats */
    size_t v_stride;
    float *q;       /* [n4,dqk] scaled */
    float *o;       /* [n4,dv] */
    float *m;       /* [n4] */
    float *l;       /* [n4] */
    float *k_block; /* [block_tokens,k_stride] */
    float *v_block; /* [block_tokens,v_stride] */
    float *s;       /* [block_tokens,4] scores, a lane per row */
    float *p;       /* [block_tokens,4,4] weights, each repeated in four lanes */
};

/* A block as the tiles see it: tokens [begin, end) of the segment, K of token t at
 * k + (t - begin) * k_stride. */
struct block {
    uint32_t begin;
    uint32_t end;
    const float *k;
    const float *v;
    size_t k_stride;
    size_t v_stride;
};

static size_t up_to(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

static size_t scratch_layout(struct state *st, unsigned char *base, uint32_t packed_rows)
{
    const struct relay_layer_kind *kind = &st->shape->kind;
    size_t n4 = up_to(packed_rows, LANES);
    size_t tokens = st->block_tokens;
    size_t used = 0;
    relay_cpu_rows_layout(&st->rows, st->shape, base, &used, (uint32_t)n4);
    st->k_stride = st->rows.dqk + ROW_PAD;
    st->v_stride = kind->v_from_k ? st->k_stride : st->rows.dv + ROW_PAD;
    st->m = relay_cpu_carve(base, &used, n4 * sizeof(float));
    st->l = relay_cpu_carve(base, &used, n4 * sizeof(float));
    st->s = relay_cpu_carve(base, &used, tokens * LANES * sizeof(float));
    st->p = relay_cpu_carve(base, &used, tokens * LANES * LANES * sizeof(float));
    st->k_block = relay_cpu_carve(base, &used, tokens * st->k_stride * sizeof(float));
    st->v_block = kind->v_from_k
                      ? st->k_block
                      : relay_cpu_carve(base, &used, tokens * st->v_stride * sizeof(float));
    st->q = relay_cpu_carve(base, &used, n4 * st->rows.dqk * sizeof(float));
    st->o = relay_cpu_carve(base, &used, n4 * st->rows.dv * sizeof(float));
    return used;
}

static size_t portable_scratch_bytes(const struct relay_shape *shape, uint32_t packed_rows,
                                     uint32_t block_tokens)
{
    struct state st = {.shape = shape, .block_tokens = block_tokens};
    return scratch_layout(&st, NULL, packed_rows);
}

/* ---- rows --------------------------------------------------------------------------------------
 */

/* Scales and packs q, empties the running state; lanes without a row do what their neighbour does.
 */
static void rows_begin(struct state *st, const struct relay_cpu_attend *work)
{
    struct relay_cpu_rows *rows = &st->rows;
    size_t n4 = up_to(rows->n, LANES);
    relay_cpu_rows_begin(rows, work, (uint32_t)n4);
    for (uint32_t i = 0; i < rows->n; i++) {
        relay_dtype_convert(RELAY_DTYPE_F32, st->q + i * rows->dqk, st->shape->io_dtype,
                            relay_cpu_rows_q(rows, i), rows->dqk);
    }
    for (size_t i = 0; i < rows->n * rows->dqk; i++) {
        st->q[i] *= rows->score_scale;
    }
    memset(st->q + rows->n * rows->dqk, 0, (n4 - rows->n) * rows->dqk * sizeof(float));
    memset(st->o, 0, n4 * rows->dv * sizeof(float));
    for (size_t i = 0; i < n4; i++) {
        st->m[i] = -INFINITY;
        st->l[i] = 0.0f;
    }
}

/* ---- blocks ------------------------------------------------------------------------------------
 */

static void convert(float *dst, size_t dst_stride, enum relay_dtype dtype, const void *src,
                    size_t dim, uint32_t tokens)
{
    if (dtype == RELAY_DTYPE_BF16) {
        const uint16_t *half = src;
        for (uint32_t t = 0; t < tokens; t++) {
            float *to = dst + t * dst_stride;
            for (size_t i = 0; i < dim; i++) {
                uint32_t bits = (uint32_t)half[t * dim + i] << 16;
                memcpy(&to[i], &bits, sizeof(bits));
            }
        }
        return;
    }
    size_t row_bytes = dim * relay_dtype_size(dtype);
    for (uint32_t t = 0; t < tokens; t++) {
        relay_dtype_convert(RELAY_DTYPE_F32, dst + t * dst_stride, dtype,
                            (const unsigned char *)src + t * row_bytes, dim);
    }
}

/* K or V rows of tokens [begin, end): in place when they are float32 and lie side by side, else
 * converted into room. */
static const float *block_rows(const struct state *st, uint32_t begin, uint32_t end, bool v,
                               float *room, size_t *stride)
{
    size_t dim = v ? st->rows.dv : st->rows.dqk;
    enum relay_dtype dtype = st->shape->kv_dtype;
    uint32_t count;
    for (uint32_t t = begin; t < end; t += count) {
        const unsigned char *src = relay_cpu_page_run(&st->rows, v, t, end, &count);
        if (dtype == RELAY_DTYPE_F32 && count == end - begin && (uintptr_t)src % 16 == 0) {
            *stride = dim;
            return (const float *)(const void *)src;
        }
        convert(room + (t - begin) * *stride, *stride, dtype, src, dim, count);
    }
    return room;
}

static void block_load(const struct state *st, uint32_t begin, uint32_t end, struct block *block)
{
    block->begin = begin;
    block->end = end;
    block->k_stride = st->k_stride;
    block->v_stride = st->v_stride;
    block->k = block_rows(st, begin, end, false, st->k_block, &block->k_stride);
    if (st->shape->kind.v_from_k) {
        block->v = block->k;
        block->v_stride = block->k_stride;
    } else {
        block->v = block_rows(st, begin, end, true, st->v_block, &block->v_stride);
    }
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* nr rows against nt tokens; nr and nt are constants at every call. */
LANES_INLINE void scores_at(uint32_t nr, uint32_t nt, size_t dqk, const float *q, const float *k,
                            size_t k_stride, float *s)
{
    v4f acc[LANES][8] = {{{0.0f}}};
    for (size_t d = 0; d < dqk; d += LANES) {
        v4f row[LANES];
        for (uint32_t i = 0; i < nr; i++) {
            row[i] = lanes_load(q + i * dqk + d);
        }
        for (uint32_t j = 0; j < nt; j++) {
            v4f key = lanes_load(k + j * k_stride + d);
            for (uint32_t i = 0; i < nr; i++) {
                acc[i][j] += row[i] * key;
            }
        }
    }
    for (uint32_t j = 0; j < nt; j++) {
        lanes_store(s + j * LANES, lanes_sum4(acc[0][j], acc[1][j], acc[2][j], acc[3][j]));
    }
}

LANES_INLINE void scores_loop(uint32_t nr, uint32_t nt, size_t dqk, const float *q, const float *k,
                              size_t k_stride, uint32_t tokens, float *s)
{
    uint32_t t = 0;
    for (; t + nt <= tokens; t += nt) {
        scores_at(nr, nt, dqk, q, k + t * k_stride, k_stride, s + t * LANES);
    }
    for (; t < tokens; t++) {
        scores_at(nr, 1, dqk, q, k + t * k_stride, k_stride, s + t * LANES);
    }
}

/* scores_at(4, 2, ..), the one that most of the time goes to: named, because arrays of this size
 * make compilers load the rows anew for each token. */
LANES_INLINE void scores_at_4x2(size_t dqk, const float *q, const float *k, size_t k_stride,
                                float *s)
{
    const v4f zero = lanes_splat(0.0f);
    v4f a0 = zero, a1 = zero, a2 = zero, a3 = zero; /* first token, by row */
    v4f b0 = zero, b1 = zero, b2 = zero, b3 = zero; /* second token */
    for (size_t d = 0; d < dqk; d += LANES) {
        v4f key_a = lanes_load(k + d);
        v4f key_b = lanes_load(k + k_stride + d);
        v4f row = lanes_load(q + d);
        a0 += row * key_a;
        b0 += row * key_b;
        row = lanes_load(q + dqk + d);
        a1 += row * key_a;
        b1 += row * key_b;
        row = lanes_load(q + 2 * dqk + d);
        a2 += row * key_a;
        b2 += row * key_b;
        row = lanes_load(q + 3 * dqk + d);
        a3 += row * key_a;
        b3 += row * key_b;
    }
    lanes_store(s, lanes_sum4(a0, a1, a2, a3));
    lanes_store(s + LANES, lanes_sum4(b0, b1, b2, b3));
}

static void scores_4(size_t dqk, const float *q, const float *k, size_t k_stride, uint32_t tokens,
                     float *s)
{
    uint32_t t = 0;
    for (; t + 2 <= tokens; t += 2) {
        scores_at_4x2(dqk, q, k + t * k_stride, k_stride, s + t * LANES);
    }
    if (t < tokens) {
        scores_at(4, 1, dqk, q, k + t * k_stride, k_stride, s + t * LANES);
    }
}

static void scores(uint32_t nr, size_t dqk, const float *q, const float *k, size_t k_stride,
                   uint32_t tokens, float *s)
{
    if (nr > 2) {
        scores_4(dqk, q, k, k_stride, tokens, s);
    } else if (nr == 2) {
        scores_loop(2, 4, dqk, q, k, k_stride, tokens, s);
    } else {
        scores_loop(1, 8, dqk, q, k, k_stride, tokens, s);
    }
}

/* nr rows, dims [0, 4 nd) of o; p is [tokens,4,4]. nr and nd are constants at every call. */
LANES_INLINE void values_at(uint32_t nr, uint32_t nd, const float *p, const float *v,
                            size_t v_stride, uint32_t tokens, float *o, size_t dv)
{
    v4f acc[LANES][8];
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            acc[i][j] = lanes_load(o + i * dv + j * LANES);
        }
    }
    for (uint32_t t = 0; t < tokens; t++) {
        v4f weight[LANES];
        for (uint32_t i = 0; i < nr; i++) {
            weight[i] = lanes_load(p + (t * LANES + i) * LANES);
        }
        for (uint32_t j = 0; j < nd; j++) {
            v4f value = lanes_load(v + t * v_stride + j * LANES);
            for (uint32_t i = 0; i < nr; i++) {
                acc[i][j] += weight[i] * value;
            }
        }
    }
    for (uint32_t i = 0; i < nr; i++) {
        for (uint32_t j = 0; j < nd; j++) {
            lanes_store(o + i * dv + j * LANES, acc[i][j]);
        }
    }
}

LANES_INLINE void values_loop(uint32_t nr, uint32_t nd, const float *p, const float *v,
                              size_t v_stride, uint32_t tokens, float *o, size_t dv)
{
    size_t d = 0;
    for (; d + nd * LANES <= dv; d += nd * LANES) {
        values_at(nr, nd, p, v + d, v_stride, tokens, o + d, dv);
    }
    for (; d < dv; d += 2 * LANES) {
        values_at(nr, 2, p, v + d, v_stride, tokens, o + d, dv);
    }
}

/* values_loop(4, 2, ..), named as scores_at_4x2 is. */
static void values_4(const float *p, const float *v, size_t v_stride, uint32_t tokens, float *o,
                     size_t dv)
{
    const float *p_end = p + (size_t)tokens * LANES * LANES;
    for (size_t d = 0; d < dv; d += 2 * LANES, o += 2 * LANES) {
        const float *value = v + d;
        v4f a0 = lanes_load(o), b0 = lanes_load(o + LANES);
        v4f a1 = lanes_load(o + dv), b1 = lanes_load(o + dv + LANES);
        v4f a2 = lanes_load(o + 2 * dv), b2 = lanes_load(o + 2 * dv + LANES);
        v4f a3 = lanes_load(o + 3 * dv), b3 = lanes_load(o + 3 * dv + LANES);
        for (const float *w = p; w != p_end; w += LANES * LANES, value += v_stride) {
            v4f value_a = lanes_load(value);
            v4f value_b = lanes_load(value + LANES);
            v4f weight = lanes_load(w);
            a0 += weight * value_a;
            b0 += weight * value_b;
            weight = lanes_load(w + LANES);
            a1 += weight * value_a;
            b1 += weight * value_b;
            weight = lanes_load(w + 2 * LANES);
            a2 += weight * value_a;
            b2 += weight * value_b;
            weight = lanes_load(w + 3 * LANES);
            a3 += weight * value_a;
            b3 += weight * value_b;
        }
        lanes_store(o, a0);
        lanes_store(o + LANES, b0);
        lanes_store(o + dv, a1);
        lanes_store(o + dv + LANES, b1);
        lanes_store(o + 2 * dv, a2);
        lanes_store(o + 2 * dv + LANES, b2);
        lanes_store(o + 3 * dv, a3);
        lanes_store(o + 3 * dv + LANES, b3);
    }
}

static void values(uint32_t nr, const float *p, const float *v, size_t v_stride, uint32_t tokens,
                   float *o, size_t dv)
{
    if (nr > 2) {
        values_4(p, v, v_stride, tokens, o, dv);
    } else if (nr == 2) {
        values_loop(2, 4, p, v, v_stride, tokens, o, dv);
    } else {
        values_loop(1, 8, p, v, v_stride, tokens, o, dv);
    }
}

/* Softcap, ALiBi and masks on the scores of tokens [see.lo, see.hi) of a tile; s starts at see.lo.
 */
static void scores_adjust(const struct state *st, uint32_t tile, struct relay_cpu_interval see,
                          const struct relay_cpu_interval *lane)
{
    if (st->rows.softcap != 0.0f) {
        v4f cap = lanes_splat(st->rows.softcap);
        for (uint32_t t = 0; t < see.hi - see.lo; t++) {
            float *s = st->s + t * LANES;
            lanes_store(s, cap * lanes_tanh(lanes_load(s)));
        }
    }
    if (st->shape->kind.alibi_slopes != NULL) {
        v4f slope = lanes_load(st->rows.slope + tile);
        v4f origin = lanes_load(st->rows.origin + tile);
        for (uint32_t t = see.lo; t < see.hi; t++) {
            float *s = st->s + (t - see.lo) * LANES;
            lanes_store(s, lanes_load(s) + slope * (lanes_splat((float)t) - origin));
        }
    }
    for (uint32_t i = 0; i < LANES; i++) {
        for (uint32_t t = see.lo; t < lane[i].lo; t++) {
            st->s[(t - see.lo) * LANES + i] = -INFINITY;
        }
        for (uint32_t t = lane[i].hi; t < see.hi; t++) {
            st->s[(t - see.lo) * LANES + i] = -INFINITY;
        }
    }
}

/* Scores to weights p; m, l and o of the tile are moved to the new maximum. */
static void softmax(const struct state *st, uint32_t tile, uint32_t tokens)
{
    const v4f minus_inf = lanes_splat(-INFINITY);
    v4f m_old = lanes_load(st->m + tile);
    v4f m = m_old;
    for (uint32_t t = 0; t < tokens; t++) {
        m = lanes_max(m, lanes_load(st->s + t * LANES));
    }
    /* -inf - -inf would be NaN where a lane has seen nothing yet. */
    v4f from = (v4f)((v4i)m & ~(m == minus_inf));
    v4f sum = lanes_splat(0.0f);
    for (uint32_t t = 0; t < tokens; t++) {
        v4f p = lanes_exp2(lanes_load(st->s + t * LANES) - from);
        float *to = st->p + t * LANES * LANES;
        sum += p;
        lanes_store(to, __builtin_shufflevector(p, p, 0, 0, 0, 0));
        lanes_store(to + LANES, __builtin_shufflevector(p, p, 1, 1, 1, 1));
        lanes_store(to + 2 * LANES, __builtin_shufflevector(p, p, 2, 2, 2, 2));
        lanes_store(to + 3 * LANES, __builtin_shufflevector(p, p, 3, 3, 3, 3));
    }
    v4f alpha = lanes_exp2(m_old - from);
    lanes_store(st->l + tile, lanes_load(st->l + tile) * alpha + sum);
    lanes_store(st->m + tile, m);
    for (uint32_t i = 0; i < LANES; i++) {
        if (alpha[i] != 1.0f) { /* times 1 would change no bit */
            float *o = st->o + (tile + i) * st->rows.dv;
            v4f factor = lanes_splat(alpha[i]);
            for (size_t d = 0; d < st->rows.dv; d += LANES) {
                lanes_store(o + d, lanes_load(o + d) * factor);
            }
        }
    }
}

/* One tile of nr rows on one block. */
static void tile_block(const struct state *st, const struct block *block, uint32_t tile,
                       uint32_t nr)
{
    struct relay_cpu_interval lane[LANES];
    struct relay_cpu_interval all = {UINT32_MAX, 0};              /* some row sees these */
    struct relay_cpu_interval every = {block->begin, block->end}; /* every row sees these */
    for (uint32_t i = 0; i < LANES; i++) {
        struct relay_cpu_interval see = st->rows.see[tile + i];
        lane[i].lo = see.lo > block->begin ? see.lo : block->begin;
        lane[i].hi = see.hi < block->end ? see.hi : block->end;
        if (lane[i].lo >= lane[i].hi) {
            lane[i].lo = lane[i].hi = block->begin;
            every.hi = every.lo;
            continue;
        }
        all.lo = lane[i].lo < all.lo ? lane[i].lo : all.lo;
        all.hi = lane[i].hi > all.hi ? lane[i].hi : all.hi;
        every.lo = lane[i].lo > every.lo ? lane[i].lo : every.lo;
        every.hi = lane[i].hi < every.hi ? lane[i].hi : every.hi;
    }
    if (all.lo >= all.hi) {
        return;
    }
    for (uint32_t i = 0; i < LANES; i++) {
        if (lane[i].lo == lane[i].hi) {
            lane[i].lo = lane[i].hi = all.hi; /* masked from the first to the last */
        }
    }
    const float *k = block->k + (all.lo - block->begin) * block->k_stride;
    scores(nr, st->rows.dqk, st->q + tile * st->rows.dqk, k, block->k_stride, all.hi - all.lo,
           st->s);
    scores_adjust(st, tile, all, lane);
    softmax(st, tile, all.hi - all.lo);

    /* Where all rows agree, together; what only some see, row by row, in the same token order. */
    if (every.lo >= every.hi) {
        every.lo = every.hi = all.hi;
    }
    const float *v = block->v;
    for (uint32_t pass = 0; pass < 3; pass++) {
        if (pass == 1) {
            if (every.lo < every.hi) {
                values(nr, st->p + (every.lo - all.lo) * LANES * LANES,
                       v + (every.lo - block->begin) * block->v_stride, block->v_stride,
                       every.hi - every.lo, st->o + tile * st->rows.dv, st->rows.dv);
            }
            continue;
        }
        for (uint32_t i = 0; i < nr && i < LANES; i++) {
            uint32_t lo = pass == 0 ? lane[i].lo : (lane[i].lo > every.hi ? lane[i].lo : every.hi);
            uint32_t hi = pass == 0 ? (lane[i].hi < every.lo ? lane[i].hi : every.lo) : lane[i].hi;
            if (lo < hi) {
                values(1, st->p + ((lo - all.lo) * LANES + i) * LANES,
                       v + (lo - block->begin) * block->v_stride, block->v_stride, hi - lo,
                       st->o + (tile + i) * st->rows.dv, st->rows.dv);
            }
        }
    }
}

static void portable_attend(const struct relay_cpu_attend *work)
{
    const struct relay_problem *problem = work->problem;
    const struct relay_item *item = work->item;
    struct state st = {.shape = problem->shape, .block_tokens = problem->plan->block_tokens};
    relay_cpu_rows_of(&st.rows, work);
    scratch_layout(&st, work->scratch, st.rows.n);
    rows_begin(&st, work);
    for (uint32_t t = item->token_begin; t < item->token_end;) {
        uint32_t step = st.block_tokens - t % st.block_tokens; /* to the grid */
        uint32_t end = item->token_end - t < step ? item->token_end : t + step;
        struct block block;
        block_load(&st, t, end, &block);
        for (uint32_t tile = 0; tile < st.rows.n; tile += LANES) {
            uint32_t left = st.rows.n - tile;
            tile_block(&st, &block, tile, left < LANES ? left : LANES);
        }
        t = end;
    }
    for (uint32_t i = 0; i < st.rows.n; i++) {
        relay_cpu_rows_end(&st.rows, i, st.o + i * st.rows.dv, st.m[i], st.l[i]);
    }
}

const struct relay_cpu_isa relay_cpu_isa_portable = {
    .name = "portable",
    .block_tokens = 64,
    .packed_rows_max = 256,
    .scratch_bytes = portable_scratch_bytes,
    .attend = portable_attend,
    .merge = relay_cpu_merge_portable,
};
