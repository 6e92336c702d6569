/* Conversions between element types, exact or round-to-nearest-even. Pure; any thread.
 *
 * Every conversion goes through float32, which holds each of the other types exactly, so a value is
 * rounded once. The loops are free of branches on the data (selects only) for the vectoriser. */
#include <relay/types.h>

#include <string.h>

#define CHUNK 256u /* floats on the stack between two 16-bit or 8-bit types */

static inline uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

static inline float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t mag = h & 0x7fffu;
    /* Subnormals by an integer conversion, so that a thread that flushes them keeps them. */
    float small = (float)(int32_t)mag * 0x1p-24f;
    uint32_t normal = (mag << 13) + (112u << 23);
    uint32_t special = (mag << 13) | 0x7f800000u;
    uint32_t u = mag < 0x0400u ? bits_of(small) : (mag < 0x7c00u ? normal : special);
    return float_of(u | sign);
}

static inline uint16_t f32_to_f16(float f)
{
    uint32_t u = bits_of(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t mag = u & 0x7fffffffu;
    /* Adding 0.5 rounds to multiples of 2^-24, the step of subnormals. */
    uint32_t small = bits_of(float_of(mag < 0x38800000u ? mag : 0u) + 0.5f) - 0x3f000000u;
    uint32_t normal = (mag + 0xfffu + ((mag >> 13) & 1u) - (112u << 23)) >> 13;
    uint32_t nan = 0x7e00u | ((mag >> 13) & 0x1ffu);
    uint32_t h = mag < 0x38800000u ? small : normal;
    h = mag >= 0x477ff000u ? 0x7c00u : h; /* 65520 and up is nearer to 65536 than to 65504 */
    h = mag > 0x7f800000u ? nan : h;
    return (uint16_t)(h | sign);
}

static inline float bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = (u >> 16) | 0x0040u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline float f8_to_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    uint32_t mag = b & 0x7fu;
    float small = (float)(int32_t)mag * 0x1p-9f;
    uint32_t normal = (mag << 20) + (120u << 23);
    uint32_t u = mag < 0x08u ? bits_of(small) : (mag == 0x7fu ? 0x7fc00000u : normal);
    return float_of(u | sign);
}

static inline uint8_t f32_to_f8(float f)
{
    uint32_t u = bits_of(f);
    uint32_t sign = (u >> 24) & 0x80u;
    uint32_t mag = u & 0x7fffffffu;
    /* Adding 2^14 rounds to multiples of 2^-9, the step of subnormals. */
    uint32_t small = bits_of(float_of(mag < 0x3c800000u ? mag : 0u) + 0x1p14f) - 0x46800000u;
    uint32_t clipped = mag < 0x44000000u ? mag : 0x44000000u; /* 512: past every finite value */
    uint32_t normal = (clipped + 0x7ffffu + ((clipped >> 20) & 1u) - (120u << 23)) >> 20;
    uint32_t b = mag < 0x3c800000u ? small : (normal < 0x7fu ? normal : 0x7fu);
    return (uint8_t)(b | sign);
}

static void to_f32(float *dst, enum relay_dtype dtype, const void *src, size_t n)
{
    const uint16_t *h = src;
    const uint8_t *b = src;
    switch (dtype) {
    case RELAY_DTYPE_F32:
        memcpy(dst, src, n * sizeof(float));
        break;
    case RELAY_DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            dst[i] = f16_to_f32(h[i]);
        }
        break;
    case RELAY_DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            dst[i] = bf16_to_f32(h[i]);
        }
        break;
    case RELAY_DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i++) {
            dst[i] = f8_to_f32(b[i]);
        }
        break;
    case RELAY_DTYPE_UNSPECIFIED:
    default:
        break;
    }
}

static void from_f32(enum relay_dtype dtype, void *dst, const float *src, size_t n)
{
    uint16_t *h = dst;
    uint8_t *b = dst;
    switch (dtype) {
    case RELAY_DTYPE_F32:
        memcpy(dst, src, n * sizeof(float));
        break;
    case RELAY_DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            h[i] = f32_to_f16(src[i]);
        }
        break;
    case RELAY_DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            h[i] = f32_to_bf16(src[i]);
        }
        break;
    case RELAY_DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i++) {
            b[i] = f32_to_f8(src[i]);
        }
        break;
    case RELAY_DTYPE_UNSPECIFIED:
    default:
        break;
    }
}

size_t relay_dtype_size(enum relay_dtype dtype)
{
    switch (dtype) {
    case RELAY_DTYPE_F32:
        return 4;
    case RELAY_DTYPE_F16:
    case RELAY_DTYPE_BF16:
        return 2;
    case RELAY_DTYPE_F8_E4M3:
        return 1;
    case RELAY_DTYPE_UNSPECIFIED:
    default:
        return 0;
    }
}

const char *relay_dtype_name(enum relay_dtype dtype)
{
    switch (dtype) {
    case RELAY_DTYPE_F32:
        return "F32";
    case RELAY_DTYPE_F16:
        return "F16";
    case RELAY_DTYPE_BF16:
        return "BF16";
    case RELAY_DTYPE_F8_E4M3:
        return "F8_E4M3";
    case RELAY_DTYPE_UNSPECIFIED:
    default:
        return "?";
    }
}

void relay_dtype_convert(enum relay_dtype dst_dtype, void *dst, enum relay_dtype src_dtype,
                         const void *src, size_t n)
{
    size_t dst_size = relay_dtype_size(dst_dtype);
    size_t src_size = relay_dtype_size(src_dtype);
    if (n == 0 || dst_size == 0 || src_size == 0) {
        return;
    }
    if (dst_dtype == src_dtype) {
        if (dst != src) {
            memcpy(dst, src, n * src_size);
        }
        return;
    }
    if (dst_dtype == RELAY_DTYPE_F32) {
        to_f32(dst, src_dtype, src, n);
        return;
    }
    if (src_dtype == RELAY_DTYPE_F32) {
        from_f32(dst_dtype, dst, src, n);
        return;
    }
    for (size_t done = 0; done < n; done += CHUNK) {
        float chunk[CHUNK];
        size_t count = n - done < CHUNK ? n - done : CHUNK;
        to_f32(chunk, src_dtype, (const unsigned char *)src + done * src_size, count);
        from_f32(dst_dtype, (unsigned char *)dst + done * dst_size, chunk, count);
    }
}
