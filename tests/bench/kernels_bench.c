/* Times one decode step per layer: relay (prompt K/V read once for the batch) against plain (the
 * same kernel, sharing NEVER), interleaved in one run, medians. One JSON line per cell.
 *
 *     kernels_bench --heads 32/8 --head-dim 128 --batch 1,8,32 --prompt 2048 --context 128
 *     ... --kv f8_e4m3      K/V stored as another type than q and out (--dtype)
 *
 * Several layers are walked, so that K/V comes from memory as it does in a model: four times the
 * last-level cache in all, unless --layers says otherwise. Both modes must give the same bits; if
 * not, the exit code is 1. One thread, plus the backend's. */
#include "cell.h"
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

struct config {
    const char *backend;
    const char *isa;
    const char *dump; /* a folder, or NULL */
    struct cell_config cell;
    struct bench_list batch, prompt, context;
    uint32_t threads;
    uint32_t steps;
};

static void cell_print(const struct cell *cell, const double us[CELL_MODES])
{
    const struct cell_config *c = &cell->config;
    const struct relay_plan *relay = cell->plan[CELL_RELAY];
    const struct relay_plan *plain = cell->plan[CELL_PLAIN];
    const struct relay_backend_info *info = relay_backend_info(cell->backend);
    uint64_t token = relay_shape_kv_bytes(&cell->shape);
    printf("{\"name\": \"kernels\", \"backend\": \"%s\", \"isa\": \"%s\", \"heads\": \"%u/%u\", "
           "\"head_dim\": %u, \"batch\": %u, \"prompt\": %u, \"context\": %u, \"dtype\": \"%s\", "
           "\"kv\": \"%s\", \"us\": %.1f, \"plain_us\": %.1f, \"ratio\": %.3f, \"plan_us\": %.1f, "
           "\"prompt_bytes\": %llu, \"kv_bytes\": %llu, \"plain_kv_bytes\": %llu, "
           "\"layers\": %u, \"threads\": %u, \"cpu\": \"%s\"}\n",
           info->name, info->isa, c->q_heads, c->kv_heads, c->head_dim, c->batch, c->prompt,
           c->context, relay_dtype_name(c->dtype), relay_dtype_name(c->kv_dtype), us[CELL_RELAY],
           us[CELL_PLAIN], us[CELL_PLAIN] / us[CELL_RELAY], cell->plan_us,
           (unsigned long long)(relay->prompt_tokens_read * token),
           (unsigned long long)((relay->prompt_tokens_read + relay->context_tokens_read) * token),
           (unsigned long long)((plain->prompt_tokens_read + plain->context_tokens_read) * token),
           cell->layers, info->threads, bench_cpu_name());
    fflush(stdout);
}

/* True when both modes gave the same bits. */
static bool cell_bench(const struct config *config, struct relay_backend *backend, uint32_t batch,
                       uint32_t prompt, uint32_t context)
{
    struct cell_config c = config->cell;
    static struct cell cell;
    double us[CELL_MODES];
    c.batch = batch;
    c.prompt = prompt;
    c.context = context;
    cell_init(&cell, backend, &c);
    bool same = cell_same(&cell);
    cell_time(&cell, config->steps, 0);
    cell_medians(&cell, us);
    cell_print(&cell, us);
    if (!same) {
        fprintf(stderr, "kernels_bench: relay and plain differ\n");
    }
    if (config->dump != NULL) {
        cell_dump(&cell, config->dump);
    }
    cell_fini(&cell);
    return same;
}

/* ---- options -----------------------------------------------------------------------------------
 */

static enum relay_dtype dtype_named(const char *name)
{
    for (int i = RELAY_DTYPE_F32; i <= RELAY_DTYPE_F8_E4M3; i++) {
        if (strcasecmp(name, relay_dtype_name((enum relay_dtype)i)) == 0) {
            return (enum relay_dtype)i;
        }
    }
    fprintf(stderr, "kernels_bench: a dtype is f32, f16, bf16 or, for K/V, f8_e4m3\n");
    exit(2);
}

static const struct option long_options[] = {
    {"backend", 1, NULL, 'x'},    {"heads", 1, NULL, 'h'},   {"head-dim", 1, NULL, 'd'},
    {"batch", 1, NULL, 'b'},      {"prompt", 1, NULL, 'p'},  {"context", 1, NULL, 'c'},
    {"dtype", 1, NULL, 't'},      {"kv", 1, NULL, 'k'},      {"layers", 1, NULL, 'l'},
    {"threads", 1, NULL, 'j'},    {"steps", 1, NULL, 's'},   {"block-tokens", 1, NULL, 1},
    {"split-tokens", 1, NULL, 2}, {"item-rows", 1, NULL, 3}, {"isa", 1, NULL, 'i'},
    {"dump", 1, NULL, 'o'},       {NULL, 0, NULL, 0},
};

static void parse(int argc, char **argv, struct config *c)
{
    char *end;
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'i':
            c->isa = optarg;
            break;
        case 'o':
            c->dump = optarg;
            break;
        case 'x':
            c->backend = optarg;
            break;
        case 'h':
            c->cell.q_heads = bench_number(optarg, &end);
            c->cell.kv_heads = *end == '/' ? bench_one(end + 1) : c->cell.q_heads;
            break;
        case 'd':
            c->cell.head_dim = bench_one(optarg);
            break;
        case 'b':
            c->batch = bench_many(optarg);
            break;
        case 'p':
            c->prompt = bench_many(optarg);
            break;
        case 'c':
            c->context = bench_many(optarg);
            break;
        case 't':
            c->cell.dtype = dtype_named(optarg);
            break;
        case 'k':
            c->cell.kv_dtype = dtype_named(optarg);
            break;
        case 'l':
            c->cell.layers = bench_one(optarg);
            break;
        case 'j':
            c->threads = bench_one(optarg);
            break;
        case 's':
            c->steps = bench_one(optarg);
            break;
        case 1:
            c->cell.tune.block = bench_one(optarg);
            break;
        case 2:
            c->cell.tune.split = bench_one(optarg);
            break;
        case 3:
            c->cell.tune.rows = bench_one(optarg);
            break;
        default:
            exit(2);
        }
    }
    if (c->steps == 0 || c->steps > CELL_STEPS_MAX) {
        fprintf(stderr, "kernels_bench: steps is 1..%u\n", CELL_STEPS_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct relay_error err;
    struct config config = {
        .backend = "cpu",
        .cell = {.q_heads = 32, .kv_heads = 8, .head_dim = 128, .dtype = RELAY_DTYPE_BF16},
        .batch = {{32}, 1},
        .prompt = {{2048}, 1},
        .context = {{128}, 1},
        .steps = 7};
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *backend;
    bool same = true;
    parse(argc, argv, &config);
    options.threads = config.threads;
    options.isa = config.isa;
    if (relay_backend_open(config.backend, &options, &backend, &err) != RELAY_OK) {
        bench_die("backend", &err);
    }
    for (uint32_t b = 0; b < config.batch.count; b++) {
        for (uint32_t p = 0; p < config.prompt.count; p++) {
            for (uint32_t c = 0; c < config.context.count; c++) {
                same = cell_bench(&config, backend, config.batch.values[b], config.prompt.values[p],
                                  config.context.values[c]) &&
                       same;
            }
        }
    }
    relay_backend_close(backend);
    return same ? 0 : 1;
}
