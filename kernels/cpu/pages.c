#include "cpu/pages.h"

#include "core/host_memory.h"

#include <string.h>

#define PAGE_STEP 64u /* the kernels' block */

bool relay_cpu_pages_packed(const struct relay_shape *shape, uint32_t page_tokens)
{
    return page_tokens % PAGE_STEP == 0 && !shape->kind.v_from_k;
}

struct relay_cpu_place relay_cpu_pages_place(const struct relay_shape *shape,
                                             const struct relay_kv_layer *kv, uint32_t page_tokens,
                                             bool packed)
{
    const size_t elem = relay_dtype_size(shape->kv_dtype);
    const size_t k_bytes = page_tokens * shape->kind.head_dim_qk * elem;
    const size_t v_bytes = page_tokens * shape->kind.head_dim_v * elem;
    const uintptr_t k_end = (uintptr_t)kv->k + shape->kind.num_kv_heads * k_bytes;
    if (packed && (uintptr_t)kv->v == k_end) {
        return (struct relay_cpu_place){.k = kv->k,
                                        .v = (unsigned char *)kv->k + k_bytes,
                                        .k_head = k_bytes + v_bytes,
                                        .v_head = k_bytes + v_bytes};
    }
    return (struct relay_cpu_place){.k = kv->k, .v = kv->v, .k_head = k_bytes, .v_head = v_bytes};
}

/* One of K and V of some pages: where a token's elements are. Units are the p elements that lie
 * together in K, single elements in V. */
struct image {
    unsigned char *pages; /* page 0, head 0 */
    size_t page_stride;
    size_t head_stride;
    size_t dim;
    size_t elem;
    uint32_t page_tokens;
    bool pairs; /* p = 2 */
    bool is_k;
};

/* K and V */
static void find_images(const struct relay_shape *shape, const struct relay_kv_layer *kv,
                        uint32_t page_tokens, struct image images[2])
{
    struct relay_cpu_place place = relay_cpu_pages_place(shape, kv, page_tokens, true);
    images[0] = (struct image){.pages = place.k,
                               .page_stride = kv->page_stride,
                               .head_stride = place.k_head,
                               .dim = shape->kind.head_dim_qk,
                               .elem = relay_dtype_size(shape->kv_dtype),
                               .page_tokens = page_tokens,
                               .pairs = shape->kv_dtype == RELAY_DTYPE_BF16,
                               .is_k = true};
    images[1] = images[0];
    images[1].pages = place.v;
    images[1].head_stride = place.v_head;
    images[1].dim = shape->kind.head_dim_v;
    images[1].is_k = false;
}

/* A token's elements: `count` units of `bytes`, `step` bytes apart, from the returned one on. */
static unsigned char *token_at(const struct image *image, const uint32_t *pages, uint32_t token,
                               uint32_t head, size_t *count, size_t *bytes, size_t *step)
{
    uint32_t in_page = token % image->page_tokens;
    unsigned char *at = image->pages + pages[token / image->page_tokens] * image->page_stride +
                        head * image->head_stride;
    if (image->is_k) {
        *bytes = image->pairs ? 2 * image->elem : image->elem;
        *count = image->pairs ? image->dim / 2 : image->dim;
        *step = image->page_tokens * *bytes;
        return at + in_page * *bytes;
    }
    if (image->pairs) {
        *bytes = image->elem;
        *count = image->dim;
        *step = 2 * image->elem;
        return at + (in_page / 2 * 2 * image->dim + in_page % 2) * image->elem;
    }
    *bytes = image->dim * image->elem;
    *count = 1;
    *step = 0;
    return at + in_page * image->dim * image->elem;
}

#define STRIDED(type, to, to_step, from, from_step, count)                                         \
    do {                                                                                           \
        for (size_t i_ = 0; i_ < (count); i_++) {                                                  \
            type x_;                                                                               \
            memcpy(&x_, (from) + i_ * (from_step), sizeof(x_));                                    \
            memcpy((to) + i_ * (to_step), &x_, sizeof(x_));                                        \
        }                                                                                          \
    } while (0)

static void copy_units(unsigned char *to, size_t to_step, const unsigned char *from,
                       size_t from_step, size_t count, size_t bytes)
{
    switch (count == 1 ? 0 : bytes) {
    case 1:
        STRIDED(uint8_t, to, to_step, from, from_step, count);
        break;
    case 2:
        STRIDED(uint16_t, to, to_step, from, from_step, count);
        break;
    case 4:
        STRIDED(uint32_t, to, to_step, from, from_step, count);
        break;
    default:
        memcpy(to, from, bytes);
        break;
    }
}

static void put_token(const struct image *image, const uint32_t *pages, uint32_t token,
                      uint32_t head, const unsigned char *from)
{
    size_t count, bytes, step;
    unsigned char *to = token_at(image, pages, token, head, &count, &bytes, &step);
    copy_units(to, step, from, bytes, count, bytes);
}

/* host [token_count,Hkv,dim] */
static void write_image(const struct relay_pages_span *span, const struct image *image,
                        const unsigned char *host)
{
    uint32_t heads = span->shape->kind.num_kv_heads;
    size_t row = image->dim * image->elem;
    for (uint32_t h = 0; h < heads; h++) { /* so that a head's part of a page stays in the cache */
        for (uint32_t i = 0; i < span->token_count; i++) {
            put_token(image, span->pages, span->token_begin + i, h,
                      host + ((size_t)i * heads + h) * row);
        }
    }
}

static void read_image(const struct relay_pages_span *span, const struct image *image,
                       unsigned char *host)
{
    uint32_t heads = span->shape->kind.num_kv_heads;
    size_t row = image->dim * image->elem;
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < span->token_count; i++) {
            size_t count, bytes, step;
            const unsigned char *from =
                token_at(image, span->pages, span->token_begin + i, h, &count, &bytes, &step);
            copy_units(host + ((size_t)i * heads + h) * row, bytes, from, step, count, bytes);
        }
    }
}

void relay_cpu_pages_write(const struct relay_pages_span *span, const void *k, const void *v)
{
    struct image images[2];
    find_images(span->shape, &span->kv, span->page_tokens, images);
    write_image(span, &images[0], k);
    write_image(span, &images[1], v);
}

void relay_cpu_pages_read(const struct relay_pages_span *span, void *k, void *v)
{
    struct image images[2];
    find_images(span->shape, &span->kv, span->page_tokens, images);
    read_image(span, &images[0], k);
    read_image(span, &images[1], v);
}

/* Asks for the cache lines that put_token will write. */
static void expect_token(const struct image *image, const uint32_t *pages, uint32_t token,
                         uint32_t head)
{
    size_t count, bytes, step;
    const unsigned char *to = token_at(image, pages, token, head, &count, &bytes, &step);
    const size_t end = count * (step != 0 ? step : bytes);
    const size_t line = step > 64 ? step : 64;
    for (size_t i = 0; i < end; i += line) {
        __builtin_prefetch(to + i, 1);
    }
}

void relay_cpu_append_rows(const struct relay_problem *problem, const struct relay_append *append,
                           uint32_t first, uint32_t count)
{
    const struct relay_shape *shape = problem->shape;
    const struct relay_plan *plan = problem->plan;
    const struct relay_io *io = &problem->ios[append->io];
    const uint32_t *pages = plan->pages + plan->segments[append->segment].page_begin;
    struct image images[2];
    const struct image *k_to = &images[0];
    const struct image *v_to = &images[1];
    find_images(shape, &problem->kv, plan->page_tokens, images);
    size_t io_elem = relay_dtype_size(shape->io_dtype);
    uint32_t heads = shape->kind.num_kv_heads;
    unsigned char row[RELAY_HEAD_DIM_MAX * sizeof(float)];
    for (uint32_t i = first; i < first + count; i++) {
        uint32_t token = append->token_begin + i;
        size_t src_row = (size_t)append->row_begin + i;
        for (uint32_t h = 0; h < heads; h++) {
            size_t src = (src_row * heads + h) * io_elem;
            if (h + 1 < heads) {
                expect_token(k_to, pages, token, h + 1);
                expect_token(v_to, pages, token, h + 1);
            }
            relay_host_store_row(shape, row, (const unsigned char *)io->k + src * k_to->dim,
                                 k_to->dim, relay_kv_scale(problem->kv.k_scale, h));
            put_token(k_to, pages, token, h, row);
            relay_host_store_row(shape, row, (const unsigned char *)io->v + src * v_to->dim,
                                 v_to->dim, relay_kv_scale(problem->kv.v_scale, h));
            put_token(v_to, pages, token, h, row);
        }
    }
}
