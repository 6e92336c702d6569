/* See fixture.h. Used by one thread but for the backend's counters and the clock. */
#include "fixture.h"

#include "core/host_memory.h"

#include <sched.h>

static struct fake_backend *fake_of(struct relay_backend *backend)
{
    return (struct fake_backend *)backend; /* base is its first member */
}

static enum relay_code fake_supports(const struct relay_backend *backend,
                                     const struct relay_shape *shape, struct relay_error *err)
{
    (void)backend;
    if (shape->kind.head_dim_qk == 24 || shape->out_dtype == RELAY_DTYPE_F8_E4M3) {
        return RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "no kernel for head_dim_qk %u",
                          shape->kind.head_dim_qk);
    }
    return RELAY_OK;
}

static enum relay_code fake_reserve(struct relay_backend *backend, size_t bytes, void **base,
                                    struct relay_error *err)
{
    struct fake_backend *fake = fake_of(backend);
    enum relay_code code = relay_host_reserve(backend, bytes, base, err);
    if (code == RELAY_OK && atomic_fetch_add(&fake->reserved, 1) == 0) {
        fake->tracked = *base;
    }
    return code;
}

static void fake_release(struct relay_backend *backend, void *base, size_t bytes)
{
    struct fake_backend *fake = fake_of(backend);
    if (base == fake->tracked) {
        for (size_t b = 0; b < FIXTURE_BLOCKS_MAX; b++) {
            atomic_fetch_sub(&fake->blocks, atomic_exchange(&fake->state[b], 0));
        }
        fake->tracked = NULL;
    }
    atomic_fetch_sub(&fake->reserved, 1);
    relay_host_release(backend, base, bytes);
}

/* Notes blocks as committed or not; each must have been the other before. */
static void fake_note(struct fake_backend *fake, void *base, size_t offset, size_t bytes,
                      unsigned char now)
{
    for (size_t b = offset / RELAY_COMMIT_BYTES; b < (offset + bytes) / RELAY_COMMIT_BYTES; b++) {
        if (base != fake->tracked) {
            continue;
        }
        if (b >= FIXTURE_BLOCKS_MAX || atomic_exchange(&fake->state[b], now) == now) {
            atomic_fetch_add(&fake->faults, 1);
        }
        atomic_fetch_add(&fake->blocks, now != 0 ? 1 : -1);
    }
}

static enum relay_code fake_commit(struct relay_backend *backend, void *base, size_t offset,
                                   size_t bytes, struct relay_error *err)
{
    struct fake_backend *fake = fake_of(backend);
    enum relay_code code;
    if (atomic_load(&fake->fail_commits) != 0) {
        atomic_fetch_sub(&fake->fail_commits, 1);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory, as the test wants it");
    }
    (void)sched_yield(); /* lets others in where a real system takes its time */
    code = relay_host_commit(backend, base, offset, bytes, err);
    if (code == RELAY_OK) {
        fake_note(fake, base, offset, bytes, 1);
    }
    return code;
}

static void fake_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes)
{
    fake_note(fake_of(backend), base, offset, bytes, 0);
    (void)sched_yield();
    relay_host_decommit(backend, base, offset, bytes);
}

static enum relay_code fake_pages_write(struct relay_backend *backend,
                                        const struct relay_pages_span *span, const void *k,
                                        const void *v, struct relay_error *err)
{
    struct fake_backend *fake = fake_of(backend);
    if (atomic_load(&fake->fail_writes) != 0) {
        atomic_fetch_sub(&fake->fail_writes, 1);
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "no write, as the test wants it");
    }
    return relay_host_pages_write(backend, span, k, v, err);
}

static uint64_t clock_now_ns(void *user)
{
    return atomic_load((atomic_uint_least64_t *)user) * 1000000u;
}

static uint64_t clock_unix_ms(void *user)
{
    return 1700000000000u + atomic_load((atomic_uint_least64_t *)user);
}

void fixture_init(struct fixture *f)
{
    struct relay_backend_vtable *vtable = &f->backend.vtable;
    memset(f, 0, sizeof(*f));
    relayd_log_init(RELAYD_LOG_ERROR, false);
    *vtable = relay_backend_ref_vtable;
    vtable->supports = fake_supports;
    vtable->reserve = fake_reserve;
    vtable->release = fake_release;
    vtable->commit = fake_commit;
    vtable->decommit = fake_decommit;
    vtable->pages_write = fake_pages_write;
    f->backend.base.vtable = vtable;
    f->backend.base.info.name = "fake";
    f->backend.base.info.page_tokens = 16;
    atomic_store(&f->now_ms, 1000000);
    f->clock.now_ns = clock_now_ns;
    f->clock.unix_ms = clock_unix_ms;
    f->clock.user = &f->now_ms;
    f->options.backend = &f->backend.base;
    f->options.clock = &f->clock;
    f->options.prompt_bytes_max = (uint64_t)4 << 20;
    f->options.request_bytes_max = (uint64_t)4 << 20;
    f->options.upload_expiry_ms = 5000;
    f->options.page_tokens = FIXTURE_PAGE_TOKENS;
    f->options.models_max = 4;
    f->options.prompts_max = 32;
    f->options.uploads_max = 8;
    f->options.requests_max = 16;
    f->options.prompt_tokens_max = 1000;
    f->options.context_tokens_max = 500;
    f->options.chunk_bytes_max = 64 << 10;
    f->options.unacked_bytes_max = 256 << 10;
}

void fixture_open(struct fixture *f)
{
    struct relay_error err;
    CHECK_OK(relayd_store_create(&f->options, &f->store, &err), err);
}

void fixture_close(struct fixture *f)
{
    relayd_store_destroy(f->store);
    f->store = NULL;
    CHECK_EQ(atomic_load(&f->backend.reserved), 0);
    CHECK_EQ(atomic_load(&f->backend.blocks), 0);
    CHECK_EQ(atomic_load(&f->backend.faults), 0);
}

void fixture_advance(struct fixture *f, uint64_t ms)
{
    atomic_fetch_add(&f->now_ms, ms);
}

struct relayd_store_stats fixture_stats(struct fixture *f)
{
    struct relayd_store_stats stats;
    relayd_store_stats(f->store, &stats);
    return stats;
}

bool fixture_same_stats(const struct relayd_store_stats *a, const struct relayd_store_stats *b)
{
    return a->prompt_bytes_used == b->prompt_bytes_used &&
           a->request_bytes_used == b->request_bytes_used && a->pages_used == b->pages_used &&
           a->prompts == b->prompts && a->prompts_doomed == b->prompts_doomed &&
           a->uploads == b->uploads && a->requests == b->requests;
}

void fixture_model_init(struct fixture_model *m, const char *key, uint32_t layers)
{
    memset(m, 0, sizeof(*m));
    for (uint32_t l = 0; l < layers; l++) {
        m->kinds[l].num_q_heads = 2 * FIXTURE_HKV;
        m->kinds[l].num_kv_heads = FIXTURE_HKV;
        m->kinds[l].head_dim_qk = FIXTURE_DIM;
        m->kinds[l].head_dim_v = FIXTURE_DIM;
        m->layer_kind[l] = l;
        m->kv_layer[l] = l;
    }
    m->model.key = key;
    m->model.num_layers = layers;
    m->model.num_kinds = layers;
    m->model.kinds = m->kinds;
    m->model.layer_kind = m->layer_kind;
    m->model.kv_layer = m->kv_layer;
    m->model.kv_dtype = RELAY_DTYPE_F32;
}

float fixture_value(uint32_t seed, uint32_t layer, bool v, uint32_t token, uint32_t element)
{
    uint32_t x = seed * 2654435761u ^ layer * 40503u ^ token * 97u ^ element * 11u ^ (v ? 77u : 0u);
    x = (x ^ (x >> 15)) * 0x2c1b3c6du;
    return (float)((int)((x >> 12) % 255u) - 127); /* 8 significant bits */
}

void fixture_fill(uint32_t seed, uint32_t layer, uint32_t begin, uint32_t count, float *k, float *v)
{
    for (uint32_t t = 0; t < count; t++) {
        for (uint32_t e = 0; e < FIXTURE_ROW; e++) {
            k[t * FIXTURE_ROW + e] = fixture_value(seed, layer, false, begin + t, e);
            v[t * FIXTURE_ROW + e] = fixture_value(seed, layer, true, begin + t, e);
        }
    }
}

struct relayd_upload_desc fixture_desc(const char *tenant, const struct relay_model *model,
                                       const char *id, uint32_t tokens)
{
    struct relayd_upload_desc desc;
    memset(&desc, 0, sizeof(desc));
    desc.tenant = tenant;
    desc.model = model;
    desc.prompt_id = id;
    desc.num_tokens = tokens;
    desc.variant = "";
    return desc;
}

enum relay_code fixture_send(struct relayd_upload *upload, uint32_t seed, uint32_t layer,
                             uint32_t begin, uint32_t end, uint32_t step, struct relay_error *err)
{
    float k[64 * FIXTURE_ROW], v[64 * FIXTURE_ROW];
    while (begin < end) {
        uint32_t count = end - begin < step ? end - begin : step;
        struct relayd_kv_chunk chunk = {layer, begin, count, RELAY_DTYPE_F32, 0, k, 0, v, 0};
        enum relay_code code;
        count = count < 64 ? count : 64;
        chunk.token_count = count;
        chunk.k_bytes = chunk.v_bytes = count * FIXTURE_ROW * sizeof(float);
        fixture_fill(seed, layer, begin, count, k, v);
        code = relayd_upload_chunk(upload, &chunk, err);
        if (code != RELAY_OK) {
            return code;
        }
        begin += count;
    }
    return RELAY_OK;
}

enum relay_code fixture_register(struct fixture *f, const struct relayd_upload_desc *desc,
                                 uint32_t seed, struct relayd_prompt_info *info,
                                 struct relay_error *err)
{
    struct relayd_upload *upload = NULL;
    enum relay_code code = relayd_upload_begin(f->store, desc, &upload, info, err);
    if (code != RELAY_OK || upload == NULL) {
        return code;
    }
    for (uint32_t l = 0; l < desc->model->num_layers; l++) {
        if (relay_model_kv_layer(desc->model, l) != l) {
            continue;
        }
        code =
            fixture_send(upload, seed, l, relayd_upload_first(upload, l), desc->num_tokens, 7, err);
        if (code != RELAY_OK) {
            relayd_upload_abort(upload);
            return code;
        }
    }
    return relayd_upload_commit(upload, info, err);
}

bool fixture_holds(const struct relayd_model *model, const uint32_t *pages, uint32_t seed,
                   uint32_t layer, uint32_t begin, uint32_t end)
{
    struct relay_shape shape =
        relay_shape_of(relayd_model_spec(model), layer, RELAY_DTYPE_F32, RELAY_DTYPE_F32);
    for (uint32_t t = begin; t < end; t++) {
        struct relay_pages_span span = {
            &shape, relayd_model_kv(model, layer), relayd_model_page_tokens(model), pages, t, 1};
        float got[2][FIXTURE_ROW], want[2][FIXTURE_ROW];
        unsigned char raw[2][FIXTURE_ROW * sizeof(float)];
        if (relay_backend_pages_read(relayd_store_limits(relayd_model_store(model))->backend, &span,
                                     raw[0], raw[1], NULL) != RELAY_OK) {
            return false;
        }
        relay_dtype_convert(RELAY_DTYPE_F32, got[0], shape.kv_dtype, raw[0], FIXTURE_ROW);
        relay_dtype_convert(RELAY_DTYPE_F32, got[1], shape.kv_dtype, raw[1], FIXTURE_ROW);
        fixture_fill(seed, layer, t, 1, want[0], want[1]);
        if (memcmp(got, want, sizeof(got)) != 0) {
            return false;
        }
    }
    return true;
}
