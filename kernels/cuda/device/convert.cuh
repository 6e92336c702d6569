/* Elements of any dtype as float32 and back, with the bits of relay_dtype_convert. Device code. */
#ifndef RELAY_CUDA_DEVICE_CONVERT_CUH
#define RELAY_CUDA_DEVICE_CONVERT_CUH

#include <relay/types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace relay
{

__device__ __forceinline__ float f8_to_float(unsigned char b)
{
    uint32_t mag = b & 0x7fu;
    float small = (float)mag * 0x1p-9f;
    float normal =
        mag == 0x7fu ? __uint_as_float(0x7fc00000u) : __uint_as_float((mag << 20) + (120u << 23));
    float value = mag < 0x08u ? small : normal;
    return (b & 0x80u) != 0 ? -value : value;
}

__device__ __forceinline__ unsigned char float_to_f8(float f)
{
    uint32_t u = __float_as_uint(f);
    uint32_t sign = (u >> 24) & 0x80u;
    uint32_t mag = u & 0x7fffffffu;
    /* Adding 2^14 rounds to multiples of 2^-9, the step of subnormals. */
    uint32_t small =
        __float_as_uint(__fadd_rn(__uint_as_float(mag < 0x3c800000u ? mag : 0u), 0x1p14f)) -
        0x46800000u;
    uint32_t clipped = mag < 0x44000000u ? mag : 0x44000000u;
    uint32_t normal = (clipped + 0x7ffffu + ((clipped >> 20) & 1u) - (120u << 23)) >> 20;
    uint32_t b = mag < 0x3c800000u ? small : (normal < 0x7fu ? normal : 0x7fu);
    return (unsigned char)(b | sign);
}

__device__ __forceinline__ float load_element(uint32_t dtype, const void *base, size_t i)
{
    switch (dtype) {
    case RELAY_DTYPE_F32:
        return ((const float *)base)[i];
    case RELAY_DTYPE_F16:
        return __half2float(((const __half *)base)[i]);
    case RELAY_DTYPE_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)base)[i]);
    default:
        return f8_to_float(((const unsigned char *)base)[i]);
    }
}

__device__ __forceinline__ void store_element(uint32_t dtype, void *base, size_t i, float f)
{
    switch (dtype) {
    case RELAY_DTYPE_F32:
        ((float *)base)[i] = f;
        break;
    case RELAY_DTYPE_F16:
        ((__half *)base)[i] = __float2half_rn(f);
        break;
    case RELAY_DTYPE_BF16:
        ((__nv_bfloat16 *)base)[i] = __float2bfloat16_rn(f);
        break;
    default:
        ((unsigned char *)base)[i] = float_to_f8(f);
        break;
    }
}

/* Two neighbours of a row of BF16 or F16. */
template <typename T> __device__ __forceinline__ float2 pair_to_float(uint32_t bits);

template <> __device__ __forceinline__ float2 pair_to_float<__nv_bfloat16>(uint32_t bits)
{
    return __bfloat1622float2(*(const __nv_bfloat162 *)&bits);
}

template <> __device__ __forceinline__ float2 pair_to_float<__half>(uint32_t bits)
{
    return __half22float2(*(const __half2 *)&bits);
}

/* Four neighbours of such a row divided by a scale, as F8_E4M3. */
template <typename T> __device__ __forceinline__ uint32_t four_to_f8(uint2 bits, float scale)
{
    const float2 lo = pair_to_float<T>(bits.x);
    const float2 hi = pair_to_float<T>(bits.y);
    return (uint32_t)float_to_f8(__fdiv_rn(lo.x, scale)) |
           (uint32_t)float_to_f8(__fdiv_rn(lo.y, scale)) << 8 |
           (uint32_t)float_to_f8(__fdiv_rn(hi.x, scale)) << 16 |
           (uint32_t)float_to_f8(__fdiv_rn(hi.y, scale)) << 24;
}

/* Four neighbours of a row of F32, F16 or BF16, i a multiple of 4 and the row aligned to four. */
__device__ __forceinline__ void store_float(uint32_t dtype, void *base, size_t i, float4 f)
{
    if (dtype == RELAY_DTYPE_F32) {
        *(float4 *)((float *)base + i) = f;
        return;
    }
    uint2 bits;
    if (dtype == RELAY_DTYPE_BF16) {
        __nv_bfloat162 lo = __floats2bfloat162_rn(f.x, f.y);
        __nv_bfloat162 hi = __floats2bfloat162_rn(f.z, f.w);
        bits = make_uint2(*(uint32_t *)&lo, *(uint32_t *)&hi);
    } else {
        __half2 lo = __floats2half2_rn(f.x, f.y);
        __half2 hi = __floats2half2_rn(f.z, f.w);
        bits = make_uint2(*(uint32_t *)&lo, *(uint32_t *)&hi);
    }
    *(uint2 *)((__half *)base + i) = bits;
}

} // namespace relay

#endif
