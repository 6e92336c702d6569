/* Scores to weights: masks, softcap, ALiBi, and the online softmax of a tile in base 2.
 *
 * A thread has two rows (0: elements 0 and 1 of each four, 1: elements 2 and 3) and of every eight
 * columns two. The reference of exp2 moves only when the maximum has grown by more than 8, so
 * weights stay below 2^8 and sums are rarely rescaled; a row decides alone, so its bits do not
 * depend on its neighbours. Device code. */
#ifndef RELAY_CUDA_DEVICE_SOFTMAX_CUH
#define RELAY_CUDA_DEVICE_SOFTMAX_CUH

#include "cuda/device/tile.cuh"

namespace relay
{

#define RELAY_CUDA_LN2     0.69314718055994530942f
#define RELAY_CUDA_RESCALE 8.0f

struct row_state {
    float max[2]; /* the reference of exp2 */
    float sum[2]; /* of this thread's columns until the end */
};

/* Nothing seen yet; o: the sums of weights times values. */
template <int n> __device__ __forceinline__ void sums_reset(float (&o)[n][4], row_state &st)
{
#pragma unroll
    for (int j = 0; j < n; j++) {
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.0f;
    }
    st.max[0] = st.max[1] = -INFINITY;
    st.sum[0] = st.sum[1] = 0.0f;
}

__device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Softcap and ALiBi of a row's score of token `token` of the segment, to base 2. */
__device__ __forceinline__ float score_transform(float s, const relay_cuda_params &p,
                                                 const row_slope &row, uint32_t token)
{
    const float x = p.softcap > 0.0f ? p.softcap * tanhf(s * (p.scale / p.softcap)) : s * p.scale;
    return fmaf(row.slope, (float)((int)token - row.position), x * RELAY_CUDA_LOG2E);
}

/* The same for n * 8 tokens; column 0 is token `token` of the segment, rows[g] and rows[g + 8]
 * are this thread's. */
template <int n>
__device__ __forceinline__ void scores_transform(float (&s)[n][4], const relay_cuda_params &p,
                                                 const row_slope *rows, uint32_t token)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const row_slope row = rows[(lane >> 2) + 8 * r];
#pragma unroll
        for (int j = 0; j < n; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[j][2 * r + e] =
                    score_transform(s[j][2 * r + e], p, row, token + 2 * (lane & 3) + 8 * j + e);
            }
        }
    }
}

/* Takes away what row r of the thread does not see: tokens outside [lo, hi). */
template <int n>
__device__ __forceinline__ void scores_mask(float (&s)[n][4], int r, uint32_t lo, uint32_t hi,
                                            uint32_t token)
{
    const uint32_t first = token + 2 * (threadIdx.x & 3) - lo;
    const uint32_t count = hi - lo;
#pragma unroll
    for (int j = 0; j < n; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            /* Tokens before lo wrap around to numbers past count. */
            if (first + 8 * j + e >= count) {
                s[j][2 * r + e] = -INFINITY;
            }
        }
    }
}

/* The largest of this thread's scores of row r. */
template <int n> __device__ __forceinline__ float row_most(const float (&s)[n][4], int r)
{
    constexpr int chains = n < 4 ? n : 4; /* side by side, to be short */
    float most[chains];
#pragma unroll
    for (int j = 0; j < n; j++) {
        float x = fmaxf(s[j][2 * r], s[j][2 * r + 1]);
        most[j % chains] = j < chains ? x : fmaxf(most[j % chains], x);
    }
#pragma unroll
    for (int i = 1; i < chains; i++) {
        most[0] = fmaxf(most[0], most[i]);
    }
    return most[0];
}

/* The same, or, if all are below 0, some number that is too: from 0 on floats compare like the
 * integers that their words are, and of three of those the largest takes one instruction. */
template <int n> __device__ __forceinline__ float row_most_above(const float (&s)[n][4], int r)
{
    constexpr int chains = n < 4 ? n : 4;
    int most[chains];
#pragma unroll
    for (int j = 0; j < n; j++) {
        const int x = __float_as_int(s[j][2 * r]);
        const int y = __float_as_int(s[j][2 * r + 1]);
        most[j % chains] = j < chains ? max(x, y) : max(max(most[j % chains], x), y);
    }
#pragma unroll
    for (int i = 1; i < chains; i++) {
        most[0] = max(most[0], most[i]);
    }
    return __int_as_float(most[0]);
}

/* Scores, to be multiplied by c, to weights in place. True for the whole warp when some row's sums
 * so far must be multiplied by its alpha. Some thread's maximum is past the reference if the row's
 * is, and most tiles need to know no more. `long_rows`: of many scores a thread; then a row whose
 * reference is low looks more closely. */
template <bool long_rows = false, int n>
__device__ __forceinline__ bool softmax(float (&s)[n][4], float c, row_state &st, float (&alpha)[2])
{
    constexpr int chains = n < 4 ? n : 4;
    bool past = false;
    alpha[0] = alpha[1] = 1.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float limit = st.max[r] + RELAY_CUDA_RESCALE;
        const float most = long_rows ? row_most_above(s, r) : row_most(s, r);
        past = past || most * c > limit || (long_rows && limit < 0.0f);
    }
    bool grown = __any_sync(0xffffffffu, past);
    if (__builtin_expect(grown, 0)) {
        past = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float x = quad_max(row_most(s, r)) * c;
            if (x > st.max[r] + RELAY_CUDA_RESCALE) {
                alpha[r] = exp2_fast(st.max[r] - x);
                st.max[r] = x;
                st.sum[r] *= alpha[r];
                past = true;
            }
        }
        grown = !long_rows || __any_sync(0xffffffffu, past);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float base = st.max[r] == -INFINITY ? 0.0f : -st.max[r];
        float sum[chains];
#pragma unroll
        for (int j = 0; j < n; j++) {
            s[j][2 * r] = exp2_fast(fmaf(s[j][2 * r], c, base));
            s[j][2 * r + 1] = exp2_fast(fmaf(s[j][2 * r + 1], c, base));
            float x = s[j][2 * r] + s[j][2 * r + 1];
            sum[j % chains] = j < chains ? x : sum[j % chains] + x;
        }
#pragma unroll
        for (int i = 1; i < chains; i++) {
            sum[0] += sum[i];
        }
        st.sum[r] += sum[0];
    }
    return grown;
}

template <int n> __device__ __forceinline__ void rescale(float (&o)[n][4], const float (&alpha)[2])
{
#pragma unroll
    for (int j = 0; j < n; j++) {
        o[j][0] *= alpha[0];
        o[j][1] *= alpha[0];
        o[j][2] *= alpha[1];
        o[j][3] *= alpha[1];
    }
}

/* ---- the other way round: a thread has two columns of each block of eight packed rows ---- */

template <int B> struct column_state {
    float max[B][2];
    float sum[B][2]; /* of this thread's tokens until the end */
};

template <int B> __device__ __forceinline__ void column_reset(column_state<B> &st)
{
#pragma unroll
    for (int b = 0; b < B; b++) {
        st.max[b][0] = st.max[b][1] = -INFINITY;
        st.sum[b][0] = st.sum[b][1] = 0.0f;
    }
}

__device__ __forceinline__ float column_max(float x)
{
#pragma unroll
    for (int i = 4; i < 32; i *= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    }
    return x;
}

__device__ __forceinline__ float column_sum(float x)
{
#pragma unroll
    for (int i = 4; i < 32; i *= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
}

/* softmax() of 16 tokens. */
template <int B, int blocks>
__device__ __forceinline__ bool softmax_columns(float (&s)[B][4], float c, column_state<blocks> &st,
                                                float (&alpha)[B][2])
{
    float most[B][2];
    bool past = false;
#pragma unroll
    for (int b = 0; b < B; b++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            most[b][e] = fmaxf(s[b][e], s[b][e + 2]) * c;
            past = past || most[b][e] > st.max[b][e] + RELAY_CUDA_RESCALE;
            alpha[b][e] = 1.0f;
        }
    }
    const bool grown = __any_sync(0xffffffffu, past);
    if (__builtin_expect(grown, 0)) {
#pragma unroll
        for (int b = 0; b < B; b++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float x = column_max(most[b][e]);
                if (x > st.max[b][e] + RELAY_CUDA_RESCALE) {
                    alpha[b][e] = exp2_fast(st.max[b][e] - x);
                    st.max[b][e] = x;
                    st.sum[b][e] *= alpha[b][e];
                }
            }
        }
    }
#pragma unroll
    for (int b = 0; b < B; b++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float base = st.max[b][e] == -INFINITY ? 0.0f : -st.max[b][e];
            s[b][e] = exp2_fast(fmaf(s[b][e], c, base));
            s[b][e + 2] = exp2_fast(fmaf(s[b][e + 2], c, base));
            st.sum[b][e] += s[b][e] + s[b][e + 2];
        }
    }
    return grown;
}

/* Weights of 16 tokens (columns 16 t ..) as the A operand of a product with their values. */
template <typename T, int n>
__device__ __forceinline__ void weights_pack(uint32_t (&a)[4], const float (&s)[n][4], int t)
{
    a[0] = mma_type<T>::pack(s[2 * t][0], s[2 * t][1]);
    a[1] = mma_type<T>::pack(s[2 * t][2], s[2 * t][3]);
    a[2] = mma_type<T>::pack(s[2 * t + 1][0], s[2 * t + 1][1]);
    a[3] = mma_type<T>::pack(s[2 * t + 1][2], s[2 * t + 1][3]);
}

} // namespace relay

#endif
