/* Every way of running the cuda kernels against the dense oracle: each kernel that takes the shape,
 * one launch and two, host and device tensors, forced splits, recorded graphs. Skipped where there
 * is no device. --quick takes few shapes, for the sanitizers; --part N runs one of the tests alone.
 * One thread. */
#include "cuda/hooks.h"
#include "testlib/check.h"
#include "testlib/problem.h"

#include <cuda_runtime_api.h>

#define COUNT(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))
#define IOS_MAX      4u

static struct relay_backend *backend;
static bool quick;
static uint32_t failures, cases;

/* ---- ways ---- */

struct way {
    const char *name;
    struct relay_cuda_options options;
    bool device_io;
};

static const struct way ways[] = {
    {.name = "default"},
    {.name = "device io", .device_io = true},
    {.name = "two launches", .options = {.two_launches = true}},
    {.name = "direct io", .options = {.direct_io = true}},
    {.name = "splits 5/3",
     .options = {.tuning = {.shared_splits = 5, .own_splits = 3}},
     .device_io = true},
    {.name = "splits 1/1, plain order",
     .options = {.tuning = {.shared_splits = 1, .own_splits = 1}, .no_overlap = true}},
    {.name = "one step splits",
     .options = {.tuning = {.shared_splits = 100, .own_splits = 100}},
     .device_io = true},
    {.name = "invariant", .options = {.tuning = {.batch_invariant = true}}, .device_io = true},
    {.name = "two heads", .options = {.tuning = {.narrow_heads = 2}}, .device_io = true},
    {.name = "four heads", .options = {.tuning = {.narrow_heads = 4, .own_splits = 2}}},
    {.name = "single", .options = {.kernel = "wgmma", .blocks = 1}, .device_io = true},
    {.name = "pair", .options = {.kernel = "pair"}, .device_io = true},
    {.name = "beside", .options = {.kernel = "beside"}, .device_io = true},
    {.name = "beside, one early tile",
     .options = {.kernel = "beside", .blocks = 1, .tuning = {.early_tiles = 1}},
     .device_io = true},
    {.name = "beside, three early tiles, four heads",
     .options = {.kernel = "beside", .blocks = 1, .tuning = {.early_tiles = 3, .narrow_heads = 4}}},
    {.name = "beside, all early tiles",
     .options = {.kernel = "beside", .tuning = {.early_tiles = 100}},
     .device_io = true},
    {.name = "mma, four heads",
     .options = {.kernel = "mma", .tuning = {.narrow_heads = 4}},
     .device_io = true},
    {.name = "mma", .options = {.kernel = "mma"}},
    {.name = "mma, device io, splits 4/2",
     .options = {.kernel = "mma", .tuning = {.shared_splits = 4, .own_splits = 2}},
     .device_io = true},
    {.name = "simt", .options = {.kernel = "simt"}},
};

/* "mma" stands for the smallest mma kernel that takes the shape; the same for others. */
static const char *kernel_for(const struct relay_shape *shape, const char *want, char *name,
                              size_t bytes)
{
    static const uint32_t dims[] = {64, 96, 128, 192, 256};
    const bool f8 = shape->kv_dtype == RELAY_DTYPE_F8_E4M3;
    bool wgmma = want != NULL && strcmp(want, "mma") != 0;
    uint32_t dim = shape->kind.head_dim_qk > shape->kind.head_dim_v ? shape->kind.head_dim_qk
                                                                    : shape->kind.head_dim_v;
    if (want == NULL || strcmp(want, "simt") == 0) {
        return want;
    }
    if (f8 && (strcmp(want, "pair") == 0 || strcmp(want, "beside") == 0)) {
        return NULL;
    }
    for (uint32_t i = 0; i < COUNT(dims); i++) {
        const bool beside = wgmma && strcmp(want, "beside") == 0;
        const bool every = /* this engine has it */
            dims[i] == 128 || (dims[i] == 64 && !(f8 && wgmma) && !beside);
        if (dim <= dims[i] && (every || (!wgmma && (!f8 || dims[i] == 256)))) {
            (void)snprintf(name, bytes, "%s_%s%s_%u", want,
                           shape->io_dtype == RELAY_DTYPE_BF16 ? "bf16" : "f16", f8 ? "_f8" : "",
                           dims[i]);
            return name;
        }
    }
    return NULL;
}

/* ---- device tensors ---- */

struct device_io {
    void *arena;
    size_t bytes;
    struct relay_io ios[IOS_MAX];
};

static void *place(struct device_io *d, size_t *used, const void *from, size_t bytes)
{
    unsigned char *at = (unsigned char *)d->arena + *used;
    *used += (bytes + 255) / 256 * 256;
    if (d->arena != NULL && from != NULL && bytes != 0) {
        (void)cudaMemcpy(at, from, bytes, cudaMemcpyDefault);
    }
    return from != NULL ? at : NULL;
}

struct io_bytes {
    size_t q, k, v, out, lse;
};

static struct io_bytes bytes_of(const struct problem *p, uint32_t i)
{
    const struct relay_layer_kind *kind = &p->shape.kind;
    size_t rows = p->ios[i].rows;
    size_t elem = relay_dtype_size(p->shape.io_dtype);
    struct io_bytes b = {
        .q = rows * kind->num_q_heads * kind->head_dim_qk * elem,
        .k = rows * kind->num_kv_heads * kind->head_dim_qk * elem,
        .v = rows * kind->num_kv_heads * kind->head_dim_v * elem,
        .out = rows * problem_out_bytes(p),
        .lse = rows * kind->num_q_heads * sizeof(float),
    };
    return b;
}

static void lay_out(struct device_io *d, const struct problem *p)
{
    size_t used = 0;
    for (uint32_t i = 0; i < p->num_ios; i++) {
        const struct relay_io *io = &p->ios[i].io;
        struct io_bytes b = bytes_of(p, i);
        d->ios[i].q = place(d, &used, io->q, b.q);
        d->ios[i].k = place(d, &used, io->k, b.k);
        d->ios[i].v = place(d, &used, io->v, b.v);
        d->ios[i].out = place(d, &used, io->out, b.out);
        d->ios[i].lse = place(d, &used, io->lse, b.lse);
    }
    d->bytes = (used + RELAY_COMMIT_BYTES) / RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
}

static enum relay_code device_io_init(struct device_io *d, const struct problem *p,
                                      struct relay_error *err)
{
    enum relay_code code;
    memset(d, 0, sizeof(*d));
    lay_out(d, p);
    code = relay_backend_reserve(backend, d->bytes, &d->arena, err);
    if (code == RELAY_OK) {
        code = relay_backend_commit(backend, d->arena, 0, d->bytes, err);
    }
    if (code == RELAY_OK) {
        lay_out(d, p);
        /* Copies from pageable memory return before they have arrived, and run's stream waits for
         * nobody. */
        (void)cudaDeviceSynchronize();
    }
    return code;
}

static enum relay_code enqueue_problem(struct problem *p, const struct relay_io *ios,
                                       uint64_t *ticket, struct relay_error *err)
{
    uint64_t ignored;
    struct relay_problem problem = {
        .shape = &p->shape,
        .plan = p->plan,
        .kv = p->kv,
        .sinks = p->sinks,
        .ios = ios,
        .num_ios = p->num_ios,
        .workspace = p->workspace,
        .workspace_bytes = p->workspace_bytes,
    };
    return relay_backend_run(backend, &problem, ticket != NULL ? ticket : &ignored, err);
}

static enum relay_code run_problem(struct problem *p, const struct relay_io *ios,
                                   struct relay_error *err)
{
    uint64_t ticket = 0;
    enum relay_code code = enqueue_problem(p, ios, &ticket, err);
    return code == RELAY_OK ? relay_backend_wait(backend, ticket, err) : code;
}

static void fetch_outputs(struct problem *p, const struct device_io *d)
{
    for (uint32_t i = 0; i < p->num_ios; i++) {
        struct io_bytes b = bytes_of(p, i);
        (void)cudaMemcpy(p->ios[i].io.out, d->ios[i].out, b.out, cudaMemcpyDefault);
        if (p->ios[i].io.lse != NULL) {
            (void)cudaMemcpy(p->ios[i].io.lse, d->ios[i].lse, b.lse, cudaMemcpyDefault);
        }
    }
}

static void spoil_outputs(struct problem *p, const struct device_io *d)
{
    for (uint32_t i = 0; i < p->num_ios; i++) {
        struct io_bytes b = bytes_of(p, i);
        (void)cudaMemset(d->ios[i].out, 0xff, b.out);
        if (p->ios[i].io.lse != NULL) {
            (void)cudaMemset(d->ios[i].lse, 0xff, b.lse);
        }
    }
    (void)cudaDeviceSynchronize(); /* run's stream does not wait for these */
}

/* NaN where the call's tokens go. */
static void spoil_appended(const struct problem *p)
{
    const struct relay_plan *plan = p->plan;
    const struct relay_layer_kind *kind = &p->shape.kind;
    size_t elem = relay_dtype_size(p->shape.kv_dtype);
    for (uint32_t a = 0; a < plan->num_appends; a++) {
        const struct relay_append *append = &plan->appends[a];
        const uint32_t *pages = plan->pages + plan->segments[append->segment].page_begin;
        for (uint32_t i = 0; i < append->q_len * kind->num_kv_heads; i++) {
            uint32_t t = append->token_begin + i / kind->num_kv_heads;
            size_t page = pages[t / plan->page_tokens] * p->kv.page_stride;
            size_t row =
                (size_t)(i % kind->num_kv_heads) * plan->page_tokens + t % plan->page_tokens;
            (void)cudaMemset((char *)p->kv.k + page + row * kind->head_dim_qk * elem, 0xff,
                             kind->head_dim_qk * elem);
            (void)cudaMemset((char *)p->kv.v + page + row * kind->head_dim_v * elem, 0xff,
                             kind->head_dim_v * elem);
        }
    }
}

/* Right behind a launch on another layer, so that the two overlap: the same bits. */
static enum relay_code run_overlapped(struct problem *p, const struct device_io *d, bool *same,
                                      struct relay_error *err)
{
    void *other = NULL;
    size_t bytes =
        (p->pool_bytes + RELAY_COMMIT_BYTES - 1) / RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
    struct relay_kv_layer kv = p->kv;
    size_t n = 0;
    size_t n_again = 0;
    unsigned char *first;
    unsigned char *again;
    enum relay_code code = relay_backend_reserve(backend, bytes, &other, err);
    if (code == RELAY_OK) {
        code = relay_backend_commit(backend, other, 0, bytes, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    (void)cudaMemset(other, 0, bytes);
    first = problem_snapshot(p, &n);
    for (uint32_t i = 0; code == RELAY_OK && i < 2; i++) {
        spoil_appended(p);
        spoil_outputs(p, d);
        (void)cudaDeviceSynchronize();
        p->kv.k = (char *)other + ((char *)kv.k - (char *)p->pool);
        p->kv.v = (char *)other + ((char *)kv.v - (char *)p->pool);
        code = enqueue_problem(p, d->ios, NULL, err);
        p->kv = kv;
        if (code == RELAY_OK) {
            code = run_problem(p, d->ios, err);
        }
    }
    fetch_outputs(p, d);
    again = problem_snapshot(p, &n_again);
    *same = first != NULL && again != NULL && n == n_again && memcmp(first, again, n) == 0;
    free(first);
    free(again);
    relay_backend_release(backend, other, bytes);
    return code;
}

/* Like problem_run, with all tensors on the device. */
static enum relay_code run_on_device(struct problem *p, bool *same, struct relay_error *err)
{
    struct device_io d;
    enum relay_code code = device_io_init(&d, p, err);
    if (code == RELAY_OK) {
        spoil_outputs(p, &d);
        code = run_problem(p, d.ios, err);
    }
    if (code == RELAY_OK) {
        fetch_outputs(p, &d);
        code = run_overlapped(p, &d, same, err);
    }
    relay_backend_release(backend, d.arena, d.bytes);
    return code;
}

/* ---- a case ---- */

static void complain(const struct problem_config *c, const char *way, const char *kernel,
                     const char *why)
{
    const struct relay_layer_kind *k = &c->shape.kind;
    failures++;
    if (failures <= 60) {
        fprintf(stderr,
                "heads %u/%u dims %u/%u %s page %u window %u chunk %u cap %g alibi %d entries %u "
                "seed %llu: %s (%s): %s\n",
                k->num_q_heads, k->num_kv_heads, k->head_dim_qk, k->head_dim_v,
                relay_dtype_name(c->shape.kv_dtype), c->page_tokens, k->window, k->chunk,
                (double)k->softcap, c->alibi, c->num_entries, (unsigned long long)c->seed, way,
                kernel, why);
    }
}

/* The appended tokens are in their pages: whoever attends again without appending sees them. */
static bool run_again(struct problem *p, char *why, size_t bytes)
{
    struct relay_error err;
    for (uint32_t i = 0; i < p->config.num_entries; i++) {
        p->entries[i].append = false;
    }
    if (problem_plan(p, NULL, &err) != RELAY_OK || problem_run(p, &err) != RELAY_OK) {
        (void)snprintf(why, bytes, "again: %s", err.msg);
        return false;
    }
    return problem_check(p, why, bytes);
}

static void run_way(const struct problem_config *config, const struct way *way)
{
    struct relay_cuda_options options = way->options;
    struct problem p;
    struct relay_error err;
    char why[300] = "";
    char name[32];
    bool settled = false;
    bool same = true;
    const char *kernel;
    options.kernel = kernel_for(&config->shape, options.kernel, name, sizeof(name));
    cases++;
    if (relay_cuda_configure(backend, &options, &err) != RELAY_OK ||
        problem_init(&p, backend, config, &err) != RELAY_OK) {
        complain(config, way->name, "?", err.msg);
        return;
    }
    kernel = relay_cuda_kernel_name(backend, &p.shape);
    if (problem_plan(&p, NULL, &err) != RELAY_OK ||
        (way->device_io ? run_on_device(&p, &same, &err) : problem_run(&p, &err)) != RELAY_OK ||
        relay_cuda_settled(backend, &settled, &err) != RELAY_OK) {
        complain(config, way->name, kernel, err.msg);
    } else if (!problem_check(&p, why, sizeof(why))) {
        complain(config, way->name, kernel, why);
    } else if (!settled) {
        complain(config, way->name, kernel, "flags or ticket are not back");
    } else if (!same) {
        complain(config, way->name, kernel, "other bits when launches overlap");
    } else if (!run_again(&p, why, sizeof(why))) {
        complain(config, way->name, kernel, why);
    }
    problem_fini(&p);
}

static void run_ways(const struct problem_config *config)
{
    for (uint32_t i = 0; i < COUNT(ways); i++) {
        run_way(config, &ways[i]);
    }
}

/* ---- shapes ---- */

static const struct problem_segment segments[] = {
    {700, PROBLEM_NONE, 0}, {333, 0, 0}, {65, 1, 0}, {90, PROBLEM_NONE, 0}};
static const struct problem_entry mixed[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 2, .context = 5, .q_len = 4, .append = true},
    {.segment = 1, .context = 0, .q_len = 1},
    {.segment = PROBLEM_NONE, .context = 833, .q_len = 2, .append = true},
    {.segment = 2, .context = 2, .q_len = 1, .append = true},
    {.segment = 0, .context = 17, .q_len = 1, .append = true},
    {.segment = 3, .context = 600, .q_len = 3, .append = true},
    {.segment = 0, .context = 0, .q_len = 1},
    {.segment = 0, .context = 1, .q_len = 1, .append = true},
    {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
    {.segment = 2, .context = 128, .q_len = 20, .append = true},
};

static struct problem_config config_of(uint32_t q_heads, uint32_t kv_heads, uint32_t dqk,
                                       uint32_t dv, enum relay_dtype dtype)
{
    struct problem_config config = {
        .shape = problem_shape(q_heads, kv_heads, dqk, dtype, dtype, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = mixed,
        .num_entries = COUNT(mixed),
        .num_ios = 2,
        .page_tokens = 16,
        .sinks = true,
        .seed = q_heads * 1000 + dqk,
    };
    config.shape.kind.head_dim_v = dv;
    return config;
}

static void report(const char *what, uint32_t before)
{
    fprintf(stderr, "%s: %u cases, %u failed\n", what, cases, failures - before);
    CHECK_EQ(failures, before);
}

static void test_attend_dims(void)
{
    static const uint32_t dims[][2] = {{64, 64},   {128, 128}, {96, 96},  {192, 192},
                                       {256, 256}, {72, 40},   {128, 64}, {40, 128}};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(dims) && (!quick || i < 2); i++) {
        struct problem_config config =
            config_of(8, 2, dims[i][0], dims[i][1], i % 2 ? RELAY_DTYPE_F16 : RELAY_DTYPE_BF16);
        run_ways(&config);
        config.shape.kv_dtype = config.shape.io_dtype = i % 2 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F16;
        run_way(&config, &ways[1]);
    }
    report("dims", before);
}

/* K/V as F8_E4M3, with scales: its own tiles, and queries scaled to fit F16. */
static void test_attend_f8(void)
{
    static const uint32_t dims[][2] = {{128, 128}, {64, 64}, {256, 256}, {192, 128}, {96, 48}};
    static const uint32_t heads[][2] = {{8, 2}, {48, 2}, {4, 4}, {100, 1}};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(dims) * COUNT(heads) && (!quick || i < 3); i++) {
        const uint32_t *h = heads[i % COUNT(heads)];
        const uint32_t *d = dims[i / COUNT(heads)];
        struct problem_config config =
            config_of(h[0], h[1], d[0], d[1], i % 2 ? RELAY_DTYPE_F16 : RELAY_DTYPE_BF16);
        config.shape.kv_dtype = RELAY_DTYPE_F8_E4M3;
        config.alibi = i % 3 == 1;
        config.shape.kind.softcap = i % 3 == 2 ? 3.0f : 0.0f;
        config.shape.kind.window = i % 4 == 3 ? 90 : 0;
        run_ways(&config);
        if (i % 3 != 0 && i < 2 * COUNT(heads)) { /* plain shapes take other kernels */
            config.alibi = false;
            config.shape.kind.softcap = 0.0f;
            run_ways(&config);
        }
    }
    report("f8", before);
}

static void test_attend_groups(void)
{
    static const uint32_t heads[][2] = {{1, 1},  {4, 4},  {6, 2},   {7, 1},   {16, 1}, {24, 2},
                                        {48, 2}, {64, 1}, {100, 1}, {200, 1}, {16, 4}, {32, 4}};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(heads) && (!quick || i < 3); i++) {
        struct problem_config config = config_of(heads[i][0], heads[i][1], i % 2 ? 64 : 128,
                                                 i % 2 ? 64 : 128, RELAY_DTYPE_BF16);
        run_ways(&config);
    }
    report("groups", before);
}

static void test_attend_pages(void)
{
    static const uint32_t pages[] = {64, 256, 8, 1, 7, 48};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(pages) && (!quick || i < 3); i++) {
        struct problem_config config = config_of(8, 2, 128, 128, RELAY_DTYPE_BF16);
        config.page_tokens = pages[i];
        run_ways(&config);
    }
    report("pages", before);
}

static void test_attend_score_terms(void)
{
    uint32_t before = failures;
    for (uint32_t mask = 0; mask < (quick ? 3u : 16u); mask++) {
        struct problem_config config = config_of(6, 2, 128, 128, RELAY_DTYPE_BF16);
        config.shape.kind.softcap = (mask & 1u) != 0 ? 3.0f : 0.0f;
        config.alibi = (mask & 2u) != 0;
        config.shape.kind.window = (mask & 4u) != 0 ? 90 : 0;
        config.shape.kind.chunk = (mask & 8u) != 0 ? 64 : 0;
        config.sinks = mask % 3 != 0;
        config.seed = mask;
        run_ways(&config);
    }
    report("score terms", before);
}

/* Many rows on one prompt: PAIR tiles, several of them, and long sequences. */
static void test_attend_many_rows(void)
{
    static struct problem_entry entries[80];
    static const struct problem_segment prompts[] = {{2100, PROBLEM_NONE, 0}};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(entries); i++) {
        entries[i] =
            (struct problem_entry){.segment = 0, .context = 1 + i * 5, .q_len = 1, .append = true};
    }
    entries[7].context = 3000;
    for (uint32_t i = 0; i < 4; i++) {
        struct problem_config config =
            config_of(i < 2 ? 16 : 4, i < 2 ? 2 : 4, i % 2 ? 64 : 128, i % 2 ? 64 : 128,
                      i % 2 ? RELAY_DTYPE_F16 : RELAY_DTYPE_BF16);
        config.segments = prompts;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = quick ? 12 : COUNT(entries);
        config.num_ios = i == 3 ? 3 : 1;
        run_ways(&config);
    }
    report("many rows", before);
}

/* Enough requests on two prompts for several rounds, so that warpgroups whose tiles finish their
 * rows, and those that do not, come to have more to do. */
static void test_attend_early_tiles(void)
{
    static struct problem_entry entries[192];
    static const struct problem_segment prompts[] = {{900, PROBLEM_NONE, 0},
                                                     {300, PROBLEM_NONE, 0}};
    static const uint32_t heads[][2] = {{16, 4}, {4, 4}};
    uint32_t before = failures;
    for (uint32_t i = 0; i < COUNT(entries); i++) {
        entries[i] = (struct problem_entry){
            .segment = i / 128, .context = 1 + i * 37 % 211, .q_len = 1, .append = i % 7 != 0};
    }
    for (uint32_t i = 0; i < COUNT(heads) && (!quick || i < 1); i++) {
        struct problem_config config = config_of(heads[i][0], heads[i][1], 128, i == 0 ? 128 : 120,
                                                 i == 0 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F16);
        config.segments = prompts;
        config.num_segments = 2;
        config.entries = entries;
        config.num_entries = quick ? 144 : COUNT(entries);
        config.num_ios = i == 0 ? 1 : 3;
        config.sinks = i == 0;
        for (uint32_t w = 0; w < COUNT(ways); w++) {
            if (ways[w].options.tuning.early_tiles != 0) {
                run_way(&config, &ways[w]);
            }
        }
    }
    report("early tiles", before);
}

static void huge_queries(struct problem *p)
{
    for (uint32_t i = 0; i < 8 * 64; i++) {
        p->q[0][i] *= 3000.0f;
    }
}

static void test_attend_huge_scores(void)
{
    uint32_t before = failures;
    struct problem_config config = config_of(8, 2, 64, 64, RELAY_DTYPE_BF16);
    config.q_scale = 1e4f;
    run_ways(&config);
    config.q_scale = 0.0f;
    config.edit = huge_queries;
    run_ways(&config);
    report("huge scores", before);
}

/* ---- bits ---- */

/* The same bits in every run, whatever the launches around it; and from a recorded graph. */
static void test_attend_repeats(void)
{
    struct problem_config config = config_of(16, 2, 128, 128, RELAY_DTYPE_BF16);
    struct problem p;
    struct device_io d;
    struct relay_error err;
    struct relay_cuda_graph *graph = NULL;
    unsigned char *first;
    unsigned char *now;
    size_t out;
    uint64_t ticket;
    CHECK_OK(relay_cuda_configure(backend, NULL, &err), err);
    CHECK_OK(problem_init(&p, backend, &config, &err), err);
    CHECK_OK(problem_plan(&p, NULL, &err), err);
    CHECK_OK(device_io_init(&d, &p, &err), err);
    out = bytes_of(&p, 0).out;
    first = malloc(out);
    now = malloc(out);
    CHECK(first != NULL && now != NULL);
    struct relay_problem problem = {
        .shape = &p.shape,
        .plan = p.plan,
        .kv = p.kv,
        .sinks = p.sinks,
        .ios = d.ios,
        .num_ios = p.num_ios,
        .workspace = p.workspace,
        .workspace_bytes = p.workspace_bytes,
    };
    for (uint32_t i = 0; i < (quick ? 20u : 1000u); i++) {
        CHECK_OK(relay_backend_run(backend, &problem, &ticket, &err), err);
        if (i % 50 != 0) {
            continue; /* back to back, so that launches overlap */
        }
        CHECK_OK(relay_backend_wait(backend, ticket, &err), err);
        (void)cudaMemcpy(i == 0 ? first : now, d.ios[0].out, out, cudaMemcpyDefault);
        CHECK(i == 0 || memcmp(first, now, out) == 0);
    }
    CHECK_OK(relay_backend_wait(backend, ticket, &err), err);
    CHECK_OK(relay_cuda_graph_begin(backend, &err), err);
    for (uint32_t i = 0; i < 5; i++) {
        CHECK_OK(relay_backend_run(backend, &problem, &ticket, &err), err);
    }
    CHECK_OK(relay_cuda_graph_end(backend, &graph, &err), err);
    for (uint32_t i = 0; i < 20; i++) {
        (void)cudaMemset(d.ios[0].out, 0xff, out);
        CHECK_OK(relay_cuda_graph_launch(graph, &err), err);
        CHECK_EQ(cudaStreamSynchronize((cudaStream_t)relay_cuda_stream(backend)), cudaSuccess);
        (void)cudaMemcpy(now, d.ios[0].out, out, cudaMemcpyDefault);
        /* Rows that belong to nobody keep what they had. */
        for (uint32_t e = 0; e < p.config.num_entries; e++) {
            const struct relay_entry *entry = &p.entries[e];
            size_t at = entry->row_begin * problem_out_bytes(&p);
            size_t n = entry->q_len * problem_out_bytes(&p);
            CHECK(entry->io != 0 || memcmp(first + at, now + at, n) == 0);
        }
    }
    relay_cuda_graph_destroy(graph);
    relay_backend_release(backend, d.arena, d.bytes);
    free(first);
    free(now);
    problem_fini(&p);
}

int main(int argc, char **argv)
{
    static void (*const tests[])(void) = {
        test_attend_dims,        test_attend_f8,          test_attend_groups,
        test_attend_pages,       test_attend_score_terms, test_attend_many_rows,
        test_attend_huge_scores, test_attend_repeats,     test_attend_early_tiles};
    struct relay_error err;
    enum relay_code code = relay_backend_open("cuda:0", NULL, &backend, &err);
    uint32_t part = UINT32_MAX;
    for (int i = 1; i < argc; i++) {
        quick = quick || strcmp(argv[i], "--quick") == 0;
        if (strcmp(argv[i], "--part") == 0 && i + 1 < argc) {
            part = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        }
    }
    if (code == RELAY_UNAVAILABLE) {
        fprintf(stderr, "skipped: %s\n", err.msg);
        return 77;
    }
    if (code != RELAY_OK) {
        fprintf(stderr, "%s: %s\n", relay_code_name(code), err.msg);
        return 1;
    }
    for (uint32_t i = 0; i < COUNT(tests); i++) {
        if (part == UINT32_MAX || part == i) {
            check_run("test_attend", tests[i]);
        }
    }
    relay_backend_close(backend);
    return check_done();
}
