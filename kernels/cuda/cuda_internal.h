/* The cuda backend's own parts: the object and what its files do for each other.
 *
 * Owners: stream, plans, workspace and tickets belong to the thread that calls run; io blocks and
 * arenas are under `memory_mutex`, page copies under `copy_mutex`; `poisoned` is atomic. */
#ifndef RELAY_CUDA_INTERNAL_H
#define RELAY_CUDA_INTERNAL_H

#include "core/backend_internal.h"
#include "cuda/hooks.h"
#include "cuda/kernel.h"

#include <cuda.h>
#include <pthread.h>
#include <stdatomic.h>

#define CUDA_TICKETS   64u /* runs in flight at most */
#define CUDA_PLANS     8u  /* plans on the device at once */
#define CUDA_STAGINGS  4u  /* uploads in flight */
#define CUDA_KERNELS   32u /* rows of the table at most */
#define CUDA_CONSTANTS 4096u

/* Driver functions, found at run time so that the library loads where there is no driver. */
struct cuda_driver {
    CUresult (*address_reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*address_free)(CUdeviceptr, size_t);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *,
                       unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
};

/* Address space from relay_backend_reserve; a handle a block that is memory, 0 where not. */
struct cuda_arena {
    struct cuda_arena *next;
    CUdeviceptr base;
    size_t bytes;
    CUmemGenericAllocationHandle *blocks; /* [bytes / RELAY_COMMIT_BYTES] */
};

/* Pinned memory from relay_backend_io_alloc. */
struct cuda_io_block {
    struct cuda_io_block *next;
    void *memory;
    size_t bytes;
};

/* Memory on the device that only grows. */
struct cuda_buffer {
    void *data;
    size_t bytes;
};

/* A plan's units and tables on the device. */
struct cuda_plan {
    uint64_t serial; /* of the plan; 0 = free */
    uint32_t kernel;
    uint32_t num_kv_heads;
    uint32_t group;
    uint64_t used; /* run that used it last */
    struct cuda_buffer blob;
    const struct relay_cuda_unit *units;
    const struct relay_cuda_source *sources;
    const struct relay_cuda_append *appends;
    const struct relay_cuda_row *rows;
    const uint32_t *pages;
    uint32_t num_units;
    uint32_t num_pairs;
    uint32_t num_wide;
    uint32_t num_produce;
    uint32_t num_narrow;
    bool beside;
    uint32_t num_appends;
    uint32_t slots;
    uint32_t narrow_heads;
};

/* Pinned memory that an upload leaves from. */
struct cuda_staging {
    void *data;
    size_t bytes;
    cudaEvent_t done;
};

/* Small host arrays (sinks, slopes, scales) that launches read, by content. */
struct cuda_constant {
    float *copy; /* host, [n] */
    float *device;
    size_t n;
    uint64_t hash;
};

struct cuda_backend {
    struct relay_backend base;
    int device;
    char isa[16];
    struct relay_cuda_device properties;
    struct cuda_driver driver;
    struct relay_cuda_options options;
    bool batch_invariant;

    const struct relay_cuda_traits *traits[CUDA_KERNELS];
    uint32_t num_kernels;
    uint32_t blocks[CUDA_KERNELS]; /* resident on the whole device */

    cudaStream_t stream;
    cudaEvent_t done[CUDA_TICKETS];
    uint64_t runs;
    bool recording;
    const void *last_k; /* of the launch before, which may still be appending there */
    const void *last_v;
    uint32_t last_kernel;
    bool last_attends; /* it was an attention kernel, after which one may begin early */

    struct relay_cuda_schedule *schedule;
    struct cuda_plan plans[CUDA_PLANS];
    struct cuda_staging stagings[CUDA_STAGINGS];
    uint32_t next_staging;
    struct cuda_buffer partial_out;
    struct cuda_buffer partial_lse;
    struct cuda_buffer queries;
    struct cuda_buffer io_table;
    struct cuda_buffer ticket;
    struct cuda_constant *constants;
    uint32_t num_constants;

    pthread_mutex_t memory_mutex;
    struct cuda_io_block *io_blocks;
    struct cuda_arena *arenas;

    pthread_mutex_t copy_mutex;
    cudaStream_t copy_stream;
    struct cuda_staging copy_rows;
    struct cuda_staging copy_pages;

    atomic_bool poisoned;
};

static inline struct cuda_backend *cuda_of(struct relay_backend *backend)
{
    return (struct cuda_backend *)backend;
}

/* ---- status.c: the one place that turns CUDA's errors into ours ---- */

/* RELAY_OK, or fills err: RESOURCE_EXHAUSTED for memory, UNAVAILABLE (and the backend is poisoned)
 * for faults that the context does not survive, INTERNAL else. `what`: "a launch". */
enum relay_code cuda_check(struct cuda_backend *cuda, cudaError_t error, const char *what,
                           struct relay_error *err);
enum relay_code cuda_check_driver(struct cuda_backend *cuda, CUresult result, const char *what,
                                  struct relay_error *err);
/* UNAVAILABLE once poisoned; makes the device current for this thread. */
enum relay_code cuda_enter(struct cuda_backend *cuda, struct relay_error *err);

/* ---- memory.c ---- */

enum relay_code cuda_driver_find(struct cuda_driver *driver, struct relay_error *err);
enum relay_code cuda_reserve(struct relay_backend *backend, size_t bytes, void **base,
                             struct relay_error *err);
enum relay_code cuda_commit(struct relay_backend *backend, void *base, size_t offset, size_t bytes,
                            struct relay_error *err);
void cuda_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes);
void cuda_release(struct relay_backend *backend, void *base, size_t bytes);
void *cuda_io_alloc(struct relay_backend *backend, size_t bytes);
void cuda_io_free(struct relay_backend *backend, void *memory);
/* Frees what callers left. */
void cuda_memory_close(struct cuda_backend *cuda);
/* True for memory of this device, from reserve. */
bool cuda_is_arena(struct cuda_backend *cuda, const void *memory);

/* Grows a buffer; what enqueued work still uses is waited for. Content is lost when it grows. */
enum relay_code cuda_buffer_grow(struct cuda_backend *cuda, struct cuda_buffer *buffer,
                                 size_t bytes, bool *grown, struct relay_error *err);
enum relay_code cuda_staging_grow(struct cuda_backend *cuda, struct cuda_staging *staging,
                                  size_t bytes, struct relay_error *err);

/* ---- pages.c ---- */

enum relay_code cuda_pages_write(struct relay_backend *backend, const struct relay_pages_span *span,
                                 const void *k, const void *v, struct relay_error *err);
enum relay_code cuda_pages_read(struct relay_backend *backend, const struct relay_pages_span *span,
                                void *k, void *v, struct relay_error *err);

/* ---- plans.c ---- */

/* The plan on the device for a kernel, uploaded unless it is there. */
enum relay_code cuda_plan_get(struct cuda_backend *cuda, const struct relay_problem *problem,
                              uint32_t kernel, struct cuda_plan **out, struct relay_error *err);
/* A copy of host floats on the device, valid until close. NULL for NULL. */
enum relay_code cuda_constant_get(struct cuda_backend *cuda, const float *values, size_t n,
                                  const float **out, struct relay_error *err);

/* ---- run.c ---- */

/* `sharing`: as for relay_cuda_select(). */
uint32_t cuda_kernel_of(const struct cuda_backend *cuda, const struct relay_shape *shape,
                        enum relay_cuda_sharing sharing);
/* Blocks of a persistent launch. */
uint32_t cuda_blocks_of(const struct cuda_backend *cuda, uint32_t kernel);
size_t cuda_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                            const struct relay_plan *plan);
enum relay_code cuda_run(struct relay_backend *backend, const struct relay_problem *problem,
                         uint64_t *ticket, struct relay_error *err);
enum relay_code cuda_wait(struct relay_backend *backend, uint64_t ticket, struct relay_error *err);

#endif
