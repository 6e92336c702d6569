/* Warpgroup matrix products with B in shared memory and A in registers or there too (sm_90a).
 *
 * A warpgroup's D[64][N] lies in registers as d[N / 8][4]: warp w has rows 16 w + g and 16 w + g +
 * 8 (g = lane / 4), columns 8 j + 2 (lane % 4) and the next: the layout of mma.m16n8k16. B tiles
 * are 128-byte rows, 16-byte chunk c of row r at chunk c ^ (r % 8), tiles 1024-byte aligned. Device
 * code. */
#ifndef RELAY_CUDA_DEVICE_WGMMA_CUH
#define RELAY_CUDA_DEVICE_WGMMA_CUH

#include "cuda/device/ptx.cuh"

namespace relay
{

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

template <int pending> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}

/* Keeps the compiler from moving reads of d above, or its computation below, a wait. */
template <int n> __device__ __forceinline__ void wgmma_results(float (&d)[n][4])
{
#pragma unroll
    for (int j = 0; j < n; j++) {
        asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
    }
}

/* Begins to describe a tile whose rows are 1024 bytes from 8 to the next 8. `lead`: of one that is
 * MN-major (rows are K), from 64 columns to the next; else unused. The shuffle tells the compiler
 * that all lanes have the same, so what follows from it costs no instruction of a lane's. */
__device__ __forceinline__ uint32_t wgmma_tile(uint32_t address, uint32_t lead)
{
    return __shfl_sync(0xffffffffu, (address & 0x3ffffu) >> 4 | lead >> 4 << 16, 0);
}

/* That tile from `bytes` on. */
__device__ __forceinline__ uint64_t wgmma_from(uint32_t tile, uint32_t bytes)
{
    return (uint64_t)(1024 >> 4 | 1 << 30) << 32 | (tile + (bytes >> 4));
}

#define RELAY_R4(d, j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define RELAY_R32(d, j)                                                                            \
    RELAY_R4(d, j), RELAY_R4(d, j + 1), RELAY_R4(d, j + 2), RELAY_R4(d, j + 3),                    \
        RELAY_R4(d, j + 4), RELAY_R4(d, j + 5), RELAY_R4(d, j + 6), RELAY_R4(d, j + 7)
#define RELAY_LIST32                                                                               \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"   \
    "%25,%26,%27,%28,%29,%30,%31"
#define RELAY_LIST64                                                                               \
    RELAY_LIST32                                                                                   \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"    \
    "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* `types` "bf16.bf16"; `trans` "0" for K-major B, "1" for MN-major. */
#define RELAY_WGMMA64(types, trans)                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." types " {" RELAY_LIST32 "}, "       \
                 "{%32,%33,%34,%35}, %36, p, 1, 1, " trans ";\n}\n"                                \
                 : RELAY_R32(d, 0)                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define RELAY_WGMMA128(types, trans)                                                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {" RELAY_LIST64 "}, "      \
                 "{%64,%65,%66,%67}, %68, p, 1, 1, " trans ";\n}\n"                                \
                 : RELAY_R32(d, 0), RELAY_R32(d, 8)                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

/* The same with A in shared memory, K-major like B. */
#define RELAY_WGMMA128_SHARED(types)                                                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {" RELAY_LIST64 "}, "      \
                 "%64, %65, p, 1, 1, 0, 0;\n}\n"                                                   \
                 : RELAY_R32(d, 0), RELAY_R32(d, 8)                                                \
                 : "l"(a), "l"(b), "r"(add))

template <typename T> struct wgmma_type;

/* D = A B (add 0) or D + A B (add 1), asynchronous. `scores`: B is K-major; `values`: MN-major. */
template <> struct wgmma_type<__nv_bfloat16> {
    static __device__ __forceinline__ void scores(float (&d)[8][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA64("bf16.bf16", "0");
    }
    static __device__ __forceinline__ void scores(float (&d)[16][4], uint64_t a, uint64_t b,
                                                  int add)
    {
        RELAY_WGMMA128_SHARED("bf16.bf16");
    }
    static __device__ __forceinline__ void values(float (&d)[8][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA64("bf16.bf16", "1");
    }
    static __device__ __forceinline__ void values(float (&d)[16][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA128("bf16.bf16", "1");
    }
};

template <> struct wgmma_type<__half> {
    static __device__ __forceinline__ void scores(float (&d)[8][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA64("f16.f16", "0");
    }
    static __device__ __forceinline__ void scores(float (&d)[16][4], uint64_t a, uint64_t b,
                                                  int add)
    {
        RELAY_WGMMA128_SHARED("f16.f16");
    }
    static __device__ __forceinline__ void values(float (&d)[8][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA64("f16.f16", "1");
    }
    static __device__ __forceinline__ void values(float (&d)[16][4], const uint32_t (&a)[4],
                                                  uint64_t b, int add)
    {
        RELAY_WGMMA128("f16.f16", "1");
    }
};

#undef RELAY_R4
#undef RELAY_R32
#undef RELAY_LIST32
#undef RELAY_LIST64
#undef RELAY_WGMMA64
#undef RELAY_WGMMA128
#undef RELAY_WGMMA128_SHARED

} // namespace relay

#endif
