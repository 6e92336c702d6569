/* K/V pages in plain host memory, for backends that compute there (ref, cpu).
 *
 * The reserve..io_free functions have the vtable's signatures and ignore their backend argument
 * (NULL is fine). No global state: any thread, as long as nobody else uses the same bytes. */
#ifndef RELAY_CORE_HOST_MEMORY_H
#define RELAY_CORE_HOST_MEMORY_H

#include <relay/backend.h>

#include "backend_internal.h"

/* Address space by mmap without swap reservation; huge pages are asked for where they are free. */
enum relay_code relay_host_reserve(struct relay_backend *backend, size_t bytes, void **base,
                                   struct relay_error *err);
/* Makes the range readable and writable; it reads as zeros. */
enum relay_code relay_host_commit(struct relay_backend *backend, void *base, size_t offset,
                                  size_t bytes, struct relay_error *err);
void relay_host_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes);
void relay_host_release(struct relay_backend *backend, void *base, size_t bytes);
/* 64-byte aligned. */
void *relay_host_io_alloc(struct relay_backend *backend, size_t bytes);
void relay_host_io_free(struct relay_backend *backend, void *memory);

/* Bytes of RAM this process could use at most (physical memory). */
uint64_t relay_host_memory_bytes(void);

/* ---- pages ---- */

enum relay_code relay_host_pages_write(struct relay_backend *backend,
                                       const struct relay_pages_span *span, const void *k,
                                       const void *v, struct relay_error *err);
enum relay_code relay_host_pages_read(struct relay_backend *backend,
                                      const struct relay_pages_span *span, void *k, void *v,
                                      struct relay_error *err);

/* Byte offset, inside one page's K (dim = head_dim_qk) or V (dim = head_dim_v) image
 * [Hkv,page_tokens,dim], of a token's row of one KV head. */
static inline size_t relay_page_offset(uint32_t page_tokens, size_t dim, size_t elem, uint32_t head,
                                       uint32_t token_in_page)
{
    return ((size_t)head * page_tokens + token_in_page) * dim * elem;
}

/* The scale of a KV head's stored values; 1 where none is given. */
static inline float relay_kv_scale(const float *scales, uint32_t head)
{
    return scales != NULL ? scales[head] : 1.0f;
}

/* A new token's K or V of one head, src [dim] of io_dtype, to dst [dim] of kv_dtype: by
 * round-to-nearest-even, F8_E4M3 after dividing by the head's scale. */
void relay_host_store_row(const struct relay_shape *shape, void *dst, const void *src, size_t dim,
                          float scale);
/* Stores rows [first, first + count) of one append (0 <= first, first + count <= append->q_len).
 * Different rows may be stored by different threads. */
void relay_host_append_rows(const struct relay_problem *problem, const struct relay_append *append,
                            uint32_t first, uint32_t count);

#endif
