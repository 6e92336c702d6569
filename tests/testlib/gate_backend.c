#include "testlib/gate_backend.h"

#include "kernels/core/backend_internal.h"

#include <pthread.h>
#include <stdlib.h>

struct gate {
    struct relay_backend base; /* first */
    struct relay_backend *ref;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool closed;
    bool broken;
    bool refuse_once;
    unsigned runs;
};

static struct gate *gate_of(const struct relay_backend *backend)
{
    return (struct gate *)(uintptr_t)backend;
}

static void gate_close(struct relay_backend *backend)
{
    struct gate *g = gate_of(backend);
    relay_backend_close(g->ref);
    pthread_mutex_destroy(&g->mutex);
    pthread_cond_destroy(&g->changed);
    free(g);
}

static enum relay_code gate_supports(const struct relay_backend *b, const struct relay_shape *shape,
                                     struct relay_error *err)
{
    return relay_backend_supports(gate_of(b)->ref, shape, err);
}

static void gate_plan_defaults(const struct relay_backend *b, struct relay_plan_input *in)
{
    relay_backend_plan_defaults(gate_of(b)->ref, in);
}

static enum relay_code gate_reserve(struct relay_backend *b, size_t bytes, void **base,
                                    struct relay_error *err)
{
    return relay_backend_reserve(gate_of(b)->ref, bytes, base, err);
}

static enum relay_code gate_commit(struct relay_backend *b, void *base, size_t offset, size_t bytes,
                                   struct relay_error *err)
{
    return relay_backend_commit(gate_of(b)->ref, base, offset, bytes, err);
}

static void gate_decommit(struct relay_backend *b, void *base, size_t offset, size_t bytes)
{
    relay_backend_decommit(gate_of(b)->ref, base, offset, bytes);
}

static void gate_release(struct relay_backend *b, void *base, size_t bytes)
{
    relay_backend_release(gate_of(b)->ref, base, bytes);
}

static void *gate_io_alloc(struct relay_backend *b, size_t bytes)
{
    return relay_backend_io_alloc(gate_of(b)->ref, bytes);
}

static void gate_io_free(struct relay_backend *b, void *memory)
{
    relay_backend_io_free(gate_of(b)->ref, memory);
}

static enum relay_code gate_pages_write(struct relay_backend *b, const struct relay_pages_span *s,
                                        const void *k, const void *v, struct relay_error *err)
{
    return relay_backend_pages_write(gate_of(b)->ref, s, k, v, err);
}

static enum relay_code gate_pages_read(struct relay_backend *b, const struct relay_pages_span *s,
                                       void *k, void *v, struct relay_error *err)
{
    return relay_backend_pages_read(gate_of(b)->ref, s, k, v, err);
}

static size_t gate_workspace(const struct relay_backend *b, const struct relay_shape *shape,
                             const struct relay_plan *plan)
{
    return relay_backend_workspace_bytes(gate_of(b)->ref, shape, plan);
}

static enum relay_code gate_run(struct relay_backend *b, const struct relay_problem *problem,
                                uint64_t *ticket, struct relay_error *err)
{
    struct gate *g = gate_of(b);
    pthread_mutex_lock(&g->mutex);
    bool broken = g->broken;
    bool refuse = g->refuse_once;
    g->refuse_once = false;
    g->runs++;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
    if (broken) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "the device broke");
    }
    if (refuse) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "the device is out of memory");
    }
    return relay_backend_run(g->ref, problem, ticket, err);
}

static enum relay_code gate_wait(struct relay_backend *b, uint64_t ticket, struct relay_error *err)
{
    struct gate *g = gate_of(b);
    pthread_mutex_lock(&g->mutex);
    while (g->closed) {
        pthread_cond_wait(&g->changed, &g->mutex);
    }
    pthread_mutex_unlock(&g->mutex);
    return relay_backend_wait(g->ref, ticket, err);
}

static void gate_bytes_read(const struct relay_backend *b, uint64_t *shared_bytes,
                            uint64_t *own_bytes)
{
    relay_backend_bytes_read(gate_of(b)->ref, shared_bytes, own_bytes);
}

static const struct relay_backend_vtable gate_vtable = {
    .name = "gate",
    .close = gate_close,
    .supports = gate_supports,
    .plan_defaults = gate_plan_defaults,
    .reserve = gate_reserve,
    .commit = gate_commit,
    .decommit = gate_decommit,
    .release = gate_release,
    .io_alloc = gate_io_alloc,
    .io_free = gate_io_free,
    .pages_write = gate_pages_write,
    .pages_read = gate_pages_read,
    .workspace_bytes = gate_workspace,
    .run = gate_run,
    .wait = gate_wait,
    .bytes_read = gate_bytes_read,
};

struct relay_backend *gate_backend_open(void)
{
    struct gate *g = calloc(1, sizeof(*g));
    if (g == NULL || relay_backend_open("ref", NULL, &g->ref, NULL) != RELAY_OK) {
        free(g);
        return NULL;
    }
    g->base.vtable = &gate_vtable;
    g->base.info = *relay_backend_info(g->ref);
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, NULL);
    return &g->base;
}

static void set(bool *flag, bool value, struct gate *g)
{
    pthread_mutex_lock(&g->mutex);
    *flag = value;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

void gate_backend_close_gate(struct relay_backend *backend)
{
    set(&gate_of(backend)->closed, true, gate_of(backend));
}

void gate_backend_open_gate(struct relay_backend *backend)
{
    set(&gate_of(backend)->closed, false, gate_of(backend));
}

void gate_backend_break(struct relay_backend *backend)
{
    set(&gate_of(backend)->broken, true, gate_of(backend));
}

void gate_backend_refuse_once(struct relay_backend *backend)
{
    set(&gate_of(backend)->refuse_once, true, gate_of(backend));
}

void gate_backend_wait_runs(struct relay_backend *backend, unsigned n)
{
    struct gate *g = gate_of(backend);
    pthread_mutex_lock(&g->mutex);
    while (g->runs < n) {
        pthread_cond_wait(&g->changed, &g->mutex);
    }
    pthread_mutex_unlock(&g->mutex);
}

unsigned gate_backend_runs(struct relay_backend *backend)
{
    struct gate *g = gate_of(backend);
    pthread_mutex_lock(&g->mutex);
    unsigned n = g->runs;
    pthread_mutex_unlock(&g->mutex);
    return n;
}
