/* Copying tokens in and out of K/V pages in host memory. No state; any thread, as long as nobody
 * else uses the same bytes. */
#include "core/host_memory.h"

#include <string.h>

/* One of K and V of a span: where its pages are and how long a row is. */
struct pages_tensor {
    unsigned char *pages;
    size_t page_stride;
    size_t dim;
    size_t elem;
};

static struct pages_tensor k_tensor(const struct relay_shape *shape,
                                    const struct relay_kv_layer *kv)
{
    struct pages_tensor t = {kv->k, kv->page_stride, shape->kind.head_dim_qk,
                             relay_dtype_size(shape->kv_dtype)};
    return t;
}

static struct pages_tensor v_tensor(const struct relay_shape *shape,
                                    const struct relay_kv_layer *kv)
{
    struct pages_tensor t = {kv->v, kv->page_stride, shape->kind.head_dim_v,
                             relay_dtype_size(shape->kv_dtype)};
    return t;
}

static unsigned char *row_at(const struct pages_tensor *t, const uint32_t *pages,
                             uint32_t page_tokens, uint32_t token, uint32_t head)
{
    return t->pages + (size_t)pages[token / page_tokens] * t->page_stride +
           relay_page_offset(page_tokens, t->dim, t->elem, head, token % page_tokens);
}

/* host [token_count,Hkv,dim] */
static void write_tensor(const struct relay_pages_span *span, const struct pages_tensor *t,
                         const unsigned char *host)
{
    size_t row = t->dim * t->elem;
    for (uint32_t i = 0; i < span->token_count; i++) {
        for (uint32_t h = 0; h < span->shape->kind.num_kv_heads; h++) {
            memcpy(row_at(t, span->pages, span->page_tokens, span->token_begin + i, h), host, row);
            host += row;
        }
    }
}

static void read_tensor(const struct relay_pages_span *span, const struct pages_tensor *t,
                        unsigned char *host)
{
    size_t row = t->dim * t->elem;
    for (uint32_t i = 0; i < span->token_count; i++) {
        for (uint32_t h = 0; h < span->shape->kind.num_kv_heads; h++) {
            memcpy(host, row_at(t, span->pages, span->page_tokens, span->token_begin + i, h), row);
            host += row;
        }
    }
}

enum relay_code relay_host_pages_write(struct relay_backend *backend,
                                       const struct relay_pages_span *span, const void *k,
                                       const void *v, struct relay_error *err)
{
    struct pages_tensor kt = k_tensor(span->shape, &span->kv);
    struct pages_tensor vt = v_tensor(span->shape, &span->kv);
    (void)backend;
    (void)err;
    write_tensor(span, &kt, k);
    if (!span->shape->kind.v_from_k) {
        write_tensor(span, &vt, v);
    }
    return RELAY_OK;
}

enum relay_code relay_host_pages_read(struct relay_backend *backend,
                                      const struct relay_pages_span *span, void *k, void *v,
                                      struct relay_error *err)
{
    struct pages_tensor kt = k_tensor(span->shape, &span->kv);
    struct pages_tensor vt = v_tensor(span->shape, &span->kv);
    (void)backend;
    (void)err;
    read_tensor(span, &kt, k);
    if (!span->shape->kind.v_from_k) {
        read_tensor(span, &vt, v);
    }
    return RELAY_OK;
}

void relay_host_store_row(const struct relay_shape *shape, void *dst, const void *src, size_t dim,
                          float scale)
{
    float buffer[RELAY_HEAD_DIM_MAX];
    if (shape->kv_dtype != RELAY_DTYPE_F8_E4M3) {
        relay_dtype_convert(shape->kv_dtype, dst, shape->io_dtype, src, dim);
        return;
    }
    relay_dtype_convert(RELAY_DTYPE_F32, buffer, shape->io_dtype, src, dim);
    for (size_t i = 0; i < dim; i++) {
        buffer[i] /= scale;
    }
    relay_dtype_convert(shape->kv_dtype, dst, RELAY_DTYPE_F32, buffer, dim);
}

void relay_host_append_rows(const struct relay_problem *problem, const struct relay_append *append,
                            uint32_t first, uint32_t count)
{
    const struct relay_shape *shape = problem->shape;
    const struct relay_plan *plan = problem->plan;
    const struct relay_io *io = &problem->ios[append->io];
    const uint32_t *pages = plan->pages + plan->segments[append->segment].page_begin;
    struct pages_tensor kt = k_tensor(shape, &problem->kv);
    struct pages_tensor vt = v_tensor(shape, &problem->kv);
    size_t io_elem = relay_dtype_size(shape->io_dtype);
    uint32_t heads = shape->kind.num_kv_heads;
    for (uint32_t i = first; i < first + count; i++) {
        uint32_t token = append->token_begin + i;
        size_t src_row = (size_t)append->row_begin + i;
        for (uint32_t h = 0; h < heads; h++) {
            size_t src = (src_row * heads + h) * io_elem;
            relay_host_store_row(shape, row_at(&kt, pages, plan->page_tokens, token, h),
                                 (const unsigned char *)io->k + src * kt.dim, kt.dim,
                                 relay_kv_scale(problem->kv.k_scale, h));
            if (!shape->kind.v_from_k) {
                relay_host_store_row(shape, row_at(&vt, pages, plan->page_tokens, token, h),
                                     (const unsigned char *)io->v + src * vt.dim, vt.dim,
                                     relay_kv_scale(problem->kv.v_scale, h));
            }
        }
    }
}
