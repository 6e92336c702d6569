/* Backends: where K/V pages live and who computes attention over them.
 *
 * A backend is opened by name ("ref", "cpu", "cuda:1"), owns its threads or device, and is used by
 * one executor: run and wait are for one thread; memory, pages and io calls may come from any
 * thread as long as nobody else uses the same bytes. Every backend passes tests/conformance. */
#ifndef RELAY_BACKEND_H
#define RELAY_BACKEND_H

#include <relay/plan.h>

#ifdef __cplusplus
extern "C" {
#endif

struct relay_backend;

struct relay_backend_options {
    size_t size;      /* sizeof(struct relay_backend_options), so that it can grow */
    uint32_t threads; /* compute threads; 0 = one per CPU this process may run on */
    uint32_t device;  /* which of several; the number in "cuda:1" goes before */
    /* The same bits alone and in any batch, where they have a price too; info says what holds. */
    bool batch_invariant;
    const char *isa; /* cpu: kernels to use, NULL or "" = what start-up finds fastest */
};
#define RELAY_BACKEND_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(struct relay_backend_options), 0, 0, false, NULL                                    \
    }

struct relay_backend_info {
    const char *name; /* "cpu" */
    const char *isa;  /* "portable" */
    uint32_t threads;
    uint32_t page_tokens;  /* the page size this backend likes */
    bool batch_invariant;  /* a row has the same bits alone and in any batch */
    uint64_t memory_bytes; /* memory K/V can live in */
    const char *detail;    /* what was measured and chosen at start, one line; NULL = nothing */
};

/* Opens a backend by name, with ":" and a device number or without. NOT_FOUND for a name that is
 * not built in, UNAVAILABLE when its hardware is missing, RESOURCE_EXHAUSTED. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_open(
    const char *name, const struct relay_backend_options *options, struct relay_backend **out,
    struct relay_error *err);
/* Waits for what is enqueued, stops the threads. NULL is fine. */
RELAY_EXPORT void relay_backend_close(struct relay_backend *backend);
/* Borrowed; valid until close. */
RELAY_EXPORT const struct relay_backend_info *relay_backend_info(
    const struct relay_backend *backend);
/* The name of the i-th built-in backend, NULL past the end. */
RELAY_EXPORT const char *relay_backend_name(size_t i);

/* OK, or UNIMPLEMENTED naming the shape, or INVALID_ARGUMENT for a shape that makes no sense. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_supports(
    const struct relay_backend *backend, const struct relay_shape *shape, struct relay_error *err);

/* Sets page_tokens, split_tokens_min, splits_max, block_tokens, item_rows_max and costs of a plan
 * input to what this backend's kernel for in->shape wants (page_tokens only where it is 0). */
RELAY_EXPORT void relay_backend_plan_defaults(const struct relay_backend *backend,
                                              struct relay_plan_input *in);

/* ---- memory for K/V pages ---- */

/* Reserves address space that is not memory yet. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_reserve(struct relay_backend *backend,
                                                                    size_t bytes, void **base,
                                                                    struct relay_error *err);
/* Makes [offset, +bytes) usable; both multiples of RELAY_COMMIT_BYTES. RESOURCE_EXHAUSTED. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_commit(struct relay_backend *backend,
                                                                   void *base, size_t offset,
                                                                   size_t bytes,
                                                                   struct relay_error *err);
/* Gives [offset, +bytes) back to the system; its content is lost. */
RELAY_EXPORT void relay_backend_decommit(struct relay_backend *backend, void *base, size_t offset,
                                         size_t bytes);
RELAY_EXPORT void relay_backend_release(struct relay_backend *backend, void *base, size_t bytes);
#define RELAY_COMMIT_BYTES ((size_t)2 << 20)

/* Memory for q, k, v, out and LSE of calls that the host writes and reads (pinned where that
 * matters), 64-byte aligned. NULL when out of memory. */
RELAY_EXPORT void *relay_backend_io_alloc(struct relay_backend *backend, size_t bytes);
RELAY_EXPORT void relay_backend_io_free(struct relay_backend *backend, void *memory);

/* Where one layer's K/V lies inside pages: K of page id at k + id * page_stride, the size of
 * [Hkv,page_tokens,dqk] of kv_dtype, head after head; V likewise [Hkv,page_tokens,dv]. How a head's
 * elements lie in its part is the backend's own: only pages_write, pages_read and run touch them.
 * With v_from_k there is no V and v is NULL. */
struct relay_kv_layer {
    void *k;
    void *v;
    size_t page_stride;   /* bytes */
    const float *k_scale; /* [Hkv], F8_E4M3 only; NULL = 1 */
    const float *v_scale;
};

/* Tokens [token_begin, +token_count) of a page list, to or from contiguous host tensors of
 * kv_dtype. */
struct relay_pages_span {
    const struct relay_shape *shape;
    struct relay_kv_layer kv;
    uint32_t page_tokens;
    const uint32_t *pages;
    uint32_t token_begin;
    uint32_t token_count;
};
/* k [token_count,Hkv,dqk], v [token_count,Hkv,dv] (ignored with v_from_k). Blocks until stored. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_pages_write(
    struct relay_backend *backend, const struct relay_pages_span *span, const void *k,
    const void *v, struct relay_error *err);
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_pages_read(
    struct relay_backend *backend, const struct relay_pages_span *span, void *k, void *v,
    struct relay_error *err);

/* ---- running ---- */

/* The tensors of one call. Memory from relay_backend_io_alloc. */
struct relay_io {
    const void *q; /* [rows,Hq,dqk] io_dtype */
    const void *k; /* [rows,Hkv,dqk] io_dtype, or NULL when no entry of this io appends */
    const void *v; /* [rows,Hkv,dv] io_dtype, NULL with v_from_k */
    void *out;     /* [rows,Hq,dv] out_dtype */
    float *lse;    /* [rows,Hq] natural log, or NULL when not wanted */
};

struct relay_problem {
    const struct relay_shape *shape;
    const struct relay_plan *plan; /* built for this shape */
    struct relay_kv_layer kv;
    const float *sinks;         /* [Hq] or NULL; used when plan->part is FULL */
    const struct relay_io *ios; /* indexed by the plan rows' io */
    uint32_t num_ios;
    void *workspace; /* from relay_backend_io_alloc or reserve + commit; 64-byte aligned */
    size_t workspace_bytes;
};

/* Bytes of workspace a problem with this shape and plan needs. */
RELAY_EXPORT size_t relay_backend_workspace_bytes(const struct relay_backend *backend,
                                                  const struct relay_shape *shape,
                                                  const struct relay_plan *plan);
/* Enqueues: stores the appended K/V, then computes. Everything the problem points to stays as it is
 * until wait returns for the ticket. Work is done in the order of run. INVALID_ARGUMENT for a
 * workspace that is too small, UNAVAILABLE when the backend is poisoned. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_run(struct relay_backend *backend,
                                                                const struct relay_problem *problem,
                                                                uint64_t *ticket,
                                                                struct relay_error *err);
/* Blocks until the ticket's problem is done. UNAVAILABLE when the backend is poisoned. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_backend_wait(struct relay_backend *backend,
                                                                 uint64_t ticket,
                                                                 struct relay_error *err);

/* K/V bytes read so far by run, counted where they are read: by "ref" only, 0 elsewhere. */
RELAY_EXPORT void relay_backend_bytes_read(const struct relay_backend *backend,
                                           uint64_t *shared_bytes, uint64_t *own_bytes);

#ifdef __cplusplus
}
#endif
#endif
