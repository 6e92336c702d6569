/* K and V stored as F8_E4M3, multiplied as F16, which holds each of their values exactly.
 *
 * A register that ldmatrix fills has four neighbours of a row, and mma wants two of the first eight
 * dims and two of the second. Which dim sits where does not matter to a product over dims, so keys
 * are taken as they lie and the queries are put into the same order, "even words first": of each 16
 * dims the pairs 0, 2, 4, 6 come first and then 1, 3, 5, 7. A row of queries is scaled by a power
 * of two to make F16 of it without loss; scores are scaled back, by the keys' scale too. Must not
 * know which unit it works for. Device code. */
#ifndef RELAY_CUDA_DEVICE_F8_CUH
#define RELAY_CUDA_DEVICE_F8_CUH

#include "cuda/device/worker.cuh"

#include <cuda_fp8.h>

namespace relay
{

/* Two F8_E4M3 (low half of x) as two F16. */
__device__ __forceinline__ uint32_t f8_open(uint32_t x)
{
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)x, __NV_E4M3);
    return *(uint32_t *)&h;
}

/* A power of two that takes a row whose largest magnitude is `most` below 2^15. */
template <typename IO> __device__ __forceinline__ float query_factor(float most)
{
    if (!(most > 0.0f) || isinf(most)) {
        return 1.0f;
    }
    const int exponent = (int)(__float_as_uint(most) >> 23) - 127;
    return __uint_as_float((uint32_t)(127 + min(max(14 - exponent, -126), 126)) << 23);
}

/* Rows that are F16 need none. */
template <> __device__ __forceinline__ float query_factor<__half>(float most)
{
    (void)most;
    return 1.0f;
}

/* Makes F16 of this warp's rows of queries in shared memory, in place and in the order above.
 * Returns what the scores of row lane / 2 are to be multiplied by. */
template <class C> __device__ __forceinline__ float queries_open(const worker<C> &w, uint32_t head)
{
    const uint32_t row = w.first_row + w.lane / 2;
    unsigned char *rows = w.memory + C::QUERY_OFFSET;
    float most = 0.0f;
#pragma unroll 1
    for (uint32_t chunk = w.lane % 2; chunk < C::D / 8; chunk += 2) {
        const uint4 q = *(const uint4 *)(rows + tile_offset<C>(row, chunk));
        const uint32_t words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 x = pair_to_float<typename C::IO>(words[i]);
            most = fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y)));
        }
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    const float factor = query_factor<typename C::IO>(most);
#pragma unroll 1
    for (uint32_t chunk = w.lane % 2 * 2; chunk < C::D / 8; chunk += 4) {
        uint4 *lo = (uint4 *)(rows + tile_offset<C>(row, chunk));
        uint4 *hi = (uint4 *)(rows + tile_offset<C>(row, chunk + 1));
        uint32_t words[8] = {lo->x, lo->y, lo->z, lo->w, hi->x, hi->y, hi->z, hi->w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float2 x = pair_to_float<typename C::IO>(words[i]);
            words[i] = mma_type<__half>::pack(x.x * factor, x.y * factor);
        }
        *lo = make_uint4(words[0], words[2], words[4], words[6]);
        *hi = make_uint4(words[1], words[3], words[5], words[7]);
    }
    __syncwarp();
    const float scale = w.p.k_scale != nullptr ? __ldg(w.p.k_scale + head) : 1.0f;
    return scale / factor; /* factor is a power of two */
}

/* What sums of values are to be multiplied by; values that are keys are scaled like keys. */
template <class C> __device__ __forceinline__ float value_scale(const worker<C> &w, uint32_t head)
{
    const float *scales = w.p.v == w.p.k ? w.p.k_scale : w.p.v_scale;
    return C::F8 && scales != nullptr ? __ldg(scales + head) : 1.0f;
}

/* Keys as A operands: tokens 0 to 7 and 8 to 15 of 16 dims and of the next 16, from where this
 * lane's row of ldmatrix is. */
template <class C> __device__ __forceinline__ void keys_open(uint32_t (&a)[2][4], uint32_t from)
{
    uint32_t x[4];
    ldmatrix(x, from);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        a[i][0] = f8_open(x[2 * i]);
        a[i][1] = f8_open(x[2 * i + 1]);
        a[i][2] = f8_open(x[2 * i] >> 16);
        a[i][3] = f8_open(x[2 * i + 1] >> 16);
    }
}

/* Values as A operands, the same tokens and dims; row g is dim 2 g, row g + 8 dim 2 g + 1. */
template <class C> __device__ __forceinline__ void values_open(uint32_t (&a)[2][4], uint32_t from)
{
    uint32_t x[4];
    ldmatrix_trans(x, from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = __byte_perm(x[i], 0, 0x3120); /* two tokens of a dim, of the next */
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        a[i][0] = f8_open(x[2 * i]);
        a[i][1] = f8_open(x[2 * i] >> 16);
        a[i][2] = f8_open(x[2 * i + 1]);
        a[i][3] = f8_open(x[2 * i + 1] >> 16);
    }
}

/* This warp's 16 tokens of a stage to where tiles lie in T: keys in the order above. */
template <class C> __device__ __forceinline__ void tile_open(const worker<C> &w, uint32_t stage)
{
    const unsigned char *from = w.memory + stage * C::STAGE_BYTES;
    unsigned char *to = w.memory + C::OPENED_OFFSET;
#pragma unroll 2
    for (uint32_t i = w.lane; i < 2 * 16 * C::CHUNKS; i += 32) {
        const bool is_value = i >= 16 * C::CHUNKS;
        const uint32_t row = w.first_row + i % 16;
        const uint32_t chunk = i / 16 % C::CHUNKS;
        const uint4 x =
            *(const uint4 *)(from + (is_value ? C::TILE_BYTES : 0) + stored_offset<C>(row, chunk));
        const uint4 even = make_uint4(f8_open(x.x), f8_open(x.y), f8_open(x.z), f8_open(x.w));
        const uint4 odd = make_uint4(f8_open(x.x >> 16), f8_open(x.y >> 16), f8_open(x.z >> 16),
                                     f8_open(x.w >> 16));
        unsigned char *tile = to + (is_value ? C::TENSOR_BYTES : 0);
        *(uint4 *)(tile + tile_offset<C>(row, 2 * chunk)) =
            is_value ? make_uint4(even.x, odd.x, even.y, odd.y) : even;
        *(uint4 *)(tile + tile_offset<C>(row, 2 * chunk + 1)) =
            is_value ? make_uint4(even.z, odd.z, even.w, odd.w) : odd;
    }
}

} // namespace relay

#endif
