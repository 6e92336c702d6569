/* Units of up to 16 packed rows: memory-bound, so a warp multiplies its own 16 tokens of each tile
 * with all rows and meets the other warps only at the end.
 *
 * Products are taken the other way round: tokens, and then dims, are the 16 rows of mma, and packed
 * rows its columns, one block of 8 or two. So eight rows or fewer, as most decode steps have, cost
 * half of what 16 do. A row's bits do not depend on how many blocks there are. Device code. */
#ifndef RELAY_CUDA_DEVICE_NARROW_CUH
#define RELAY_CUDA_DEVICE_NARROW_CUH

#include "cuda/device/append.cuh"
#include "cuda/device/f8.cuh"
#include "cuda/device/merge.cuh"

namespace relay
{

template <class C> __device__ __forceinline__ bool is_special(const relay_cuda_params &p)
{
    return C::SPECIAL && (p.softcap > 0.0f || p.slopes != nullptr);
}

/* What scores_finish() leaves to multiply scores with. */
template <class C> __device__ __forceinline__ float scale_of(const relay_cuda_params &p)
{
    return is_special<C>(p) ? 1.0f : p.scale_log2;
}

/* Keys of 16 tokens of the tile's rows from `row` on as A operands: dims 16 k .., and the next 16.
 */
template <class C>
__device__ __forceinline__ void keys_take(const worker<C> &w, uint32_t (&a)[2][4], uint32_t keys,
                                          uint32_t row, int k)
{
    const uint32_t token = row + (w.lane & 15);
    if constexpr (C::F8) {
        keys_open<C>(a, keys + stored_offset<C>(token, k + (w.lane >> 4)));
    } else {
        ldmatrix(a[0], keys + tile_offset<C>(token, 2 * k + (w.lane >> 4)));
        ldmatrix(a[1], keys + tile_offset<C>(token, 2 * k + 2 + (w.lane >> 4)));
    }
}

/* Values of 16 tokens as A operands: dims 16 c .. as its rows, and the next 16. With F8 rows g and
 * g + 8 are dims 2 g and 2 g + 1, otherwise g and g + 8. */
template <class C>
__device__ __forceinline__ void values_take(const worker<C> &w, uint32_t (&a)[2][4],
                                            uint32_t values, uint32_t row, int c)
{
    if constexpr (C::F8) {
        values_open<C>(a, values + stored_offset<C>(row + (w.lane & 15), c + (w.lane >> 4)));
    } else {
        const uint32_t token = row + (w.lane & 7) + (w.lane >> 4) * 8;
        const uint32_t chunk = 2 * c + ((w.lane >> 3) & 1);
        ldmatrix_trans(a[0], values + tile_offset<C>(token, chunk));
        ldmatrix_trans(a[1], values + tile_offset<C>(token, chunk + 2));
    }
}

/* One unit. A thread has columns 2 t and 2 t + 1 of each block (t =
 * lane % 4), of scores tokens g and g + 8 (g = lane / 4). */
template <class C> struct narrow_unit {
    using T = typename C::T;
    static constexpr int BLOCKS = 2; /* of eight packed rows, of which a unit may need but one */
    static constexpr int QUERIES = C::QUERIES_IN_REGISTERS ? C::D / 16 : 2;

    worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    uint32_t q[QUERIES][BLOCKS][2]; /* queries as B operands, 16 dims each */
    float back[BLOCKS][2];          /* F8: what scores are multiplied by */
    float o[C::D / 16][BLOCKS][4];
    column_state<BLOCKS> st;
    appended_row<C> appended; /* F8 */

    __device__ __forceinline__ narrow_unit(worker<C> &w_, const relay_cuda_unit &u_, uint32_t head_)
        : w(w_), u(u_), head(head_)
    {
    }

    /* Dims 16 k .. and the next 16 of the queries. */
    __device__ __forceinline__ void query_load(int to, int k)
    {
        uint32_t r[4];
        const uint32_t row = w.first_row + (w.lane & 7) + (w.lane >> 4) * 8;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t chunk = 2 * (k + i) + ((w.lane >> 3) & 1);
            ldmatrix(r, w.queries() + tile_offset<C>(row, chunk));
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                q[to + i][b][0] = r[2 * b];
                q[to + i][b][1] = r[2 * b + 1];
            }
        }
    }

    __device__ __forceinline__ void begin()
    {
        w.load_queries_late(u, head);
        if constexpr (C::F8) {
            const float mine = queries_open(w, head);
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int row = 8 * b + 2 * (w.lane & 3) + e;
                    back[b][e] = __shfl_sync(0xffffffffu, mine, 2 * row);
                }
            }
        }
        if (C::QUERIES_IN_REGISTERS) {
#pragma unroll
            for (int k = 0; k < QUERIES; k += 2) {
                query_load(k, k);
            }
        }
    }

    template <int B>
    __device__ __forceinline__ void scores_multiply(float (&s)[B][4], uint32_t keys)
    {
        float sums[2][B][4] = {}; /* two chains of products keep the pipeline fuller */
#pragma unroll
        for (int k = 0; k < C::D / 16; k += 2) {
            const int at = C::QUERIES_IN_REGISTERS ? k : 0;
            uint32_t a[2][4];
            if (!C::QUERIES_IN_REGISTERS) {
                query_load(0, k);
            }
            keys_take(w, a, keys, w.first_row, k);
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int b = 0; b < B; b++) {
                    mma_type<T>::mma(sums[i][b], a[i], q[at + i][b][0], q[at + i][b][1]);
                }
            }
        }
#pragma unroll
        for (int b = 0; b < B; b++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[b][e] = sums[0][b][e] + sums[1][b][e];
                s[b][e] *= C::F8 ? back[b][e % 2] : 1.0f;
            }
        }
    }

    /* Masks and transforms scores of tokens `token` .., where needed. */
    template <int B>
    __device__ __forceinline__ void scores_finish(float (&s)[B][4], uint32_t token) const
    {
        const bool masked = (u.flags & RELAY_CUDA_MASKED) != 0;
        const uint32_t first = token + (w.lane >> 2);
#pragma unroll
        for (int b = 0; b < B; b++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const uint32_t row = 8 * b + 2 * (w.lane & 3) + e;
                row_interval see = {u.token_begin, u.token_end};
                if (is_special<C>(w.p)) {
                    const row_slope slope = w.slopes()[row];
                    s[b][e] = score_transform(s[b][e], w.p, slope, first);
                    s[b][e + 2] = score_transform(s[b][e + 2], w.p, slope, first + 8);
                }
                if (masked) {
                    see = w.mine.intervals[w.warp][row];
                }
                s[b][e] = first - see.lo < see.hi - see.lo ? s[b][e] : -INFINITY;
                s[b][e + 2] = first + 8 - see.lo < see.hi - see.lo ? s[b][e + 2] : -INFINITY;
            }
        }
    }

    /* O += V P. */
    template <int B>
    __device__ __forceinline__ void values_multiply(const float (&s)[B][4], uint32_t values)
    {
        uint32_t weights[B][2];
#pragma unroll
        for (int b = 0; b < B; b++) {
            weights[b][0] = movmatrix(mma_type<T>::pack(s[b][0], s[b][1]));
            weights[b][1] = movmatrix(mma_type<T>::pack(s[b][2], s[b][3]));
        }
#pragma unroll
        for (int c = 0; c < C::D / 16; c += 2) {
            uint32_t a[2][4];
            values_take(w, a, values, w.first_row, c);
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int b = 0; b < B; b++) {
                    mma_type<T>::mma(o[c + i][b], a[i], weights[b][0], weights[b][1]);
                }
            }
        }
    }

    /* `plain`: every row sees all of the tile. */
    template <int B> __device__ __forceinline__ void tile(uint32_t token, bool plain, float scale)
    {
        float s[B][4];
        float alpha[B][2];
        scores_multiply<B>(s, w.key_tile(w.use_stage));
        if (__builtin_expect(!plain, 0)) {
            scores_finish<B>(s, token);
        }
        if (__builtin_expect(softmax_columns(s, scale, st, alpha), 0)) {
#pragma unroll
            for (int c = 0; c < C::D / 16; c++) {
#pragma unroll
                for (int b = 0; b < B; b++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        o[c][b][e] *= alpha[b][e % 2];
                    }
                }
            }
        }
        values_multiply<B>(s, w.value_tile(w.use_stage));
    }

    /* Leaves this warp's result where finish_rows() finds it. */
    __device__ __forceinline__ void leave(uint32_t stage)
    {
        const uint32_t g = w.lane >> 2;
        const float scale = value_scale(w, head);
        unsigned char *to = w.memory + stage * C::STAGE_BYTES;
        const result_place<C> place(w.first_row, 2 * (w.lane & 3), C::F8 ? 2 * g : g);
        __syncwarp(); /* the results may lie where the values of the last tile did */
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            if (8 * b >= u.packed_count) {
                break;
            }
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float sum = column_sum(st.sum[b][e]);
#pragma unroll
                for (int c = 0; c < C::D / 16; c++) {
                    const float lo = o[c][b][e];
                    const float hi = o[c][b][e + 2];
                    if (C::F8) {
                        *(float2 *)(to + place.at(2 * c, b, e)) =
                            make_float2(lo * scale, hi * scale);
                    } else {
                        *(float *)(to + place.at(2 * c, b, e)) = lo;
                        *(float *)(to + place.at(2 * c + 1, b, e)) = hi;
                    }
                }
                if (g == 0) {
                    w.mine.state[w.warp][8 * b + 2 * (w.lane & 3) + e] =
                        make_float2(st.max[b][e], sum);
                }
            }
        }
    }

    /* How many tiles from i on are plain, with nothing to do beside their products but to start a
     * tile of a run for each. */
    __device__ __forceinline__ uint32_t plain_tiles(uint32_t i, const uint2 &whole) const
    {
        const bool steady = w.ahead + 1 == C::STAGES && !w.fresh && !w.asked();
        return steady && u.packed_count <= 8 && i >= whole.x && i < whole.y
                   ? min(whole.y - i, w.run)
                   : 0;
    }

    /* Returns the stage that holds the warps' results (F8: the number after the last). */
    __device__ __forceinline__ uint32_t run()
    {
        const uint32_t tiles = u.tiles;
        const float scale = scale_of<C>(w.p);
        uint2 whole = make_uint2(u.whole_begin, u.whole_end);
        if ((u.flags & RELAY_CUDA_MASKED) != 0 || is_special<C>(w.p)) {
            whole = make_uint2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < C::D / 16 * BLOCKS * 4; i++) {
            o[i / (BLOCKS * 4)][i / 4 % BLOCKS][i % 4] = 0.0f;
        }
        column_reset(st);
        if constexpr (C::F8 && C::QUERIES_IN_REGISTERS) {
            if (w.appends(u, u.append_token, 1)) {
                append_fetch(w, u, head, 0, appended); /* long before it is needed */
            }
        }
        w.rows_begin(u, head);
        w.load_wait(w.ahead - 1);
        __syncwarp();
        begin();
#pragma unroll 1
        for (uint32_t i = 0; i < tiles; i++) {
            if constexpr (C::F8) {
                /* Most tiles, without the branches that the others take: with F8 instructions, not
                 * memory, are what there is too little of. */
#pragma unroll 1
                for (uint32_t n = plain_tiles(i, whole); n != 0; n--, i++) {
                    cp_async_wait<(C::STAGES > 2 ? C::STAGES - 2 : 0)>();
                    __syncwarp();
                    w.load_run();
                    tile<1>(0, true, scale);
                    w.stage_used();
                }
                if (i == tiles) {
                    break;
                }
            }
            const bool plain = i - whole.x < whole.y - whole.x;
            uint32_t token = 0;
            bool any = true;
            if (__builtin_expect(!plain, 0)) {
                token = w.warp_token(u, i);
                any = token < u.token_end && token + 16 > u.token_begin;
            }
            w.load_wait(w.ahead - 1);
            __syncwarp();
            w.load_more(C::STAGES);
            if constexpr (C::F8) {
                if (__builtin_expect(!plain, 0) && w.appends(u, token, 16)) {
                    if constexpr (C::QUERIES_IN_REGISTERS) {
                        append_convert(w, u, head, token, w.use_stage, appended);
                    } else { /* registers are short */
                        append_convert(w, u, head, token, w.use_stage);
                    }
                }
            }
            uint2 appended_rows = make_uint2(0, 0);
            uint32_t appended_page = 0;
            if constexpr (!C::F8) {
                if (__builtin_expect(!plain, 0)) {
                    appended_rows = w.appended_rows(u, token);
                    if (appended_rows.x < appended_rows.y) {
                        appended_page = w.page_of(u, token + appended_rows.x);
                    }
                }
            }
            if (any && u.packed_count <= 8) {
                tile<1>(token, plain, scale);
            } else if (any) {
                tile<2>(token, plain, scale);
            }
            if constexpr (!C::F8) {
                if (__builtin_expect(appended_rows.x < appended_rows.y, 0)) {
                    append_store(w, u, head, token, w.use_stage, appended_rows, appended_page);
                }
            }
            w.stage_used();
            if (__builtin_expect(w.asked(), 0)) {
                w.look_ahead_resolve();
            }
        }
        const uint32_t stage = C::F8 ? C::STAGES : w.stage_before(w.use_stage);
        leave(stage);
        if (w.head_warps() == 1) {
            __syncwarp();
        } else {
            w.group_barrier();
        }
        return stage;
    }
};

template <class C>
__device__ __forceinline__ uint32_t narrow(worker<C> &w, const relay_cuda_unit &u, uint32_t head)
{
    return narrow_unit<C>(w, u, head).run();
}

} // namespace relay

#endif
