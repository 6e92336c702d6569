/* See copy.h. */
#include "cuda/copy.h"
#include "cuda/device/convert.cuh"

namespace relay
{

#define STAGE_THREADS 128
#define MOVE_THREADS  256

static __device__ __forceinline__ const relay_cuda_io &io_at(const relay_cuda_params &p, uint32_t i)
{
    return p.io_table != nullptr ? p.io_table[i] : p.ios[i];
}

/* One head's new row of K or V to its page. */
static __device__ void append_row(const relay_cuda_params &p, const void *from, size_t first,
                                  unsigned char *to, uint32_t dim, float scale, bool plain)
{
    const uint32_t lane = threadIdx.x % 32;
    if (plain) {
        const uint4 *source = (const uint4 *)((const unsigned char *)from + first * 2);
        for (uint32_t i = lane; i < dim / 8; i += 32) {
            ((uint4 *)to)[i] = source[i];
        }
        return;
    }
    for (uint32_t i = lane; i < dim; i += 32) {
        float f = load_element(p.io_dtype, from, first + i);
        if (p.kv_dtype == RELAY_DTYPE_F8_E4M3) {
            f = __fdiv_rn(f, scale);
        }
        store_element(p.kv_dtype, to, i, f);
    }
}

static __device__ void append_token(const relay_cuda_params &p, const relay_cuda_append &a)
{
    const relay_cuda_io &io = io_at(p, a.io);
    const bool v_from_k = p.v == p.k;
    const uint64_t bits = (uint64_t)io.k | (v_from_k ? 0 : (uint64_t)io.v) | (uint64_t)p.k |
                          (uint64_t)p.v | p.page_stride;
    const bool plain = p.io_dtype == p.kv_dtype &&
                       (p.kv_dtype == RELAY_DTYPE_BF16 || p.kv_dtype == RELAY_DTYPE_F16) &&
                       bits % 16 == 0;
    for (uint32_t h = threadIdx.x / 32; h < p.num_kv_heads; h += STAGE_THREADS / 32) {
        size_t row = (size_t)a.row * p.num_kv_heads + h;
        size_t place = (size_t)h * p.page_tokens + a.token;
        unsigned char *page = (unsigned char *)p.k + a.page * p.page_stride;
        append_row(p, io.k, row * p.dqk, page + place * p.k_row_bytes, p.dqk,
                   p.k_scale != nullptr ? p.k_scale[h] : 1.0f, plain);
        if (!v_from_k) {
            page = (unsigned char *)p.v + a.page * p.page_stride;
            append_row(p, io.v, row * p.dv, page + place * p.v_row_bytes, p.dv,
                       p.v_scale != nullptr ? p.v_scale[h] : 1.0f, plain);
        }
    }
}

__global__ void __launch_bounds__(STAGE_THREADS)
    stage(const __grid_constant__ relay_cuda_params p, const relay_cuda_append *appends,
          uint32_t num_appends, uint4 *queries)
{
    if (blockIdx.x < num_appends) {
        append_token(p, appends[blockIdx.x]);
        return;
    }
    const uint32_t row = blockIdx.x - num_appends;
    const uint32_t chunks = p.num_q_heads * p.dqk / 8;
    const relay_cuda_row at = p.rows[row];
    const uint4 *from = (const uint4 *)io_at(p, at.io).q + (size_t)at.row * chunks;
    for (uint32_t i = threadIdx.x; i < chunks; i += STAGE_THREADS) {
        queries[(size_t)row * chunks + i] = from[i];
    }
}

template <typename word>
__global__ void __launch_bounds__(MOVE_THREADS) move(const relay_cuda_move m)
{
    const uint32_t words = m.row_bytes / sizeof(word); /* of a row */
    const size_t total = (size_t)m.count * m.heads * words;
    for (size_t i = blockIdx.x * (size_t)MOVE_THREADS + threadIdx.x; i < total;
         i += gridDim.x * (size_t)MOVE_THREADS) {
        uint32_t w = i % words;
        uint32_t head = i / words % m.heads;
        uint32_t token = m.token_begin + (uint32_t)(i / words / m.heads);
        unsigned char *page = m.pages + m.page_ids[token / m.page_tokens] * m.page_stride +
                              ((size_t)head * m.page_tokens + token % m.page_tokens) * m.row_bytes;
        if (m.to_pages) {
            ((word *)page)[w] = ((const word *)m.rows)[i];
        } else {
            ((word *)m.rows)[i] = ((const word *)page)[w];
        }
    }
}

} // namespace relay

extern "C" cudaError_t relay_cuda_stage(const struct relay_cuda_params *params,
                                        const struct relay_cuda_append *appends,
                                        uint32_t num_appends, void *queries, cudaStream_t stream)
{
    uint32_t blocks = num_appends + (queries != nullptr ? params->num_rows : 0);
    if (blocks == 0) {
        return cudaSuccess;
    }
    relay::stage<<<blocks, STAGE_THREADS, 0, stream>>>(*params, appends, num_appends,
                                                       (uint4 *)queries);
    return cudaGetLastError();
}

extern "C" cudaError_t relay_cuda_move_rows(const struct relay_cuda_move *m, cudaStream_t stream)
{
    const size_t bits = (size_t)m->pages | m->page_stride | (size_t)m->rows | m->row_bytes;
    const size_t bytes = (size_t)m->count * m->heads * m->row_bytes;
    const size_t blocks = bytes / 8 / MOVE_THREADS + 1;
    const unsigned int grid = blocks < 1024 ? (unsigned int)blocks : 1024u;
    if (bits % 16 == 0) {
        relay::move<uint4><<<grid, MOVE_THREADS, 0, stream>>>(*m);
    } else if (bits % 4 == 0) {
        relay::move<uint32_t><<<grid, MOVE_THREADS, 0, stream>>>(*m);
    } else {
        relay::move<unsigned char><<<grid, MOVE_THREADS, 0, stream>>>(*m);
    }
    return cudaGetLastError();
}
