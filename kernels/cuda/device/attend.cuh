/* The attention kernel: a persistent grid, or one block a unit, over the plan's units. Device code,
 * and its launch. */
#ifndef RELAY_CUDA_DEVICE_ATTEND_CUH
#define RELAY_CUDA_DEVICE_ATTEND_CUH

#include "cuda/device/pair.cuh"

namespace relay
{

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
    uint64_t queries = 0;
    const bool asks =
        C::QUERIES_IN_REGISTERS && w.slot(0).valid && w.kind_of(w.slot(0).unit) != RELAY_CUDA_MERGE;
    if (asks) {
        queries = w.query_place(w.slot(0).unit, w.head_of(w.slot(0)));
    }
#pragma unroll 1
    for (int early = (p.flags & RELAY_CUDA_P_EARLY) != 0 ? 1 : 0; early >= 0; early--) {
        if (!early) {
            launch_wait();
            /* Not before: what comes after the next launch may then rely on this one's past. */
            launch_next();
            if (asks) {
                w.load_queries(queries);
                cp_async_commit();
                w.fresh = w.ahead != 0;
            }
        }
        if (w.slot(0).valid && w.is_pair(w.slot(0).unit)) {
            const relay_cuda_unit &u = w.slot(0).unit;
            if (w.ahead == 0 &&
                !(early && w.appends(u, w.first_token(u), 2 * RELAY_CUDA_ROWS_PAIR))) {
                pair_begin<C, C::PAIRS>::load(w, u, w.slot(0).head);
            }
            continue;
        }
        /* The next unit's queries would take the place of the first one's. Early: no tokens of the
         * call, as the launch before may write them. */
        while (w.ahead < (C::STAGES > 2 ? C::STAGES - 1 : 1) && w.slot(0).valid) {
            const relay_cuda_unit &u = w.slot(0).unit;
            uint32_t token = w.first_token(u) + (w.load_tile << w.tile_shift(u));
            if (w.load_tile >= u.tiles || (early && w.appends(u, token, 1u << w.tile_shift(u)))) {
                break;
            }
            w.load_next(false);
        }
    }

    for (; w.slot(w.at).valid; w.at++) {
        const relay_cuda_unit &u = w.slot(w.at).unit;
        const uint32_t head = w.head_of(w.slot(w.at));
        const uint32_t kind = w.kind_of(u);
        /* What follows from these would else be computed for all kinds of units at once, before the
         * loop, and fill the registers. */
        asm volatile(""
                     : "+r"(w.lane), "+r"(w.warp), "+r"(w.group), "+r"(w.first_row), "+r"(w.base));
        if (w.warp == 0) {
            w.look_ahead();
        }
        if (kind == RELAY_CUDA_NARROW || kind == RELAY_CUDA_MERGE) {
            const bool own = kind == RELAY_CUDA_NARROW;
            const uint32_t stage = own ? narrow(w, u, head) : 0;
            finish_rows(w, u, head, own, stage);
        } else {
            wide_unit<C, C::WGMMA, C::PAIRS>::run(w, u, head);
        }
        if (w.warp == 0) {
            w.look_ahead_finish();
        }
        if (w.is_pair(u)) {
            barrier(0, C::THREADS);
            w.load_more(C::STAGES);
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
