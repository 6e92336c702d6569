/* The attention kernel: a persistent grid, or one block a unit, over the plan's units. Device code,
 * and its launch. */
#ifndef RELAY_CUDA_DEVICE_ATTEND_CUH
#define RELAY_CUDA_DEVICE_ATTEND_CUH

#include "cuda/device/pair.cuh"

namespace relay
{

/* Begins to load what the first unit needs: K/V that the launch before this one does not write,
 * then, when that one is done, all else. */
template <class C> __device__ __forceinline__ void begin(worker<C> &w)
{
    constexpr uint32_t limit = C::STAGES > 2 ? C::STAGES - 1 : 1;
    const unit_slot &first = w.slot(0);
    const relay_cuda_unit &u = first.unit;
    const bool asks = C::QUERIES_IN_REGISTERS && first.valid && w.kind_of(u) != RELAY_CUDA_MERGE;
    const uint64_t queries = asks ? w.query_place(u, w.head_of(first)) : 0;
#pragma unroll 1
    for (int early = (w.p.flags & RELAY_CUDA_P_EARLY) != 0 ? 1 : 0; early >= 0; early--) {
        if (!early) {
            launch_wait();
            /* Not before: what comes after the next launch may then rely on this one's past. */
            launch_next();
            w.fresh = w.ahead != 0;
            if (asks) {
                w.template load_queries<4>(queries);
                cp_async_commit();
            }
        }
        if (first.valid && w.is_pair(u)) {
            if (w.ahead == 0 &&
                !(early && w.appends(u, w.first_token(u), 2 * RELAY_CUDA_ROWS_PAIR))) {
                pair_begin<C, C::PAIRS>::load(w, u, first.head);
            }
            continue;
        }
        if (!early && !C::F8 && u.append_count != 0) {
#pragma unroll 1
            for (uint32_t tile = 0; tile < w.ahead; tile++) {
                w.load_appended(u, w.head_of(first), w.warp_token(u, tile), tile);
            }
            cp_async_commit();
        }
        /* The next unit's queries would take the place of the first one's. */
        while (first.valid && w.ahead < limit && w.load_tile < u.tiles) {
            w.template load_next<true>(early != 0);
        }
    }
}

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
    begin(w);
    for (; w.slot(w.at).valid; w.at++) {
        const relay_cuda_unit &u = w.slot(w.at).unit;
        const uint32_t head = w.head_of(w.slot(w.at));
        const uint32_t kind = w.kind_of(u);
        /* What follows from these would else be computed for all kinds of units at once, before the
         * loop, and fill the registers. */
        asm volatile("" : "+r"(w.lane), "+r"(w.warp), "+r"(w.group), "+r"(w.first_row));
        if (w.warp == 0 && !w.asks_late(u)) {
            w.look_ahead();
        }
        if (kind == RELAY_CUDA_NARROW || kind == RELAY_CUDA_MERGE) {
            const bool own = kind == RELAY_CUDA_NARROW;
            const uint32_t stage = own ? narrow(w, u, head) : C::F8 ? C::STAGES : 0;
            finish_rows(w, u, head, own, stage);
        } else {
            wide_unit<C, C::WGMMA, C::PAIRS>::run(w, u, head);
        }
        if (w.asks_late(u)) {
            w.group_barrier(); /* a ticket could be for what another warp still waits for */
            if (w.warp == 0) {
                w.look_ahead();
            }
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
