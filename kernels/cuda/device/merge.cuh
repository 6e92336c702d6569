/* The end of a unit: merging partial results in their order, and writing rows out.
 *
 * A partial result is a normalised output row and its base-2 LSE. The LSE doubles as the flag that
 * the row is there: it is PENDING until its producer stores it, and whoever merges it, exactly one
 * warp, sets it back. So there are no counters, and between launches every flag is PENDING. Device
 * code. */
#ifndef RELAY_CUDA_DEVICE_MERGE_CUH
#define RELAY_CUDA_DEVICE_MERGE_CUH

#include "cuda/device/convert.cuh"
#include "cuda/device/softmax.cuh"
#include "cuda/device/worker.cuh"

namespace relay
{

__device__ __forceinline__ float4 scaled(float4 a, float w)
{
    return make_float4(a.x * w, a.y * w, a.z * w, a.w * w);
}

__device__ __forceinline__ float4 multiply_add(float w, float4 a, float4 b)
{
    return make_float4(fmaf(w, a.x, b.x), fmaf(w, a.y, b.y), fmaf(w, a.z, b.z), fmaf(w, a.w, b.w));
}

/* Spins until a wait is taken for one without end; 0: never. For tests, where a hang must not hold
 * the device. */
#ifndef RELAY_CUDA_SPINS
#define RELAY_CUDA_SPINS 0
#endif

/* Waits for a flag, takes it and sets it back. */
__device__ __forceinline__ float partial_take(uint32_t *flag)
{
    uint32_t bits = load_relaxed(flag);
    uint32_t spins = 0;
    while (bits == RELAY_CUDA_LSE_PENDING) {
        bits = load_relaxed(flag);
        if (RELAY_CUDA_SPINS != 0 && ++spins == RELAY_CUDA_SPINS) {
            __trap();
        }
    }
    fence_gpu();
    store_relaxed(flag, RELAY_CUDA_LSE_PENDING);
    return __uint_as_float(bits);
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

/* Two of a warp's rows while they are merged, one by each half of the warp: a lane has columns
 * 4 (i + 16 c) .. of its half's row, i = lane % 16, and the row's reference, sum and place, and
 * looks at one of 16 flags. A row alone is merged by both halves, 8 of each 16 by either. Much is
 * under way at once: in short launches these are the last microseconds. */
template <class C> struct merging {
    static constexpr int n = (C::D + 63) / 64;
    static constexpr int many = 8;             /* partial results in flight, */
    static constexpr int few = n <= 2 ? 4 : 2; /* and of rows that have few */

    const worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    bool alone;
    uint32_t m; /* packed row */
    bool valid;
    float4 out[n];
    float max; /* of this lane's row: weights are 2^(. - max) */
    float sum;

    __device__ __forceinline__ merging(const worker<C> &w_, const relay_cuda_unit &u_,
                                       uint32_t head_, uint32_t first, uint32_t step)
        : w(w_), u(u_), head(head_),
          alone((w_.p.flags & RELAY_CUDA_P_ORDERED) == 0 && first + step >= u_.packed_count),
          m(first + (w_.lane >= 16 && !alone ? step : 0)), valid(m < u_.packed_count),
          max(-INFINITY), sum(0.0f)
    {
        m = valid ? m : first; /* what is read for it is never stored */
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }

    /* The half that stores the row, and has what its warp knows of it. */
    __device__ __forceinline__ bool owns() const
    {
        return valid && !(alone && w.lane >= 16);
    }

    /* This lane's columns, or others where it has none; those are never stored. */
    __device__ __forceinline__ uint32_t column(int c) const
    {
        return min(4 * (w.lane % 16 + 16 * c), (uint32_t)C::D - 4);
    }

    __device__ __forceinline__ bool has_column(int c, uint32_t dim) const
    {
        return 4 * (w.lane % 16 + 16 * c) < dim;
    }

    __device__ __forceinline__ void multiply(float by)
    {
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[c] = scaled(out[c], by);
        }
    }

    /* Adds terms of base-2 logarithm `lse` and sum `of` (lane i of a half: the row's i-th, the same
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

    /* The outputs of the term that lane i of the half has the weight of. */
    __device__ __forceinline__ void add(float weights, uint32_t i, const float4 (&a)[n])
    {
        const float weight = __shfl_sync(0xffffffffu, weights, (w.lane & 16) + i);
        if (weight != 0.0f) { /* 0 * inf must not come through */
#pragma unroll
            for (int c = 0; c < n; c++) {
                out[c] = multiply_add(weight, a[c], out[c]);
            }
        }
    }

    /* The results of `warps` warps of the group (1, 2 or 4; four are read in any case, those past
     * them with weight 0) from warp `from` on, in stage `stage`. */
    __device__ __forceinline__ void add_own(uint32_t from, uint32_t warps, uint32_t stage)
    {
        const unsigned char *at = w.memory + stage * C::STAGE_BYTES;
        float4 a[4][n];
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t row = w.group * 64 + (from + (k & (warps - 1))) * 16;
#pragma unroll
            for (int c = 0; c < n; c++) {
                a[k][c] = *(const float4 *)(at + result_offset<C>(row, m, column(c) / 4));
            }
        }
        float2 state = make_float2(-INFINITY, 0.0f);
        if (w.lane % 4 < warps && owns()) {
            state = w.mine.state[from + w.lane % 4][m];
        }
        const float weights = weigh<4>(state.y == 0.0f ? -INFINITY : state.x, state.y);
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            add(weights, k, a[k]);
        }
    }

    /* `count` <= 16 partial results, `batch` at a time, from there. Lanes of a half past `count`
     * have no weight; what is loaded for them belongs to others, or lies behind all. */
    template <int batch>
    __device__ __forceinline__ void add_parts(const float *from, uint32_t count, float weights)
    {
#pragma unroll 1
        for (uint32_t i = 0; i < count; i += batch, from += batch * C::D) {
            float4 a[batch][n];
#pragma unroll
            for (int k = 0; k < batch; k++) {
#pragma unroll
                for (int c = 0; c < n; c++) {
                    a[k][c] = __ldcg((const float4 *)(from + k * C::D + column(c)));
                }
            }
#pragma unroll
            for (int k = 0; k < batch; k++) {
                add(weights, i + k, a[k]);
            }
        }
    }

    __device__ __forceinline__ void add_source(const relay_cuda_source &source)
    {
        const size_t slot = (size_t)head * w.p.slots + source.slot + m * source.count;
        const uint32_t share = alone ? 8 : 16; /* of 16, or each half's own 16 */
#pragma unroll 1
        for (uint32_t begin = 0; begin < source.count; begin += 16) {
            const uint32_t at = begin + (alone ? w.lane / 16 * 8 : 0);
            const float *from = w.p.partial_out + (slot + at) * C::D;
            float lse = -INFINITY;
            if (w.lane % 16 < share && at + w.lane % 16 < source.count && valid) {
                lse = partial_take(w.p.partial_lse + slot + at + w.lane % 16);
            }
            __syncwarp();
            const float weights = weigh<16>(lse, 1.0f);
            if (source.count - begin <= few) {
                add_parts<few>(from, few, weights);
            } else {
                add_parts<many>(from, min(source.count - begin, share), weights);
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
            weigh<16>(w.lane % 16 == 0 ? sink * RELAY_CUDA_LOG2E : -INFINITY,
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
        if (io.lse != nullptr && w.lane % 16 == 0) {
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
                *(float4 *)(w.p.partial_out + slot * C::D + column(c)) = out[c];
            }
        }
        fence_gpu();
        __syncwarp();
        if (w.lane % 16 == 0 && owns()) {
            partial_give(w.p.partial_lse + slot, lse);
        }
    }
};

/* This warp's rows of a NARROW unit's end, or of a MERGE unit: from the warps' own results (`own`,
 * in stage `stage`) and the unit's sources to the output or a slot. */
template <class C>
__device__ __forceinline__ void finish_rows(const worker<C> &w, const relay_cuda_unit &u,
                                            uint32_t head, bool own, uint32_t stage)
{
    const uint32_t step = own ? w.head_warps() : 4;
    const uint32_t first = w.warp & (step - 1);
#pragma unroll 1
    for (uint32_t m = first; m < u.packed_count; m += 2 * step) {
        merging<C> merge(w, u, head, m, step);
        if (own) {
            merge.add_own(w.warp - first, step, stage);
        }
#pragma unroll 1
        for (uint32_t i = 0; i < u.source_count; i++) {
            const relay_cuda_source *source =
                u.source_count == 1 ? &u.source : w.p.sources + u.source_begin + i;
            merge.add_source(*source);
        }
        merge.gather();
        if ((u.flags & RELAY_CUDA_FINAL) != 0) {
            merge.write();
        } else {
            merge.keep();
        }
    }
}

/* The end of a WIDE or PAIR unit, which never writes rows out itself: this thread's packed rows m
 * and m + 8 become partial results, times `scale`. */
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
                *(float2 *)(to + 8 * j) =
                    make_float2(o[j][2 * r] * inverse, o[j][2 * r + 1] * inverse);
            }
        }
    }
    fence_gpu();
    __syncwarp();
    if ((w.lane & 3) == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (m + 8 * r < u.packed_count) {
                partial_give(p.partial_lse + first + r * second, lse[r]);
            }
        }
    }
}

} // namespace relay

#endif
