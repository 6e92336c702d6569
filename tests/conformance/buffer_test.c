/* Memory and pages of a backend: reserved, committed, written, read, appended to. */
#include "conformance.h"

#include "testlib/rng.h"

#define MIB ((size_t)1 << 20)

static void test_buffer_io_memory(void)
{
    void *memory[8];
    for (size_t i = 0; i < 8; i++) {
        size_t bytes = (size_t)1 << (3 * i);
        memory[i] = relay_backend_io_alloc(backend, bytes);
        CHECK(memory[i] != NULL);
        CHECK_EQ((uintptr_t)memory[i] % 64, 0);
        memset(memory[i], (int)i, bytes);
    }
    for (size_t i = 0; i < 8; i++) {
        CHECK_EQ(((unsigned char *)memory[i])[((size_t)1 << (3 * i)) - 1], i);
        relay_backend_io_free(backend, memory[i]);
    }
    relay_backend_io_free(backend, NULL);
    CHECK(relay_backend_io_alloc(backend, SIZE_MAX - 8) == NULL);
}

static void test_buffer_reserve_is_not_memory(void)
{
    /* More than this machine has: only address space. */
    size_t bytes =
        relay_backend_info(backend)->memory_bytes / RELAY_COMMIT_BYTES * 2 * RELAY_COMMIT_BYTES;
    struct relay_error err;
    void *base = NULL;
    CHECK_OK(relay_backend_reserve(backend, bytes, &base, &err), err);
    CHECK(base != NULL && (uintptr_t)base % 64 == 0);
    CHECK_OK(
        relay_backend_commit(backend, base, bytes - RELAY_COMMIT_BYTES, RELAY_COMMIT_BYTES, &err),
        err);
    relay_backend_decommit(backend, base, bytes - RELAY_COMMIT_BYTES, RELAY_COMMIT_BYTES);
    relay_backend_decommit(backend, base, 0, 0);
    relay_backend_release(backend, base, bytes);
    relay_backend_release(backend, NULL, bytes);
    base = NULL;
    CHECK_CODE(relay_backend_reserve(backend, 0, &base, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_backend_reserve(backend, SIZE_MAX - 5, &base, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK(base == NULL);
}

/* A pool over committed memory: K and V of a page side by side. */
struct pool {
    void *base;
    size_t bytes;
    struct relay_pages_span span;
    struct relay_shape shape;
};

static void pool_init(struct pool *pool, const struct relay_shape *shape, uint32_t page_tokens,
                      uint32_t pages)
{
    struct relay_error err;
    size_t elem = relay_dtype_size(shape->kv_dtype) * shape->kind.num_kv_heads * page_tokens;
    size_t k_bytes = elem * shape->kind.head_dim_qk;
    size_t v_bytes = elem * shape->kind.head_dim_v;
    memset(pool, 0, sizeof(*pool));
    pool->shape = *shape;
    pool->bytes = (pages * (k_bytes + v_bytes) + RELAY_COMMIT_BYTES - 1) / RELAY_COMMIT_BYTES *
                  RELAY_COMMIT_BYTES;
    CHECK_OK(relay_backend_reserve(backend, pool->bytes, &pool->base, &err), err);
    CHECK_OK(relay_backend_commit(backend, pool->base, 0, pool->bytes, &err), err);
    pool->span.shape = &pool->shape;
    pool->span.page_tokens = page_tokens;
    pool->span.kv.k = pool->base;
    pool->span.kv.v = shape->kind.v_from_k ? NULL : (unsigned char *)pool->base + k_bytes;
    pool->span.kv.page_stride = k_bytes + v_bytes;
}

static void random_bytes(struct rng *rng, unsigned char *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = (unsigned char)rng_u64(rng);
    }
}

/* Writes all, overwrites a span, reads all: exactly the span changed. */
static void round_trip(const struct relay_shape *shape, uint32_t page_tokens)
{
    enum { PAGES = 5 };
    static const uint32_t order[PAGES] = {3, 0, 4, 1, 2};
    uint32_t tokens = PAGES * page_tokens;
    size_t elem = relay_dtype_size(shape->kv_dtype) * shape->kind.num_kv_heads;
    size_t k_row = elem * shape->kind.head_dim_qk, v_row = elem * shape->kind.head_dim_v;
    unsigned char *k = malloc(tokens * k_row), *v = malloc(tokens * v_row);
    unsigned char *k_got = malloc(tokens * k_row), *v_got = malloc(tokens * v_row);
    struct rng rng = {page_tokens};
    struct relay_error err;
    struct pool pool;
    CHECK(k != NULL && v != NULL && k_got != NULL && v_got != NULL);
    pool_init(&pool, shape, page_tokens, PAGES);
    CHECK_STILL();
    pool.span.pages = order;
    random_bytes(&rng, k, tokens * k_row);
    random_bytes(&rng, v, tokens * v_row);
    pool.span.token_count = tokens;
    CHECK_OK(relay_backend_pages_write(backend, &pool.span, k, v, &err), err);
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t begin = rng_below(&rng, tokens);
        uint32_t count = rng_below(&rng, tokens - begin + 1);
        random_bytes(&rng, k + begin * k_row, count * k_row);
        random_bytes(&rng, v + begin * v_row, count * v_row);
        pool.span.token_begin = begin;
        pool.span.token_count = count;
        CHECK_OK(relay_backend_pages_write(backend, &pool.span, k + begin * k_row,
                                           v + begin * v_row, &err),
                 err);
        pool.span.token_begin = 0;
        pool.span.token_count = tokens;
        CHECK_OK(relay_backend_pages_read(backend, &pool.span, k_got, v_got, &err), err);
        CHECK(memcmp(k, k_got, tokens * k_row) == 0);
        CHECK(shape->kind.v_from_k || memcmp(v, v_got, tokens * v_row) == 0);
        pool.span.token_begin = begin;
        pool.span.token_count = count;
        memset(k_got, 0, tokens * k_row);
        CHECK_OK(relay_backend_pages_read(backend, &pool.span, k_got, v_got, &err), err);
        CHECK(memcmp(k + begin * k_row, k_got, count * k_row) == 0);
    }
    relay_backend_release(backend, pool.base, pool.bytes);
    free(k);
    free(v);
    free(k_got);
    free(v_got);
}

static void test_buffer_pages_round_trip(void)
{
    static const enum relay_dtype dtypes[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                              RELAY_DTYPE_F8_E4M3};
    static const uint32_t pages[] = {1, 16, 64, 7};
    for (uint32_t i = 0; i < 16; i++) {
        struct relay_shape shape =
            problem_shape(4, 2, 64, dtypes[i % 4], RELAY_DTYPE_F32, RELAY_DTYPE_F32);
        shape.kind.scale = 1.0f;
        shape.kind.head_dim_v = i % 3 != 0 ? 64 : 40;
        shape.kind.v_from_k = i % 5 == 0;
        round_trip(&shape, pages[i / 4]);
        CHECK_STILL();
    }
}

/* The layout that <relay/backend.h> promises, byte by byte. */
static void test_buffer_page_layout(void)
{
    enum { HEADS = 3, TOKENS = 4, DIM = 8, PAGES = 2 };
    static const uint32_t order[PAGES] = {1, 0};
    struct relay_shape shape =
        problem_shape(HEADS, HEADS, DIM, RELAY_DTYPE_F32, RELAY_DTYPE_F32, RELAY_DTYPE_F32);
    float k[PAGES * TOKENS * HEADS * DIM], v[PAGES * TOKENS * HEADS * DIM];
    struct relay_error err;
    struct pool pool;
    shape.kind.scale = 1.0f;
    pool_init(&pool, &shape, TOKENS, PAGES);
    CHECK_STILL();
    for (uint32_t i = 0; i < COUNT(k); i++) {
        k[i] = (float)i;
        v[i] = (float)i + 0.5f;
    }
    pool.span.pages = order;
    pool.span.token_count = PAGES * TOKENS;
    CHECK_OK(relay_backend_pages_write(backend, &pool.span, k, v, &err), err);
    if (strcmp(relay_backend_info(backend)->name, "ref") == 0 ||
        strcmp(relay_backend_info(backend)->name, "cpu") == 0) { /* memory the host can read */
        for (uint32_t t = 0; t < PAGES * TOKENS; t++) {
            for (uint32_t h = 0; h < HEADS; h++) {
                size_t page = order[t / TOKENS] * pool.span.kv.page_stride;
                size_t at = (h * TOKENS + t % TOKENS) * DIM * sizeof(float);
                const unsigned char *k_at = (const unsigned char *)pool.span.kv.k + page + at;
                const unsigned char *v_at = (const unsigned char *)pool.span.kv.v + page + at;
                CHECK(memcmp(k_at, k + (t * HEADS + h) * DIM, DIM * sizeof(float)) == 0);
                CHECK(memcmp(v_at, v + (t * HEADS + h) * DIM, DIM * sizeof(float)) == 0);
            }
        }
    }
    relay_backend_release(backend, pool.base, pool.bytes);
}

/* New tokens are rounded to the stored dtype, after dividing by F8's scales, and the slots past
 * them keep what they had. */
static void append_case(enum relay_dtype kv, enum relay_dtype io)
{
    static const struct problem_entry entries[] = {
        {.segment = PROBLEM_NONE, .context = 21, .q_len = 5, .append = true},
        {.segment = PROBLEM_NONE, .context = 3, .q_len = 3, .append = true}};
    struct problem_config config = {.shape = problem_shape(4, 2, 64, kv, io, RELAY_DTYPE_F32),
                                    .entries = entries,
                                    .num_entries = COUNT(entries),
                                    .page_tokens = 16,
                                    .seed = 2};
    struct problem problem;
    struct relay_error err;
    init_case(&problem, &config);
    CHECK_STILL();
    run_and_check(&problem, NULL);
    CHECK_STILL();
    for (uint32_t e = 0; e < COUNT(entries); e++) {
        struct problem_strip *own = &problem.contexts[e];
        uint32_t slots = own->num_pages * 16;
        float *got = malloc((size_t)slots * 128 * sizeof(float));
        unsigned char *k = malloc((size_t)slots * 128 * 4), *v = malloc((size_t)slots * 128 * 4);
        struct relay_pages_span span = {.shape = &problem.shape,
                                        .kv = problem.kv,
                                        .page_tokens = 16,
                                        .pages = own->pages,
                                        .token_count = slots};
        CHECK(got != NULL && k != NULL && v != NULL);
        CHECK_OK(relay_backend_pages_read(backend, &span, k, v, &err), err);
        relay_dtype_convert(RELAY_DTYPE_F32, got, kv, k, (size_t)slots * 128);
        for (uint32_t i = 0; i < slots * 128; i++) {
            float scale = problem.k_scale != NULL ? problem.k_scale[i / 64 % 2] : 1.0f;
            if (i / 128 < own->tokens) {
                CHECK(got[i] * scale == own->k[i]);
            } else {
                CHECK(got[i] != got[i]); /* still the poison */
            }
        }
        free(got);
        free(k);
        free(v);
    }
    problem_fini(&problem);
}

static void test_buffer_append_stores_what_was_sent(void)
{
    static const enum relay_dtype kv[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                          RELAY_DTYPE_F8_E4M3};
    static const enum relay_dtype io[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16};
    for (uint32_t i = 0; i < 12; i++) {
        append_case(kv[i % 4], io[i / 4]);
        CHECK_STILL();
    }
}

/* A page id times the stride is far beyond 32 bits, and so are the elements of the pool. */
static void far_apart_case(enum relay_dtype kv_dtype, enum relay_dtype io_dtype)
{
    enum { DIM = 64, TOKENS = 16 };
    static const uint32_t ids[2] = {5000, 2600};
    const size_t kv_elem = relay_dtype_size(kv_dtype);
    const size_t io_elem = relay_dtype_size(io_dtype);
    struct relay_shape shape = problem_shape(2, 1, DIM, kv_dtype, io_dtype, RELAY_DTYPE_F32);
    size_t stride = RELAY_COMMIT_BYTES, bytes = 5001 * stride; /* 10 GB of address space */
    struct relay_entry entry = {.q_len = 1,
                                .segment = RELAY_NO_SEGMENT,
                                .position = 19,
                                .pages = ids,
                                .context_tokens = 20};
    struct relay_plan_input in = {
        .shape = &shape, .entries = &entry, .num_entries = 1, .page_tokens = TOKENS};
    unsigned char *q = relay_backend_io_alloc(backend, 2 * DIM * io_elem);
    float *out = relay_backend_io_alloc(backend, 2 * DIM * sizeof(float));
    struct relay_io io = {.q = q, .out = out};
    struct relay_problem problem = {.shape = &shape, .ios = &io, .num_ios = 1};
    struct relay_pages_span span = {
        .shape = &shape, .page_tokens = TOKENS, .pages = ids, .token_count = 20};
    static unsigned char k[20 * DIM * sizeof(float)], v[20 * DIM * sizeof(float)];
    struct relay_plan *plan = NULL;
    struct relay_error err;
    void *base = NULL;
    uint64_t ticket;
    CHECK(q != NULL && out != NULL);
    shape.kind.scale = 1.0f;
    CHECK_OK(relay_backend_reserve(backend, bytes, &base, &err), err);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_OK(relay_backend_commit(backend, base, ids[i] * stride, stride, &err), err);
    }
    span.kv.k = base;
    span.kv.v = (unsigned char *)base + MIB;
    span.kv.page_stride = stride;
    memset(k, 0, sizeof(k));
    for (uint32_t i = 0; i < 20 * DIM; i++) {
        /* Equal scores: the output is the mean, 3.1. All are exact in every dtype. */
        const float value = (float)(i / DIM % 8);
        relay_dtype_convert(kv_dtype, v + i * kv_elem, RELAY_DTYPE_F32, &value, 1);
    }
    for (uint32_t i = 0; i < 2 * DIM; i++) {
        const float one = 1.0f;
        relay_dtype_convert(io_dtype, q + i * io_elem, RELAY_DTYPE_F32, &one, 1);
    }
    CHECK_OK(relay_backend_pages_write(backend, &span, k, v, &err), err);
    relay_backend_plan_defaults(backend, &in);
    CHECK_OK(relay_plan_create(&plan, &err), err);
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    problem.plan = plan;
    problem.kv = span.kv;
    problem.workspace_bytes = relay_backend_workspace_bytes(backend, &shape, plan);
    problem.workspace = relay_backend_io_alloc(backend, problem.workspace_bytes);
    CHECK_OK(relay_backend_run(backend, &problem, &ticket, &err), err);
    CHECK_OK(relay_backend_wait(backend, ticket, &err), err);
    for (uint32_t i = 0; i < 2 * DIM; i++) {
        CHECK(out[i] > 3.0999f && out[i] < 3.1001f);
    }
    relay_backend_io_free(backend, problem.workspace);
    relay_backend_io_free(backend, q);
    relay_backend_io_free(backend, out);
    relay_backend_release(backend, base, bytes);
    relay_plan_destroy(plan);
}

static void test_buffer_pages_far_apart(void)
{
    far_apart_case(RELAY_DTYPE_F32, RELAY_DTYPE_F32);
    far_apart_case(RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    far_apart_case(RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_buffer_io_memory);
    CHECK_RUN(test_buffer_reserve_is_not_memory);
    CHECK_RUN(test_buffer_pages_round_trip);
    CHECK_RUN(test_buffer_page_layout);
    CHECK_RUN(test_buffer_append_stores_what_was_sent);
    CHECK_RUN(test_buffer_pages_far_apart);
    return conformance_close();
}
