#include "cell.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LAYERS_MAX 1024u
#define KV_MAX     ((size_t)6 << 30)
#define FILL_BYTES ((size_t)32 << 20) /* that much is random, then it repeats */

static uint64_t rng_state = 0x9e3779b97f4a7c15u;

static uint32_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (uint32_t)(rng_state >> 32);
}

static void fill(void *dst, enum relay_dtype dtype, size_t n)
{
    unsigned char *to = dst;
    for (size_t i = 0; i < n; i++) {
        float x = (float)(int32_t)rng() * 0x1p-31f;
        relay_dtype_convert(dtype, to + i * relay_dtype_size(dtype), RELAY_DTYPE_F32, &x, 1);
    }
}

double bench_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, uint32_t n)
{
    qsort(values, n, sizeof(*values), compare_doubles);
    return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void bench_die(const char *what, const struct relay_error *err)
{
    fprintf(stderr, "bench: %s: %s\n", what, err != NULL ? err->msg : strerror(errno));
    exit(1);
}

static void *must_alloc(size_t bytes)
{
    void *p = calloc(1, bytes != 0 ? bytes : 1);
    if (p == NULL) {
        bench_die("memory", NULL);
    }
    return p;
}

const char *bench_cpu_name(void)
{
    static char name[128] = "unknown";
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n\"\\")] = '\0';
            snprintf(name, sizeof(name), "%s", colon + 2);
            break;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return name;
}

/* ---- a cell ------------------------------------------------------------------------------------
 */

static uint32_t pages_of(const struct cell *cell, uint32_t tokens)
{
    return (tokens + cell->page_tokens - 1) / cell->page_tokens;
}

/* Of the first CPU: sysconf may count caches that a virtual machine does not have. */
size_t bench_llc_bytes(void)
{
    unsigned long kib = 0;
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    if (f != NULL) {
        if (fscanf(f, "%luK", &kib) != 1) {
            kib = 0;
        }
        fclose(f);
    }
    if (kib == 0) {
        long llc = sysconf(_SC_LEVEL3_CACHE_SIZE);
        return llc > 0 ? (size_t)llc : (size_t)32 << 20;
    }
    return (size_t)kib << 10;
}

/* Layers until K/V is more than four times the last-level cache. */
static uint32_t layers_of(const struct cell *cell)
{
    size_t want = 4 * bench_llc_bytes();
    size_t layers = cell->config.layers != 0 ? cell->config.layers : want / cell->layer_bytes + 1;
    if (layers * cell->layer_bytes > KV_MAX) {
        layers = KV_MAX / cell->layer_bytes;
    }
    layers = layers < 1 ? 1 : layers;
    return layers < LAYERS_MAX ? (uint32_t)layers : LAYERS_MAX;
}

static void cell_pages(struct cell *cell)
{
    struct relay_error err;
    const struct relay_layer_kind *kind = &cell->shape.kind;
    size_t elem = relay_dtype_size(cell->shape.kv_dtype);
    size_t token = (size_t)kind->num_kv_heads * kind->head_dim_qk * elem;
    uint32_t own = pages_of(cell, cell->config.context);
    cell->num_pages = pages_of(cell, cell->config.prompt) + cell->config.batch * own;
    cell->k_page = token * cell->page_tokens;
    cell->page_stride = 2 * cell->k_page;
    cell->layer_bytes = cell->num_pages * cell->page_stride;
    cell->layers = layers_of(cell);
    cell->kv_bytes = (cell->layers * cell->layer_bytes + RELAY_COMMIT_BYTES - 1) /
                     RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
    if (relay_backend_reserve(cell->backend, cell->kv_bytes, (void **)&cell->kv, &err) !=
            RELAY_OK ||
        relay_backend_commit(cell->backend, cell->kv, 0, cell->kv_bytes, &err) != RELAY_OK) {
        bench_die("K/V memory", &err);
    }
    size_t all = cell->layers * cell->layer_bytes;
    size_t random = all < FILL_BYTES ? all : FILL_BYTES;
    fill(cell->kv, cell->shape.kv_dtype, random / elem);
    for (size_t at = random; at < all; at += random) {
        memcpy(cell->kv + at, cell->kv, all - at < random ? all - at : random);
    }
    cell->pages = must_alloc(cell->num_pages * sizeof(*cell->pages));
    for (uint32_t i = 0; i < cell->num_pages; i++) {
        uint32_t j = rng() % (i + 1);
        cell->pages[i] = cell->pages[j];
        cell->pages[j] = i;
    }
}

static void cell_plan(struct cell *cell, int mode, enum relay_sharing sharing, double *build_us)
{
    struct relay_error err;
    struct relay_segment prompt = {.pages = cell->pages,
                                   .tokens = cell->config.prompt,
                                   .position = 0,
                                   .parent = RELAY_NO_SEGMENT};
    struct relay_plan_input in = {.shape = &cell->shape,
                                  .segments = &prompt,
                                  .num_segments = 1,
                                  .entries = cell->entries,
                                  .num_entries = cell->config.batch,
                                  .part = RELAY_PART_FULL,
                                  .sharing = sharing,
                                  .page_tokens = cell->page_tokens};
    relay_backend_plan_defaults(cell->backend, &in);
    in.block_tokens = cell->config.tune.block != 0 ? cell->config.tune.block : in.block_tokens;
    in.split_tokens_min =
        cell->config.tune.split != 0 ? cell->config.tune.split : in.split_tokens_min;
    in.item_rows_max = cell->config.tune.rows != 0 ? cell->config.tune.rows : in.item_rows_max;
    if (cell->plan[mode] == NULL && relay_plan_create(&cell->plan[mode], &err) != RELAY_OK) {
        bench_die("plan", &err);
    }
    double start = bench_now_us();
    if (relay_plan_build(cell->plan[mode], &in, &err) != RELAY_OK) {
        bench_die("plan", &err);
    }
    *build_us = bench_now_us() - start;
    size_t bytes = relay_backend_workspace_bytes(cell->backend, &cell->shape, cell->plan[mode]);
    cell->workspace_bytes = bytes > cell->workspace_bytes ? bytes : cell->workspace_bytes;
}

/* The shape, and what a backend makes of it. */
static void cell_shape(struct cell *cell, struct relay_backend *backend,
                       const struct cell_config *config)
{
    struct relay_error err;
    struct relay_layer_kind kind = {.num_q_heads = config->q_heads,
                                    .num_kv_heads = config->kv_heads,
                                    .head_dim_qk = config->head_dim,
                                    .head_dim_v = config->head_dim};
    struct relay_model model = {
        .key = "bench",
        .num_layers = 1,
        .num_kinds = 1,
        .kinds = &kind,
        .layer_kind = &(const uint32_t){0},
        .kv_dtype = config->kv_dtype != RELAY_DTYPE_UNSPECIFIED ? config->kv_dtype : config->dtype};
    memset(cell, 0, sizeof(*cell));
    cell->config = *config;
    cell->config.kv_dtype = model.kv_dtype;
    cell->backend = backend;
    cell->shape = relay_shape_of(&model, 0, config->dtype, config->dtype);
    cell->page_tokens = relay_backend_info(backend)->page_tokens;
    if (relay_backend_supports(backend, &cell->shape, &err) != RELAY_OK) {
        bench_die("shape", &err);
    }
}

void cell_init(struct cell *cell, struct relay_backend *backend, const struct cell_config *config)
{
    cell_shape(cell, backend, config);
    const struct relay_layer_kind *kind = &cell->shape.kind;
    enum relay_dtype dtype = cell->shape.io_dtype;
    size_t elem = relay_dtype_size(dtype);
    size_t q = (size_t)cell->config.batch * kind->num_q_heads * kind->head_dim_qk;
    size_t kv = (size_t)cell->config.batch * kind->num_kv_heads * kind->head_dim_qk;
    uint32_t own = pages_of(cell, cell->config.context);
    double build_us[15];

    cell_pages(cell);
    cell->entries = must_alloc(cell->config.batch * sizeof(*cell->entries));
    for (uint32_t i = 0; i < cell->config.batch; i++) {
        cell->entries[i] = (struct relay_entry){
            .io = 0,
            .row_begin = i,
            .q_len = 1,
            .segment = 0,
            .position = cell->config.prompt + cell->config.context - 1,
            .pages = cell->pages + pages_of(cell, cell->config.prompt) + i * own,
            .context_position = cell->config.prompt,
            .context_tokens = cell->config.context,
            .append = true,
        };
    }
    void *tensors[3];
    size_t counts[3] = {q, kv, kv};
    for (int i = 0; i < 3; i++) {
        tensors[i] = relay_backend_io_alloc(cell->backend, counts[i] * elem);
        if (tensors[i] == NULL) {
            bench_die("tensors", NULL);
        }
        fill(tensors[i], dtype, counts[i]);
    }
    cell->io = (struct relay_io){.q = tensors[0], .k = tensors[1], .v = tensors[2]};
    cell->out_bytes = q * relay_dtype_size(cell->shape.out_dtype);
    cell_plan(cell, CELL_PLAIN, RELAY_SHARING_NEVER, &build_us[0]);
    for (int i = 0; i < 15; i++) {
        cell_plan(cell, CELL_RELAY, RELAY_SHARING_AUTO, &build_us[i]);
    }
    cell->plan_us = bench_median(build_us, 15);
    cell->workspace = relay_backend_io_alloc(cell->backend, cell->workspace_bytes);
    for (int mode = 0; mode < CELL_MODES; mode++) {
        cell->out[mode] = relay_backend_io_alloc(cell->backend, cell->out_bytes);
        if (cell->out[mode] == NULL || cell->workspace == NULL) {
            bench_die("tensors", NULL);
        }
    }
}

void cell_fini(struct cell *cell)
{
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.q);
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.k);
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.v);
    relay_backend_io_free(cell->backend, cell->workspace);
    for (int mode = 0; mode < CELL_MODES; mode++) {
        relay_backend_io_free(cell->backend, cell->out[mode]);
        relay_plan_destroy(cell->plan[mode]);
    }
    relay_backend_release(cell->backend, cell->kv, cell->kv_bytes);
    free(cell->entries);
    free(cell->pages);
}

/* Microseconds per layer. */
double cell_run(struct cell *cell, enum cell_mode mode)
{
    struct relay_error err;
    double start = bench_now_us();
    for (uint32_t l = 0; l < cell->layers; l++) {
        unsigned char *base = cell->kv + l * cell->layer_bytes;
        struct relay_io io = cell->io;
        uint64_t ticket;
        io.out = cell->out[mode];
        struct relay_problem problem = {
            .shape = &cell->shape,
            .plan = cell->plan[mode],
            .kv = {.k = base, .v = base + cell->k_page, .page_stride = cell->page_stride},
            .ios = &io,
            .num_ios = 1,
            .workspace = cell->workspace,
            .workspace_bytes = cell->workspace_bytes,
        };
        if (relay_backend_run(cell->backend, &problem, &ticket, &err) != RELAY_OK ||
            relay_backend_wait(cell->backend, ticket, &err) != RELAY_OK) {
            bench_die("run", &err);
        }
    }
    return (bench_now_us() - start) / cell->layers;
}

bool cell_same(struct cell *cell)
{
    for (int mode = 0; mode < CELL_MODES; mode++) {
        memset(cell->out[mode], 0xff, cell->out_bytes);
        (void)cell_run(cell, (enum cell_mode)mode);
    }
    return memcmp(cell->out[CELL_RELAY], cell->out[CELL_PLAIN], cell->out_bytes) == 0;
}

void cell_time(struct cell *cell, uint32_t steps_min, double ms)
{
    double until = bench_now_us() + ms * 1e3;
    for (uint32_t n = 0; cell->steps < CELL_STEPS_MAX && (n < steps_min || bench_now_us() < until);
         n++) {
        for (uint32_t i = 0; i < CELL_MODES; i++) {
            uint32_t mode = (n + i) % CELL_MODES;
            cell->us[mode][cell->steps] = cell_run(cell, (enum cell_mode)mode);
        }
        cell->steps++;
    }
}

void cell_medians(struct cell *cell, double us[CELL_MODES])
{
    for (int mode = 0; mode < CELL_MODES; mode++) {
        us[mode] = bench_median(cell->us[mode], cell->steps);
    }
}

/* ---- files -------------------------------------------------------------------------------------
 */

static void dump(const char *folder, const char *name, const void *data, size_t bytes)
{
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/%s.bin", folder, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0) {
        bench_die(path, NULL);
    }
}

void cell_dump(struct cell *cell, const char *folder)
{
    struct relay_error err;
    const struct cell_config *c = &cell->config;
    size_t token = (size_t)c->kv_heads * c->head_dim * relay_dtype_size(c->kv_dtype);
    uint32_t most = c->prompt > c->context ? c->prompt : c->context;
    size_t tokens = c->prompt + (size_t)c->batch * c->context;
    unsigned char *k = must_alloc((tokens + most) * token);
    unsigned char *v = must_alloc((tokens + most) * token);
    size_t at = 0;
    (void)cell_run(cell, CELL_RELAY); /* the last layer walked is the one that is dumped */
    unsigned char *base = cell->kv + (cell->layers - 1) * cell->layer_bytes;
    for (uint32_t i = 0; i <= c->batch; i++) {
        uint32_t own = pages_of(cell, c->context);
        struct relay_pages_span span = {
            .shape = &cell->shape,
            .kv = {.k = base, .v = base + cell->k_page, .page_stride = cell->page_stride},
            .page_tokens = cell->page_tokens,
            .pages = i == 0 ? cell->pages : cell->pages + pages_of(cell, c->prompt) + (i - 1) * own,
            .token_count = i == 0 ? c->prompt : c->context,
        };
        if (relay_backend_pages_read(cell->backend, &span, k + at, v + at, &err) != RELAY_OK) {
            bench_die("pages", &err);
        }
        at += span.token_count * token;
    }
    dump(folder, "q", cell->io.q, cell->out_bytes);
    dump(folder, "k", k, c->prompt * token);
    dump(folder, "v", v, c->prompt * token);
    dump(folder, "ck", k + c->prompt * token, at - c->prompt * token);
    dump(folder, "cv", v + c->prompt * token, at - c->prompt * token);
    dump(folder, "out", cell->out[CELL_RELAY], cell->out_bytes);
    free(k);
    free(v);
}
