/* PAIR units, up to 128 packed rows and 128 tokens at a time: two warpgroups, each with 64 of the
 * rows, read the same tiles (sm_90a).
 *
 * A warpgroup's softmax runs beside its own products of the weights before with their values and
 * beside the other's products; the order is FlashAttention-3's (arXiv 2407.08608, sections 3.1 and
 * 3.2). In round t the keys of tile t and the values of tile t - 1 are used, so keys are loaded two
 * tiles ahead and values one. Device code. */
#ifndef RELAY_CUDA_DEVICE_PAIR_CUH
#define RELAY_CUDA_DEVICE_PAIR_CUH

#include "cuda/device/wide.cuh"

namespace relay
{

template <class C> struct pair_unit {
    using T = typename C::T;
    static_assert(C::STAGES >= 3, "keys two tiles ahead of their use");

    worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    uint32_t tiles;
    uint2 placed; /* tiles [x, y) lie in pages as in stages */

    __device__ __forceinline__ pair_unit(worker<C> &worker_, const relay_cuda_unit &unit,
                                         uint32_t head_)
        : w(worker_), u(unit), head(head_), tiles(unit.tiles),
          placed(w.in_place() ? make_uint2(u.whole_begin, u.whole_end) : make_uint2(0, 0))
    {
    }

    __device__ __forceinline__ bool is_placed(uint32_t tile) const
    {
        return tile - placed.x < placed.y - placed.x;
    }

    /* ---- loading: w.load_tile is the tile whose keys come next, to w.load_stage ---- */

    /* The next keys, and the values of the tile before. */
    __device__ __forceinline__ void load_step() const
    {
        const uint32_t before = w.last_page;
        const uint32_t stage = w.stage_before(w.load_stage);
        const uint32_t token = w.load_token - w.load_step;
        if (w.load_tile < tiles) {
            w.pages_go_on(u);
            w.last_page = __shfl_sync(0xffffffffu, w.pages, (w.load_tile - w.pages_tile) % 32);
        }
        if (__builtin_expect(is_placed(w.load_tile), 1)) {
            w.template load_whole<false>(w.key_tile(w.load_stage),
                                         w.p.k + w.whole_place(w.last_page, w.load_token));
        } else if (w.load_tile < tiles) {
            w.load_any(u, head, w.load_token, w.last_page, w.load_stage, 1);
            w.load_appended(u, head, w.load_token, w.load_stage, 1);
        }
        if (__builtin_expect(is_placed(w.load_tile - 1), 1)) {
            w.template load_whole<false>(w.value_tile(stage), w.p.v + w.whole_place(before, token));
        } else if (w.load_tile - 1 < tiles) {
            w.load_any(u, head, token, before, stage, 2);
            w.load_appended(u, head, token, stage, 2);
        }
        cp_async_commit();
        w.load_stage = w.stage_after(w.load_stage);
        w.load_tile++;
        w.load_token += w.load_step;
    }

    /* The first keys, then the second with the first values. */
    __device__ __forceinline__ void load_first() const
    {
        w.load_begin(u, head);
        w.load_stage = w.use_stage;
        w.load_tile = 0;
        w.ahead = 1;
#pragma unroll 1
        for (int i = 0; i < 2; i++) {
            load_step();
        }
    }

    /* ---- the two warpgroups tell each other ---- */

    /* This warpgroup's copies for round t are there. */
    static __device__ __forceinline__ uint32_t loaded(uint32_t group, uint32_t t)
    {
        return 3 + 2 * group + (t & 1);
    }

    /* This warpgroup's round t is over. */
    static __device__ __forceinline__ uint32_t used(uint32_t group, uint32_t t)
    {
        return 7 + 2 * group + (t & 1);
    }

    __device__ __forceinline__ void tell_loaded(uint32_t t) const
    {
        cp_async_wait<0>();
        fence_proxy_async();
        barrier_arrive(loaded(w.group, t), C::THREADS);
    }

    /* Begins what comes after this unit; nothing but the last tile's values is in use. */
    __device__ __forceinline__ void load_after() const
    {
        const unit_slot &next = w.slot(w.at + 1);
        w.load_stage = w.use_stage;
        w.load_at = w.at + 1;
        w.load_tile = 0;
        w.run = 0;
        if (next.valid && w.is_pair(next.unit)) {
            w.load_queries(w.query_place(next.unit, next.head));
            pair_unit(w, next.unit, next.head).load_first();
        } else {
            w.load_more(C::STAGES - 1);
        }
    }

    /* ---- the rounds ---- */

    /* Of the tile in w.use_stage. */
    __device__ __forceinline__ void scores_begin(float (&s)[16][4]) const
    {
        const uint32_t queries = wgmma_tile(w.queries() + w.group * 64 * 128, 16);
        const uint32_t keys = wgmma_tile(w.key_tile(w.use_stage), 16);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < C::D / 16; k++) {
            const uint32_t at = k / 4 * C::PLANE_BYTES + k % 4 * 32;
            wgmma_type<T>::scores(s, wgmma_from(queries, at), wgmma_from(keys, at), k != 0);
        }
        wgmma_commit();
    }

    /* Of the tile before. */
    __device__ __forceinline__ void values_begin(const uint32_t (&a)[8][4],
                                                 float (&o)[C::D / 8][4]) const
    {
        const uint32_t values =
            wgmma_tile(w.value_tile(w.stage_before(w.use_stage)), C::PLANE_BYTES);
        wgmma_fence();
#pragma unroll
        for (int t = 0; t < 8; t++) {
            wgmma_type<T>::values(o, a[t], wgmma_from(values, t * 2048), 1);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ bool weigh(float (&s)[16][4], uint32_t tile, const uint2 &seen,
                                          float scale, row_state &st, float (&alpha)[2]) const
    {
        if (__builtin_expect(tile - seen.x >= seen.y - seen.x, 0)) {
            scores_finish(w, u, w.first_token(u) + tile * 128, s);
        }
        return softmax<true>(s, scale, st, alpha);
    }

    __device__ __forceinline__ static void weights_keep(uint32_t (&a)[8][4],
                                                        const float (&s)[16][4])
    {
#pragma unroll
        for (int t = 0; t < 8; t++) {
            weights_pack<T>(a[t], s, t);
        }
    }

    __device__ __forceinline__ void run() const
    {
        float s[16][4];
        float o[C::D / 8][4];
        uint32_t a[8][4]; /* weights of the tile before */
        row_state st;
        float alpha[2];
        const float scale = scale_of<C>(w.p);
        uint2 seen = make_uint2(u.whole_begin, u.whole_end); /* by every row */
        if ((u.flags & RELAY_CUDA_MASKED) != 0) {
            seen = make_uint2(0, 0);
        }
        if (w.ahead == 0) {
            w.load_queries(w.query_place(u, head));
            load_first();
        }
        w.ahead = 0;
        sums_reset(o, st);
        w.rows_begin(u, head);
        if (w.fresh) {
            cp_async_wait<0>();
            w.fresh = false;
        } else {
            cp_async_wait<1>();
        }
        fence_proxy_async();
        barrier(0, C::THREADS);
        wgmma_results(o);
        scores_begin(s);
        tell_loaded(1);
        load_step();
        append_all(w, u, head);
        wgmma_wait<0>();
        wgmma_results(s);
        barrier_arrive(used(w.group, 0), C::THREADS);
        (void)weigh(s, 0, seen, scale, st, alpha);
        weights_keep(a, s);
#pragma unroll 1
        for (uint32_t t = 1; t < tiles; t++) {
            w.use_stage = w.stage_after(w.use_stage);
            barrier(loaded(1 - w.group, t), C::THREADS);
            wgmma_results(o);
            wgmma_results(s);
            scores_begin(s);
            values_begin(a, o);
            wgmma_wait<1>();
            wgmma_results(s);
            /* What was asked for in the round before has had most of a round by now, and there is
             * most of one until it is used; so neither warpgroup waits while the other is up to
             * half a round ahead. */
            tell_loaded(t + 1);
            const bool grown = weigh(s, t, seen, scale, st, alpha);
            wgmma_results(s);
            wgmma_wait<0>();
            wgmma_results(o);
            /* First to know that the other's round t - 1 is over, then to tell of this one: else
             * this warpgroup might tell of round t + 2, by the same barrier, before the other has
             * heard of round t. */
            barrier(used(1 - w.group, t - 1), C::THREADS);
            barrier_arrive(used(w.group, t), C::THREADS);
            load_step();
            if (__builtin_expect(grown, 0)) {
                rescale(o, alpha);
            }
            weights_keep(a, s);
        }
        w.use_stage = w.stage_after(w.use_stage);
        barrier(loaded(1 - w.group, tiles), C::THREADS);
        wgmma_results(o);
        values_begin(a, o);
        barrier(used(1 - w.group, tiles - 1), C::THREADS);
        load_after();
        wgmma_wait<0>();
        wgmma_results(o);
        keep_wide(w, u, head, w.query_row(u) + (w.lane >> 2), o, st);
    }
};

/* Units of many rows, by the kernel's means. */
template <class C, bool wgmma, bool pairs> struct wide_unit;

template <class C> struct wide_unit<C, false, false> {
    static __device__ __forceinline__ void run(worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head)
    {
        wide_mma<C>::run(w, u, head);
    }
};

template <class C> struct wide_unit<C, true, false> {
    static __device__ __forceinline__ void run(worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head)
    {
        if constexpr (C::F8) {
            wide_wgmma_f8<C>(w, u, head).run();
        } else {
            wide_wgmma<C>(w, u, head).run();
        }
    }
};

template <class C> struct wide_unit<C, true, true> {
    static __device__ __forceinline__ void run(worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head)
    {
        pair_unit<C>(w, u, head).run();
    }
};

/* The first copies of a PAIR unit; nothing where the kernel has none. */
template <class C, bool pairs> struct pair_begin {
    static __device__ __forceinline__ void load(worker<C> &, const relay_cuda_unit &, uint32_t)
    {
    }
};

template <class C> struct pair_begin<C, true> {
    static __device__ __forceinline__ void load(worker<C> &w, const relay_cuda_unit &u,
                                                uint32_t head)
    {
        pair_unit<C>(w, u, head).load_first();
    }
};

} // namespace relay

#endif
