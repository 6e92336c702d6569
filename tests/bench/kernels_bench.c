/* Times one decode step per layer: relay (prompt K/V read once for the batch) against plain (the
 * same kernel, sharing NEVER), interleaved in one run, medians. One JSON line per cell.
 *
 *     kernels_bench --heads 32/8 --head-dim 128 --batch 1,8,32 --prompt 2048 --context 128
 *
 * Several layers are walked, so that K/V comes from memory as it does in a model: four times the
 * last-level cache in all, unless --layers says otherwise. Both modes must give the same bits; if
 * not, the exit code is 1. One thread, plus the backend's. */
#include <relay/backend.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define LIST_MAX   16
#define STEPS_MAX  1000
#define LAYERS_MAX 128u
#define KV_MAX     ((size_t)4 << 30)

struct list {
    uint32_t values[LIST_MAX];
    int count;
};

struct config {
    const char *backend;
    uint32_t q_heads, kv_heads;
    uint32_t head_dim;
    struct list batch, prompt, context;
    enum relay_dtype dtype;
    uint32_t layers, threads;
    uint32_t steps;
    struct {
        uint32_t block, split, rows;
    } tune; /* 0 = the backend's own */
};

/* One cell: a batch of requests on one prompt. */
struct cell {
    const struct config *config;
    struct relay_backend *backend;
    struct relay_shape shape;
    uint32_t batch, prompt, context;
    uint32_t page_tokens, layers;
    uint32_t num_pages;
    size_t k_page, page_stride, layer_bytes;
    unsigned char *kv; /* [layers][num_pages] pages of K, then V */
    size_t kv_bytes;
    uint32_t *pages; /* [num_pages] the prompt's, then each request's */
    struct relay_entry *entries;
    struct relay_io io;
    unsigned char *out[2]; /* relay, plain */
    size_t out_bytes;
    struct relay_plan *plan[2];
    void *workspace;
    size_t workspace_bytes;
    double plan_us;
};

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

static double now_us(void)
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

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof(*values), compare_doubles);
    return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void die(const char *what, const struct relay_error *err)
{
    fprintf(stderr, "kernels_bench: %s: %s\n", what, err != NULL ? err->msg : strerror(errno));
    exit(1);
}

static void *must_alloc(size_t bytes)
{
    void *p = calloc(1, bytes != 0 ? bytes : 1);
    if (p == NULL) {
        die("memory", NULL);
    }
    return p;
}

static const char *cpu_name(void)
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

/* Layers until K/V is four times the last-level cache. */
static uint32_t layers_of(const struct cell *cell)
{
    long llc = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t want = 4 * (llc > 0 ? (size_t)llc : (size_t)32 << 20);
    size_t layers = cell->config->layers != 0 ? cell->config->layers : want / cell->layer_bytes + 1;
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
    uint32_t own = pages_of(cell, cell->context);
    cell->num_pages = pages_of(cell, cell->prompt) + cell->batch * own;
    cell->k_page = token * cell->page_tokens;
    cell->page_stride = 2 * cell->k_page;
    cell->layer_bytes = cell->num_pages * cell->page_stride;
    cell->layers = layers_of(cell);
    cell->kv_bytes = (cell->layers * cell->layer_bytes + RELAY_COMMIT_BYTES - 1) /
                     RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
    if (relay_backend_reserve(cell->backend, cell->kv_bytes, (void **)&cell->kv, &err) !=
            RELAY_OK ||
        relay_backend_commit(cell->backend, cell->kv, 0, cell->kv_bytes, &err) != RELAY_OK) {
        die("K/V memory", &err);
    }
    /* Random data once, copied per layer: every layer has its own bytes in memory. */
    fill(cell->kv, cell->shape.kv_dtype, cell->layer_bytes / elem);
    for (uint32_t l = 1; l < cell->layers; l++) {
        memcpy(cell->kv + l * cell->layer_bytes, cell->kv, cell->layer_bytes);
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
    struct relay_segment prompt = {
        .pages = cell->pages, .tokens = cell->prompt, .position = 0, .parent = RELAY_NO_SEGMENT};
    struct relay_plan_input in = {.shape = &cell->shape,
                                  .segments = &prompt,
                                  .num_segments = 1,
                                  .entries = cell->entries,
                                  .num_entries = cell->batch,
                                  .part = RELAY_PART_FULL,
                                  .sharing = sharing,
                                  .page_tokens = cell->page_tokens};
    relay_backend_plan_defaults(cell->backend, &in);
    in.block_tokens = cell->config->tune.block != 0 ? cell->config->tune.block : in.block_tokens;
    in.split_tokens_min =
        cell->config->tune.split != 0 ? cell->config->tune.split : in.split_tokens_min;
    in.item_rows_max = cell->config->tune.rows != 0 ? cell->config->tune.rows : in.item_rows_max;
    if (cell->plan[mode] == NULL && relay_plan_create(&cell->plan[mode], &err) != RELAY_OK) {
        die("plan", &err);
    }
    double start = now_us();
    if (relay_plan_build(cell->plan[mode], &in, &err) != RELAY_OK) {
        die("plan", &err);
    }
    *build_us = now_us() - start;
    size_t bytes = relay_backend_workspace_bytes(cell->backend, &cell->shape, cell->plan[mode]);
    cell->workspace_bytes = bytes > cell->workspace_bytes ? bytes : cell->workspace_bytes;
}

static void cell_init(struct cell *cell)
{
    const struct relay_layer_kind *kind = &cell->shape.kind;
    enum relay_dtype dtype = cell->shape.io_dtype;
    size_t elem = relay_dtype_size(dtype);
    size_t q = (size_t)cell->batch * kind->num_q_heads * kind->head_dim_qk;
    size_t kv = (size_t)cell->batch * kind->num_kv_heads * kind->head_dim_qk;
    uint32_t own = pages_of(cell, cell->context);
    double build_us[15];

    cell_pages(cell);
    cell->entries = must_alloc(cell->batch * sizeof(*cell->entries));
    for (uint32_t i = 0; i < cell->batch; i++) {
        cell->entries[i] = (struct relay_entry){
            .io = 0,
            .row_begin = i,
            .q_len = 1,
            .segment = 0,
            .position = cell->prompt + cell->context - 1,
            .pages = cell->pages + pages_of(cell, cell->prompt) + i * own,
            .context_position = cell->prompt,
            .context_tokens = cell->context,
            .append = true,
        };
    }
    void *tensors[3];
    size_t counts[3] = {q, kv, kv};
    for (int i = 0; i < 3; i++) {
        tensors[i] = relay_backend_io_alloc(cell->backend, counts[i] * elem);
        if (tensors[i] == NULL) {
            die("tensors", NULL);
        }
        fill(tensors[i], dtype, counts[i]);
    }
    cell->io = (struct relay_io){.q = tensors[0], .k = tensors[1], .v = tensors[2]};
    cell->out_bytes = q * relay_dtype_size(cell->shape.out_dtype);
    cell_plan(cell, 1, RELAY_SHARING_NEVER, &build_us[0]);
    for (int i = 0; i < 15; i++) {
        cell_plan(cell, 0, RELAY_SHARING_AUTO, &build_us[i]);
    }
    cell->plan_us = median(build_us, 15);
    cell->workspace = relay_backend_io_alloc(cell->backend, cell->workspace_bytes);
    for (int mode = 0; mode < 2; mode++) {
        cell->out[mode] = relay_backend_io_alloc(cell->backend, cell->out_bytes);
        if (cell->out[mode] == NULL || cell->workspace == NULL) {
            die("tensors", NULL);
        }
    }
}

static void cell_fini(struct cell *cell)
{
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.q);
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.k);
    relay_backend_io_free(cell->backend, (void *)(uintptr_t)cell->io.v);
    relay_backend_io_free(cell->backend, cell->workspace);
    for (int mode = 0; mode < 2; mode++) {
        relay_backend_io_free(cell->backend, cell->out[mode]);
        relay_plan_destroy(cell->plan[mode]);
    }
    relay_backend_release(cell->backend, cell->kv, cell->kv_bytes);
    free(cell->entries);
    free(cell->pages);
}

/* Microseconds per layer. */
static double cell_run(struct cell *cell, int mode)
{
    struct relay_error err;
    double start = now_us();
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
            die("run", &err);
        }
    }
    return (now_us() - start) / cell->layers;
}

static void cell_print(const struct cell *cell, double us, double plain_us)
{
    const struct config *config = cell->config;
    const struct relay_plan *relay = cell->plan[0];
    const struct relay_plan *plain = cell->plan[1];
    const struct relay_backend_info *info = relay_backend_info(cell->backend);
    uint64_t token = relay_shape_kv_bytes(&cell->shape);
    printf("{\"name\": \"kernels\", \"backend\": \"%s\", \"isa\": \"%s\", \"heads\": \"%u/%u\", "
           "\"head_dim\": %u, \"batch\": %u, \"prompt\": %u, \"context\": %u, \"dtype\": \"%s\", "
           "\"us\": %.1f, \"plain_us\": %.1f, \"ratio\": %.3f, \"plan_us\": %.1f, "
           "\"prompt_bytes\": %llu, \"kv_bytes\": %llu, \"plain_kv_bytes\": %llu, "
           "\"layers\": %u, \"threads\": %u, \"cpu\": \"%s\"}\n",
           info->name, info->isa, config->q_heads, config->kv_heads, config->head_dim, cell->batch,
           cell->prompt, cell->context, relay_dtype_name(config->dtype), us, plain_us,
           plain_us / us, cell->plan_us, (unsigned long long)(relay->prompt_tokens_read * token),
           (unsigned long long)((relay->prompt_tokens_read + relay->context_tokens_read) * token),
           (unsigned long long)((plain->prompt_tokens_read + plain->context_tokens_read) * token),
           cell->layers, info->threads, cpu_name());
    fflush(stdout);
}

/* True when both modes gave the same bits. */
static bool cell_bench(const struct config *config, struct relay_backend *backend, uint32_t batch,
                       uint32_t prompt, uint32_t context)
{
    static double us[2][STEPS_MAX];
    struct relay_error err;
    struct relay_layer_kind kind = {.num_q_heads = config->q_heads,
                                    .num_kv_heads = config->kv_heads,
                                    .head_dim_qk = config->head_dim,
                                    .head_dim_v = config->head_dim};
    struct relay_model model = {.key = "bench",
                                .num_layers = 1,
                                .num_kinds = 1,
                                .kinds = &kind,
                                .layer_kind = &(const uint32_t){0},
                                .kv_dtype = config->dtype};
    struct cell cell = {.config = config,
                        .backend = backend,
                        .shape = relay_shape_of(&model, 0, config->dtype, config->dtype),
                        .batch = batch,
                        .prompt = prompt,
                        .context = context,
                        .page_tokens = relay_backend_info(backend)->page_tokens};
    if (relay_backend_supports(backend, &cell.shape, &err) != RELAY_OK) {
        die("shape", &err);
    }
    cell_init(&cell);
    for (int mode = 0; mode < 2; mode++) { /* warm, and compare */
        memset(cell.out[mode], 0xff, cell.out_bytes);
        (void)cell_run(&cell, mode);
    }
    bool same = memcmp(cell.out[0], cell.out[1], cell.out_bytes) == 0;
    for (uint32_t step = 0; step < config->steps; step++) {
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t mode = (step + i) % 2;
            us[mode][step] = cell_run(&cell, (int)mode);
        }
    }
    cell_print(&cell, median(us[0], config->steps), median(us[1], config->steps));
    if (!same) {
        fprintf(stderr, "kernels_bench: relay and plain differ\n");
    }
    cell_fini(&cell);
    return same;
}

/* ---- options -----------------------------------------------------------------------------------
 */

static uint32_t number(const char *text, char **end)
{
    unsigned long value;
    errno = 0;
    value = strtoul(text, end, 10);
    if (errno != 0 || *end == text || value > 1u << 24) {
        fprintf(stderr, "kernels_bench: \"%s\" is no number\n", text);
        exit(2);
    }
    return (uint32_t)value;
}

static uint32_t one(const char *text)
{
    char *end;
    uint32_t value = number(text, &end);
    if (*end != '\0') {
        fprintf(stderr, "kernels_bench: \"%s\" is no number\n", text);
        exit(2);
    }
    return value;
}

static struct list many(const char *text)
{
    struct list list = {.count = 0};
    char *end;
    do {
        list.values[list.count++] = number(text, &end);
        text = end + 1;
    } while (*end == ',' && list.count < LIST_MAX);
    return list;
}

static enum relay_dtype dtype_named(const char *name)
{
    for (int i = RELAY_DTYPE_F32; i <= RELAY_DTYPE_BF16; i++) {
        if (strcasecmp(name, relay_dtype_name((enum relay_dtype)i)) == 0) {
            return (enum relay_dtype)i;
        }
    }
    fprintf(stderr, "kernels_bench: dtype is f32, f16 or bf16\n");
    exit(2);
}

static const struct option long_options[] = {
    {"backend", 1, NULL, 'x'}, {"heads", 1, NULL, 'h'},      {"head-dim", 1, NULL, 'd'},
    {"batch", 1, NULL, 'b'},   {"prompt", 1, NULL, 'p'},     {"context", 1, NULL, 'c'},
    {"dtype", 1, NULL, 't'},   {"layers", 1, NULL, 'l'},     {"threads", 1, NULL, 'j'},
    {"steps", 1, NULL, 's'},   {"block-tokens", 1, NULL, 1}, {"split-tokens", 1, NULL, 2},
    {"item-rows", 1, NULL, 3}, {NULL, 0, NULL, 0},
};

static void parse(int argc, char **argv, struct config *c)
{
    char *end;
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'x':
            c->backend = optarg;
            break;
        case 'h':
            c->q_heads = number(optarg, &end);
            c->kv_heads = *end == '/' ? one(end + 1) : c->q_heads;
            break;
        case 'd':
            c->head_dim = one(optarg);
            break;
        case 'b':
            c->batch = many(optarg);
            break;
        case 'p':
            c->prompt = many(optarg);
            break;
        case 'c':
            c->context = many(optarg);
            break;
        case 't':
            c->dtype = dtype_named(optarg);
            break;
        case 'l':
            c->layers = one(optarg);
            break;
        case 'j':
            c->threads = one(optarg);
            break;
        case 's':
            c->steps = one(optarg);
            break;
        case 1:
            c->tune.block = one(optarg);
            break;
        case 2:
            c->tune.split = one(optarg);
            break;
        case 3:
            c->tune.rows = one(optarg);
            break;
        default:
            exit(2);
        }
    }
    if (c->steps == 0 || c->steps > STEPS_MAX) {
        fprintf(stderr, "kernels_bench: steps is 1..%d\n", STEPS_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct relay_error err;
    struct config config = {.backend = "cpu",
                            .q_heads = 32,
                            .kv_heads = 8,
                            .head_dim = 128,
                            .batch = {{32}, 1},
                            .prompt = {{2048}, 1},
                            .context = {{128}, 1},
                            .dtype = RELAY_DTYPE_BF16,
                            .steps = 7};
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *backend;
    bool same = true;
    parse(argc, argv, &config);
    options.threads = config.threads;
    if (relay_backend_open(config.backend, &options, &backend, &err) != RELAY_OK) {
        die("backend", &err);
    }
    for (int b = 0; b < config.batch.count; b++) {
        for (int p = 0; p < config.prompt.count; p++) {
            for (int c = 0; c < config.context.count; c++) {
                same = cell_bench(&config, backend, config.batch.values[b], config.prompt.values[p],
                                  config.context.values[c]) &&
                       same;
            }
        }
    }
    relay_backend_close(backend);
    return same ? 0 : 1;
}
