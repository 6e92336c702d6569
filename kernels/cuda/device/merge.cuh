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
    uint32_t bits = load_acquire(flag);
    uint32_t spins = 0;
    while (bits == RELAY_CUDA_LSE_PENDING) {
        __nanosleep(20);
        bits = load_acquire(flag);
        if (RELAY_CUDA_SPINS != 0 && ++spins == RELAY_CUDA_SPINS) {
            __trap();
        }
    }
    store_relaxed(flag, RELAY_CUDA_LSE_PENDING);
    return __uint_as_float(bits);
}

__device__ __forceinline__ void partial_give(uint32_t *flag, float lse)
{
    store_relaxed(flag, isnan(lse) ? 0x7fc00000u : __float_as_uint(lse));
}

__device__ __forceinline__ float half_max(float x)
{
#pragma unroll
    for (int i = 8; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    }
    return x;
}

__device__ __forceinline__ float half_sum(float x)
{
#pragma unroll
    for (int i = 8; i > 0; i /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
}

__device__ __forceinline__ uint64_t shuffle64(uint64_t x, int lane)
{
    return __shfl_sync(0xffffffffu, x, lane);
}

/* Two of a warp's rows while they are merged. Each half of the warp looks after one of them: its
 * lanes know the row's reference, sum and place, and look at 16 flags at once. Of the outputs,
 * every lane has columns 4 (lane + 32 c) .. of both. Kept small: in short launches this code is
 * fetched for the first time. */
template <class C> struct merging {
    static constexpr int n = (C::D + 127) / 128;
    static constexpr int batch = 8 / n; /* loads of a row in flight */

    const worker<C> &w;
    const relay_cuda_unit &u;
    uint32_t head;
    uint32_t first; /* packed row of half 0 */
    uint32_t step;  /* to that of half 1 */
    uint32_t m;     /* this lane's */
    bool valid;
    bool alone; /* no second row: its registers take every other batch of the first one's */
    float4 out[2][n];
    float max; /* of this lane's row: weights are 2^(. - max) */
    float sum;

    __device__ __forceinline__ merging(const worker<C> &w_, const relay_cuda_unit &u_,
                                       uint32_t head_, uint32_t first_, uint32_t step_)
        : w(w_), u(u_), head(head_), first(first_), step(step_),
          m(first_ + (w_.lane >= 16 ? step_ : 0)), valid(m < u_.packed_count),
          alone((w_.p.flags & RELAY_CUDA_P_ORDERED) == 0 && first_ + step_ >= u_.packed_count),
          max(-INFINITY), sum(0.0f)
    {
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[0][c] = out[1][c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }

    __device__ __forceinline__ void multiply(float by)
    {
        const float by0 = __shfl_sync(0xffffffffu, by, 0);
        const float by1 = __shfl_sync(0xffffffffu, by, alone ? 0 : 16);
#pragma unroll
        for (int c = 0; c < n; c++) {
            out[0][c] = scaled(out[0][c], by0);
            out[1][c] = scaled(out[1][c], by1);
        }
    }

    /* Adds terms of base-2 logarithm `lse` and sum `of` (lane i of a half: the row's i-th); returns
     * their weights. */
    __device__ __forceinline__ float weigh(float lse, float of)
    {
        const float most = fmaxf(max, half_max(lse));
        const float base = most == -INFINITY ? 0.0f : most;
        const float keep = exp2_fast(max - base); /* nothing yet: 0 */
        const float weight = exp2_fast(lse - base);
        sum = fmaf(sum, keep, half_sum(weight * of));
        if (__any_sync(0xffffffffu, max != most && max != -INFINITY)) {
            multiply(max == -INFINITY ? 0.0f : keep);
        }
        max = most;
        return weight;
    }

    __device__ __forceinline__ void add(int c, float w0, float w1, float4 a, float4 b)
    {
        if (w0 != 0.0f) { /* 0 * inf must not come through */
            out[0][c] = multiply_add(w0, a, out[0][c]);
        }
        if (w1 != 0.0f) {
            out[1][c] = multiply_add(w1, b, out[1][c]);
        }
    }

    /* The results of `warps` warps of the group, from warp `from` on, in stage `stage`. */
    __device__ __forceinline__ void add_own(uint32_t from, uint32_t warps, uint32_t stage)
    {
        const uint32_t i = w.lane % 16;
        float2 state = make_float2(-INFINITY, 0.0f);
        if (i < warps && valid) {
            state = w.mine.state[from + i][m];
        }
        const float weight = weigh(state.y == 0.0f ? -INFINITY : state.x, state.y);
        const unsigned char *at = w.memory + stage * C::STAGE_BYTES;
        const uint32_t last = min(first + step, 15u); /* a row that is not there: any place */
#pragma unroll 1
        for (uint32_t k = 0; k < warps; k++) {
            const float w0 = __shfl_sync(0xffffffffu, weight, k);
            const float w1 = __shfl_sync(0xffffffffu, weight, 16 + k);
            const uint32_t row = w.group * 64 + (from + k) * 16;
#pragma unroll
            for (int c = 0; c < n; c++) {
                const uint32_t chunk = w.lane + 32 * c;
                if (chunk * 4 < C::D) {
                    add(c, w0, w1, *(const float4 *)(at + result_offset<C>(row, first, chunk)),
                        *(const float4 *)(at + result_offset<C>(row, last, chunk)));
                }
            }
        }
    }

    /* This lane's columns, or others where it has none; those are never stored. */
    __device__ __forceinline__ uint32_t column(int c) const
    {
        return min(4 * (w.lane + 32 * c), (uint32_t)C::D - 4);
    }

    /* `count` <= 16 partial results of each row; `slot` of the first packed row's. Lanes of a half
     * past `count` have no weight, and what is loaded for them is the last one again. A row alone
     * loads twice as many at once. */
    __device__ __forceinline__ void add_parts(size_t slot, uint32_t stride, uint32_t count,
                                              float weight)
    {
        const float *at = w.p.partial_out + (slot + first) * w.p.partial_stride;
        const size_t next = (size_t)stride * w.p.partial_stride;
        const size_t second = first + step < u.packed_count ? step * w.p.partial_stride : 0;
        const uint32_t further = alone ? batch : 0;
        const uint32_t other = alone ? batch : 16;
#pragma unroll 1
        for (uint32_t i = 0; i < count; i += batch + further) {
            float4 a[batch][n];
            float4 b[batch][n];
#pragma unroll
            for (int k = 0; k < batch; k++) {
                const uint32_t x = min(i + k, count - 1);
                const uint32_t y = min(i + k + further, count - 1);
#pragma unroll
                for (int c = 0; c < n; c++) {
                    a[k][c] = __ldcg((const float4 *)(at + x * next + column(c)));
                    b[k][c] = __ldcg((const float4 *)(at + y * next + second + column(c)));
                }
            }
#pragma unroll
            for (int k = 0; k < batch; k++) {
                const float w0 = __shfl_sync(0xffffffffu, weight, i + k);
                const float w1 = __shfl_sync(0xffffffffu, weight, other + i + k);
#pragma unroll
                for (int c = 0; c < n; c++) {
                    add(c, w0, w1, a[k][c], b[k][c]);
                }
            }
        }
    }

    __device__ __forceinline__ void add_source(const relay_cuda_source &source)
    {
        const size_t slot = (size_t)head * w.p.slots + source.slot;
#pragma unroll 1
        for (uint32_t at = 0; at < source.count; at += 16) {
            const uint32_t count = min(source.count - at, 16u);
            const size_t here = slot + (size_t)at * source.stride;
            float lse = -INFINITY;
            if (w.lane % 16 < count && valid) {
                lse = partial_take(w.p.partial_lse + here + m + w.lane % 16 * source.stride);
            }
            __syncwarp();
            add_parts(here, source.stride, count, weigh(lse, 1.0f));
        }
    }

    /* Both halves of a row that was alone. */
    __device__ __forceinline__ void gather()
    {
        if (alone) {
#pragma unroll
            for (int c = 0; c < n; c++) {
                out[0][c] = multiply_add(1.0f, out[1][c], out[0][c]);
            }
        }
    }

    /* Divides, adds the sink and writes the rows of the problem's output. */
    __device__ __forceinline__ void write()
    {
        const relay_cuda_params &p = w.p;
        const uint32_t packed = u.packed_begin + min(m, u.packed_count - 1);
        const uint32_t row = w.row_of(packed);
        const uint32_t q_head = head * p.group + packed - row * p.group;
        const uint2 place = w.place_at(p, u, row);
        const relay_cuda_io &io = w.io_at(p, place.x);
        const size_t at = (size_t)place.y * p.num_q_heads + q_head;
        const float sink = p.sinks != nullptr ? __ldg(p.sinks + q_head) : -INFINITY;
        float lse = sink; /* nothing else to see: exactly the sink */
        if (p.sinks != nullptr) {
            weigh(w.lane % 16 == 0 ? sink * RELAY_CUDA_LOG2E : -INFINITY,
                  sum == 0.0f ? 0.0f : 1.0f);
        }
        if (sum != 0.0f) {
            lse = (max + log2_fast(sum)) * RELAY_CUDA_LN2;
        }
        multiply(sum == 0.0f ? 0.0f : reciprocal_fast(sum));
        const uint32_t size = p.out_dtype == RELAY_DTYPE_F32 ? 4 : 2;
        const uint64_t to = valid ? (uint64_t)io.out + at * p.dv * size : 0;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint64_t row_to = shuffle64(to, 16 * r);
#pragma unroll
            for (int c = 0; c < n; c++) {
                const uint32_t column = 4 * (w.lane + 32 * c);
                if (row_to != 0 && column < p.dv) {
                    store_float(p.out_dtype, (void *)row_to, column, out[r][c]);
                }
            }
        }
        if (io.lse != nullptr && w.lane % 16 == 0 && valid) {
            io.lse[at] = lse;
        }
    }

    /* Normalises and stores the rows as partial results of the unit. */
    __device__ __forceinline__ void keep()
    {
        const size_t slot = (size_t)head * w.p.slots + u.slot;
        const float lse = sum == 0.0f ? -INFINITY : max + log2_fast(sum);
        multiply(sum == 0.0f ? 0.0f : reciprocal_fast(sum));
        float *to = w.p.partial_out + (slot + first) * w.p.partial_stride + 4 * w.lane;
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int c = 0; c < n; c++) {
                if (first + r * step < u.packed_count && 4 * (w.lane + 32 * c) < C::D) {
                    *(float4 *)(to + 128 * c) = out[r][c];
                }
            }
            to += step * w.p.partial_stride;
        }
        __threadfence();
        __syncwarp();
        if (w.lane % 16 == 0 && valid) {
            partial_give(w.p.partial_lse + slot + m, lse);
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
    const uint32_t first = w.warp % step;
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
    const size_t first = (size_t)head * p.slots + u.slot + m;
    float lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = quad_sum(st.sum[r]);
        float inverse = sum == 0.0f ? 0.0f : reciprocal_fast(sum) * scale;
        float *to = p.partial_out + (first + 8 * r) * p.partial_stride + 2 * (w.lane & 3);
        lse[r] = sum == 0.0f ? -INFINITY : st.max[r] + log2_fast(sum);
        if (m + 8 * r < u.packed_count) {
#pragma unroll
            for (int j = 0; j < C::D / 8; j++) {
                *(float2 *)(to + 8 * j) =
                    make_float2(o[j][2 * r] * inverse, o[j][2 * r + 1] * inverse);
            }
        }
    }
    __threadfence();
    __syncwarp();
    if ((w.lane & 3) == 0) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (m + 8 * r < u.packed_count) {
                partial_give(p.partial_lse + first + 8 * r, lse[r]);
            }
        }
    }
}

} // namespace relay

#endif
