/* The public face of backends: registry, argument checks, dispatch through the vtable. Threading is
 * that of <relay/backend.h>; nothing here keeps state. */
#include "core/backend_internal.h"
#include "core/checked.h"
#include "core/shape.h"

#include <string.h>

#define WORKSPACE_ALIGN 64u

/* The registry: every backend that is built in. */
static const struct relay_backend_vtable *const backends[] = {
    &relay_backend_ref_vtable,
    &relay_backend_cpu_vtable,
#ifdef RELAY_HAVE_CUDA
    &relay_backend_cuda_vtable,
#endif
};

#define NUM_BACKENDS (sizeof(backends) / sizeof(backends[0]))

const char *relay_backend_name(size_t i)
{
    return i < NUM_BACKENDS ? backends[i]->name : NULL;
}

/* Whether a name is `known`, with or without ":" and a device number, which goes to *device. */
static bool name_matches(const char *name, const char *known, uint32_t *device)
{
    size_t n = strlen(known);
    uint32_t number = 0;
    if (name == NULL || strncmp(name, known, n) != 0) {
        return false;
    }
    if (name[n] == '\0') {
        return true;
    }
    if (name[n] != ':' || name[n + 1] == '\0') {
        return false;
    }
    for (const char *at = name + n + 1; *at != '\0'; at++) {
        if (*at < '0' || *at > '9' || number > 9999) {
            return false;
        }
        number = number * 10 + (uint32_t)(*at - '0');
    }
    *device = number;
    return true;
}

enum relay_code relay_backend_open(const char *name, const struct relay_backend_options *options,
                                   struct relay_backend **out, struct relay_error *err)
{
    struct relay_backend_options complete = RELAY_BACKEND_OPTIONS_INIT;
    if (options != NULL) {
        /* A caller built with an older header has a shorter struct; one with a newer header may
         * only ask for what this library knows. */
        if (options->size < sizeof(options->size) || options->size > sizeof(complete)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "options.size %zu is not in %zu..%zu",
                              options->size, sizeof(options->size), sizeof(complete));
        }
        memcpy(&complete, options, options->size);
        complete.size = sizeof(complete);
    }
    for (size_t i = 0; i < NUM_BACKENDS; i++) {
        if (name_matches(name, backends[i]->name, &complete.device)) {
            return backends[i]->open(&complete, out, err);
        }
    }
    return RELAY_FAIL(err, RELAY_NOT_FOUND, "no backend \"%.64s\" is built in",
                      name != NULL ? name : "");
}

void relay_backend_close(struct relay_backend *backend)
{
    if (backend != NULL) {
        backend->vtable->close(backend);
    }
}

const struct relay_backend_info *relay_backend_info(const struct relay_backend *backend)
{
    return &backend->info;
}

enum relay_code relay_backend_supports(const struct relay_backend *backend,
                                       const struct relay_shape *shape, struct relay_error *err)
{
    enum relay_code code = relay_shape_validate(shape, err);
    if (code != RELAY_OK) {
        return code;
    }
    return backend->vtable->supports(backend, shape, err);
}

void relay_backend_plan_defaults(const struct relay_backend *backend, struct relay_plan_input *in)
{
    backend->vtable->plan_defaults(backend, in);
}

/* ---- memory ---- */

enum relay_code relay_backend_reserve(struct relay_backend *backend, size_t bytes, void **base,
                                      struct relay_error *err)
{
    if (bytes == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "cannot reserve 0 bytes");
    }
    return backend->vtable->reserve(backend, bytes, base, err);
}

enum relay_code relay_backend_commit(struct relay_backend *backend, void *base, size_t offset,
                                     size_t bytes, struct relay_error *err)
{
    if (offset % RELAY_COMMIT_BYTES != 0 || bytes % RELAY_COMMIT_BYTES != 0 || bytes == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "commit of [%zu, +%zu) is not in steps of %zu bytes", offset, bytes,
                          RELAY_COMMIT_BYTES);
    }
    return backend->vtable->commit(backend, base, offset, bytes, err);
}

void relay_backend_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes)
{
    if (bytes != 0) {
        backend->vtable->decommit(backend, base, offset, bytes);
    }
}

void relay_backend_release(struct relay_backend *backend, void *base, size_t bytes)
{
    if (base != NULL) {
        backend->vtable->release(backend, base, bytes);
    }
}

void *relay_backend_io_alloc(struct relay_backend *backend, size_t bytes)
{
    return backend->vtable->io_alloc(backend, bytes);
}

void relay_backend_io_free(struct relay_backend *backend, void *memory)
{
    if (memory != NULL) {
        backend->vtable->io_free(backend, memory);
    }
}

/* ---- pages ---- */

/* K and V of a page fit into the stride. */
static enum relay_code layer_check(const struct relay_shape *shape, const struct relay_kv_layer *kv,
                                   uint32_t page_tokens, struct relay_error *err)
{
    size_t dim = shape->kind.head_dim_qk;
    size_t page_bytes;
    if (kv->k == NULL || (kv->v == NULL && !shape->kind.v_from_k)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "kv.%s is missing",
                          kv->k == NULL ? "k" : "v");
    }
    if (!shape->kind.v_from_k && shape->kind.head_dim_v > dim) {
        dim = shape->kind.head_dim_v;
    }
    if (!relay_checked_mul(shape->kind.num_kv_heads * dim * relay_dtype_size(shape->kv_dtype),
                           page_tokens, &page_bytes) ||
        kv->page_stride < page_bytes) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "kv.page_stride %zu is less than a page of %u tokens", kv->page_stride,
                          page_tokens);
    }
    return RELAY_OK;
}

static enum relay_code span_check(const struct relay_pages_span *span, const void *k, const void *v,
                                  struct relay_error *err)
{
    enum relay_code code = relay_shape_validate(span->shape, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (span->page_tokens == 0 || span->token_count > UINT32_MAX - span->token_begin) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "span [%u, +%u) of pages of %u tokens",
                          span->token_begin, span->token_count, span->page_tokens);
    }
    if (span->token_count == 0) {
        return RELAY_OK;
    }
    if (span->pages == NULL || k == NULL || (v == NULL && !span->shape->kind.v_from_k)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s missing",
                          span->pages == NULL ? "pages are" : (k == NULL ? "k is" : "v is"));
    }
    return layer_check(span->shape, &span->kv, span->page_tokens, err);
}

enum relay_code relay_backend_pages_write(struct relay_backend *backend,
                                          const struct relay_pages_span *span, const void *k,
                                          const void *v, struct relay_error *err)
{
    enum relay_code code = span_check(span, k, v, err);
    if (code != RELAY_OK || span->token_count == 0) {
        return code;
    }
    return backend->vtable->pages_write(backend, span, k, v, err);
}

enum relay_code relay_backend_pages_read(struct relay_backend *backend,
                                         const struct relay_pages_span *span, void *k, void *v,
                                         struct relay_error *err)
{
    enum relay_code code = span_check(span, k, v, err);
    if (code != RELAY_OK || span->token_count == 0) {
        return code;
    }
    return backend->vtable->pages_read(backend, span, k, v, err);
}

/* ---- running ---- */

size_t relay_backend_workspace_bytes(const struct relay_backend *backend,
                                     const struct relay_shape *shape, const struct relay_plan *plan)
{
    return backend->vtable->workspace_bytes(backend, shape, plan);
}

static enum relay_code ios_check(const struct relay_problem *problem, struct relay_error *err)
{
    const struct relay_plan *plan = problem->plan;
    for (uint32_t r = 0; r < plan->num_rows; r++) {
        uint32_t io = plan->rows[r].io;
        if (io >= problem->num_ios) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "the plan uses io %u of %u", io,
                              problem->num_ios);
        }
        if (problem->ios[io].q == NULL || problem->ios[io].out == NULL) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "ios[%u] has no %s", io,
                              problem->ios[io].q == NULL ? "q" : "out");
        }
    }
    for (uint32_t a = 0; a < plan->num_appends; a++) {
        const struct relay_io *io = &problem->ios[plan->appends[a].io];
        if (io->k == NULL || (io->v == NULL && !problem->shape->kind.v_from_k)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "ios[%u] appends but has no %s",
                              plan->appends[a].io, io->k == NULL ? "k" : "v");
        }
    }
    return RELAY_OK;
}

enum relay_code relay_backend_run(struct relay_backend *backend,
                                  const struct relay_problem *problem, uint64_t *ticket,
                                  struct relay_error *err)
{
    const struct relay_plan *plan = problem->plan;
    enum relay_code code = relay_backend_supports(backend, problem->shape, err);
    size_t workspace;
    if (code != RELAY_OK) {
        return code;
    }
    code = ios_check(problem, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (plan->num_pages != 0) {
        code = layer_check(problem->shape, &problem->kv, plan->page_tokens, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    workspace = backend->vtable->workspace_bytes(backend, problem->shape, plan);
    if (problem->workspace_bytes < workspace || (workspace != 0 && problem->workspace == NULL)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "workspace of %zu bytes, %zu are needed",
                          problem->workspace_bytes, workspace);
    }
    if (workspace != 0 && (uintptr_t)problem->workspace % WORKSPACE_ALIGN != 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "workspace is not %u-byte aligned",
                          WORKSPACE_ALIGN);
    }
    return backend->vtable->run(backend, problem, ticket, err);
}

enum relay_code relay_backend_wait(struct relay_backend *backend, uint64_t ticket,
                                   struct relay_error *err)
{
    return backend->vtable->wait(backend, ticket, err);
}

void relay_backend_bytes_read(const struct relay_backend *backend, uint64_t *shared_bytes,
                              uint64_t *own_bytes)
{
    *shared_bytes = 0;
    *own_bytes = 0;
    if (backend->vtable->bytes_read != NULL) {
        backend->vtable->bytes_read(backend, shared_bytes, own_bytes);
    }
}
