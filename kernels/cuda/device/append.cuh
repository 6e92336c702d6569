/* The tokens that come with the call, of one KV head: from a tile, or from the call's own tensors,
 * to their pages. K/V as F8_E4M3 is converted on the way, to the tile too. Must not know what is
 * multiplied, or in which order units come. Device code. */
#ifndef RELAY_CUDA_DEVICE_APPEND_CUH
#define RELAY_CUDA_DEVICE_APPEND_CUH

#include "cuda/device/convert.cuh"
#include "cuda/device/worker.cuh"

namespace relay
{

/* Stores rows [rows.x, rows.y) of this warp's 16 tokens from `token` on, from a stage to their
 * pages; `page`: the first one's. */
template <class C>
__device__ __forceinline__ void append_store(const worker<C> &w, const relay_cuda_unit &u,
                                             uint32_t head, uint32_t token, uint32_t stage,
                                             uint2 rows, uint32_t page)
{
    const relay_cuda_params &p = w.p;
    const unsigned char *keys = w.memory + stage * C::STAGE_BYTES;
#pragma unroll 1
    for (uint32_t row = rows.x; row < rows.y; row++) {
        const uint32_t in_page = w.token_in_page(token + row);
        if (row != rows.x && in_page == 0) {
            page = w.page_of(u, token + row);
        }
        const size_t place = (size_t)head * p.page_tokens + in_page;
#pragma unroll 1
        for (uint32_t c = w.lane; c < 2 * C::CHUNKS; c += 32) {
            bool is_value = c >= C::CHUNKS;
            uint32_t chunk = is_value ? c - C::CHUNKS : c;
            if (chunk * 8 >= (is_value ? p.dv : p.dqk) || (is_value && p.v == p.k)) {
                continue;
            }
            uint4 bits = *(const uint4 *)(keys + (is_value ? C::TENSOR_BYTES : 0) +
                                          tile_offset<C>(w.first_row + row, chunk));
            unsigned char *to = (unsigned char *)(is_value ? p.v : p.k) + page * p.page_stride +
                                place * (is_value ? p.v_row_bytes : p.k_row_bytes) + chunk * 16;
            *(uint4 *)to = bits;
        }
    }
}

/* Those of this warp's tokens of a tile, if there are any. */
template <class C>
__device__ __forceinline__ void append_tile(const worker<C> &w, const relay_cuda_unit &u,
                                            uint32_t head, uint32_t token, uint32_t stage)
{
    const uint2 rows = w.appended_rows(u, token);
    if (rows.x < rows.y) {
        append_store(w, u, head, token, stage, rows, w.page_of(u, token + rows.x));
    }
}

/* The same from the call's own tensors, for all of this warp's tokens of a unit. They are rare in
 * units of many rows, whose tiles are used up before there would be time. */
template <class C>
__device__ __forceinline__ void append_all(const worker<C> &w, const relay_cuda_unit &u,
                                           uint32_t head)
{
    const relay_cuda_params &p = w.p;
    if (u.append_count == 0) {
        return;
    }
#pragma unroll 1
    for (uint32_t tile = 0; tile < u.tiles; tile++) {
        const uint32_t token = w.warp_token(u, tile);
        if (!w.appends(u, token, 16)) {
            continue;
        }
        const relay_cuda_io &io = w.io_at(p, u.append_io);
        const uint2 rows = w.appended_rows(u, token);
#pragma unroll 1
        for (uint32_t t = token + rows.x; t < token + rows.y; t++) {
            size_t from = (size_t)(u.append_row + t - u.append_token) * p.num_kv_heads + head;
            size_t place = (size_t)head * p.page_tokens + w.token_in_page(t);
            size_t page = w.page_of(u, t) * p.page_stride;
            if (w.lane < p.dqk / 8) {
                ((uint4 *)(p.k + page + place * p.k_row_bytes))[w.lane] =
                    ((const uint4 *)io.k)[from * (p.dqk / 8) + w.lane];
            }
            if (w.lane < p.dv / 8 && p.v != p.k) {
                ((uint4 *)(p.v + page + place * p.v_row_bytes))[w.lane] =
                    ((const uint4 *)io.v)[from * (p.dv / 8) + w.lane];
            }
        }
    }
}

/* ---- F8 ---- */

/* A token on its way: a lane's elements 4 lane .. and 128 further. */
template <class C> struct appended_row {
    static constexpr uint32_t n = (C::D + 127) / 128;
    uint2 k[n];
    uint2 v[n];
    float k_scale;
    float v_scale;
    uint32_t page;
};

/* Token append_token + at. */
template <class C>
__device__ __forceinline__ void append_fetch(const worker<C> &w, const relay_cuda_unit &u,
                                             uint32_t head, uint32_t at, appended_row<C> &row)
{
    const relay_cuda_params &p = w.p;
    const relay_cuda_io &io = w.io_at(p, u.append_io);
    const size_t i = (size_t)(u.append_row + at) * p.num_kv_heads + head;
    const bool shared = p.v == p.k;
    const uint16_t *k = (const uint16_t *)io.k + i * p.dqk;
    const uint16_t *v = shared ? k : (const uint16_t *)io.v + i * p.dv;
#pragma unroll
    for (uint32_t j = 0; j < appended_row<C>::n; j++) {
        const uint32_t d = 4 * w.lane + 128 * j;
        row.k[j] = d < p.dqk ? *(const uint2 *)(k + d) : make_uint2(0, 0);
        row.v[j] = d < p.dv ? *(const uint2 *)(v + d) : make_uint2(0, 0);
    }
    row.k_scale = p.k_scale != nullptr ? __ldg(p.k_scale + head) : 1.0f;
    row.v_scale = shared ? row.k_scale : p.v_scale != nullptr ? __ldg(p.v_scale + head) : 1.0f;
    row.page = w.page_of(u, u.append_token + at);
}

/* Puts such a row, as token t of the segment and row `row` of a stage, there and into its page. */
template <class C>
__device__ __forceinline__ void append_put(const worker<C> &w, uint32_t head, uint32_t t,
                                           uint32_t row, uint32_t stage,
                                           const appended_row<C> &from)
{
    const relay_cuda_params &p = w.p;
    unsigned char *keys = w.memory + stage * C::STAGE_BYTES;
    const size_t page = from.page * p.page_stride;
    const size_t place = (size_t)head * p.page_tokens + w.token_in_page(t);
    unsigned char *k = (unsigned char *)p.k + page + place * p.k_row_bytes;
    unsigned char *v = (unsigned char *)p.v + page + place * p.v_row_bytes;
#pragma unroll
    for (uint32_t j = 0; j < appended_row<C>::n; j++) {
        const uint32_t d = 4 * w.lane + 128 * j;
        const uint32_t at = stored_offset<C>(row, d / 16) + d % 16;
        if (d < p.dqk) {
            const uint32_t four = four_to_f8<typename C::IO>(from.k[j], from.k_scale);
            *(uint32_t *)(keys + at) = four;
            *(uint32_t *)(k + d) = four;
        }
        if (d < p.dv) {
            const uint32_t four = four_to_f8<typename C::IO>(from.v[j], from.v_scale);
            *(uint32_t *)(keys + C::TILE_BYTES + at) = four;
            if (p.v != p.k) {
                *(uint32_t *)(v + d) = four;
            }
        }
    }
}

/* Converts those of this warp's 16 tokens from `token` on, before the tile is used; `first` is the
 * first of the call's, fetched before. */
template <class C>
__device__ __forceinline__ void append_convert(const worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head, uint32_t token, uint32_t stage,
                                               const appended_row<C> &first)
{
#pragma unroll 1
    for (uint32_t row = 0; row < 16; row++) {
        const uint32_t t = token + row;
        const uint32_t at = t - u.append_token;
        if (at >= u.append_count || t < u.token_begin || t >= u.token_end) {
            continue;
        }
        appended_row<C> next = first;
        if (at != 0) {
            append_fetch(w, u, head, at, next);
        }
        append_put(w, head, t, w.first_row + row, stage, next);
    }
    __syncwarp();
}

/* The same where there was no room to fetch it before. */
template <class C>
__device__ __forceinline__ void append_convert(const worker<C> &w, const relay_cuda_unit &u,
                                               uint32_t head, uint32_t token, uint32_t stage)
{
    appended_row<C> first;
    append_fetch(w, u, head, 0, first);
    append_convert(w, u, head, token, stage, first);
}

} // namespace relay

#endif
