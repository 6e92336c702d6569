/* The attention kernel: a persistent grid, or one block a unit, over the plan's units. Device code,
 * and its launch. */
#ifndef RELAY_CUDA_DEVICE_ATTEND_CUH
#define RELAY_CUDA_DEVICE_ATTEND_CUH

#include "cuda/device/wide.cuh"

namespace relay {

template <class C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    attend(const __grid_constant__ relay_cuda_params p)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    worker<C> w(p, shared);

    if (w.warp < 2) {
        uint32_t unit = w.fixed_unit(w.warp);
        w.descriptor_keep(w.warp, unit, w.descriptor_word(unit));
    }
    w.group_barrier();
    launch_next();
#pragma unroll 1
    for (int early = (p.flags & RELAY_CUDA_P_EARLY) != 0 ? 1 : 0; early >= 0; early--) {
        if (!early) {
            launch_wait();
            if (C::QUERIES_IN_REGISTERS && w.ahead != 0) {
                w.load_queries(w.slot(0).unit, w.slot(0).head);
                cp_async_commit();
                w.fresh = true;
            }
        }
        while (w.ahead < (C::STAGES > 2 ? C::STAGES - 1 : 1) && w.can_load()) {
            const relay_cuda_unit &u = w.slot(w.load_at).unit;
            uint32_t tokens = w.tile_tokens(u);
            /* Early: no queries, no tokens of the call, as the launch before may write them. */
            if (early && (w.load_at != 0 ||
                          w.appends(u, w.first_token(u) + w.load_tile * tokens, tokens))) {
                break;
            }
            w.load_tile_next(!early);
        }
    }

    for (; w.slot(w.at).valid; w.at++) {
        const relay_cuda_unit &u = w.slot(w.at).unit;
        const uint32_t head = w.slot(w.at).head;
        const uint32_t kind = w.kind_of(u);
        if (w.warp == 0) {
            w.look_ahead();
        }
        if (kind == RELAY_CUDA_NARROW || kind == RELAY_CUDA_MERGE) {
            const bool own = kind == RELAY_CUDA_NARROW;
            const uint32_t stage = own ? narrow(w, u, head) : 0;
            finish_rows(w, u, head, own, stage);
        } else {
            wide_unit<C, C::WGMMA>::run(w, u, head);
        }
        if (w.warp == 0) {
            w.look_ahead_finish();
        }
        if (C::WGMMA && kind == RELAY_CUDA_PAIR) {
            barrier(0, C::THREADS);
        } else {
            w.group_barrier();
        }
    }
}

template <class C> cudaError_t attend_prepare()
{
    return cudaFuncSetAttribute((const void *)attend<C>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, C::SHARED_BYTES);
}

template <class C> cudaError_t attend_blocks(int *blocks)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)attend<C>,
                                                         C::THREADS, C::SHARED_BYTES);
}

/* `overlap`: may begin before the launch before it is done. */
template <class C>
cudaError_t attend_launch(const relay_cuda_params *params, unsigned int blocks, int overlap,
                          cudaStream_t stream)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(C::THREADS);
    config.dynamicSmemBytes = C::SHARED_BYTES;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, attend<C>, *params);
}

} // namespace relay

#endif
