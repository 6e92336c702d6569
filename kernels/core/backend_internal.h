/* What a backend's author fills in: the vtable behind <relay/backend.h>.
 *
 * core/backend.c checks arguments and dispatches, so a backend may rely on what each member says.
 * Only backend rooms and core include this. The threading rules are those of the public header. */
#ifndef RELAY_CORE_BACKEND_INTERNAL_H
#define RELAY_CORE_BACKEND_INTERNAL_H

#include <relay/backend.h>

/* Every member is set, except those marked (optional). */
struct relay_backend_vtable {
    const char *name;

    /* Options are complete (older, smaller callers' missing fields are defaults). UNAVAILABLE when
     * the hardware is missing: tests skip on it. The object starts with struct relay_backend, whose
     * vtable and info the backend fills. */
    enum relay_code (*open)(const struct relay_backend_options *options, struct relay_backend **out,
                            struct relay_error *err);
    void (*close)(struct relay_backend *backend); /* never NULL */

    /* The shape makes sense (relay_shape_validate passed): OK or UNIMPLEMENTED. */
    enum relay_code (*supports)(const struct relay_backend *backend,
                                const struct relay_shape *shape, struct relay_error *err);
    void (*plan_defaults)(const struct relay_backend *backend, struct relay_plan_input *in);

    /* bytes > 0; offset and bytes of commit and decommit are multiples of RELAY_COMMIT_BYTES.
     * Backends whose K/V is plain host memory use those of host_memory.h as they are. */
    enum relay_code (*reserve)(struct relay_backend *backend, size_t bytes, void **base,
                               struct relay_error *err);
    enum relay_code (*commit)(struct relay_backend *backend, void *base, size_t offset,
                              size_t bytes, struct relay_error *err);
    void (*decommit)(struct relay_backend *backend, void *base, size_t offset, size_t bytes);
    void (*release)(struct relay_backend *backend, void *base, size_t bytes);
    void *(*io_alloc)(struct relay_backend *backend, size_t bytes);
    void (*io_free)(struct relay_backend *backend, void *memory);

    /* The span is checked: valid shape, page_tokens >= 1, pointers present, token_count >= 1. */
    enum relay_code (*pages_write)(struct relay_backend *backend,
                                   const struct relay_pages_span *span, const void *k,
                                   const void *v, struct relay_error *err);
    enum relay_code (*pages_read)(struct relay_backend *backend,
                                  const struct relay_pages_span *span, void *k, void *v,
                                  struct relay_error *err);

    size_t (*workspace_bytes)(const struct relay_backend *backend, const struct relay_shape *shape,
                              const struct relay_plan *plan);
    /* The problem is checked: supported shape, ios complete for the plan's rows and appends,
     * workspace of at least workspace_bytes() and 64-byte aligned, k and v present when the plan
     * has pages. Sinks come from relay_problem_sinks(), scales from relay_kv_scale(). */
    enum relay_code (*run)(struct relay_backend *backend, const struct relay_problem *problem,
                           uint64_t *ticket, struct relay_error *err);
    enum relay_code (*wait)(struct relay_backend *backend, uint64_t ticket,
                            struct relay_error *err);

    void (*bytes_read)(const struct relay_backend *backend, uint64_t *shared_bytes,
                       uint64_t *own_bytes); /* (optional) */
};

/* The sinks that count, or NULL: parts leave them to whoever merges. */
static inline const float *relay_problem_sinks(const struct relay_problem *problem)
{
    return problem->plan->part == RELAY_PART_FULL ? problem->sinks : NULL;
}

struct relay_backend {
    const struct relay_backend_vtable *vtable;
    struct relay_backend_info info;
};

/* The registration table is in backend.c: a new backend adds its line there and one here. */
extern const struct relay_backend_vtable relay_backend_ref_vtable;
extern const struct relay_backend_vtable relay_backend_cpu_vtable;
extern const struct relay_backend_vtable relay_backend_cuda_vtable;

#endif
