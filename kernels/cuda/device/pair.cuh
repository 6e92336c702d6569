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
    uint32_t first_stage;
    uint2 whole; /* tiles [x, y) that are loaded as they lie */

    __device__ __forceinline__ pair_unit(worker<C> &worker_, const relay_cuda_unit &unit,
                                         uint32_t head_)
        : w(worker_), u(unit), head(head_), tiles(unit.tiles), first_stage(worker_.use_stage),
          whole(make_uint2(0, 0))
    {
        constexpr uint32_t plain = RELAY_CUDA_P_POW2 | RELAY_CUDA_P_EXACT;
        if ((w.p.flags & plain) == plain) {
            whole = make_uint2(u.whole_begin, u.whole_end);
        }
    }

    __device__ __forceinline__ uint32_t stage_of(uint32_t tile) const
    {
        return (first_stage + tile) % C::STAGES;
    }

    /* ---- loading: w.load_tile is the tile whose keys come next, w.run_page the last one's page */

    __device__ __forceinline__ void load_tensor(uint32_t tile, uint32_t token, uint32_t page,
                                                bool values) const
    {
        const uint32_t stage = stage_of(tile);
        const uint32_t to = values ? w.value_tile(stage) : w.key_tile(stage);
        if (__builtin_expect(tile - whole.x < whole.y - whole.x, 1)) {
            w.load_whole(to, (values ? w.p.v : w.p.k) + w.whole_place(page, token),
                         w.load_policy());
        } else {
            const bool paged = (w.p.flags & RELAY_CUDA_P_POW2) != 0;
            w.load_rows(to, w.row_place(u, head, token, paged, page), values ? 16 : 0,
                        values ? w.p.dv : w.p.dqk);
        }
    }

    /* The next keys, and the values of the tile before. */
    __device__ __forceinline__ void load_step() const
    {
        const uint32_t before = w.run_page;
        if (w.load_tile < tiles) {
            w.pages_go_on(u);
            w.run_page = __shfl_sync(0xffffffffu, w.pages, (w.load_tile - w.pages_tile) % 32);
        }
#pragma unroll 1
        for (uint32_t values = 0; values < 2; values++) {
            const uint32_t tile = w.load_tile - values; /* before the first: a large number */
            if (tile < tiles) {
                load_tensor(tile, w.load_token - values * w.load_step,
                            values != 0 ? before : w.run_page, values != 0);
            }
        }
        cp_async_commit();
        w.load_tile++;
        w.load_token += w.load_step;
    }

    /* The first keys, then the second with the first values. */
    __device__ __forceinline__ void load_first() const
    {
        w.load_begin(u, head);
        w.load_tile = 0;
        w.ahead = 1;
        load_step();
        load_step();
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
        w.use_stage = stage_of(tiles);
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

    __device__ __forceinline__ void scores_begin(float (&s)[16][4], uint32_t tile) const
    {
        const uint32_t queries = w.queries() + w.group * 64 * 128;
        const uint32_t keys = w.key_tile(stage_of(tile));
#pragma unroll
        for (int k = 0; k < C::D / 16; k++) {
            const uint32_t at = k / 4 * C::PLANE_BYTES + k % 4 * 32;
            wgmma_type<T>::scores(s, wgmma_tile(queries + at, 16, 1024),
                                  wgmma_tile(keys + at, 16, 1024), k != 0);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void values_begin(const uint32_t (&a)[8][4], float (&o)[C::D / 8][4],
                                                 uint32_t tile) const
    {
        const uint32_t at = w.value_tile(stage_of(tile));
#pragma unroll
        for (int t = 0; t < 8; t++) {
            wgmma_type<T>::values(o, a[t], wgmma_tile(at + t * 2048, C::PLANE_BYTES, 1024), 1);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ bool weigh(float (&s)[16][4], uint32_t tile, const uint2 &plain,
                                          float scale, row_state &st, float (&alpha)[2]) const
    {
        if (__builtin_expect(tile - plain.x >= plain.y - plain.x, 0)) {
            scores_finish(w, u, w.first_token(u) + tile * 128, s);
        }
        return softmax(s, scale, st, alpha);
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
        uint2 plain = make_uint2(u.whole_begin, u.whole_end);
        if ((u.flags & RELAY_CUDA_MASKED) != 0) {
            plain = make_uint2(0, 0);
        }
        if (w.ahead == 0) {
            w.load_queries(w.query_place(u, head));
            load_first();
        }
        w.ahead = 0;
#pragma unroll
        for (int j = 0; j < C::D / 8; j++) {
            o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0.0f;
        }
        state_reset(st);
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
        wgmma_fence();
        scores_begin(s, 0);
        tell_loaded(1);
        load_step();
        append_all(w, u, head);
        wgmma_wait<0>();
        wgmma_results(s);
        barrier_arrive(used(w.group, 0), C::THREADS);
        (void)weigh(s, 0, plain, scale, st, alpha);
        weights_keep(a, s);
#pragma unroll 1
        for (uint32_t t = 1; t < tiles; t++) {
            barrier(loaded(1 - w.group, t), C::THREADS);
            wgmma_results(o);
            wgmma_results(s);
            wgmma_fence();
            scores_begin(s, t);
            values_begin(a, o, t - 1);
            tell_loaded(t + 1);
            barrier(used(1 - w.group, t - 1), C::THREADS);
            load_step();
            wgmma_wait<1>();
            wgmma_results(s);
            const bool grown = weigh(s, t, plain, scale, st, alpha);
            wgmma_results(s);
            wgmma_wait<0>();
            wgmma_results(o);
            barrier_arrive(used(w.group, t), C::THREADS);
            if (__builtin_expect(grown, 0)) {
                rescale(o, alpha);
            }
            weights_keep(a, s);
            if (__builtin_expect(w.asked, 0)) {
                w.look_ahead_resolve();
            }
        }
        barrier(loaded(1 - w.group, tiles), C::THREADS);
        wgmma_results(o);
        wgmma_fence();
        values_begin(a, o, tiles - 1);
        barrier(used(1 - w.group, tiles - 1), C::THREADS);
        load_after();
        wgmma_wait<0>();
        wgmma_results(o);
        keep_wide(w, u, head, w.query_row(u) + (w.lane >> 2), o, st);
    }
};

/* Units of 17 rows or more, by the kernel's means. */
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
        wide_wgmma<C>(w, u, head).run();
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
