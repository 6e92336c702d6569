/* Units of up to 64 packed rows (WIDE), by one warpgroup: a warp has 16 rows and all tokens of a
 * tile. With wgmma (but for F8) the scores of the next 64 tokens are computed while the softmax of
 * the current ones runs, so a stage is in use until the next tile's products have begun. Device
 * code. */
#ifndef RELAY_CUDA_DEVICE_WIDE_CUH
#define RELAY_CUDA_DEVICE_WIDE_CUH

#include "cuda/device/narrow.cuh"
#include "cuda/device/wgmma.cuh"

namespace relay
{

/* Queries as A operands: this warp's 16 rows. */
template <class C>
__device__ __forceinline__ void query_fragment(const worker<C> &w, uint32_t (&a)[4], int k)
{
    uint32_t row = w.first_row + (w.lane & 15);
    ldmatrix(a, w.queries() + tile_offset<C>(row, 2 * k + (w.lane >> 4)));
}

template <class C> struct query_registers {
    static constexpr int n = C::QUERIES_IN_REGISTERS ? C::D / 16 : 1;
    uint32_t a[n][4];
    float2 back; /* F8: what scores of this thread's two rows are multiplied by */
};

template <class C>
__device__ __forceinline__ void queries_begin(worker<C> &w, const relay_cuda_unit &u, uint32_t head,
                                              query_registers<C> &q)
{
    w.load_queries_late(u, head);
    if constexpr (C::F8) {
        const float mine = queries_open(w, head);
        q.back = make_float2(__shfl_sync(0xffffffffu, mine, (w.lane >> 2) * 2),
                             __shfl_sync(0xffffffffu, mine, (w.lane >> 2) * 2 + 16));
    }
    if (C::QUERIES_IN_REGISTERS) {
#pragma unroll
        for (int k = 0; k < query_registers<C>::n; k++) {
            query_fragment(w, q.a[k], k);
        }
    }
}

/* Dims 16 k .. of the queries. */
template <class C>
__device__ __forceinline__ void query_take(const worker<C> &w, const query_registers<C> &q,
                                           uint32_t (&a)[4], int k)
{
    if (C::QUERIES_IN_REGISTERS) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = q.a[C::QUERIES_IN_REGISTERS ? k : 0][i];
        }
    } else {
        query_fragment(w, a, k);
    }
}

/* S[16 rows][n * 8 tokens] of the tile's rows from `row` on, by mma.sync. */
template <class C, int n>
__device__ __forceinline__ void scores_multiply(const worker<C> &w, const query_registers<C> &q,
                                                uint32_t keys, uint32_t row, float (&s)[n][4])
{
    const uint32_t token = row + (w.lane & 7) + (w.lane >> 4) * 8;
    /* Few columns make few chains of products; two sums each keep the pipeline fuller. */
    constexpr int chains = n <= 2 ? 2 : 1;
    float sums[chains][n][4];
#pragma unroll
    for (int i = 0; i < chains * n * 4; i++) {
        sums[i / (n * 4)][i / 4 % n][i % 4] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        uint32_t a[4];
        query_take(w, q, a, k);
#pragma unroll
        for (int j = 0; j < n; j += 2) {
            uint32_t b[4];
            ldmatrix(b, keys + tile_offset<C>(token + 8 * j, 2 * k + ((w.lane >> 3) & 1)));
            mma_type<typename C::T>::mma(sums[k % chains][j], a, b[0], b[1]);
            mma_type<typename C::T>::mma(sums[k % chains][j + 1], a, b[2], b[3]);
        }
    }
#pragma unroll
    for (int j = 0; j < n; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[j][e] = chains == 2 ? sums[0][j][e] + sums[chains - 1][j][e] : sums[0][j][e];
        }
    }
}

/* O += P V for 16 tokens of the tile from `row` on. */
template <class C>
__device__ __forceinline__ void values_multiply(const worker<C> &w, const uint32_t (&a)[4],
                                                uint32_t values, uint32_t row,
                                                float (&o)[C::D / 8][4])
{
    const uint32_t token = row + (w.lane & 15);
#pragma unroll
    for (int j = 0; j < C::D / 8; j += 2) {
        uint32_t b[4];
        ldmatrix_trans(b, values + tile_offset<C>(token, j + (w.lane >> 4)));
        mma_type<typename C::T>::mma(o[j], a, b[0], b[1]);
        mma_type<typename C::T>::mma(o[j + 1], a, b[2], b[3]);
    }
}

/* Masks and transforms the scores of n * 8 tokens from `token` on, where needed. */
template <class C, int n>
__device__ __forceinline__ void scores_finish(const worker<C> &w, const relay_cuda_unit &u,
                                              uint32_t token, float (&s)[n][4])
{
    if (is_special<C>(w.p)) {
        scores_transform(s, w.p, w.slopes(), token);
    }
    if ((u.flags & RELAY_CUDA_MASKED) != 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            row_interval see = w.mine.intervals[w.warp][(w.lane >> 2) + 8 * r];
            scores_mask(s, r, see.lo, see.hi, token);
        }
    } else if (token < u.token_begin || token + 8 * n > u.token_end) {
        scores_mask(s, 0, u.token_begin, u.token_end, token);
        scores_mask(s, 1, u.token_begin, u.token_end, token);
    }
}

/* With F8: undoes what queries_begin() did to the queries, and scales the keys. */
template <class C, int n>
__device__ __forceinline__ void scores_scale(const query_registers<C> &q, float (&s)[n][4])
{
    if (C::F8) {
#pragma unroll
        for (int j = 0; j < n; j++) {
            s[j][0] *= q.back.x;
            s[j][1] *= q.back.x;
            s[j][2] *= q.back.y;
            s[j][3] *= q.back.y;
        }
    }
}

template <class C> struct wide_mma {
    static constexpr int n = C::D <= 128 ? 8 : C::F8 ? 2 : 4; /* blocks of 8 tokens at a time */

    static __device__ __forceinline__ void run(worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head)
    {
        query_registers<C> q;
        float o[C::D / 8][4];
        row_state st;
        const uint32_t tiles = u.tiles;
        const float scale = scale_of<C>(w.p);
        sums_reset(o, st);
        w.rows_begin(u, head);
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) {
            w.load_wait(w.ahead - 1);
            w.group_barrier();
            if (tile == 0) {
                queries_begin(w, u, head, q);
            }
            const uint32_t stage = w.use_stage;
            uint32_t keys = w.key_tile(stage);
            uint32_t values = w.value_tile(stage);
            if constexpr (C::F8) {
                /* A warp opens the tokens it loaded; the barrier above says that nobody needs the
                 * tile before any more. */
                const uint32_t mine = w.warp_token(u, tile);
                if (w.appends(u, mine, 16)) {
                    append_convert(w, u, head, mine, stage);
                }
                tile_open(w, stage);
                w.group_barrier();
                w.stage_used();
                keys = w.opened_keys();
                values = w.opened_values();
            }
            const uint32_t token = w.first_token(u) + tile * RELAY_CUDA_STEP_TOKENS;
            w.load_more(C::STAGES);
            if constexpr (!C::F8) {
                append_tile(w, u, head, w.warp_token(u, tile), stage);
            }
#pragma unroll 1
            for (uint32_t part = 0; part < 64; part += 8 * n) {
                float s[n][4];
                float alpha[2];
                scores_multiply(w, q, keys, part, s);
                scores_scale(q, s);
                scores_finish(w, u, token + part, s);
                if (softmax(s, scale, st, alpha)) {
                    rescale(o, alpha);
                }
#pragma unroll
                for (int t = 0; t < n / 2; t++) {
                    uint32_t a[4];
                    weights_pack<typename C::T>(a, s, t);
                    values_multiply(w, a, values, part + 16 * t, o);
                }
            }
            if constexpr (!C::F8) {
                w.stage_used();
            }
            if (w.asked()) {
                w.look_ahead_resolve();
            }
        }
        wide_end(w, u, head, C::F8 ? C::STAGES : w.stage_before(w.use_stage), o, st,
                 value_scale(w, head));
    }
};

/* Begins products with the 64 keys at shared address `keys`, */
template <class C>
__device__ __forceinline__ void wide_scores(float (&s)[8][4], const query_registers<C> &q,
                                            uint32_t keys)
{
    const uint32_t tile = wgmma_tile(keys, 16);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::D / 16; k++) {
        const uint32_t at = k / 4 * C::PLANE_BYTES + k % 4 * 32;
        wgmma_type<typename C::T>::scores(s, q.a[k], wgmma_from(tile, at), k != 0);
    }
    wgmma_commit();
}

/* and of weights with the 64 values at `values`. */
template <class C>
__device__ __forceinline__ void wide_values(float (&o)[C::D / 8][4], const uint32_t (&a)[4][4],
                                            uint32_t values)
{
    const uint32_t tile = wgmma_tile(values, C::PLANE_BYTES);
    wgmma_fence();
#pragma unroll
    for (int t = 0; t < 4; t++) {
        wgmma_type<typename C::T>::values(o, a[t], wgmma_from(tile, t * 2048), 1);
    }
    wgmma_commit();
}

template <class C> struct wide_wgmma {
    using T = typename C::T;

    worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    query_registers<C> q;
    float o[C::D / 8][4];
    row_state st;

    __device__ __forceinline__ wide_wgmma(worker<C> &worker_, const relay_cuda_unit &unit,
                                          uint32_t head_)
        : w(worker_), u(unit), head(head_)
    {
    }

    /* The copies of part i > 0 are there, and the stage of part i - 2 is free. */
    __device__ __forceinline__ void part_next(uint32_t i)
    {
        /* In use or waited for: part i, the one before, and the one before that, done by now. */
        w.load_wait(w.ahead - (i != 1 ? 3 : 2));
        fence_proxy_async();
        w.group_barrier();
        w.ahead -= i != 1 ? 1 : 0;
        w.use_stage = w.stage_after(w.use_stage);
    }

    /* Softmax of part i (its scores in s), and its product with the values; the next part's scores
     * are under way. */
    __device__ __forceinline__ void weigh(float (&s)[8][4], float (&next)[8][4], uint32_t i,
                                          uint32_t stage)
    {
        const bool masked = (u.flags & RELAY_CUDA_MASKED) != 0;
        if (__builtin_expect(masked || i < u.whole_begin || i >= u.whole_end, 0)) {
            scores_finish(w, u, w.first_token(u) + i * RELAY_CUDA_STEP_TOKENS, s);
        }
        float alpha[2];
        uint32_t a[4][4];
        const bool grown = softmax(s, w.p.scale_log2, st, alpha);
        /* The weights before the wait: they are what the scores are to hide. The compiler moves a
         * wait to the beginning of its block of code, and this branch ends the block before. One
         * wait in either branch of `grown` would do, but a warpgroup must wait by one instruction;
         * and to pack weights after it lets ptxas (CUDA 13.0) take the registers of the queries. */
        wgmma_results(s);
        if (__builtin_expect(w.asked(), 0)) {
            w.look_ahead_resolve();
        }
#pragma unroll
        for (int t = 0; t < 4; t++) {
            weights_pack<T>(a[t], s, t);
        }
        wgmma_wait<0>();
        wgmma_results(o);
        wgmma_results(next);
        if (__builtin_expect(grown, 0)) {
            rescale(o, alpha);
        }
        wide_values<C>(o, a, w.value_tile(stage) + w.group * 64 * 128);
    }

    __device__ __forceinline__ void run()
    {
        float s[8][4];
        float next[8][4];
        sums_reset(o, st);
        w.rows_begin(u, head);
        w.load_wait(w.ahead - 1);
        fence_proxy_async();
        w.group_barrier();
        queries_begin(w, u, head, q);
        /* One loop from the first scores to the last weights: code that is written once stays in
         * the instruction cache, which two warpgroups at different work fill soon. */
#pragma unroll 1
        for (uint32_t i = 0;; i++) {
            const uint32_t stage = w.use_stage; /* of part i - 1 */
            if (i != 0) {
                wgmma_wait<0>(); /* for the products of part i - 2 with their values */
                wgmma_results(o);
                if (i < u.tiles) {
                    part_next(i);
                }
            }
            /* After the last part: the same scores again, and nobody looks at them. */
            wide_scores(next, q, w.key_tile(w.use_stage) + w.group * 64 * 128);
            if (i < u.tiles) {
                w.load_more(C::STAGES);
            }
            if (i == 0) {
                append_all(w, u, head);
                wgmma_wait<0>();
                wgmma_results(next);
            } else {
                weigh(s, next, i - 1, stage);
                if (i == u.tiles) {
                    break;
                }
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[j][e] = next[j][e];
                }
            }
        }
        wgmma_wait<0>();
        wgmma_results(o);
        w.ahead -= u.tiles > 1 ? 1 : 0; /* the part before the last */
        w.stage_used();
        wide_end(w, u, head, w.stage_before(w.use_stage), o, st);
    }
};

/* With wgmma, for K/V as F8: a warp opens the tokens it loaded as F16, for all of the warpgroup,
 * once nobody's products need the tile before any more; tile after tile. */
template <class C> struct wide_wgmma_f8 {
    using T = typename C::T;

    worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    query_registers<C> q;
    float o[C::D / 8][4];
    row_state st;

    __device__ __forceinline__ wide_wgmma_f8(worker<C> &worker_, const relay_cuda_unit &unit,
                                             uint32_t head_)
        : w(worker_), u(unit), head(head_)
    {
    }

    /* Tile i is there, opened, and its stage free. */
    __device__ __forceinline__ void tile_next(uint32_t i)
    {
        const uint32_t mine = w.warp_token(u, i);
        w.load_wait(w.ahead - 1);
        wgmma_wait<0>();
        wgmma_results(o);
        w.group_barrier();
        if (__builtin_expect(w.appends(u, mine, 16), 0)) {
            append_convert(w, u, head, mine, w.use_stage);
        }
        tile_open(w, w.use_stage);
        fence_proxy_async();
        w.group_barrier();
        w.stage_used();
        w.load_more(C::STAGES);
    }

    __device__ __forceinline__ void run()
    {
        sums_reset(o, st);
        w.rows_begin(u, head);
        w.load_wait(w.ahead - 1);
        __syncwarp();
        queries_begin(w, u, head, q);
#pragma unroll 1
        for (uint32_t i = 0; i < u.tiles; i++) {
            float s[8][4];
            float alpha[2];
            uint32_t a[4][4];
            tile_next(i);
            wide_scores(s, q, w.opened_keys());
            wgmma_wait<0>();
            wgmma_results(s);
            scores_scale(q, s);
            scores_finish(w, u, w.first_token(u) + i * RELAY_CUDA_STEP_TOKENS, s);
            if (softmax(s, scale_of<C>(w.p), st, alpha)) {
                rescale(o, alpha);
            }
#pragma unroll
            for (int t = 0; t < 4; t++) {
                weights_pack<T>(a[t], s, t);
            }
            wgmma_results(o);
            wide_values<C>(o, a, w.opened_values());
            if (__builtin_expect(w.asked(), 0)) {
                w.look_ahead_resolve();
            }
        }
        wgmma_wait<0>();
        wgmma_results(o);
        wide_end(w, u, head, C::STAGES, o, st, value_scale(w, head));
    }
};

} // namespace relay

#endif
