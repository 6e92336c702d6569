/* Times attention of one decode step per layer on a GPU: relay (the prompt's K/V read once for the
 * batch) and plain (the same kernels, sharing NEVER), as replays of a recorded graph over layers
 * that together are far larger than L2, medians. A graph has at least as many launches as a small
 * model has layers, and goes over its K/V again and again if that is less; the few microseconds
 * that a replay takes to begin are spread over them. One JSON line per cell, against the copy
 * bandwidth of the same machine.
 *
 *     gpu_bench --gates                      the cells that have a gate
 *     gpu_bench --cells 32/8:64:2048:1024,8/1:8:2048:128
 *     gpu_bench --cells -                    the same, one a line, from standard input
 *     gpu_bench --grid --out grid.jsonl      all cells; those in the file already are left out
 *     ... --variants[=pair,single]           also with single choices undone
 *     ... --f8                               K/V as F8_E4M3 in place of BF16
 *     ... --ragged                           contexts from a half to one and a half of that length
 *     ... --sweep                            every split count, to calibrate the schedule
 *
 * A cell is heads:batch:prompt:context. Each layer stores every request's new token too. One
 * thread. */
#include "cuda/hooks.h"

#include <cuda_runtime_api.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CELLS_MAX   256
#define REPLAYS     11
#define PAGE_TOKENS 16u
#define HEAD_DIM    128u
#define KV_BYTES    ((size_t)400 << 20) /* of all layers at least */
#define LAUNCHES    16u                 /* of a graph at least */
#define FLOPS       800e12

struct shape {
    uint32_t q_heads, kv_heads, batch, prompt, context;
};

struct bench {
    struct relay_backend *backend;
    unsigned char *arena; /* K/V of all layers */
    size_t arena_bytes;
    unsigned char *io; /* tensors of all layers */
    size_t io_bytes;
    double copy;    /* bytes a second, read and written */
    double seconds; /* to go on starting cells */
    FILE *out;
    const char *out_path;
    bool sweep;
    bool relay_only;
    bool ragged;
    enum relay_dtype kv_dtype;
    uint32_t layers; /* 0 = by KV_BYTES */
    char device[256];
};

struct cell {
    struct bench *bench;
    struct shape s;
    struct relay_shape shape;
    uint32_t layers; /* with K/V of their own */
    uint32_t launches;
    uint32_t num_pages;
    size_t page_bytes, layer_bytes;
    uint32_t *pages;
    struct relay_entry *entries;
    struct relay_segment prompt;
    struct relay_plan *plans[2];
    uint32_t rows_most; /* of a tile, 0 = the backend's */
    double plan_us;
    void *workspace;
    size_t workspace_bytes;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "gpu_bench: %s: %s\n", what, why);
    exit(1);
}

static void check(enum relay_code code, const struct relay_error *err, const char *what)
{
    if (code != RELAY_OK) {
        die(what, err->msg);
    }
}

static void check_cuda(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        die(what, cudaGetErrorString(error));
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

static uint32_t rng(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* ---- the device ---- */

static double copy_bandwidth(unsigned char *from, size_t bytes, cudaStream_t stream)
{
    cudaEvent_t begin, end;
    float ms = 0;
    check_cuda(cudaEventCreate(&begin), "event");
    check_cuda(cudaEventCreate(&end), "event");
    for (int i = 0; i < 13; i++) {
        if (i == 3) {
            check_cuda(cudaEventRecord(begin, stream), "event");
        }
        check_cuda(cudaMemcpyAsync(from + bytes, from, bytes, cudaMemcpyDeviceToDevice, stream),
                   "copy");
    }
    check_cuda(cudaEventRecord(end, stream), "event");
    check_cuda(cudaEventSynchronize(end), "copy");
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "copy");
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    return 10.0 * 2.0 * (double)bytes / ((double)ms * 1e-3);
}

/* Uniform numbers in [-1, 1), the same 64 MiB again and again at odd places. */
static void fill_random(unsigned char *to, size_t bytes, enum relay_dtype dtype)
{
    size_t n = (size_t)64 << 20;
    size_t elem = relay_dtype_size(dtype);
    unsigned char *block = malloc(n);
    if (block == NULL) {
        die("memory", "none");
    }
    for (size_t i = 0; i < n; i += elem) {
        float f = (float)(int32_t)rng() * 0x1p-31f;
        relay_dtype_convert(dtype, block + i, RELAY_DTYPE_F32, &f, 1);
    }
    for (size_t at = 0; at < bytes;) {
        size_t part = bytes - at < n ? bytes - at : n;
        if (at == 0) {
            check_cuda(cudaMemcpy(to, block, part, cudaMemcpyHostToDevice), "fill");
        } else {
            check_cuda(cudaMemcpy(to + at, to, part, cudaMemcpyDeviceToDevice), "fill");
        }
        at += part - (part == n ? 4096 * 3 : 0);
    }
    check_cuda(cudaDeviceSynchronize(), "fill");
    free(block);
}

static unsigned char *device_memory(struct bench *b, size_t bytes)
{
    struct relay_error err;
    void *base = NULL;
    check(relay_backend_reserve(b->backend, bytes, &base, &err), &err, "reserve");
    check(relay_backend_commit(b->backend, base, 0, bytes, &err), &err, "commit");
    return base;
}

static void bench_init(struct bench *b, size_t arena_bytes)
{
    struct relay_error err;
    struct cudaDeviceProp prop;
    double start;
    check(relay_backend_open("cuda:0", NULL, &b->backend, &err), &err, "open");
    check_cuda(cudaGetDeviceProperties(&prop, 0), "device");
    (void)snprintf(b->device, sizeof(b->device), "%.200s", prop.name);
    b->arena_bytes = arena_bytes;
    b->io_bytes = (size_t)2 << 30;
    start = now_us();
    b->arena = device_memory(b, b->arena_bytes);
    fprintf(stderr, "gpu_bench: %s, %zu MiB committed in %.0f ms\n", b->device,
            b->arena_bytes >> 20, (now_us() - start) * 1e-3);
    b->io = device_memory(b, b->io_bytes);
    fill_random(b->arena, b->arena_bytes, b->kv_dtype);
    fill_random(b->io, b->io_bytes, RELAY_DTYPE_BF16);
    b->copy =
        copy_bandwidth(b->arena, (size_t)1 << 30, (cudaStream_t)relay_cuda_stream(b->backend));
    fill_random(b->arena, b->arena_bytes, b->kv_dtype);
    fprintf(stderr, "gpu_bench: copy %.3f TB/s, %d multiprocessors, L2 %d MiB\n", b->copy * 1e-12,
            prop.multiProcessorCount, prop.l2CacheSize >> 20);
}

/* ---- a cell ---- */

static uint32_t pages_of(uint32_t tokens)
{
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

static size_t token_bytes(const struct bench *b, const struct shape *s)
{
    return 2u * relay_dtype_size(b->kv_dtype) * s->kv_heads * HEAD_DIM;
}

static size_t kv_bytes(const struct bench *b, const struct shape *s)
{
    return token_bytes(b, s) * (s->prompt + (size_t)s->batch * s->context);
}

/* Of request i; all requests together have about as many tokens ragged as not. */
static uint32_t context_of(const struct bench *b, const struct shape *s, uint32_t i)
{
    if (!b->ragged || s->batch < 2) {
        return s->context;
    }
    uint32_t at = i * 7919u % s->batch; /* lengths in no order: that prime is more than any batch */
    return s->context / 2 + (uint32_t)((uint64_t)s->context * at / (s->batch - 1));
}

/* What a layer must move or compute at least, microseconds. */
static double floor_us(const struct bench *b, const struct shape *s)
{
    double io = 4.0 * s->batch * s->q_heads * HEAD_DIM;
    double bytes = ((double)kv_bytes(b, s) + io) / b->copy;
    double flops = 4.0 * HEAD_DIM * s->prompt * s->q_heads * s->batch / FLOPS;
    return (bytes > flops ? bytes : flops) * 1e6;
}

static void make_plan(struct cell *c, int mode)
{
    struct relay_error err;
    struct relay_plan_input in = {
        .shape = &c->shape,
        .segments = &c->prompt,
        .num_segments = 1,
        .entries = c->entries,
        .num_entries = c->s.batch,
        .sharing = mode == 0 ? RELAY_SHARING_AUTO : RELAY_SHARING_NEVER,
        .page_tokens = PAGE_TOKENS,
    };
    double start;
    relay_backend_plan_defaults(c->bench->backend, &in);
    if (c->rows_most != 0 && mode == 0) {
        in.item_rows_max = c->rows_most;
    }
    if (c->plans[mode] == NULL) {
        check(relay_plan_create(&c->plans[mode], &err), &err, "plan");
    }
    start = now_us();
    check(relay_plan_build(c->plans[mode], &in, &err), &err, "plan");
    c->plan_us = mode == 0 ? now_us() - start : c->plan_us;
}

static void cell_init(struct cell *c)
{
    const struct shape *s = &c->s;
    uint32_t page = pages_of(s->prompt);
    c->shape.kind = (struct relay_layer_kind){.num_q_heads = s->q_heads,
                                              .num_kv_heads = s->kv_heads,
                                              .head_dim_qk = HEAD_DIM,
                                              .head_dim_v = HEAD_DIM,
                                              .scale = 0.08838834764831845f};
    c->shape.io_dtype = c->shape.out_dtype = RELAY_DTYPE_BF16;
    c->shape.kv_dtype = c->bench->kv_dtype;
    c->num_pages = pages_of(s->prompt);
    for (uint32_t i = 0; i < s->batch; i++) {
        c->num_pages += pages_of(context_of(c->bench, s, i));
    }
    c->page_bytes = token_bytes(c->bench, s) * PAGE_TOKENS;
    c->layer_bytes = c->num_pages * c->page_bytes;
    c->layers =
        c->bench->layers != 0 ? c->bench->layers : (uint32_t)(KV_BYTES / kv_bytes(c->bench, s)) + 1;
    c->layers = c->layers < 4 ? 4 : (c->layers > 40 ? 40 : c->layers);
    while (c->layers > 1 && c->layers * c->layer_bytes > c->bench->arena_bytes) {
        c->layers--;
    }
    if (c->layers * c->layer_bytes > c->bench->arena_bytes) {
        die("cell", "more K/V than the arena has");
    }
    c->launches = c->layers < LAUNCHES ? LAUNCHES : c->layers;
    c->pages = calloc(c->num_pages + 1u, sizeof(*c->pages));
    c->entries = calloc(s->batch, sizeof(*c->entries));
    if (c->pages == NULL || c->entries == NULL) {
        die("memory", "none");
    }
    for (uint32_t i = 0; i < c->num_pages; i++) {
        uint32_t j = rng() % (i + 1);
        c->pages[i] = c->pages[j];
        c->pages[j] = i;
    }
    c->prompt = (struct relay_segment){c->pages, s->prompt, 0, RELAY_NO_SEGMENT};
    for (uint32_t i = 0; i < s->batch; i++) {
        uint32_t context = context_of(c->bench, s, i);
        c->entries[i] = (struct relay_entry){
            .row_begin = i,
            .q_len = 1,
            .segment = 0,
            .position = s->prompt + context - 1,
            .pages = c->pages + page,
            .context_position = s->prompt,
            .context_tokens = context,
            .append = true,
        };
        page += pages_of(context);
    }
    c->workspace_bytes = 64;
    c->workspace = relay_backend_io_alloc(c->bench->backend, c->workspace_bytes);
}

static void cell_fini(struct cell *c)
{
    relay_plan_destroy(c->plans[0]);
    relay_plan_destroy(c->plans[1]);
    relay_backend_io_free(c->bench->backend, c->workspace);
    free(c->pages);
    free(c->entries);
}

static size_t q_bytes(const struct shape *s)
{
    return ((size_t)s->batch * s->q_heads * HEAD_DIM * 2 + 255) / 256 * 256;
}

static unsigned char *layer_io(const struct cell *c, uint32_t layer, int mode)
{
    return c->bench->io + ((size_t)layer * 2 + (size_t)mode) * 4 * q_bytes(&c->s);
}

static void run_layers(struct cell *c, int mode)
{
    struct relay_error err;
    uint64_t ticket;
    for (uint32_t i = 0; i < c->launches; i++) {
        const uint32_t l = i % c->layers;
        unsigned char *base = c->bench->arena + l * c->layer_bytes;
        unsigned char *io = layer_io(c, l, 0);
        struct relay_io tensors = {
            .q = io,
            .k = io + q_bytes(&c->s),
            .v = io + 2 * q_bytes(&c->s),
            .out = layer_io(c, l, mode) + 3 * q_bytes(&c->s),
        };
        struct relay_problem problem = {
            .shape = &c->shape,
            .plan = c->plans[mode],
            .kv = {.k = base, .v = base + c->page_bytes / 2, .page_stride = c->page_bytes},
            .ios = &tensors,
            .num_ios = 1,
            .workspace = c->workspace,
            .workspace_bytes = c->workspace_bytes,
        };
        check(relay_backend_run(c->bench->backend, &problem, &ticket, &err), &err, "run");
    }
}

/* Microseconds a layer; host_us: of a run call, plan upload not counted. */
static double time_mode(struct cell *c, int mode, double *host_us)
{
    struct relay_error err;
    struct relay_cuda_graph *graph = NULL;
    cudaStream_t stream = (cudaStream_t)relay_cuda_stream(c->bench->backend);
    cudaEvent_t begin, end;
    double us[REPLAYS];
    double start;
    check_cuda(cudaEventCreate(&begin), "event");
    check_cuda(cudaEventCreate(&end), "event");
    run_layers(c, mode);
    check_cuda(cudaStreamSynchronize(stream), "warm");
    start = now_us();
    run_layers(c, mode);
    *host_us = (now_us() - start) / c->launches;
    check_cuda(cudaStreamSynchronize(stream), "warm");
    check(relay_cuda_graph_begin(c->bench->backend, &err), &err, "record");
    run_layers(c, mode);
    check(relay_cuda_graph_end(c->bench->backend, &graph, &err), &err, "record");
    for (int i = -2; i < REPLAYS; i++) {
        float ms = 0;
        check_cuda(cudaEventRecord(begin, stream), "event");
        check(relay_cuda_graph_launch(graph, &err), &err, "replay");
        check_cuda(cudaEventRecord(end, stream), "event");
        check_cuda(cudaEventSynchronize(end), "replay");
        check_cuda(cudaEventElapsedTime(&ms, begin, end), "replay");
        if (i >= 0) {
            us[i] = (double)ms * 1e3 / c->launches;
        }
    }
    relay_cuda_graph_destroy(graph);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    qsort(us, REPLAYS, sizeof(us[0]), compare_doubles);
    return us[REPLAYS / 2];
}

/* Relative L2 difference of relay's and plain's outputs of the first layer. */
static double difference(struct cell *c)
{
    size_t n = (size_t)c->s.batch * c->s.q_heads * HEAD_DIM;
    uint16_t *bits = malloc(2 * n * sizeof(uint16_t));
    float *values = malloc(2 * n * sizeof(float));
    double error2 = 0.0;
    double norm2 = 0.0;
    if (bits == NULL || values == NULL) {
        die("memory", "none");
    }
    for (int mode = 0; mode < 2; mode++) {
        check_cuda(cudaMemcpy(bits + (size_t)mode * n, layer_io(c, 0, mode) + 3 * q_bytes(&c->s),
                              n * 2, cudaMemcpyDeviceToHost),
                   "compare");
    }
    relay_dtype_convert(RELAY_DTYPE_F32, values, RELAY_DTYPE_BF16, bits, 2 * n);
    for (size_t i = 0; i < n; i++) {
        double d = (double)values[i] - (double)values[n + i];
        error2 += d * d;
        norm2 += (double)values[n + i] * (double)values[n + i];
    }
    free(bits);
    free(values);
    return sqrt(error2 / norm2);
}

static void print_cell(struct bench *b, const char *line)
{
    printf("%s\n", line);
    fflush(stdout);
    if (b->out != NULL) {
        fprintf(b->out, "%s\n", line);
        fflush(b->out);
    }
}

static void name_of(const struct bench *b, const struct shape *s, char *name, size_t bytes)
{
    (void)snprintf(name, bytes,
                   "\"heads\": \"%u/%u\", \"batch\": %u, \"prompt\": %u, "
                   "\"context\": %u, \"kv\": \"%s\", \"lengths\": \"%s\",",
                   s->q_heads, s->kv_heads, s->batch, s->prompt, s->context,
                   relay_dtype_name(b->kv_dtype), b->ragged ? "ragged" : "uniform");
}

static void sweep_cell(struct cell *c)
{
    static const uint32_t splits[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
    static const uint32_t own[] = {1, 2, 4, 8};
    struct bench *b = c->bench;
    double floor = floor_us(b, &c->s);
    printf("%u/%u:%u:%u:%u floor %.1f |", c->s.q_heads, c->s.kv_heads, c->s.batch, c->s.prompt,
           c->s.context, floor);
    for (size_t o = 0; o < sizeof(own) / sizeof(own[0]); o++) {
        if (own[o] > 1 && (own[o] > c->s.context / 128 || c->s.batch * c->s.kv_heads >= 528)) {
            continue;
        }
        for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++) {
            struct relay_cuda_options options = {
                .tuning = {.shared_splits = splits[i], .own_splits = own[o]}};
            struct relay_error err;
            double host;
            if (splits[i] > c->s.prompt / 64 || (own[o] > 1 && i % 2 == 0 && i > 4)) {
                continue;
            }
            check(relay_cuda_configure(b->backend, &options, &err), &err, "configure");
            printf(" %u/%u %.1f", splits[i], own[o], time_mode(c, 0, &host));
            fflush(stdout);
        }
    }
    check(relay_cuda_configure(b->backend, NULL, &(struct relay_error){0}), NULL, "configure");
    printf("\n");
}

static void bench_cell(struct bench *b, const struct shape *s, const char *variant,
                       const struct relay_cuda_options *options, uint32_t packed_most)
{
    struct cell c = {.bench = b, .s = *s};
    struct relay_error err;
    const char *kernel;
    char name[160];
    char line[1024];
    double us, host_us, plain_host_us, plain_us = 0.0, error = 0.0;
    double floor = floor_us(b, s);
    check(relay_cuda_configure(b->backend, options, &err), &err, "configure");
    cell_init(&c);
    c.rows_most = packed_most / (s->q_heads / s->kv_heads);
    make_plan(&c, 0);
    make_plan(&c, 0);
    if (b->sweep) {
        sweep_cell(&c);
    }
    check(relay_cuda_configure(b->backend, options, &err), &err, "configure");
    us = time_mode(&c, 0, &host_us);
    kernel = relay_cuda_kernel_used(b->backend);
    if (!b->relay_only) {
        make_plan(&c, 1);
        plain_us = time_mode(&c, 1, &plain_host_us);
        error = difference(&c);
    }
    name_of(b, s, name, sizeof(name));
    (void)snprintf(line, sizeof(line),
                   "{\"name\": \"gpu\", %s \"variant\": \"%s\", \"kernel\": \"%s\", \"us\": %.2f, "
                   "\"plain_us\": %.2f, \"floor_us\": %.2f, \"floor_share\": %.3f, "
                   "\"copy_TBs\": %.3f, \"plan_us\": %.1f, \"run_us\": %.1f, \"layers\": %u, "
                   "\"launches\": %u, \"difference\": %.2g, \"device\": \"%s\"}",
                   name, variant, kernel, us, plain_us, floor, floor / us, b->copy * 1e-12,
                   c.plan_us, host_us, c.layers, c.launches, error, b->device);
    print_cell(b, line);
    if (error > 1e-2) {
        fprintf(stderr, "gpu_bench: relay and plain differ by %.2g\n", error);
    }
    cell_fini(&c);
}

/* ---- which cells ---- */

static const struct shape gates[] = {
    {32, 8, 64, 2048, 1024}, {32, 8, 8, 2048, 128},    {8, 1, 8, 2048, 128},
    {32, 8, 256, 2048, 128}, {32, 8, 128, 32768, 128}, {32, 32, 256, 2048, 1024},
};

static int grid_cells(struct shape *cells)
{
    static const uint32_t heads[][2] = {{32, 8}, {8, 1}, {32, 32}};
    static const uint32_t contexts[] = {128, 1024}, prompts[] = {512, 2048, 8192, 32768};
    static const uint32_t batches[] = {1, 8, 32, 64, 128, 256};
    int n = 0;
    for (int h = 0; h < 3; h++) {
        for (int c = 0; c < 2; c++) {
            for (int p = 0; p < 4; p++) {
                for (int b = 0; b < 6; b++) {
                    cells[n++] = (struct shape){heads[h][0], heads[h][1], batches[b], prompts[p],
                                                contexts[c]};
                }
            }
        }
    }
    return n;
}

static int parse_cells(const char *text, struct shape *cells, int most)
{
    int n = 0;
    while (*text != '\0' && n < most) {
        struct shape *s = &cells[n];
        int used = 0;
        if (sscanf(text, "%u/%u:%u:%u:%u%n", &s->q_heads, &s->kv_heads, &s->batch, &s->prompt,
                   &s->context, &used) != 5 ||
            s->kv_heads == 0 || s->q_heads % s->kv_heads != 0 || s->batch == 0) {
            die("cells", text);
        }
        n++;
        text += used;
        text += *text == ',';
    }
    return n;
}

/* Answers each cell of standard input before it reads the next one. */
static void bench_stdin(struct bench *b)
{
    char line[256];
    struct shape cells[1];
    while (fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '\0' && parse_cells(line, cells, 1) == 1) {
            bench_cell(b, &cells[0], "default", NULL, 0);
        }
    }
}

static bool is_done(const struct bench *b, const struct shape *s)
{
    char name[160];
    char line[1200];
    bool found = false;
    FILE *f = b->out_path != NULL ? fopen(b->out_path, "r") : NULL;
    name_of(b, s, name, sizeof(name));
    while (f != NULL && !found && fgets(line, sizeof(line), f) != NULL) {
        found = strstr(line, name) != NULL;
    }
    if (f != NULL) {
        fclose(f);
    }
    return found;
}

static const struct option long_options[] = {
    {"cells", 1, NULL, 'c'},      {"gates", 0, NULL, 'g'},    {"grid", 0, NULL, 'a'},
    {"out", 1, NULL, 'o'},        {"sweep", 0, NULL, 's'},    {"seconds", 1, NULL, 't'},
    {"relay-only", 0, NULL, 'r'}, {"variants", 2, NULL, 'v'}, {"layers", 1, NULL, 'l'},
    {"arena-mib", 1, NULL, 'm'},  {"f8", 0, NULL, '8'},       {"ragged", 0, NULL, 'x'},
    {NULL, 0, NULL, 0},
};

/* What single choices are worth: each line is one of them undone. */
static const struct {
    const char *name;
    struct relay_cuda_options options;
    uint32_t packed_most; /* packed rows of a tile */
} variants[] = {
    {"two launches", {.two_launches = true}, 0},
    {"no overlap", {.no_overlap = true}, 0},
    {"no early", {.no_early = true}, 0},
    {"pair", {.kernel = "pair_bf16_128"}, 0},
    {"single", {.kernel = "wgmma_bf16_128"}, 0},
    {"beside", {.kernel = "beside_bf16_128"}, 0},
    {"1 block", {.kernel = "wgmma_bf16_128", .blocks = 1}, 0},
    {"mma", {.kernel = "mma_bf16_128"}, 0},
    {"heads 1", {.tuning = {.narrow_heads = 1}}, 0},
    {"heads 2", {.tuning = {.narrow_heads = 2}}, 0},
    {"heads 4", {.tuning = {.narrow_heads = 4}}, 0},
    {"invariant", {.tuning = {.batch_invariant = true}}, 0},
    {"16 rows", {.direct_io = false}, 16},
    {"64 rows", {.direct_io = false}, 64},
};

int main(int argc, char **argv)
{
    static struct shape cells[CELLS_MAX];
    struct bench b = {.seconds = 1e9, .kv_dtype = RELAY_DTYPE_BF16};
    size_t arena_mib = 20480;
    bool with_variants = false;
    bool from_stdin = false;
    const char *which = NULL; /* of the variants; NULL: all */
    int n = 0;
    int option;
    double start = now_us();
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'c':
            from_stdin = strcmp(optarg, "-") == 0;
            n += from_stdin ? 0 : parse_cells(optarg, cells + n, CELLS_MAX - n);
            break;
        case 'g':
            memcpy(cells + n, gates, sizeof(gates));
            n += (int)(sizeof(gates) / sizeof(gates[0]));
            break;
        case 'a':
            n += grid_cells(cells + n);
            break;
        case 'o':
            b.out_path = optarg;
            break;
        case 's':
            b.sweep = true;
            break;
        case 't':
            b.seconds = strtod(optarg, NULL);
            break;
        case 'r':
            b.relay_only = true;
            break;
        case 'v':
            with_variants = true;
            which = optarg;
            break;
        case 'l':
            b.layers = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case '8':
            b.kv_dtype = RELAY_DTYPE_F8_E4M3;
            break;
        case 'x':
            b.ragged = true;
            break;
        case 'm':
            arena_mib = strtoul(optarg, NULL, 10);
            break;
        default:
            exit(2);
        }
    }
    bench_init(&b, arena_mib << 20);
    if (from_stdin) {
        bench_stdin(&b);
    }
    for (int i = 0; i < n && now_us() - start < b.seconds * 1e6; i++) {
        if (is_done(&b, &cells[i])) {
            continue;
        }
        b.out = b.out_path != NULL ? fopen(b.out_path, "a") : NULL;
        bench_cell(&b, &cells[i], "default", NULL, 0);
        for (size_t v = 0; with_variants && v < sizeof(variants) / sizeof(variants[0]); v++) {
            if (which != NULL && strstr(which, variants[v].name) == NULL) {
                continue;
            }
            bench_cell(&b, &cells[i], variants[v].name, &variants[v].options,
                       variants[v].packed_most);
        }
        if (b.out != NULL) {
            fclose(b.out);
            b.out = NULL;
        }
    }
    relay_backend_close(b.backend);
    return 0;
}
