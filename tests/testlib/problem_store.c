/* Drawing a problem's tensors and storing them in pages. See problem.h. */
#include "testlib/problem_internal.h"
#include "testlib/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPARE_PAGES 3u

/* ---- drawing ---- */

static float *draw(uint64_t seed, size_t n, float scale)
{
    struct rng rng = {seed};
    float *values = malloc((n + 1) * sizeof(float)); /* never 0 bytes */
    for (size_t i = 0; values != NULL && i < n; i++) {
        values[i] = scale * rng_normal(&rng);
    }
    return values;
}

static bool draw_strip(struct problem *p, struct problem_strip *strip, uint64_t seed)
{
    strip->k = draw(seed * 2, strip->tokens * k_row(p), 1.0f);
    strip->v = draw(seed * 2 + 1, strip->tokens * v_row(p), 1.0f);
    return strip->k != NULL && strip->v != NULL;
}

static void place_segments(struct problem *p)
{
    for (uint32_t s = 0; s < p->config.num_segments; s++) {
        const struct problem_segment *in = &p->config.segments[s];
        const struct problem_strip *up =
            in->parent != PROBLEM_NONE ? &p->segments[in->parent] : NULL;
        p->segments[s].tokens = in->tokens;
        p->segments[s].position = in->gap + (up != NULL ? up->position + up->tokens : 0);
    }
}

static void place_entries(struct problem *p)
{
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        const struct problem_entry *in = &p->config.entries[i];
        const struct problem_strip *up =
            in->segment != PROBLEM_NONE ? &p->segments[in->segment] : NULL;
        struct problem_strip *own = &p->contexts[i];
        uint32_t last;
        own->tokens = in->context;
        own->new_tokens = in->append ? in->q_len : 0;
        own->position = in->context_gap + (up != NULL ? up->position + up->tokens : 0);
        last = own->position + own->tokens;
        p->entries[i] = (struct relay_entry){
            .q_len = in->q_len,
            .segment = in->segment == PROBLEM_NONE ? RELAY_NO_SEGMENT : in->segment,
            .position = in->placed ? in->position : (last > in->q_len ? last - in->q_len : 0),
            .context_position = own->position,
            .context_tokens = own->tokens,
            .append = in->append,
        };
    }
}

/* F8 scales: few bits, so that stored * scale is exact in float32. */
static bool draw_scales(struct problem *p)
{
    uint32_t heads = p->shape.kind.num_kv_heads;
    if (p->shape.kv_dtype != RELAY_DTYPE_F8_E4M3) {
        return true;
    }
    p->k_scale = malloc(heads * sizeof(float));
    p->v_scale = malloc(heads * sizeof(float));
    if (p->k_scale == NULL || p->v_scale == NULL) {
        return false;
    }
    for (uint32_t h = 0; h < heads; h++) {
        p->k_scale[h] = 0.0625f * (float)(3 + h % 5);
        p->v_scale[h] = 0.125f * (float)(5 - h % 3);
    }
    return true;
}

bool problem_draw(struct problem *p)
{
    uint64_t seed = p->config.seed * 1000003u + 17u;
    const struct relay_layer_kind *kind = &p->shape.kind;
    float q_scale = p->config.q_scale != 0.0f ? p->config.q_scale : 1.0f;
    bool ok = true;
    place_segments(p);
    place_entries(p);
    for (uint32_t s = 0; s < p->config.num_segments; s++) {
        ok = draw_strip(p, &p->segments[s], seed + 10u * s + 1) && ok;
    }
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        ok = draw_strip(p, &p->contexts[i], seed + 10u * i + 2) && ok;
        p->q[i] = draw(seed + 10u * i + 3, p->entries[i].q_len * q_row(p), q_scale);
        ok = ok && p->q[i] != NULL;
    }
    if (p->config.sinks) {
        p->sinks = draw(seed + 4, kind->num_q_heads, 2.0f);
        ok = ok && p->sinks != NULL;
    }
    if (p->config.alibi) {
        p->slopes = malloc(kind->num_q_heads * sizeof(float));
        ok = ok && p->slopes != NULL;
        for (uint32_t h = 0; p->slopes != NULL && h < kind->num_q_heads; h++) {
            p->slopes[h] = exp2f(-8.0f * (float)(h + 1) / (float)kind->num_q_heads);
        }
        p->shape.kind.alibi_slopes = p->slopes;
    }
    return draw_scales(p) && ok;
}

/* ---- rounding and storing ---- */

void problem_round(enum relay_dtype dtype, float *values, void *encoded, size_t n)
{
    relay_dtype_convert(dtype, encoded, RELAY_DTYPE_F32, values, n);
    relay_dtype_convert(RELAY_DTYPE_F32, values, dtype, encoded, n);
}

/* Tensor [tokens,Hkv,dim] of floats to what the pool will hold; encoded gets the stored elements.
 */
static void store_values(const struct problem *p, float *values, void *encoded, uint32_t tokens,
                         size_t dim, const float *scales)
{
    uint32_t heads = p->shape.kind.num_kv_heads;
    size_t elem = relay_dtype_size(p->shape.kv_dtype);
    for (size_t row = 0; row < (size_t)tokens * heads; row++) {
        float scale = scales != NULL ? scales[row % heads] : 1.0f;
        float *at = values + row * dim;
        unsigned char *to = (unsigned char *)encoded + row * dim * elem;
        for (size_t d = 0; d < dim; d++) {
            at[d] /= scale;
        }
        problem_round(p->shape.kv_dtype, at, to, dim);
        for (size_t d = 0; d < dim; d++) {
            at[d] *= scale;
        }
    }
}

static enum relay_code write_span(struct problem *p, const uint32_t *pages, uint32_t tokens,
                                  const void *k, const void *v, struct relay_error *err)
{
    struct relay_pages_span span = {
        .shape = &p->shape,
        .kv = p->kv,
        .page_tokens = p->page_tokens,
        .pages = pages,
        .token_begin = 0,
        .token_count = tokens,
    };
    return relay_backend_pages_write(p->backend, &span, k, v, err);
}

/* Rounds a strip and stores what does not come with the call. */
static enum relay_code store_strip(struct problem *p, struct problem_strip *strip,
                                   struct relay_error *err)
{
    size_t elem = relay_dtype_size(p->shape.kv_dtype);
    void *k = malloc(strip->tokens * k_row(p) * elem + 1);
    void *v = malloc(strip->tokens * v_row(p) * elem + 1);
    enum relay_code code = RELAY_RESOURCE_EXHAUSTED;
    if (k != NULL && v != NULL) {
        store_values(p, strip->k, k, strip->tokens, p->shape.kind.head_dim_qk, p->k_scale);
        if (!p->shape.kind.v_from_k) {
            store_values(p, strip->v, v, strip->tokens, p->shape.kind.head_dim_v, p->v_scale);
        }
        code = write_span(p, strip->pages, strip->tokens - strip->new_tokens, k, v, err);
    } else {
        (void)RELAY_FAIL(err, code, "no memory for a test");
    }
    free(k);
    free(v);
    return code;
}

static enum relay_code poison_pool(struct problem *p, const uint32_t *all_pages,
                                   struct relay_error *err)
{
    size_t elem = relay_dtype_size(p->shape.kv_dtype);
    size_t row = k_row(p) > v_row(p) ? k_row(p) : v_row(p);
    size_t bytes = p->page_tokens * row * elem;
    void *nan = malloc(bytes);
    enum relay_code code = RELAY_OK;
    if (nan == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
    }
    memset(nan, 0xff, bytes); /* a NaN of every dtype */
    for (uint32_t i = 0; code == RELAY_OK && i < p->num_pages; i++) {
        code = write_span(p, &all_pages[i], p->page_tokens, nan, nan, err);
    }
    free(nan);
    return code;
}

/* Hands out pages in random order. */
static enum relay_code deal_pages(struct problem *p, struct relay_error *err)
{
    uint32_t strips = p->config.num_segments + p->config.num_entries;
    struct rng rng = {p->config.seed + 99};
    uint32_t *all;
    uint32_t next = 0;
    enum relay_code code;
    p->num_pages = SPARE_PAGES;
    for (uint32_t i = 0; i < strips; i++) {
        struct problem_strip *strip =
            i < p->config.num_segments ? &p->segments[i] : &p->contexts[i - p->config.num_segments];
        strip->num_pages = (strip->tokens + p->page_tokens - 1) / p->page_tokens;
        p->num_pages += strip->num_pages;
    }
    all = malloc(p->num_pages * sizeof(*all));
    if (all == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
    }
    for (uint32_t i = 0; i < p->num_pages; i++) {
        uint32_t j = rng_below(&rng, i + 1);
        all[i] = all[j];
        all[j] = i;
    }
    for (uint32_t i = 0; i < strips; i++) {
        struct problem_strip *strip =
            i < p->config.num_segments ? &p->segments[i] : &p->contexts[i - p->config.num_segments];
        strip->pages = malloc((strip->num_pages + 1) * sizeof(uint32_t));
        if (strip->pages == NULL) {
            free(all);
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a test");
        }
        memcpy(strip->pages, all + next, strip->num_pages * sizeof(uint32_t));
        next += strip->num_pages;
    }
    {
        size_t elem = relay_dtype_size(p->shape.kv_dtype);
        size_t k_bytes = p->page_tokens * k_row(p) * elem;
        size_t v_bytes = p->page_tokens * v_row(p) * elem;
        size_t dims = p->shape.kind.head_dim_qk > p->shape.kind.head_dim_v
                          ? p->shape.kind.head_dim_qk
                          : p->shape.kind.head_dim_v;
        size_t least = p->page_tokens * p->shape.kind.num_kv_heads * dims * elem;
        /* K and V of a page lie together, and a little apart from the next page's. */
        p->kv.page_stride = (k_bytes + v_bytes > least ? k_bytes + v_bytes : least) + 64;
        p->pool_bytes = p->num_pages * p->kv.page_stride;
        p->pool_bytes =
            (p->pool_bytes + RELAY_COMMIT_BYTES - 1) / RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
        code = relay_backend_reserve(p->backend, p->pool_bytes, &p->pool, err);
        if (code == RELAY_OK) {
            code = relay_backend_commit(p->backend, p->pool, 0, p->pool_bytes, err);
        }
        if (code == RELAY_OK) {
            p->kv.k = p->pool;
            p->kv.v = p->shape.kind.v_from_k ? NULL : (unsigned char *)p->pool + k_bytes;
            p->kv.k_scale = p->k_scale;
            p->kv.v_scale = p->v_scale;
            code = poison_pool(p, all, err);
        }
    }
    free(all);
    return code;
}

enum relay_code problem_store(struct problem *p, struct relay_error *err)
{
    enum relay_code code = deal_pages(p, err);
    for (uint32_t s = 0; code == RELAY_OK && s < p->config.num_segments; s++) {
        code = store_strip(p, &p->segments[s], err);
        p->plan_segments[s] = (struct relay_segment){
            .pages = p->segments[s].pages,
            .tokens = p->segments[s].tokens,
            .position = p->segments[s].position,
            .parent = p->config.segments[s].parent == PROBLEM_NONE ? RELAY_NO_SEGMENT
                                                                   : p->config.segments[s].parent,
        };
    }
    for (uint32_t i = 0; code == RELAY_OK && i < p->config.num_entries; i++) {
        code = store_strip(p, &p->contexts[i], err);
        p->entries[i].pages = p->contexts[i].pages;
    }
    return code;
}
