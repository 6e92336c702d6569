#include "cpu/calibrate.h"

#include "cpu/pages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DIM        128u
#define TOKENS     256u
#define TOKENS_FAR 4096u /* 2 MiB of K/V, which is flushed from the caches first */
#define PAGE       64u
#define GROUP      4u
#define FEW        4u  /* packed rows: one request's */
#define MANY       96u /* a batch's */
#define ROUNDS     32
#define ROUNDS_FAR 8
#define FURTHER    0.95       /* of the time: the second cache it is */
#define BUDGET_NS  30000000.0 /* slow machines get fewer rounds, but two */
#define BETTER     0.8        /* a quarter faster: noise must not decide bits */
#define HOPELESS   4.0        /* times the best so far: not measured again */

/* Everything one item needs. */
struct bench {
    struct relay_shape shape;
    struct relay_plan plan;
    struct relay_plan_segment segment;
    uint32_t pages[TOKENS_FAR / PAGE];
    struct relay_plan_row rows[MANY / GROUP];
    struct relay_item item;
    struct relay_io io;
    struct relay_problem problem;
    struct relay_cpu_partials to;
    unsigned char *memory;
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Ordinary values: denormal or equal ones would take other times. */
static void fill(uint16_t *to, size_t n)
{
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        to[i] = (uint16_t)((state >> 31) << 15 | 0x3f00u | ((state >> 16) & 0xffu));
    }
}

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof(*b));
    b->shape = (struct relay_shape){.kind = {.num_q_heads = GROUP,
                                             .num_kv_heads = 1,
                                             .head_dim_qk = DIM,
                                             .head_dim_v = DIM,
                                             .scale = 0.02f},
                                    .kv_dtype = RELAY_DTYPE_BF16,
                                    .io_dtype = RELAY_DTYPE_BF16,
                                    .out_dtype = RELAY_DTYPE_BF16};
    b->segment = (struct relay_plan_segment){.tokens = TOKENS};
    for (uint32_t i = 0; i < TOKENS_FAR / PAGE; i++) {
        b->pages[i] = i;
    }
    for (uint32_t r = 0; r < MANY / GROUP; r++) {
        b->rows[r] = (struct relay_plan_row){.row = r, .position = TOKENS - 1};
    }
    b->plan = (struct relay_plan){.page_tokens = PAGE,
                                  .block_tokens = PAGE,
                                  .num_segments = 1,
                                  .num_pages = TOKENS / PAGE,
                                  .num_rows = MANY / GROUP,
                                  .segments = &b->segment,
                                  .pages = b->pages,
                                  .rows = b->rows};
    b->item = (struct relay_item){.token_end = TOKENS};
}

/* K, V, q, the results and `scratch` bytes, which is returned. */
static void *bench_memory(struct bench *b, size_t scratch)
{
    size_t kv = 2u * TOKENS_FAR * DIM * sizeof(uint16_t);
    size_t q = MANY * DIM * sizeof(uint16_t);
    size_t out = MANY * DIM * sizeof(float);
    size_t heads = MANY * sizeof(float);
    size_t bytes = (kv + q + out + 2 * heads + scratch + 63) / 64 * 64;
    b->memory = aligned_alloc(64, bytes);
    if (b->memory == NULL) {
        return NULL;
    }
    fill((uint16_t *)(void *)b->memory, (kv + q) / sizeof(uint16_t));
    b->io = (struct relay_io){.q = b->memory + kv};
    b->to = (struct relay_cpu_partials){.out = (float *)(void *)(b->memory + kv + q),
                                        .m = (float *)(void *)(b->memory + kv + q + out),
                                        .l = (float *)(void *)(b->memory + kv + q + out + heads),
                                        .out_stride = GROUP * DIM,
                                        .head_stride = GROUP};
    b->problem = (struct relay_problem){
        .shape = &b->shape,
        .plan = &b->plan,
        .kv = {.k = b->memory,
               .v = b->memory + PAGE * DIM * sizeof(uint16_t),
               .page_stride = 2u * PAGE * DIM * sizeof(uint16_t)},
        .ios = &b->io,
        .num_ios = 1,
    };
    return b->memory + kv + q + out + 2 * heads;
}

static double time_rows(struct bench *b, const struct relay_cpu_isa *isa, uint32_t packed_rows,
                        bool second_cache, void *scratch)
{
    struct relay_cpu_attend work = {.problem = &b->problem,
                                    .item = &b->item,
                                    .packed = isa->packs_pages,
                                    .second_cache = second_cache,
                                    .to = b->to,
                                    .scratch = scratch};
    b->item.row_count = packed_rows / GROUP;
    double begin = now_ns();
    isa->attend(&work);
    return now_ns() - begin;
}

/* The shortest of some rounds, since what disturbs only adds. Kernels take turns, so that what
 * disturbs for a millisecond does so to each of them or costs none its only good run. */
static void time_all(struct bench *b, const struct relay_cpu_isas *isas, void *scratch,
                     double ns[RELAY_CPU_ITEMS][RELAY_CPU_ISAS_MAX])
{
    static const uint32_t rows[RELAY_CPU_ITEMS] = {
        [RELAY_CPU_OWN] = FEW, [RELAY_CPU_PROMPT] = MANY};
    const double start = now_ns();
    double best[RELAY_CPU_ITEMS];
    for (int round = 0; round < ROUNDS && (round < 2 || now_ns() - start < BUDGET_NS); round++) {
        for (uint32_t i = 0; i < isas->count; i++) {
            for (int items = 0; items < RELAY_CPU_ITEMS; items++) {
                if (round >= 2 && ns[items][i] > HOPELESS * best[items]) {
                    continue;
                }
                double t = time_rows(b, isas->list[0][i], rows[items], false, scratch);
                ns[items][i] = round == 0 || t < ns[items][i] ? t : ns[items][i];
                best[items] = (round == 0 && i == 0) || t < best[items] ? t : best[items];
            }
        }
    }
}

/* Out of all caches, where that can be asked for. */
static bool flush(const void *from, size_t bytes)
{
#if defined(__x86_64__)
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_ia32_clflush((const char *)from + i);
    }
    __builtin_ia32_mfence();
    return true;
#else
    (void)from;
    (void)bytes;
    return false;
#endif
}

/* Which cache to ask for the next block in. The first one spares a core the way to the second, but
 * on some the first has room for too few requests under way to keep the memory busy. No bit depends
 * on it. */
static bool time_second_cache(struct bench *b, const struct relay_cpu_isa *isa, void *scratch)
{
    double best[2] = {INFINITY, INFINITY};
    b->item.token_end = b->segment.tokens = TOKENS_FAR;
    b->plan.num_pages = TOKENS_FAR / PAGE;
    b->rows[0].position = TOKENS_FAR - 1;
    for (int i = 0; i < 2 * ROUNDS_FAR && isa->packs_pages; i++) {
        if (!flush(b->memory, 2u * TOKENS_FAR * DIM * sizeof(uint16_t))) {
            return false;
        }
        double ns = time_rows(b, isa, FEW, i % 2 != 0, scratch);
        best[i % 2] = ns < best[i % 2] ? ns : best[i % 2];
    }
    return best[1] < FURTHER * best[0];
}

/* What blocks and rows cost the kernel that prompts get: time is blocks * (block + rows * row). */
static void set_costs(struct relay_cpu_isas *isas, double few_ns, double many_ns)
{
    const double blocks = TOKENS / PAGE;
    double row = (many_ns - few_ns) / blocks / (MANY - FEW);
    double block = few_ns / blocks - FEW * row;
    isas->costs.row_ns = row > 1.0 ? (float)row : 1.0f;
    isas->costs.block_ns = block > 1.0 ? (float)block : 1.0f;
}

/* Moves what is faster to the front, the rest keeping its order. */
static void sort(const struct relay_cpu_isa **list, double *ns, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        for (uint32_t j = i; j > 0 && ns[j] < BETTER * ns[j - 1]; j--) {
            const struct relay_cpu_isa *isa = list[j];
            double t = ns[j];
            list[j] = list[j - 1];
            ns[j] = ns[j - 1];
            list[j - 1] = isa;
            ns[j - 1] = t;
        }
    }
}

static void describe(const struct relay_cpu_isas *isas,
                     double ns[RELAY_CPU_ITEMS][RELAY_CPU_ISAS_MAX], char *detail, size_t bytes)
{
    const double flops[RELAY_CPU_ITEMS] = {4.0 * TOKENS * DIM * FEW, 4.0 * TOKENS * DIM * MANY};
    size_t at = 0;
    for (int items = RELAY_CPU_ITEMS; items-- > 0;) {
        int n = snprintf(detail + at, bytes - at, "%s%s", at == 0 ? "" : "; ",
                         items == RELAY_CPU_PROMPT ? "prompts" : "own tokens");
        at = n > 0 && (size_t)n < bytes - at ? at + (size_t)n : bytes - 1;
        for (uint32_t i = 0; i < isas->count; i++) {
            n = snprintf(detail + at, bytes - at, " %s %.0f", isas->list[items][i]->name,
                         flops[items] / ns[items][i]);
            at = n > 0 && (size_t)n < bytes - at ? at + (size_t)n : bytes - 1;
        }
    }
    (void)snprintf(detail + at, bytes - at, " GFLOP/s a thread, best first; K/V to the %s cache",
                   isas->second_cache ? "second" : "first");
}

enum relay_code relay_cpu_calibrate(struct relay_cpu_isas *isas, char *detail, size_t detail_bytes,
                                    struct relay_error *err)
{
    double ns[RELAY_CPU_ITEMS][RELAY_CPU_ISAS_MAX];
    struct bench b;
    size_t scratch_bytes = 0;
    bench_init(&b);
    for (uint32_t i = 0; i < isas->count; i++) {
        size_t bytes = isas->list[0][i]->scratch_bytes(&b.shape, MANY, PAGE);
        scratch_bytes = bytes > scratch_bytes ? bytes : scratch_bytes;
    }
    void *scratch = bench_memory(&b, scratch_bytes);
    if (scratch == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory to measure the kernels");
    }
    time_all(&b, isas, scratch, ns);
    sort(isas->list[RELAY_CPU_PROMPT], ns[RELAY_CPU_PROMPT], isas->count);
    for (uint32_t i = 0; i < isas->count; i++) { /* the first list is still in the old order */
        if (isas->list[RELAY_CPU_OWN][i] == isas->list[RELAY_CPU_PROMPT][0]) {
            set_costs(isas, ns[RELAY_CPU_OWN][i], ns[RELAY_CPU_PROMPT][0]);
        }
    }
    sort(isas->list[RELAY_CPU_OWN], ns[RELAY_CPU_OWN], isas->count);
    isas->second_cache = time_second_cache(&b, isas->list[RELAY_CPU_OWN][0], scratch);
    free(b.memory);
    describe(isas, ns, detail, detail_bytes);
    return RELAY_OK;
}
