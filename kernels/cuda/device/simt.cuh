/* Attention for every shape and dtype, on plain float32 arithmetic: a warp takes a row, a lane
 * every 32nd element. Slow and plain; the path of shapes that have no other kernel. Device code. */
#ifndef RELAY_CUDA_DEVICE_SIMT_CUH
#define RELAY_CUDA_DEVICE_SIMT_CUH

#include "cuda/device/convert.cuh"
#include "cuda/device/merge.cuh"

namespace relay
{

#define RELAY_CUDA_SIMT_ELEMENTS ((RELAY_HEAD_DIM_MAX + 31) / 32) /* of a lane */
#define RELAY_CUDA_SIMT_THREADS  128

/* A packed row's result: this lane's elements lane + 32 i, not normalised. */
struct simt_row {
    float out[RELAY_CUDA_SIMT_ELEMENTS];
    float max; /* base 2 */
    float sum;
};

__device__ __forceinline__ void simt_reset(simt_row &row)
{
#pragma unroll
    for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
        row.out[i] = 0.0f;
    }
    row.max = -INFINITY;
    row.sum = 0.0f;
}

/* Makes room for a term of weight 2^s; returns the weight. A weight of 0 must not be multiplied. */
__device__ __forceinline__ float simt_weight(simt_row &row, float s)
{
    float most = s > row.max || isnan(s) ? s : row.max;
    if (most == -INFINITY) {
        return 0.0f;
    }
    float keep = exp2f(row.max - most);
    float weight = exp2f(s - most);
    if (keep != 1.0f) {
#pragma unroll
        for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
            row.out[i] *= keep;
        }
    }
    row.sum = row.sum * keep + weight;
    row.max = most;
    return weight;
}

__device__ __forceinline__ float simt_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
}

__device__ __forceinline__ float simt_score(const relay_cuda_params &p,
                                            const float (&q)[RELAY_CUDA_SIMT_ELEMENTS],
                                            const unsigned char *k, float slope, int64_t away)
{
    const uint32_t lane = threadIdx.x % 32;
    float s = 0.0f;
#pragma unroll
    for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
        uint32_t d = lane + 32 * i;
        if (d < p.dqk) {
            s = fmaf(q[i], load_element(p.kv_dtype, k, d), s);
        }
    }
    s = simt_sum(s) * p.scale;
    if (p.softcap > 0.0f) {
        s = p.softcap * tanhf(s / p.softcap);
    }
    return fmaf(slope, (float)away, s) * RELAY_CUDA_LOG2E;
}

/* The unit's tokens for one packed row. */
__device__ __forceinline__ void simt_attend(const relay_cuda_params &p, const relay_cuda_unit &u,
                                            uint32_t head, uint32_t packed, simt_row &row)
{
    const uint32_t lane = threadIdx.x % 32;
    const relay_cuda_row at = p.rows[packed / p.group];
    const uint32_t q_head = head * p.group + packed % p.group;
    const relay_cuda_io &io = p.io_table != nullptr ? p.io_table[at.io] : p.ios[at.io];
    const size_t from = ((size_t)at.row * p.num_q_heads + q_head) * p.dqk;
    const float k_scale = p.k_scale != nullptr ? p.k_scale[head] : 1.0f;
    /* Values that are keys are scaled like keys. */
    const float *v_scales = p.v == p.k ? p.k_scale : p.v_scale;
    const float v_scale = v_scales != nullptr ? v_scales[head] : 1.0f;
    const float slope = p.slopes != nullptr ? p.slopes[q_head] : 0.0f;
    float q[RELAY_CUDA_SIMT_ELEMENTS];
#pragma unroll
    for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
        uint32_t d = lane + 32 * i;
        q[i] = d < p.dqk ? load_element(p.io_dtype, io.q, from + d) * k_scale : 0.0f;
    }
    for (uint32_t t = u.token_begin; t < u.token_end; t++) {
        uint64_t key = (uint64_t)u.position + t;
        if (key > at.position || (p.window != 0 && key + p.window <= at.position) ||
            (p.chunk != 0 && key / p.chunk != at.position / p.chunk)) {
            continue;
        }
        size_t page = p.pages[u.page_begin + t / p.page_tokens] * p.page_stride;
        size_t place = (size_t)head * p.page_tokens + t % p.page_tokens;
        float s = simt_score(p, q, p.k + page + place * p.k_row_bytes, slope,
                             (int64_t)key - (int64_t)at.position);
        float weight = simt_weight(row, s);
        if (weight == 0.0f) {
            continue; /* 0 * inf must not come through */
        }
        const unsigned char *v = p.v + page + place * p.v_row_bytes;
#pragma unroll
        for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
            uint32_t d = lane + 32 * i;
            if (d < p.dv) {
                row.out[i] = fmaf(weight, load_element(p.kv_dtype, v, d) * v_scale, row.out[i]);
            }
        }
    }
}

/* Waits for a partial result's LSE and takes it; then its output is there too. */
__device__ __forceinline__ float simt_take(uint32_t *flag)
{
    uint32_t bits = load_relaxed(flag);
    uint32_t spins = 0;
    while (bits == RELAY_CUDA_PENDING) {
        bits = load_relaxed(flag);
        spin_count(spins);
    }
    fence_gpu();
    store_relaxed(flag, RELAY_CUDA_PENDING);
    return __uint_as_float(bits);
}

/* Adds packed row m's partial results from the unit's sources, in their order. */
__device__ __forceinline__ void simt_merge(const relay_cuda_params &p, const relay_cuda_unit &u,
                                           uint32_t head, uint32_t m, simt_row &row)
{
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t i = 0; i < u.source_count; i++) {
        const relay_cuda_source &source = p.sources[u.source_begin + i];
        for (uint32_t k = 0; k < source.count; k++) {
            size_t slot = (size_t)head * p.slots + source.slot + (size_t)m * source.count + k;
            float lse = 0.0f;
            if (lane == 0) {
                lse = simt_take(p.partial_lse + slot);
            }
            lse = __shfl_sync(0xffffffffu, lse, 0);
            float weight = simt_weight(row, lse);
            float *from = p.partial_out + slot * p.partial_stride;
#pragma unroll
            for (int j = 0; j < RELAY_CUDA_SIMT_ELEMENTS; j++) {
                uint32_t d = lane + 32 * j;
                if (d < p.dv) {
                    const float x = __ldcg(from + d);
                    row.out[j] = weight != 0.0f ? fmaf(weight, x, row.out[j]) : row.out[j];
                    from[d] = __uint_as_float(RELAY_CUDA_PENDING);
                }
            }
        }
    }
}

__device__ __forceinline__ void simt_write(const relay_cuda_params &p, uint32_t head,
                                           uint32_t packed, simt_row &row)
{
    const uint32_t lane = threadIdx.x % 32;
    const relay_cuda_row at = p.rows[packed / p.group];
    const uint32_t q_head = head * p.group + packed % p.group;
    const relay_cuda_io &io = p.io_table != nullptr ? p.io_table[at.io] : p.ios[at.io];
    const size_t place = (size_t)at.row * p.num_q_heads + q_head;
    float lse = -INFINITY;
    if (p.sinks != nullptr) {
        float sink = p.sinks[q_head];
        if (row.sum == 0.0f) {
            lse = sink;
        } else {
            (void)simt_weight(row, sink * RELAY_CUDA_LOG2E);
        }
    }
    if (row.sum != 0.0f) {
        lse = (row.max + log2f(row.sum)) * RELAY_CUDA_LN2;
    }
#pragma unroll
    for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
        uint32_t d = lane + 32 * i;
        if (d < p.dv) {
            float f = row.sum == 0.0f ? 0.0f : row.out[i] / row.sum;
            store_element(p.out_dtype, io.out, place * p.dv + d, f);
        }
    }
    if (io.lse != nullptr && lane == 0) {
        io.lse[place] = lse;
    }
}

__device__ __forceinline__ void simt_keep(const relay_cuda_params &p, size_t slot,
                                          const simt_row &row)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < RELAY_CUDA_SIMT_ELEMENTS; i++) {
        uint32_t d = lane + 32 * i;
        if (d < p.dv) {
            p.partial_out[slot * p.partial_stride + d] =
                row.sum == 0.0f ? 0.0f : row.out[i] / row.sum;
        }
    }
    fence_gpu();
    __syncwarp();
    if (lane == 0) {
        partial_give(p.partial_lse + slot, row.sum == 0.0f ? -INFINITY : row.max + log2f(row.sum));
    }
}

__global__ void __launch_bounds__(RELAY_CUDA_SIMT_THREADS)
    simt(const __grid_constant__ relay_cuda_params p)
{
    /* A head a block, so numbers are units times heads throughout. */
    const uint32_t number = p.number_begin + blockIdx.x;
    const relay_cuda_unit &u = p.units[number / p.num_kv_heads];
    const uint32_t head = number % p.num_kv_heads;
    const bool merge = (u.flags & RELAY_CUDA_KIND_MASK) == RELAY_CUDA_MERGE;
    for (uint32_t m = threadIdx.x / 32; m < u.packed_count; m += RELAY_CUDA_SIMT_THREADS / 32) {
        simt_row row;
        simt_reset(row);
        if (!merge) {
            simt_attend(p, u, head, u.packed_begin + m, row);
        }
        simt_merge(p, u, head, m, row);
        if ((u.flags & RELAY_CUDA_FINAL) != 0) {
            simt_write(p, head, u.packed_begin + m, row);
        } else {
            simt_keep(p, (size_t)head * p.slots + u.slot + (size_t)m * u.slot_stride, row);
        }
    }
}

} // namespace relay

#endif
