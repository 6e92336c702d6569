/* The reference backend: everything the contract says, in fp64, one loop after the other. It is the
 * oracle of the other backends, so it stays obvious and is never optimised. Synchronous; used by
 * one thread. */
#include "ref/ref_internal.h"

#include "core/host_memory.h"

#include <stdlib.h>

static enum relay_code ref_open(const struct relay_backend_options *options,
                                struct relay_backend **out, struct relay_error *err)
{
    struct ref_backend *ref = calloc(1, sizeof(*ref));
    (void)options; /* one thread, whatever was asked for */
    if (ref == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a backend");
    }
    ref->base.vtable = &relay_backend_ref_vtable;
    ref->base.info = (struct relay_backend_info){
        .name = "ref",
        .isa = "portable",
        .threads = 1,
        .page_tokens = 16,
        .batch_invariant = true,
        .memory_bytes = relay_host_memory_bytes(),
    };
    *out = &ref->base;
    return RELAY_OK;
}

static void ref_close(struct relay_backend *backend)
{
    free((struct ref_backend *)backend);
}

static enum relay_code ref_supports(const struct relay_backend *backend,
                                    const struct relay_shape *shape, struct relay_error *err)
{
    (void)backend;
    (void)shape;
    (void)err;
    return RELAY_OK; /* every shape that makes sense */
}

/* Small splits, so that ordinary tests merge; no row limit, so that a prompt is read once. */
static void ref_plan_defaults(const struct relay_backend *backend, struct relay_plan_input *in)
{
    if (in->page_tokens == 0) {
        in->page_tokens = backend->info.page_tokens;
    }
    in->block_tokens = 16;
    in->split_tokens_min = 256;
    in->splits_max = 32;
    in->item_rows_max = 0;
}

static enum relay_code ref_run(struct relay_backend *backend, const struct relay_problem *problem,
                               uint64_t *ticket, struct relay_error *err)
{
    struct ref_backend *ref = (struct ref_backend *)backend;
    (void)err;
    for (uint32_t a = 0; a < problem->plan->num_appends; a++) {
        const struct relay_append *append = &problem->plan->appends[a];
        relay_host_append_rows(problem, append, 0, append->q_len);
    }
    ref_attention(ref, problem);
    *ticket = ++ref->ticket;
    return RELAY_OK;
}

static enum relay_code ref_wait(struct relay_backend *backend, uint64_t ticket,
                                struct relay_error *err)
{
    (void)backend;
    (void)ticket;
    (void)err;
    return RELAY_OK; /* run has done it all */
}

static void ref_bytes_read(const struct relay_backend *backend, uint64_t *shared_bytes,
                           uint64_t *own_bytes)
{
    const struct ref_backend *ref = (const struct ref_backend *)backend;
    *shared_bytes = ref->shared_bytes;
    *own_bytes = ref->own_bytes;
}

const struct relay_backend_vtable relay_backend_ref_vtable = {
    .name = "ref",
    .open = ref_open,
    .close = ref_close,
    .supports = ref_supports,
    .plan_defaults = ref_plan_defaults,
    .reserve = relay_host_reserve,
    .commit = relay_host_commit,
    .decommit = relay_host_decommit,
    .release = relay_host_release,
    .io_alloc = relay_host_io_alloc,
    .io_free = relay_host_io_free,
    .pages_write = relay_host_pages_write,
    .pages_read = relay_host_pages_read,
    .workspace_bytes = ref_workspace_bytes,
    .run = ref_run,
    .wait = ref_wait,
    .bytes_read = ref_bytes_read,
};
