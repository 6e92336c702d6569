/* The cpu backend against its machine: measures what the machine can do, then cells of a grid, in
 * one run, and says how near they come. One JSON line for the machine, one for each cell.
 *
 *     cpu_roofline [--heads 32/8] [--head-dim 128] [--batch N,..] [--prompt N,..] [--context N,..]
 *                  [--ms 300] [--isa NAME] [--threads N] [--rest-ms N] [--dump FOLDER]
 *     cpu_roofline --serve [--isa NAME] [--threads N]
 *
 * --serve takes orders from standard input, a line each, so that something else can be measured by
 * turns with the cells (cpu_grid.py); each is answered by one JSON line:
 *     cell Q_HEADS KV_HEADS HEAD_DIM BATCH PROMPT CONTEXT [FOLDER]   make it; dump it to FOLDER
 *     time MS                                                       walk it so long
 *     end                                                           medians; forget it
 *
 * Without --heads the grid is heads 32/32, 32/8, 8/1 with head dim 128 and 4/1 with 256. A cell's
 * limit is bytes / (0.85 bandwidth) + max(flops / (0.65 peak), exps / rate) + 10 us, its share
 * max(bytes / bandwidth, flops / peak) / time; bytes are K/V once, q and out. One thread, plus the
 * backend's. */
#include "cell.h"
#include "options.h"
#include "roofline.h"

#include "cpu/isa.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct heads {
    uint32_t q, kv, dim;
};

struct config {
    struct heads heads[BENCH_LIST_MAX];
    uint32_t num_heads;
    struct bench_list batch, prompt, context;
    uint32_t head_dim, ms, threads, rest_ms;
    const char *isa;
    const char *dump;
    bool serve;
};

struct machine {
    uint32_t threads;
    double read; /* bytes/s, all threads: the mean of what was measured beside the cell */
    uint32_t reads;
    double peak;                           /* flops/s of the best unit, all threads */
    double exps;                           /* 1/s, all threads */
    roofline_work_fn peak_work, exps_work; /* that gave them */
};

/* ---- the machine -------------------------------------------------------------------------------
 */

static const struct roofline_unit *const units[] = {
#if defined(__x86_64__)
    &roofline_avx2, &roofline_avx512, &roofline_avx512bf16, &roofline_amx,
#endif
    NULL,
};

static bool is_available(const char *isa)
{
    struct relay_cpu_isas isas;
    return relay_cpu_isas_find(isa, &isas, NULL) == RELAY_OK;
}

static struct machine measure(const struct relay_backend_info *info)
{
    struct machine m = {.threads = info->threads};
    const double read_1 = roofline_read(1);
    const double read_all = roofline_read(m.threads);
    printf("{\"name\": \"machine\", \"cpu\": \"%s\", \"threads\": %u, \"isa\": \"%s\", "
           "\"read_1_gbs\": %.1f, \"read_gbs\": %.1f",
           bench_cpu_name(), info->threads, info->isa, read_1 * 1e-9, read_all * 1e-9);
    for (uint32_t i = 0; units[i] != NULL; i++) {
        if (!is_available(units[i]->isa)) {
            continue;
        }
        double peak = roofline_rate(units[i]->peak, info->threads);
        if (peak > m.peak) {
            m.peak = peak;
            m.peak_work = units[i]->peak;
        }
        printf(", \"%s_gflops\": %.0f", units[i]->peak_name, peak * 1e-9);
        if (units[i]->exps != NULL) {
            double exps = roofline_rate(units[i]->exps, info->threads);
            if (exps > m.exps) {
                m.exps = exps;
                m.exps_work = units[i]->exps;
            }
            printf(", \"exps_%s_g\": %.1f", units[i]->isa, exps * 1e-9);
        }
    }
    printf(", \"measured\": \"%s\"}\n", info->detail != NULL ? info->detail : "");
    fflush(stdout);
    return m;
}

/* Bandwidth is shared with other machines on the same host, so it is measured again beside a cell;
 * so are the units, which something else may have held up before: their best counts. */
static void measure_again(struct machine *m)
{
    if (m->peak_work != NULL) {
        double peak = roofline_rate(m->peak_work, m->threads);
        m->peak = peak > m->peak ? peak : m->peak;
    }
    if (m->exps_work != NULL) {
        double exps = roofline_rate(m->exps_work, m->threads);
        m->exps = exps > m->exps ? exps : m->exps;
    }
    m->read = (m->read * m->reads + roofline_read(m->threads)) / (m->reads + 1);
    m->reads++;
}

/* ---- cells -------------------------------------------------------------------------------------
 */

static void print_cell(const struct machine *m, const struct cell *cell,
                       const double us[CELL_MODES], bool same)
{
    const struct cell_config *c = &cell->config;
    const double keys = (double)(c->prompt + c->context);
    const double elem = (double)relay_dtype_size(c->dtype);
    const double kv_tokens = c->prompt + (double)c->batch * c->context;
    const double bytes =
        elem * c->head_dim * (2.0 * kv_tokens * c->kv_heads + 2.0 * (double)c->batch * c->q_heads);
    const double exps = keys * c->q_heads * c->batch;
    const double flops = 4.0 * c->head_dim * exps;
    const double memory_us = bytes / m->read * 1e6;
    const double compute_us = m->peak > 0 ? flops / m->peak * 1e6 : 0;
    const double exps_us = m->exps > 0 ? exps / m->exps * 1e6 : 0;
    const double work_us = compute_us / 0.65 > exps_us ? compute_us / 0.65 : exps_us;
    const double floor_us = memory_us > compute_us ? memory_us : compute_us;
    const double limit_us = memory_us / 0.85 + work_us + 10.0;
    printf("{\"name\": \"cell\", \"heads\": \"%u/%u\", \"head_dim\": %u, \"batch\": %u, "
           "\"prompt\": %u, \"context\": %u, \"us\": %.1f, \"plain_us\": %.1f, \"bound\": \"%s\", "
           "\"share\": %.3f, \"floor_us\": %.1f, \"limit_us\": %.1f, \"read_gbs\": %.1f, "
           "\"plan_us\": %.1f, "
           "\"same_bits\": %s}\n",
           c->q_heads, c->kv_heads, c->head_dim, c->batch, c->prompt, c->context, us[CELL_RELAY],
           us[CELL_PLAIN], memory_us > compute_us ? "memory" : "compute", floor_us / us[CELL_RELAY],
           floor_us, limit_us, m->read * 1e-9, cell->plan_us, same ? "true" : "false");
    fflush(stdout);
}

static bool run_cell(const struct config *config, struct machine *m, struct relay_backend *backend,
                     const struct cell_config *c)
{
    static struct cell cell;
    double us[CELL_MODES];
    cell_init(&cell, backend, c);
    bool same = cell_same(&cell);
    m->reads = 0;
    measure_again(m);
    cell_time(&cell, 3, config->ms);
    measure_again(m);
    cell_medians(&cell, us);
    print_cell(m, &cell, us, same);
    if (config->dump != NULL) {
        cell_dump(&cell, config->dump);
    }
    cell_fini(&cell);
    (void)usleep(config->rest_ms * 1000u); /* for others on the machine */
    return same;
}

static bool run_grid(const struct config *config, struct machine *m, struct relay_backend *backend)
{
    bool same = true;
    for (uint32_t h = 0; h < config->num_heads; h++) {
        for (uint32_t b = 0; b < config->batch.count; b++) {
            for (uint32_t p = 0; p < config->prompt.count; p++) {
                for (uint32_t c = 0; c < config->context.count; c++) {
                    struct cell_config cell = {.q_heads = config->heads[h].q,
                                               .kv_heads = config->heads[h].kv,
                                               .head_dim = config->heads[h].dim,
                                               .batch = config->batch.values[b],
                                               .prompt = config->prompt.values[p],
                                               .context = config->context.values[c],
                                               .dtype = RELAY_DTYPE_BF16};
                    same = run_cell(config, m, backend, &cell) && same;
                }
            }
        }
    }
    return same;
}

/* ---- orders from elsewhere ---------------------------------------------------------------------
 */

static bool order_cell(struct relay_backend *backend, const char *line, struct cell *cell)
{
    struct cell_config c = {.dtype = RELAY_DTYPE_BF16};
    char folder[256] = "";
    int n = sscanf(line, "cell %u %u %u %u %u %u %255s", &c.q_heads, &c.kv_heads, &c.head_dim,
                   &c.batch, &c.prompt, &c.context, folder);
    if (n < 6) {
        return false;
    }
    cell_init(cell, backend, &c);
    if (folder[0] != '\0') {
        cell_dump(cell, folder);
    }
    printf("{\"name\": \"ready\", \"layers\": %u}\n", cell->layers);
    return true;
}

/* True when all cells had the same bits in both modes. */
static bool serve(struct machine *m, struct relay_backend *backend)
{
    char line[512];
    static struct cell cell;
    bool made = false;
    bool same = true;
    unsigned ms;
    while (fgets(line, sizeof(line), stdin) != NULL) {
        if (!made && order_cell(backend, line, &cell)) {
            made = true;
            m->reads = 0;
        } else if (made && sscanf(line, "time %u", &ms) == 1) {
            measure_again(m);
            cell_time(&cell, 1, ms);
            printf("{\"name\": \"walks\", \"count\": %u}\n", cell.steps);
        } else if (made && strncmp(line, "end", 3) == 0) {
            double us[CELL_MODES];
            bool equal = cell_same(&cell);
            cell_medians(&cell, us);
            print_cell(m, &cell, us, equal);
            cell_fini(&cell);
            made = false;
            same = same && equal;
        } else {
            fprintf(stderr, "cpu_roofline: what is \"%.*s\"?\n", (int)strcspn(line, "\n"), line);
            exit(2);
        }
        fflush(stdout);
    }
    return same;
}

/* ---- options -----------------------------------------------------------------------------------
 */

static const struct option long_options[] = {
    {"heads", 1, NULL, 'h'},   {"head-dim", 1, NULL, 'd'}, {"batch", 1, NULL, 'b'},
    {"prompt", 1, NULL, 'p'},  {"context", 1, NULL, 'c'},  {"ms", 1, NULL, 'm'},
    {"threads", 1, NULL, 'j'}, {"isa", 1, NULL, 'i'},      {"rest-ms", 1, NULL, 'r'},
    {"dump", 1, NULL, 'o'},    {"serve", 0, NULL, 's'},    {NULL, 0, NULL, 0},
};

static void parse(int argc, char **argv, struct config *c)
{
    char *end;
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'h':
            c->heads[0].q = bench_number(optarg, &end);
            c->heads[0].kv = *end == '/' ? bench_number(end + 1, &end) : c->heads[0].q;
            c->heads[0].dim = 0;
            c->num_heads = 1;
            break;
        case 'd':
            c->head_dim = bench_number(optarg, &end);
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
        case 'm':
            c->ms = bench_number(optarg, &end);
            break;
        case 'j':
            c->threads = bench_number(optarg, &end);
            break;
        case 'r':
            c->rest_ms = bench_number(optarg, &end);
            break;
        case 'i':
            c->isa = optarg;
            break;
        case 'o':
            c->dump = optarg;
            break;
        case 's':
            c->serve = true;
            break;
        default:
            exit(2);
        }
    }
    if (c->num_heads == 1) {
        c->heads[0].dim = c->head_dim;
    }
}

int main(int argc, char **argv)
{
    struct relay_error err;
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *backend;
    struct config config = {
        .heads = {{32, 32, 128}, {32, 8, 128}, {8, 1, 128}, {4, 1, 256}},
        .num_heads = 4,
        .batch = {{1, 8, 32, 64, 128}, 5},
        .prompt = {{512, 2048, 8192}, 3},
        .context = {{128, 1024}, 2},
        .head_dim = 128,
        .ms = 300,
    };
    parse(argc, argv, &config);
    options.threads = config.threads;
    options.isa = config.isa;
    if (relay_backend_open("cpu", &options, &backend, &err) != RELAY_OK) {
        bench_die("cpu", &err);
    }
    struct machine m = measure(relay_backend_info(backend));
    bool same = config.serve ? serve(&m, backend) : run_grid(&config, &m, backend);
    relay_backend_close(backend);
    if (!same) {
        fprintf(stderr, "cpu_roofline: relay and plain differ\n");
    }
    return same ? 0 : 1;
}
