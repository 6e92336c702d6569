/* The cpu backend: opens the pool, chooses the kernels, says what it can do. Used by one thread,
 * apart from memory and pages, which are the host's and have no state. */
#include "cpu/cpu_internal.h"

#include "core/host_memory.h"
#include "cpu/calibrate.h"
#include "cpu/pages.h"

#include <stdlib.h>

#define PAGE_TOKENS 64u
/* Every split writes and reads partial results once more, 4 % of the time at 1024 tokens. A prompt
 * is cut where KV heads alone would leave threads without work; beyond that rows can be divided. */
#define SPLIT_TOKENS_MIN 1024u
#define SPLIT_HEADS_MAX  4u /* KV heads from which on splits are longest */
#define SPLITS_MAX       16u
#define ITEM_NS          1000.0f /* to claim an item, read its queries and write its results */

static void cpu_close(struct relay_backend *backend)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    relay_cpu_pool_destroy(cpu->pool);
    free(cpu);
}

static enum relay_code cpu_open(const struct relay_backend_options *options,
                                struct relay_backend **out, struct relay_error *err)
{
    uint32_t threads = options->threads != 0 ? options->threads : relay_cpu_pool_cpus();
    struct cpu_backend *cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a backend");
    }
    if (options->threads == 0 && threads > RELAY_CPU_THREADS_MAX) {
        threads = RELAY_CPU_THREADS_MAX;
    }
    enum relay_code code = relay_cpu_isas_find(options->isa, &cpu->isas, err);
    if (code == RELAY_OK) {
        code = relay_cpu_calibrate(&cpu->isas, cpu->detail, sizeof(cpu->detail), err);
    }
    if (code == RELAY_OK) {
        code = relay_cpu_pool_create(threads, &cpu->pool, err);
    }
    if (code != RELAY_OK) {
        cpu_close(&cpu->base);
        return code;
    }
    cpu->packs_pages = cpu->isas.list[0][0]->packs_pages;
    cpu->base.vtable = &relay_backend_cpu_vtable;
    cpu->base.info = (struct relay_backend_info){
        .name = "cpu",
        .isa = cpu->isas.list[RELAY_CPU_PROMPT][0]->name,
        .threads = threads,
        .page_tokens = PAGE_TOKENS,
        .batch_invariant = true,
        .memory_bytes = relay_host_memory_bytes(),
        .detail = cpu->detail,
    };
    *out = &cpu->base;
    return RELAY_OK;
}

static bool is_io_dtype(enum relay_dtype dtype)
{
    return dtype == RELAY_DTYPE_F32 || dtype == RELAY_DTYPE_F16 || dtype == RELAY_DTYPE_BF16;
}

static enum relay_code cpu_supports(const struct relay_backend *backend,
                                    const struct relay_shape *shape, struct relay_error *err)
{
    const struct relay_layer_kind *kind = &shape->kind;
    (void)backend;
    if (!is_io_dtype(shape->io_dtype) || !is_io_dtype(shape->out_dtype)) {
        return RELAY_FAIL(err, RELAY_UNIMPLEMENTED,
                          "cpu has no kernel for heads %u/%u, dims %u/%u, stored %s with io %s, "
                          "out %s",
                          kind->num_q_heads, kind->num_kv_heads, kind->head_dim_qk,
                          kind->head_dim_v, relay_dtype_name(shape->kv_dtype),
                          relay_dtype_name(shape->io_dtype), relay_dtype_name(shape->out_dtype));
    }
    return RELAY_OK;
}

/* All but the costs follow from the shape and the kernel, never the thread count: splits decide
 * bits. */
static void cpu_plan_defaults(const struct relay_backend *backend, struct relay_plan_input *in)
{
    const struct cpu_backend *cpu = (const struct cpu_backend *)backend;
    const struct relay_layer_kind *kind = &in->shape->kind;
    const struct relay_cpu_isa *isa = relay_cpu_isa_for(&cpu->isas, in->shape, RELAY_CPU_PROMPT);
    const uint32_t group = kind->num_q_heads / kind->num_kv_heads;
    const float dims = (float)(kind->head_dim_qk + kind->head_dim_v) / 256.0f;
    uint32_t rows = isa->packed_rows_max / group;
    if (in->page_tokens == 0) {
        in->page_tokens = PAGE_TOKENS;
    }
    in->block_tokens = isa->block_tokens;
    in->split_tokens_min =
        SPLIT_TOKENS_MIN *
        (kind->num_kv_heads < SPLIT_HEADS_MAX ? kind->num_kv_heads : SPLIT_HEADS_MAX);
    in->splits_max = SPLITS_MAX;
    in->item_rows_max = rows == 0 ? 1 : rows;
    in->costs = (struct relay_plan_costs){.threads = cpu->base.info.threads,
                                          .item_ns = ITEM_NS,
                                          .block_ns = cpu->isas.costs.block_ns * dims,
                                          .row_ns = cpu->isas.costs.row_ns * dims};
}

static bool packs(const struct relay_backend *backend, const struct relay_pages_span *span)
{
    return ((const struct cpu_backend *)backend)->packs_pages &&
           relay_cpu_pages_packed(span->shape, span->page_tokens);
}

static enum relay_code cpu_pages_write(struct relay_backend *backend,
                                       const struct relay_pages_span *span, const void *k,
                                       const void *v, struct relay_error *err)
{
    if (!packs(backend, span)) {
        return relay_host_pages_write(backend, span, k, v, err);
    }
    relay_cpu_pages_write(span, k, v);
    return RELAY_OK;
}

static enum relay_code cpu_pages_read(struct relay_backend *backend,
                                      const struct relay_pages_span *span, void *k, void *v,
                                      struct relay_error *err)
{
    if (!packs(backend, span)) {
        return relay_host_pages_read(backend, span, k, v, err);
    }
    relay_cpu_pages_read(span, k, v);
    return RELAY_OK;
}

const struct relay_backend_vtable relay_backend_cpu_vtable = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .supports = cpu_supports,
    .plan_defaults = cpu_plan_defaults,
    .reserve = relay_host_reserve,
    .commit = relay_host_commit,
    .decommit = relay_host_decommit,
    .release = relay_host_release,
    .io_alloc = relay_host_io_alloc,
    .io_free = relay_host_io_free,
    .pages_write = cpu_pages_write,
    .pages_read = cpu_pages_read,
    .workspace_bytes = cpu_workspace_bytes,
    .run = cpu_run,
    .wait = cpu_wait,
};
