/* The end of a unit: merging partial results in their order, and writing rows out.
 *
 * A partial result is a normalised output row and its base-2 LSE. Every word of both is PENDING, a
 * NaN that no arithmetic gives, until its producer stores it, and whoever merges it, exactly one
 * warp, sets it back. So there are no counters, and no fences (but in simt.cuh, which looks at LSEs
 * alone): what is read is there or is not, and between launches everything is PENDING. Device
 * code. */
#ifndef RELAY_CUDA_DEVICE_MERGE_CUH
#define RELAY_CUDA_DEVICE_MERGE_CUH

#include "cuda/device/convert.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/worker.cuh"

namespace relay
{

/* 0 * inf is 0: of what has no weight nothing comes through. */
__device__ __forceinline__ float4 scaled(float4 a, float w)
{
    if (w == 0.0f) {
        return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    return make_float4(a.x * w, a.y * w, a.z * w, a.w * w);
}

__device__ __forceinline__ float4 multiply_add(float w, float4 a, float4 b)
{
    return make_float4(fmaf(w, a.x, b.x), fmaf(w, a.y, b.y), fmaf(w, a.z, b.z), fmaf(w, a.w, b.w));
}

/* Looks until a wait is taken for one without end; 0: never. For tests, where a hang must not hold
 * the device. */
#ifndef RELAY_CUDA_SPINS
#define RELAY_CUDA_SPINS 0
#endif

__device__ __forceinline__ void spin_count(uint32_t &spins)
{
    if (RELAY_CUDA_SPINS != 0 && ++spins == RELAY_CUDA_SPINS) {
        __trap();
    }
}

/* PENDING is the largest word. Outputs are stored by eights or sixteens, so one word of each eight
 * bytes tells. */
static_assert(RELAY_CUDA_PENDING == 0xffffffffu, "no word is larger");

__device__ __forceinline__ uint32_t largest(uint32_t x, float4 a)
{
    return max(x, max(__float_as_uint(a.y), __float_as_uint(a.w)));
}

__device__ __forceinline__ float4 all_pending()
{
    const float x = __uint_as_float(RELAY_CUDA_PENDING);
    return make_float4(x, x, x, x);
}

__device__ __forceinline__ void partial_give(uint32_t *flag, float lse)
{
    store_relaxed(flag, isnan(lse) ? 0x7fc00000u : __float_as_uint(lse));
}

/* Over each `lanes` lanes, a power of two. */
template <int lanes> __device__ __forceinline__ float part_max(float x)
{
#pragma unroll
    for (int i = lanes / 2; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    }
    return x;
}

template <int lanes> __device__ __forceinline__ float part_sum(float x)
{
#pragma unroll
    for (int i = lanes / 2; i > 0; i /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
}

/* A warp's rows while they are merged, two by 16 lanes each, four by 8 or eight by 4: of `width`
 * lanes lane i has columns 4 (i + width c) .. of their row, and the row's reference, sum and place,
 * and looks at one of `width` flags. By 16 lanes, a row alone is merged by both halves of the warp,
 * or, where it is alone in its unit, by the eight of the warpgroup, each with a share of its
 * partial results. Much is under way at once: in short launches these are the last microseconds. */
template <class C, int width> struct merging {
    static constexpr int n = (C::D + 4 * width - 1) / (4 * width);
    /* Partial results in flight, and of rows that have few; more of many rows would spill. */
    static constexpr int many = width == 4 ? 1 : width == 8 ? 2 : n <= 2 ? 8 : 4;
    static constexpr int few = width == 4 ? 1 : n <= 2 && width == 16 ? 4 : 2;

    const worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    bool alone;
    uint32_t ways; /* so many times `width` lanes share a row */
    uint32_t m;    /* packed row */
    bool valid;
    float4 out[n];
    float max; /* of this lane's row: weights are 2^(. - max) */
    float sum;

    __device__ __forceinline__ merging(const worker<C> &w_, const relay_cuda_unit &u_,
                                       uint32_t head_, uint32_t first, uint32_t step, bool spread)
        : w(w_), u(u_), head(head_),
          alone(width == 16 && (w_.p.flags & RELAY_CUDA_P_ORDERED) == 0 &&
                first + step >= u_.packed_count),
          ways(spread  ? 8
               : alone ? 2
                       : 1),
          m(first + (alone ? 0 : w_.lane / width * step)), valid(m < u_.packed_count),
          max(-INFINITY), sum(0.0f)
    {
        m = valid ? m : first; /* what is read for it is never stored */
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }

    /* The first of the row's lanes. */
    __device__ __forceinline__ uint32_t first_lane() const
    {
        return w.lane / width * width;
    }

    /* Of the warps' own results. */
    __device__ __forceinline__ uint32_t own_row() const
    {
        return C::FINALS ? m % 16 : m;
    }

    /* Lanes that store the row, and have what their warp knows of it. */
    __device__ __forceinline__ bool owns() const
    {
        return valid && !(alone && w.lane >= 16);
    }

    /* This lane's columns, or others where it has none; those are never stored. */
    __device__ __forceinline__ uint32_t column(int c) const
    {
        const uint32_t mine = 4 * (w.lane % width + width * c);
        return C::D % (4 * width) == 0 ? mine : min(mine, (uint32_t)C::D - 4);
    }

    __device__ __forceinline__ bool has_column(int c, uint32_t dim) const
    {
        return 4 * (w.lane % width + width * c) < dim;
    }

    __device__ __forceinline__ void multiply(float by)
    {
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[c] = scaled(out[c], by);
        }
    }

    /* Adds terms of base-2 logarithm `lse` and sum `of` (lane i of a row's: its i-th, the same
     * again every `lanes` lanes); returns their weights. */
    template <int lanes> __device__ __forceinline__ float weigh(float lse, float of)
    {
        const float most = fmaxf(max, part_max<lanes>(lse));
        const float base = most == -INFINITY ? 0.0f : most;
        const float keep = exp2_fast(max - base); /* nothing yet: 0 */
        const float weight = exp2_fast(lse - base);
        sum = fmaf(sum, keep, part_sum<lanes>(weight * of));
        if (max != most && max != -INFINITY) {
            multiply(keep);
        }
        max = most;
        return weight;
    }

    /* The outputs of the term that lane i of the row's has the weight of. */
    __device__ __forceinline__ void add(float weights, uint32_t i, const float4 (&a)[n])
    {
        const float weight = __shfl_sync(0xffffffffu, weights, first_lane() + i);
        if (weight != 0.0f) { /* 0 * inf must not come through */
#pragma unroll
            for (int c = 0; c < n; c++) {
                out[c] = multiply_add(weight, a[c], out[c]);
            }
        }
    }

    /* The results of `warps` warps of the group (1, 2 or 4; four are read in any case, those past
     * them with weight 0; but with four rows at a time always 1) from warp `from` on, in stage
     * `stage`. */
    __device__ __forceinline__ void add_own(uint32_t from, uint32_t warps, uint32_t stage)
    {
        const unsigned char *at = w.memory + stage * C::STAGE_BYTES;
        constexpr uint32_t most = width == 16 ? 4 : 1;
        float4 a[most][n];
#pragma unroll
        for (uint32_t k = 0; k < most; k++) {
            const uint32_t row = w.group * 64 + (from + (k & (warps - 1))) * 16;
#pragma unroll
            for (int c = 0; c < n; c++) {
                a[k][c] = *(const float4 *)(at + result_offset<C>(row, own_row(), column(c) / 4));
            }
        }
        float2 state = make_float2(-INFINITY, 0.0f);
        if (w.lane % most < warps && owns()) {
            state = w.mine.state[from + w.lane % most][own_row()];
        }
        const float weights = weigh<most>(state.y == 0.0f ? -INFINITY : state.x, state.y);
#pragma unroll
        for (uint32_t k = 0; k < most; k++) {
            add(weights, k, a[k]);
        }
    }

    /* How often outputs are asked for together with LSEs that are not there yet. That saves their
     * own way to L2 and back in short steps; in long ones it would take bandwidth from those who
     * are waited for. */
    static constexpr uint32_t EAGER = 8;

    /* Adds up to `width` partial results of each row, `batch` at a time: those of slots `slot` of
     * the head that its first lanes have, where `wanted`. `count`: the most that a row has. */
    template <int batch>
    __device__ __forceinline__ void add_parts(uint32_t slot, bool wanted, uint32_t count)
    {
        const size_t first = (size_t)head * w.p.slots;
        uint32_t *flag = w.p.partial_lse + first + slot;
        float *outputs = w.p.partial_out + first * C::D;
        const uint32_t mine =
            __popc(__ballot_sync(0xffffffffu, wanted) >> first_lane() & ((1u << width) - 1));
        uint32_t bits = wanted ? RELAY_CUDA_PENDING : __float_as_uint(-INFINITY);
        float weights = 0.0f;
#pragma unroll 1
        for (uint32_t i = 0; i < count; i += batch) {
            float4 a[batch][n];
            float *from[batch];
            bool missing;
            uint32_t tries = 0;
            uint32_t spins = 0;
#pragma unroll
            for (int k = 0; k < batch; k++) {
                /* Past the last: the same again, with no weight. */
                const uint32_t lane = first_lane() + (i + k < mine ? i + k : i);
                const uint32_t at = __shfl_sync(0xffffffffu, slot, lane);
                from[k] = outputs + (size_t)at * C::D;
            }
            do {
                while (tries >= EAGER && bits == RELAY_CUDA_PENDING) {
                    bits = load_relaxed(flag);
                    spin_count(spins);
                }
                __syncwarp();
                if (bits == RELAY_CUDA_PENDING) {
                    bits = load_relaxed(flag);
                }
#pragma unroll
                for (int k = 0; k < batch; k++) {
#pragma unroll
                    for (int c = 0; c < n; c++) {
                        a[k][c] = load_relaxed(from[k] + column(c));
                    }
                }
                uint32_t most = bits;
#pragma unroll
                for (int k = 0; k < batch; k++) {
#pragma unroll
                    for (int c = 0; c < n; c++) {
                        most = largest(most, a[k][c]);
                    }
                }
                missing = __any_sync(0xffffffffu, i < mine && most == RELAY_CUDA_PENDING);
                tries++;
                spin_count(spins);
            } while (__builtin_expect(missing, 0));
            if (i == 0) {
                if (wanted) {
                    store_relaxed(flag, RELAY_CUDA_PENDING);
                }
                weights = weigh<width>(__uint_as_float(bits), 1.0f);
            }
#pragma unroll
            for (int k = 0; k < batch; k++) {
#pragma unroll
                for (int c = 0; c < n; c++) {
                    if (i + k < mine && has_column(c, C::D)) {
                        store_relaxed(from[k] + column(c), all_pending());
                    }
                }
                add(weights, i + k, a[k]);
            }
        }
    }

    /* All that the unit's sources have of this lane's row, in their order: of each share `width`
     * at a time, one for each lane. */
    __device__ __forceinline__ void add_sources()
    {
        const bool held = u.source_count <= relay_cuda_sources_held(u.flags);
        const relay_cuda_source *sources = held ? u.sources : w.p.sources + u.source_begin;
        const uint32_t way = ways == 1 ? 0 : (ways == 8 ? w.warp * 2 : 0) + w.lane / 16;
        uint32_t total = 0;
#pragma unroll 1
        for (uint32_t s = 0; s < u.source_count; s++) {
            total += sources[s].count;
        }
        const uint32_t share = (total + ways - 1) / ways;
#pragma unroll 1
        for (uint32_t begin = 0; begin < share; begin += width) {
            const uint32_t of_share = begin + w.lane % width;
            uint32_t i = way * share + of_share;
            const bool wanted = of_share < share && i < total && valid;
            uint32_t slot = 0;
#pragma unroll 1
            for (uint32_t s = 0; s < u.source_count; s++) {
                const uint32_t count = sources[s].count;
                if (i < count) {
                    slot = wanted ? sources[s].slot + m * count + i : 0;
                    break;
                }
                i -= count;
            }
            __syncwarp();
            if (share - begin <= few) {
                add_parts<few>(slot, wanted, share - begin);
            } else {
                add_parts<many>(slot, wanted, min(share - begin, (uint32_t)width));
            }
        }
    }

    /* Adds what the other half has of the same row. */
    __device__ __forceinline__ void gather()
    {
        if (!alone) {
            return;
        }
        const float other = __shfl_xor_sync(0xffffffffu, max, 16);
        const float most = fmaxf(max, other);
        const float base = most == -INFINITY ? 0.0f : most;
        const float mine = exp2_fast(max - base);
        const float its = exp2_fast(other - base);
        sum = sum * mine + __shfl_xor_sync(0xffffffffu, sum, 16) * its;
        max = most;
#pragma unroll
        for (int c = 0; c < n; c++) {
            const float4 more = make_float4(__shfl_xor_sync(0xffffffffu, out[c].x, 16),
                                            __shfl_xor_sync(0xffffffffu, out[c].y, 16),
                                            __shfl_xor_sync(0xffffffffu, out[c].z, 16),
                                            __shfl_xor_sync(0xffffffffu, out[c].w, 16));
            out[c] = scaled(out[c], mine);
            if (its != 0.0f) { /* 0 * inf must not come through */
                out[c] = multiply_add(its, more, out[c]);
            }
        }
    }

    /* Leaves what this warp has of the unit's only row where add_own() finds it. */
    __device__ __forceinline__ void leave(uint32_t stage) const
    {
        unsigned char *to = w.memory + stage * C::STAGE_BYTES;
#pragma unroll
        for (int c = 0; c < n; c++) {
            if (w.lane < 16 && has_column(c, C::D)) {
                *(float4 *)(to + result_offset<C>(w.first_row, 0, column(c) / 4)) = out[c];
            }
        }
        if (w.lane == 0) {
            w.mine.state[w.warp][0] = make_float2(max, sum);
        }
    }

    /* Divides, adds the sink and writes the rows of the problem's output. */
    __device__ __forceinline__ void write()
    {
        const relay_cuda_params &p = w.p;
        const uint32_t packed = u.packed_begin + m;
        const uint32_t row = w.row_of(packed);
        const uint32_t q_head = head * p.group + packed - row * p.group;
        const uint2 place = w.place_at(p, u, row);
        const relay_cuda_io &io = w.io_at(p, place.x);
        const size_t at = (size_t)place.y * p.num_q_heads + q_head;
        const float sink = p.sinks != nullptr ? __ldg(p.sinks + q_head) : -INFINITY;
        float lse = sink; /* nothing else to see: exactly the sink */
        if (p.sinks != nullptr) {
            weigh<width>(w.lane % width == 0 ? sink * RELAY_CUDA_LOG2E : -INFINITY,
                         sum == 0.0f ? 0.0f : 1.0f);
        }
        if (sum != 0.0f) {
            lse = (max + log2_fast(sum)) * RELAY_CUDA_LN2;
        }
        multiply(sum == 0.0f ? 0.0f : reciprocal_fast(sum));
        if (!owns()) {
            return;
        }
        unsigned char *to =
            (unsigned char *)io.out + at * p.dv * (p.out_dtype == RELAY_DTYPE_F32 ? 4 : 2);
#pragma unroll
        for (int c = 0; c < n; c++) {
            if (has_column(c, p.dv)) {
                store_float(p.out_dtype, to, column(c), out[c]);
            }
        }
        if (io.lse != nullptr && w.lane % width == 0) {
            io.lse[at] = lse;
        }
    }

    /* Normalises and stores the rows as partial results of the unit. */
    __device__ __forceinline__ void keep()
    {
        const size_t slot = (size_t)head * w.p.slots + u.slot + m * u.slot_stride;
        const float lse = sum == 0.0f ? -INFINITY : max + log2_fast(sum);
        multiply(sum == 0.0f ? 0.0f : reciprocal_fast(sum));
#pragma unroll
        for (int c = 0; c < n; c++) {
            if (owns() && has_column(c, C::D)) {
                store_relaxed(w.p.partial_out + slot * C::D + column(c), out[c]);
            }
        }
        if (w.lane % width == 0 && owns()) {
            partial_give(w.p.partial_lse + slot, lse);
        }
    }

    __device__ __forceinline__ void finish()
    {
        if ((u.flags & RELAY_CUDA_FINAL) != 0) {
            write();
        } else {
            keep();
        }
    }
};

/* This warp's rows of a NARROW unit's end, or of a MERGE unit: from the warps' own results (`own`,
 * in stage `stage`, which is free otherwise) and the unit's sources to the output or a slot. */
template <class C>
__device__ __forceinline__ void finish_rows(const worker<C> &w, const relay_cuda_unit &u,
                                            uint32_t head, bool own, uint32_t stage)
{
    const uint32_t step = own ? w.head_warps() : 4;
    const uint32_t first = w.warp & (step - 1);
    bool spread = !own && u.packed_count == 1 && (w.p.flags & RELAY_CUDA_P_ORDERED) == 0;
    bool from_sources = true;
    if ((u.flags & RELAY_CUDA_ONE_ROW) != 0 && w.p.io_table != nullptr) {
        prefetch_l1(w.p.io_table + u.io); /* for write(), which is soon */
    }
    if constexpr (C::D <= 128) {
        const bool short_merge =
            u.source_count == 0 || (u.source_count == 1 && u.sources[0].count <= 4);
        if (own && step == 1 && u.packed_count > 2 && short_merge) {
#pragma unroll 1
            for (uint32_t m = 0; m < u.packed_count; m += 4) {
                merging<C, 8> merge(w, u, head, m, 1, false);
                merge.add_own(w.warp, 1, stage);
                merge.add_sources();
                merge.finish();
            }
            return;
        }
    }
#pragma unroll 1
    for (uint32_t m = spread ? 0 : first; m < u.packed_count; m += 2 * step) {
        merging<C, 16> merge(w, u, head, m, step, spread);
        if (own) {
            merge.add_own(w.warp - first, step, stage);
        }
        if (from_sources) {
            merge.add_sources();
        }
        merge.gather();
        if (spread) {
            /* The same row once more, by the first warp, from what all of them have. */
            merge.leave(stage);
            __syncwarp();
            w.group_barrier();
            spread = false;
            from_sources = false;
            own = true;
            if (w.warp == 0) {
                m -= 2 * step;
            }
        } else {
            merge.finish();
        }
    }
}

/* The end of a WIDE unit that is FINAL: as finish_rows(), a warp's 16 rows, which are left where it
 * would look for them: this thread has row lane / 4 and 8 further, times `scale`. */
template <class C>
__device__ __forceinline__ void finish_wide(const worker<C> &w, const relay_cuda_unit &u,
                                            uint32_t head, uint32_t stage,
                                            const float (&o)[C::D / 8][4], const row_state &st,
                                            float scale)
{
    constexpr int width = C::D <= 128 ? 4 : 16; /* as many rows at once as registers hold */
    unsigned char *to = w.memory + stage * C::STAGE_BYTES;
    const result_place<C> place(w.first_row, w.lane >> 2 & ~1u, 2 * (w.lane & 3));
    const uint32_t first = w.query_row(u);
    const uint32_t end = min(u.packed_count, first + 16);
    w.group_barrier(); /* the others' products may still read the stage */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float sum = quad_sum(st.sum[r]);
#pragma unroll
        for (int j = 0; j < C::D / 8; j++) {
            const uint32_t odd = place.at(j, r, 1) - place.at(j, r, 0);
            *(float2 *)(to + place.at(j, r, 0) + (w.lane >> 2 & 1) * odd) =
                make_float2(o[j][2 * r] * scale, o[j][2 * r + 1] * scale);
        }
        if ((w.lane & 3) == 0) {
            w.mine.state[w.warp][(w.lane >> 2) + 8 * r] = make_float2(st.max[r], sum);
        }
    }
    __syncwarp();
#pragma unroll 1
    for (uint32_t m = first; m < end; m += 32 / width) {
        merging<C, width> merge(w, u, head, m, 1, false);
        merge.add_own(w.warp, 1, stage);
        merge.add_sources();
        merge.gather();
        merge.finish();
    }
}

/* The end of a WIDE or PAIR unit that is not: this thread's packed rows m and m + 8 become partial
 * results, times `scale`. */
template <class C>
__device__ __forceinline__ void keep_wide(const worker<C> &w, const relay_cuda_unit &u,
                                          uint32_t head, uint32_t m, float (&o)[C::D / 8][4],
                                          row_state &st, float scale = 1.0f)
{
    const relay_cuda_params &p = w.p;
    const size_t first = (size_t)head * p.slots + u.slot + m * u.slot_stride;
    const uint32_t second = 8 * u.slot_stride; /* slots further */
    float lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = quad_sum(st.sum[r]);
        float inverse = sum == 0.0f ? 0.0f : reciprocal_fast(sum) * scale;
        float *to = p.partial_out + (first + r * second) * C::D + 2 * (w.lane & 3);
        lse[r] = sum == 0.0f ? -INFINITY : st.max[r] + log2_fast(sum);
        if (m + 8 * r < u.packed_count) {
#pragma unroll
            for (int j = 0; j < C::D / 8; j++) {
                store_relaxed(to + 8 * j,
                              make_float2(o[j][2 * r] * inverse, o[j][2 * r + 1] * inverse));
            }
        }
    }
    if ((w.lane & 3) == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (m + 8 * r < u.packed_count) {
                partial_give(p.partial_lse + first + r * second, lse[r]);
            }
        }
    }
}

/* Either, by what the unit is; its last stage is `stage`. */
template <class C>
__device__ __forceinline__ void wide_end(const worker<C> &w, const relay_cuda_unit &u,
                                         uint32_t head, uint32_t stage, float (&o)[C::D / 8][4],
                                         row_state &st, float scale = 1.0f)
{
    if (C::FINALS && (u.flags & RELAY_CUDA_FINAL) != 0) {
        finish_wide(w, u, head, stage, o, st, scale);
    } else {
        keep_wide(w, u, head, w.query_row(u) + (w.lane >> 2), o, st, scale);
    }
}

} // namespace relay

#endif
