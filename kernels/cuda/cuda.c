/* The cuda backend: opens a device, finds out what it can do, says which shapes it takes. */
#include "cuda/cuda_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_TOKENS 16u

static void cuda_close(struct relay_backend *backend)
{
    struct cuda_backend *cuda = cuda_of(backend);
    (void)cudaSetDevice(cuda->device);
    if (cuda->stream != NULL) {
        (void)cudaStreamSynchronize(cuda->stream);
    }
    cuda_memory_close(cuda);
    relay_cuda_schedule_destroy(cuda->schedule);
    for (uint32_t i = 0; i < CUDA_PLANS; i++) {
        (void)cudaFree(cuda->plans[i].blob.data);
    }
    for (uint32_t i = 0; i < CUDA_STAGINGS; i++) {
        (void)cudaFreeHost(cuda->stagings[i].data);
        if (cuda->stagings[i].done != NULL) {
            (void)cudaEventDestroy(cuda->stagings[i].done);
        }
    }
    for (uint32_t i = 0; i < CUDA_TICKETS; i++) {
        if (cuda->done[i] != NULL) {
            (void)cudaEventDestroy(cuda->done[i]);
        }
    }
    for (uint32_t i = 0; cuda->constants != NULL && i < CUDA_CONSTANTS; i++) {
        (void)cudaFree(cuda->constants[i].device);
        free(cuda->constants[i].copy);
    }
    free(cuda->constants);
    (void)cudaFree(cuda->partial_out.data);
    (void)cudaFree(cuda->partial_lse.data);
    (void)cudaFree(cuda->queries.data);
    (void)cudaFree(cuda->io_table.data);
    (void)cudaFree(cuda->ticket.data);
    struct cuda_staging *copies[] = {&cuda->copy_rows, &cuda->copy_pages};
    for (uint32_t i = 0; i < 2; i++) {
        (void)cudaFreeHost(copies[i]->data);
        if (copies[i]->done != NULL) {
            (void)cudaEventDestroy(copies[i]->done);
        }
    }
    if (cuda->stream != NULL) {
        (void)cudaStreamDestroy(cuda->stream);
    }
    if (cuda->copy_stream != NULL) {
        (void)cudaStreamDestroy(cuda->copy_stream);
    }
    pthread_mutex_destroy(&cuda->memory_mutex);
    pthread_mutex_destroy(&cuda->copy_mutex);
    free(cuda);
}

/* No driver, no device or not that many: the hardware is missing, which is no fault. */
static enum relay_code find_device(struct cuda_backend *cuda, uint32_t device,
                                   struct relay_error *err)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "no CUDA device: %s",
                          error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    }
    if (device >= (uint32_t)count) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "no CUDA device %u of %d", device, count);
    }
    cuda->device = (int)device;
    return cuda_check(cuda, cudaSetDevice(cuda->device), "the device", err);
}

static enum relay_code read_properties(struct cuda_backend *cuda, struct relay_error *err)
{
    static const enum cudaDeviceAttr wanted[] = {
        cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
        cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin};
    int values[4];
    size_t free_bytes;
    size_t total_bytes = 0;
    for (int i = 0; i < 4; i++) {
        enum relay_code code = cuda_check(
            cuda, cudaDeviceGetAttribute(&values[i], wanted[i], cuda->device), "the device", err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    if (values[0] < 8) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "device %d has capability %d.%d, less than 8.0",
                          cuda->device, values[0], values[1]);
    }
    cuda->properties.capability = (uint32_t)(values[0] * 10 + values[1]);
    cuda->properties.multiprocessors = (uint32_t)values[2];
    cuda->properties.shared_bytes = (size_t)values[3];
    (void)snprintf(cuda->isa, sizeof(cuda->isa), "sm_%u", cuda->properties.capability);
    cuda->base.info.threads = cuda->properties.multiprocessors;
    enum relay_code code =
        cuda_check(cuda, cudaMemGetInfo(&free_bytes, &total_bytes), "the device", err);
    cuda->base.info.memory_bytes = total_bytes;
    return code;
}

/* How many blocks of each kernel that fits the device are resident at once. */
static enum relay_code prepare_kernels(struct cuda_backend *cuda, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    for (uint32_t i = 0; code == RELAY_OK && relay_cuda_kernels[i] != NULL; i++) {
        const struct relay_cuda_kernel *kernel = relay_cuda_kernels[i];
        const struct relay_cuda_traits *t = &kernel->traits;
        int blocks = 0;
        if (i == CUDA_KERNELS) {
            return RELAY_FAIL(err, RELAY_INTERNAL, "more than %u kernels", CUDA_KERNELS);
        }
        cuda->traits[i] = t;
        cuda->num_kernels = i + 1;
        if (cuda->properties.capability < t->capability_least ||
            (t->capability_most != 0 && cuda->properties.capability > t->capability_most) ||
            cuda->properties.shared_bytes < t->shared_bytes) {
            continue;
        }
        code = cuda_check(cuda, kernel->prepare(), t->name, err);
        if (code == RELAY_OK) {
            code = cuda_check(cuda, kernel->blocks(&blocks), t->name, err);
        }
        if (code == RELAY_OK && blocks < 1) {
            return RELAY_FAIL(err, RELAY_INTERNAL, "%s does not fit the device", t->name);
        }
        cuda->blocks[i] = (uint32_t)blocks * cuda->properties.multiprocessors;
    }
    return code;
}

static enum relay_code make_streams(struct cuda_backend *cuda, struct relay_error *err)
{
    enum relay_code code = cuda_check(
        cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "a stream", err);
    if (code == RELAY_OK) {
        code =
            cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->copy_stream, cudaStreamNonBlocking),
                       "a stream", err);
    }
    for (uint32_t i = 0; code == RELAY_OK && i < CUDA_TICKETS; i++) {
        code = cuda_check(cuda, cudaEventCreateWithFlags(&cuda->done[i], cudaEventDisableTiming),
                          "an event", err);
    }
    cuda->constants = calloc(CUDA_CONSTANTS, sizeof(*cuda->constants));
    if (code == RELAY_OK && cuda->constants == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a backend");
    }
    if (code == RELAY_OK) {
        code = relay_cuda_schedule_create(&cuda->schedule, err);
    }
    return code;
}

static enum relay_code cuda_open(const struct relay_backend_options *options,
                                 struct relay_backend **out, struct relay_error *err)
{
    struct cuda_backend *cuda = calloc(1, sizeof(*cuda));
    enum relay_code code;
    if (cuda == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a backend");
    }
    pthread_mutex_init(&cuda->memory_mutex, NULL);
    pthread_mutex_init(&cuda->copy_mutex, NULL);
    cuda->base.vtable = &relay_backend_cuda_vtable;
    cuda->batch_invariant = options->batch_invariant;
    cuda->base.info = (struct relay_backend_info){
        .name = "cuda",
        .isa = cuda->isa,
        .page_tokens = PAGE_TOKENS,
        .batch_invariant = options->batch_invariant,
    };
    code = find_device(cuda, options->device, err);
    if (code == RELAY_OK) {
        code = cuda_driver_find(&cuda->driver, err);
    }
    if (code == RELAY_OK) {
        code = read_properties(cuda, err);
    }
    if (code == RELAY_OK) {
        code = prepare_kernels(cuda, err);
    }
    if (code == RELAY_OK) {
        code = make_streams(cuda, err);
    }
    if (code != RELAY_OK) {
        cuda_close(&cuda->base);
        return code;
    }
    *out = &cuda->base;
    return RELAY_OK;
}

static enum relay_code cuda_supports(const struct relay_backend *backend,
                                     const struct relay_shape *shape, struct relay_error *err)
{
    const struct cuda_backend *cuda = (const struct cuda_backend *)backend;
    const struct relay_layer_kind *kind = &shape->kind;
    if (cuda_kernel_of(cuda, shape, RELAY_CUDA_SINGLE) == cuda->num_kernels) {
        return RELAY_FAIL(err, RELAY_UNIMPLEMENTED,
                          "cuda has no kernel for heads %u/%u, dims %u/%u, stored %s with io %s, "
                          "out %s",
                          kind->num_q_heads, kind->num_kv_heads, kind->head_dim_qk,
                          kind->head_dim_v, relay_dtype_name(shape->kv_dtype),
                          relay_dtype_name(shape->io_dtype), relay_dtype_name(shape->out_dtype));
    }
    return RELAY_OK;
}

/* Segments are not split here but by the schedule, which knows the whole step. */
static void cuda_plan_defaults(const struct relay_backend *backend, struct relay_plan_input *in)
{
    const struct cuda_backend *cuda = (const struct cuda_backend *)backend;
    const struct relay_layer_kind *kind = &in->shape->kind;
    uint32_t kernel = cuda_kernel_of(cuda, in->shape, RELAY_CUDA_PAIRED);
    bool pair = kernel < cuda->num_kernels && cuda->traits[kernel]->sharing == RELAY_CUDA_PAIRED;
    uint32_t rows = (pair ? RELAY_CUDA_ROWS_PAIR : RELAY_CUDA_ROWS_WIDE) /
                    (kind->num_q_heads / kind->num_kv_heads);
    if (in->page_tokens == 0) {
        in->page_tokens = PAGE_TOKENS;
    }
    in->block_tokens = RELAY_CUDA_STEP_TOKENS;
    in->split_tokens_min = RELAY_CUDA_STEP_TOKENS;
    in->splits_max = 1;
    in->item_rows_max = rows == 0 ? 1 : rows;
}

const struct relay_backend_vtable relay_backend_cuda_vtable = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .supports = cuda_supports,
    .plan_defaults = cuda_plan_defaults,
    .reserve = cuda_reserve,
    .commit = cuda_commit,
    .decommit = cuda_decommit,
    .release = cuda_release,
    .io_alloc = cuda_io_alloc,
    .io_free = cuda_io_free,
    .pages_write = cuda_pages_write,
    .pages_read = cuda_pages_read,
    .workspace_bytes = cuda_workspace_bytes,
    .run = cuda_run,
    .wait = cuda_wait,
};
