/* Units of up to 16 packed rows: memory-bound, so a warp multiplies its own 16 tokens of each tile
 * with all rows and meets the other warps only at the end. Device code. */
#ifndef RELAY_CUDA_DEVICE_NARROW_CUH
#define RELAY_CUDA_DEVICE_NARROW_CUH

#include "cuda/device/f8.cuh"
#include "cuda/device/merge.cuh"

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
    if (!C::QUERIES_IN_REGISTERS) {
        w.load_queries(w.query_place(u, head));
        cp_async_commit();
        cp_async_wait<0>();
        __syncwarp();
    }
    if constexpr (C::F8) {
        q.back = queries_open(w, head);
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

template <class C> __device__ __forceinline__ bool is_special(const relay_cuda_params &p)
{
    return C::SPECIAL && (p.softcap > 0.0f || p.slopes != nullptr);
}

/* What scores_finish() leaves to multiply scores with. */
template <class C> __device__ __forceinline__ float scale_of(const relay_cuda_params &p)
{
    return is_special<C>(p) ? 1.0f : p.scale_log2;
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

/* Leaves this warp's result where finish_rows() finds it. */
template <class C>
__device__ __forceinline__ void narrow_leave(const worker<C> &w, uint32_t head, uint32_t count,
                                             uint32_t stage, const float (&o)[C::D / 8][4],
                                             const row_state &st)
{
    const uint32_t g = w.lane >> 2;
    unsigned char *to = w.memory + stage * C::STAGE_BYTES;
    const float scale = value_scale(w, head);
    __syncwarp(); /* the results lie where the values of the last tile did */
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        if (8 * r >= count) {
            break;
        }
        float sum = quad_sum(st.sum[r]);
        if (g + 8 * r >= count) {
            continue;
        }
        if (C::F8) {
#pragma unroll
            for (uint32_t c = 0; c < C::D / 16; c++) {
                const float *even = o[2 * c] + 2 * r;
                const float *odd = o[2 * c + 1] + 2 * r;
                *(float4 *)(to + result_offset<C>(w.first_row, g + 8 * r, 4 * c + (w.lane & 3))) =
                    make_float4(even[0] * scale, odd[0] * scale, even[1] * scale, odd[1] * scale);
            }
        } else {
#pragma unroll
            for (uint32_t j = 0; j < C::D / 8; j++) {
                uint32_t column = 8 * j + 2 * (w.lane & 3);
                *(float2 *)(to + result_offset<C>(w.first_row, g + 8 * r, column >> 2) +
                            (column & 2) * 4) = make_float2(o[j][2 * r], o[j][2 * r + 1]);
            }
        }
        if ((w.lane & 3) == 0) {
            w.mine.state[w.warp][g + 8 * r] = make_float2(st.max[r], sum);
        }
    }
}

/* One tile of a unit; `plain`: every row sees all of it. */
template <class C>
__device__ __forceinline__ void narrow_tile(worker<C> &w, const relay_cuda_unit &u, uint32_t head,
                                            uint32_t token, bool plain, float scale,
                                            const query_registers<C> &q, float (&o)[C::D / 8][4],
                                            row_state &st)
{
    float s[2][4];
    float alpha[2];
    uint32_t a[4];
    if constexpr (C::F8) {
        if (__builtin_expect(!plain, 0)) {
            w.tile_append(u, head, token, w.use_stage);
        }
        const auto query = [&](uint32_t(&to)[4], int k) { query_take(w, q, to, k); };
        scores_multiply_f8(w, query, w.key_tile(w.use_stage), w.first_row, s);
        scores_scale(q, s);
    } else {
        scores_multiply(w, q, w.key_tile(w.use_stage), w.first_row, s);
    }
    if (__builtin_expect(!plain, 0)) {
        scores_finish(w, u, token, s);
        if constexpr (!C::F8) {
            w.tile_append(u, head, token, w.use_stage);
        }
    }
    if (__builtin_expect(softmax(s, scale, st, alpha), 0)) {
        rescale(o, alpha);
    }
    weights_pack<typename C::T>(a, s, 0);
    if constexpr (C::F8) {
        values_multiply_f8(w, a, w.value_tile(w.use_stage), w.first_row, o);
    } else {
        values_multiply(w, a, w.value_tile(w.use_stage), w.first_row, o);
    }
}

/* Returns the stage that holds the warps' results (F8: the number after the last). */
template <class C>
__device__ __forceinline__ uint32_t narrow(worker<C> &w, const relay_cuda_unit &u, uint32_t head)
{
    query_registers<C> q;
    float o[C::D / 8][4];
    row_state st;
    const uint32_t tiles = w.num_tiles(u);
    const float scale = scale_of<C>(w.p);
    uint2 whole = w.whole_tiles(u);
    if ((u.flags & RELAY_CUDA_MASKED) != 0 || is_special<C>(w.p)) {
        whole = make_uint2(0, 0);
    }
#pragma unroll
    for (int j = 0; j < C::D / 8; j++) {
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.0f;
    }
    state_reset(st);
    w.rows_begin(u, head);
    w.load_wait(w.ahead - 1);
    __syncwarp();
    queries_begin(w, u, head, q);
#pragma unroll 1
    for (uint32_t tile = 0; tile < tiles; tile++) {
        const bool plain = tile - whole.x < whole.y - whole.x;
        uint32_t token = 0;
        bool any = true;
        if (__builtin_expect(!plain, 0)) {
            token = w.warp_token(u, tile);
            any = token < u.token_end && token + 16 > u.token_begin;
        }
        w.load_wait(w.ahead - 1);
        __syncwarp();
        w.load_more(C::STAGES);
        if (any) {
            narrow_tile(w, u, head, token, plain, scale, q, o, st);
        }
        w.stage_used();
        if (__builtin_expect(w.asked, 0)) {
            w.look_ahead_resolve();
        }
    }
    /* F8: the place behind the stages. */
    const uint32_t stage = C::F8 ? C::STAGES : w.use_stage == 0 ? C::STAGES - 1 : w.use_stage - 1;
    narrow_leave(w, head, u.packed_count, stage, o, st);
    if (w.head_warps() == 1) {
        __syncwarp();
    } else {
        w.group_barrier();
    }
    return stage;
}

} // namespace relay

#endif
