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

namespace relay {

#define RELAY_CUDA_MERGE_BATCH 8

/* A row being merged: lane has columns 4 (lane + 32 i) ..; weights are 2^(. - max). */
template <int n> struct merged_row {
    float4 out[n];
    float max;
    float sum;
};

__device__ __forceinline__ float4 scaled(float4 a, float w)
{
    return make_float4(a.x * w, a.y * w, a.z * w, a.w * w);
}

__device__ __forceinline__ float4 multiply_add(float w, float4 a, float4 b)
{
    return make_float4(fmaf(w, a.x, b.x), fmaf(w, a.y, b.y), fmaf(w, a.z, b.z), fmaf(w, a.w, b.w));
}

__device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    }
    return x;
}

__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
}

/* Raises the reference to `max` at least; what has no weight yet gets none. */
template <int n> __device__ __forceinline__ void merged_raise(merged_row<n> &row, float max)
{
    if (max > row.max) {
        float w = exp2_fast(row.max - max);
#pragma unroll
        for (int i = 0; i < n; i++) {
            row.out[i] = row.sum == 0.0f ? row.out[i] : scaled(row.out[i], w);
        }
        row.sum *= w;
        row.max = max;
    }
}

/* Waits for a flag, takes it and sets it back. */
__device__ __forceinline__ float partial_take(uint32_t *flag)
{
    uint32_t bits = load_acquire(flag);
    while (bits == RELAY_CUDA_LSE_PENDING) {
        __nanosleep(32);
        bits = load_acquire(flag);
    }
    store_relaxed(flag, RELAY_CUDA_LSE_PENDING);
    return __uint_as_float(bits);
}

__device__ __forceinline__ void partial_give(uint32_t *flag, float lse)
{
    store_relaxed(flag, isnan(lse) ? 0x7fc00000u : __float_as_uint(lse));
}

/* Adds the partial results of packed row m from one source. Whole warps. */
template <int n>
__device__ __forceinline__ void merge_source(merged_row<n> &row, const relay_cuda_params &p,
                                             const relay_cuda_source &source, uint32_t head,
                                             uint32_t m, uint32_t columns)
{
    const uint32_t lane = threadIdx.x % 32;
    const size_t first = (size_t)head * p.slots + source.slot + m;
    for (uint32_t at = 0; at < source.count; at += 32) {
        uint32_t count = min(source.count - at, 32u);
        float lse = -INFINITY;
        if (lane < count) {
            lse = partial_take(p.partial_lse + first + (size_t)(at + lane) * source.stride);
        }
        __syncwarp();
        merged_raise(row, warp_max(lse));
        float base = row.max == -INFINITY ? 0.0f : row.max;
        float weight = exp2_fast(lse - base);
        row.sum += warp_sum(weight);
        for (uint32_t i = 0; i < count; i += RELAY_CUDA_MERGE_BATCH) {
            float4 part[RELAY_CUDA_MERGE_BATCH][n];
#pragma unroll
            for (uint32_t b = 0; b < RELAY_CUDA_MERGE_BATCH; b++) {
                uint32_t k = min(i + b, count - 1);
                const float *from = p.partial_out +
                                    (first + (size_t)(at + k) * source.stride) * p.partial_stride;
#pragma unroll
                for (int c = 0; c < n; c++) {
                    uint32_t column = 4 * (lane + 32 * c);
                    part[b][c] = column < columns ? __ldcg((const float4 *)(from + column))
                                                  : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                }
            }
#pragma unroll
            for (uint32_t b = 0; b < RELAY_CUDA_MERGE_BATCH; b++) {
                float w = __shfl_sync(0xffffffffu, weight, (i + b) % 32);
                if (i + b < count && w != 0.0f) { /* 0 * inf must not come through */
#pragma unroll
                    for (int c = 0; c < n; c++) {
                        row.out[c] = multiply_add(w, part[b][c], row.out[c]);
                    }
                }
            }
        }
    }
}

/* Divides, adds the sink and writes a row of the problem's output. `io`, `io_row`: where. */
template <int n>
__device__ __forceinline__ void write_row(merged_row<n> &row, const relay_cuda_params &p,
                                          const relay_cuda_io &io, uint32_t io_row, uint32_t q_head)
{
    const uint32_t lane = threadIdx.x % 32;
    const size_t place = (size_t)io_row * p.num_q_heads + q_head;
    float lse = -INFINITY;
    if (p.sinks != nullptr) {
        float sink = __ldg(p.sinks + q_head);
        float sink2 = sink * RELAY_CUDA_LOG2E;
        if (row.sum == 0.0f) {
            lse = sink; /* nothing else to see: exactly the sink */
        } else if (sink != -INFINITY) {
            merged_raise(row, sink2);
            row.sum += exp2_fast(sink2 - row.max);
        }
    }
    float inverse = row.sum == 0.0f ? 0.0f : 1.0f / row.sum;
    if (row.sum != 0.0f) {
        lse = (row.max + log2f(row.sum)) * RELAY_CUDA_LN2;
    }
#pragma unroll
    for (int c = 0; c < n; c++) {
        uint32_t column = 4 * (lane + 32 * c);
        if (column < p.dv) {
            store_four(p.out_dtype, io.out, place * p.dv + column, scaled(row.out[c], inverse));
        }
    }
    if (io.lse != nullptr && lane == 0) {
        io.lse[place] = lse;
    }
}

/* Normalises and stores a row as a partial result; its LSE is for partial_give. */
template <int n>
__device__ __forceinline__ float keep_row(const merged_row<n> &row, const relay_cuda_params &p,
                                          size_t slot, uint32_t columns)
{
    const uint32_t lane = threadIdx.x % 32;
    float inverse = row.sum == 0.0f ? 0.0f : 1.0f / row.sum;
    float *to = p.partial_out + slot * p.partial_stride;
#pragma unroll
    for (int c = 0; c < n; c++) {
        uint32_t column = 4 * (lane + 32 * c);
        if (column < columns) {
            *(float4 *)(to + column) = scaled(row.out[c], inverse);
        }
    }
    return row.sum == 0.0f ? -INFINITY : row.max + log2f(row.sum);
}

/* This warp's part (every fourth row) of a NARROW unit's end or of a MERGE unit. `own`: the four
 * warps' results lie in stage `stage` and in the group's states. */
template <class C>
__device__ __forceinline__ void finish_rows(const worker<C> &w, const relay_cuda_unit &u,
                                            uint32_t head, bool own, uint32_t stage)
{
    constexpr int n = (C::D + 127) / 128;
    const relay_cuda_params &p = w.p;
    const bool final = (u.flags & RELAY_CUDA_FINAL) != 0;
    float kept = 0.0f; /* lane i: the LSE of this warp's i-th row */
#pragma unroll 1
    for (uint32_t m = w.warp; m < u.packed_count; m += 4) {
        merged_row<n> row;
#pragma unroll
        for (int c = 0; c < n; c++) {
            row.out[c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        row.max = -INFINITY;
        row.sum = 0.0f;
        if (own) {
            float2 state[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                state[i] = w.mine.state[i][m];
                row.max = fmaxf(row.max, state[i].x);
            }
            float base = row.max == -INFINITY ? 0.0f : row.max;
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                float weight = exp2_fast(state[i].x - base);
                row.sum = fmaf(weight, state[i].y, row.sum);
#pragma unroll
                for (int c = 0; c < n; c++) {
                    uint32_t chunk = w.lane + 32 * c;
                    if (chunk * 4 < C::D && weight != 0.0f) {
                        float4 part =
                            *(const float4 *)(w.memory + stage * C::STAGE_BYTES +
                                              result_offset<C>(w.group * 64 + i * 16, m, chunk));
                        row.out[c] = multiply_add(weight, part, row.out[c]);
                    }
                }
            }
        }
#pragma unroll 1
        for (uint32_t i = 0; i < u.source_count; i++) {
            const relay_cuda_source *from =
                u.source_count == 1 ? &u.source : p.sources + u.source_begin + i;
            merge_source(row, p, *from, head, m, C::D);
        }
        uint32_t packed = u.packed_begin + m;
        if (final) {
            uint2 place = w.place_at(p, u, packed);
            write_row(row, p, w.io_at(p, place.x), place.y, head * p.group + packed % p.group);
        } else {
            float lse = keep_row(row, p, (size_t)head * p.slots + u.slot + m, C::D);
            kept = w.lane == m / 4 ? lse : kept;
        }
    }
    if (!final) {
        __threadfence();
        __syncwarp();
        uint32_t m = w.warp + 4 * w.lane;
        if (m < u.packed_count) {
            partial_give(p.partial_lse + (size_t)head * p.slots + u.slot + m, kept);
        }
    }
}

/* The end of a WIDE or PAIR unit, which never writes rows out itself: this thread's packed rows m
 * and m + 8 become partial results. */
template <class C>
__device__ __forceinline__ void keep_wide(const worker<C> &w, const relay_cuda_unit &u,
                                          uint32_t head, uint32_t m, float (&o)[C::D / 8][4],
                                          row_state &st)
{
    const relay_cuda_params &p = w.p;
    const size_t first = (size_t)head * p.slots + u.slot + m;
    float lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = quad_sum(st.sum[r]);
        float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        float *to = p.partial_out + (first + 8 * r) * p.partial_stride + 2 * (w.lane & 3);
        lse[r] = sum == 0.0f ? -INFINITY : st.max[r] + log2f(sum);
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
