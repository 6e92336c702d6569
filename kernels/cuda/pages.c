/* Tokens in and out of pages, through pinned memory, a few MiB at a time. Any thread; one copy at a
 * time, on a stream of its own, so that uploads do not wait for attention. */
#include "cuda/cuda_internal.h"

#include "core/checked.h"
#include "cuda/copy.h"

#include <string.h>

#define COPY_BYTES ((size_t)8 << 20)

/* One of K and V of a span. */
struct copy_tensor {
    unsigned char *pages;
    unsigned char *host; /* [token_count,Hkv,row_bytes] */
    size_t row_bytes;
    bool to_pages;
};

static enum relay_code copy_piece(struct cuda_backend *cuda, const struct relay_pages_span *span,
                                  const struct copy_tensor *t, uint32_t first, uint32_t count,
                                  struct relay_error *err)
{
    uint32_t token = span->token_begin + first;
    uint32_t page = token / span->page_tokens;
    uint32_t pages = relay_ceil_div_u32(token % span->page_tokens + count, span->page_tokens);
    size_t token_bytes = t->row_bytes * span->shape->kind.num_kv_heads;
    struct relay_cuda_move move = {
        .pages = t->pages,
        .page_stride = span->kv.page_stride,
        .page_tokens = span->page_tokens,
        .token_begin = token % span->page_tokens,
        .count = count,
        .heads = span->shape->kind.num_kv_heads,
        .row_bytes = (uint32_t)t->row_bytes,
        .to_pages = t->to_pages,
    };
    enum relay_code code = cuda_staging_grow(cuda, &cuda->copy_rows, count * token_bytes, err);
    if (code == RELAY_OK) {
        code = cuda_staging_grow(cuda, &cuda->copy_pages, pages * sizeof(uint32_t), err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    move.rows = cuda->copy_rows.data;
    move.page_ids = cuda->copy_pages.data;
    memcpy(cuda->copy_pages.data, span->pages + page, pages * sizeof(uint32_t));
    if (t->to_pages) {
        memcpy(move.rows, t->host + first * token_bytes, count * token_bytes);
    }
    code = cuda_check(cuda, relay_cuda_move_rows(&move, cuda->copy_stream), "a page copy", err);
    if (code == RELAY_OK) {
        code = cuda_check(cuda, cudaStreamSynchronize(cuda->copy_stream), "a page copy", err);
    }
    if (code == RELAY_OK && !t->to_pages) {
        memcpy(t->host + first * token_bytes, move.rows, count * token_bytes);
    }
    return code;
}

static enum relay_code copy_tensor(struct cuda_backend *cuda, const struct relay_pages_span *span,
                                   const struct copy_tensor *t, struct relay_error *err)
{
    size_t token_bytes = t->row_bytes * span->shape->kind.num_kv_heads;
    uint32_t most = token_bytes < COPY_BYTES ? (uint32_t)(COPY_BYTES / token_bytes) : 1u;
    enum relay_code code = RELAY_OK;
    for (uint32_t at = 0; code == RELAY_OK && at < span->token_count;) {
        uint32_t left = span->token_count - at;
        uint32_t count = left < most ? left : most;
        code = copy_piece(cuda, span, t, at, count, err);
        at += count;
    }
    return code;
}

static enum relay_code copy_span(struct relay_backend *backend, const struct relay_pages_span *span,
                                 void *k, void *v, bool to_pages, struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    const struct relay_layer_kind *kind = &span->shape->kind;
    size_t elem = relay_dtype_size(span->shape->kv_dtype);
    struct copy_tensor keys = {span->kv.k, k, kind->head_dim_qk * elem, to_pages};
    struct copy_tensor values = {span->kv.v, v, kind->head_dim_v * elem, to_pages};
    enum relay_code code = cuda_enter(cuda, err);
    if (code != RELAY_OK) {
        return code;
    }
    pthread_mutex_lock(&cuda->copy_mutex);
    code = copy_tensor(cuda, span, &keys, err);
    if (code == RELAY_OK && !kind->v_from_k) {
        code = copy_tensor(cuda, span, &values, err);
    }
    pthread_mutex_unlock(&cuda->copy_mutex);
    return code;
}

enum relay_code cuda_pages_write(struct relay_backend *backend, const struct relay_pages_span *span,
                                 const void *k, const void *v, struct relay_error *err)
{
    /* Only read from: to_pages. */
    return copy_span(backend, span, (void *)(uintptr_t)k, (void *)(uintptr_t)v, true, err);
}

enum relay_code cuda_pages_read(struct relay_backend *backend, const struct relay_pages_span *span,
                                void *k, void *v, struct relay_error *err)
{
    return copy_span(backend, span, k, v, false, err);
}
