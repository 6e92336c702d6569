/* The PTX this project uses, one function an instruction. Device code. */
#ifndef RELAY_CUDA_DEVICE_PTX_CUH
#define RELAY_CUDA_DEVICE_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace relay
{

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- copies ---- */

/* 16 bytes to shared memory; `bytes` of them from src (0 or 16), the others zero. */
__device__ __forceinline__ void cp_async(uint32_t dst, const void *src, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

/* All 16; with `once` they leave L2 before others. */
template <bool once> __device__ __forceinline__ void cp_async_whole(uint32_t dst, const void *src)
{
    if (once) {
        asm volatile(
            "{\n.reg .b64 policy;\n"
            "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
            "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, policy;\n}\n" ::"r"(dst),
            "l"(src)
            : "memory");
    } else {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(dst), "l"(src) : "memory");
    }
}

__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Until at most `pending` of this thread's groups are not there yet. */
template <int pending> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

__device__ __forceinline__ void prefetch_l1(const void *src)
{
    asm volatile("prefetch.global.L1 [%0];\n" ::"l"(src) : "memory");
}

/* ---- order ---- */

__device__ __forceinline__ void barrier(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

/* Counts for a barrier that others wait at, without waiting. */
__device__ __forceinline__ void barrier_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

/* What threads wrote to shared memory becomes visible to wgmma. */
__device__ __forceinline__ void fence_proxy_async()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

/* Waits until the launch before this one is done and its writes are visible. */
__device__ __forceinline__ void launch_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

/* Lets the next launch's first blocks in as soon as there is room. */
__device__ __forceinline__ void launch_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t load_relaxed(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
    return v;
}

/* Acquire and release; __threadfence() is sequentially consistent too, and dearer. */
__device__ __forceinline__ void fence_gpu()
{
    asm volatile("fence.acq_rel.gpu;\n" ::: "memory");
}

__device__ __forceinline__ void store_relaxed(uint32_t *p, uint32_t v)
{
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}

/* 8 and 16 bytes at once. Of bytes that are stored together all are seen or none: that is PTX's
 * word for accesses of the same size, and these GPUs' habit where 16 bytes are read that were
 * stored by eights. */
__device__ __forceinline__ void store_relaxed(float *p, float2 v)
{
    asm volatile(
        "{\n.reg .b64 x;\nmov.b64 x, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], x;\n}\n" ::"l"(p),
        "f"(v.x), "f"(v.y)
        : "memory");
}

__device__ __forceinline__ void store_relaxed(float *p, float4 v)
{
    asm volatile("{\n.reg .b64 x, y;\n.reg .b128 z;\nmov.b64 x, {%1, %2};\nmov.b64 y, {%3, %4};\n"
                 "mov.b128 z, {x, y};\nst.relaxed.gpu.global.b128 [%0], z;\n}\n" ::"l"(p),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

__device__ __forceinline__ float4 load_relaxed(const float *p)
{
    float4 v;
    asm volatile("{\n.reg .b64 x, y;\n.reg .b128 z;\nld.relaxed.gpu.global.b128 z, [%4];\n"
                 "mov.b128 {x, y}, z;\nmov.b64 {%0, %1}, x;\nmov.b64 {%2, %3}, y;\n}\n"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* ---- arithmetic ---- */

/* 2^x within 2 ulp; 2^-inf = 0. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* log2 within 2^-22, absolutely near 1 and relatively elsewhere. */
__device__ __forceinline__ float log2_fast(float x)
{
    float y;
    asm("lg2.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x within 1 ulp. */
__device__ __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

template <typename T> struct mma_type;

template <> struct mma_type<__nv_bfloat16> {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi)
    {
        uint32_t r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
        return r;
    }

    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <> struct mma_type<__half> {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi)
    {
        uint32_t r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
        return r;
    }

    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* An 8x8 matrix of 16-bit elements, two neighbours of a row in each register, transposed. */
__device__ __forceinline__ uint32_t movmatrix(uint32_t x)
{
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(r) : "r"(x));
    return r;
}

} // namespace relay

#endif
