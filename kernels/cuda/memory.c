/* Device memory behind reserved addresses, pinned host memory, and buffers that grow.
 *
 * Arenas map blocks of RELAY_COMMIT_BYTES one by one, so that any of them can be given back. */
#include "cuda/cuda_internal.h"

#include "core/checked.h"

#include <stdlib.h>
#include <string.h>

#define IO_ALIGN ((size_t)64)

/* ---- the driver ---- */

enum relay_code cuda_driver_find(struct cuda_driver *driver, struct relay_error *err)
{
    const struct {
        const char *name;
        void **function;
    } wanted[] = {
        {"cuMemAddressReserve", (void **)&driver->address_reserve},
        {"cuMemAddressFree", (void **)&driver->address_free},
        {"cuMemCreate", (void **)&driver->create},
        {"cuMemRelease", (void **)&driver->release},
        {"cuMemMap", (void **)&driver->map},
        {"cuMemUnmap", (void **)&driver->unmap},
        {"cuMemSetAccess", (void **)&driver->set_access},
    };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        enum cudaDriverEntryPointQueryResult found;
        if (cudaGetDriverEntryPointByVersion(wanted[i].name, wanted[i].function, 12000,
                                             cudaEnableDefault, &found) != cudaSuccess ||
            found != cudaDriverEntryPointSuccess) {
            (void)cudaGetLastError();
            return RELAY_FAIL(err, RELAY_UNAVAILABLE, "the driver has no %s", wanted[i].name);
        }
    }
    return RELAY_OK;
}

/* ---- arenas ---- */

static struct cuda_arena *arena_find(struct cuda_backend *cuda, const void *memory)
{
    struct cuda_arena *arena;
    pthread_mutex_lock(&cuda->memory_mutex);
    for (arena = cuda->arenas; arena != NULL; arena = arena->next) {
        if ((CUdeviceptr)(uintptr_t)memory - arena->base < arena->bytes) {
            break;
        }
    }
    pthread_mutex_unlock(&cuda->memory_mutex);
    return arena;
}

bool cuda_is_arena(struct cuda_backend *cuda, const void *memory)
{
    return arena_find(cuda, memory) != NULL;
}

enum relay_code cuda_reserve(struct relay_backend *backend, size_t bytes, void **base,
                             struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_arena *arena = NULL;
    size_t whole;
    enum relay_code code = cuda_enter(cuda, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (!relay_checked_add(bytes, RELAY_COMMIT_BYTES - 1, &whole)) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no address space for %zu bytes", bytes);
    }
    whole = whole / RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
    arena = calloc(1, sizeof(*arena));
    if (arena != NULL) {
        arena->blocks = calloc(whole / RELAY_COMMIT_BYTES, sizeof(*arena->blocks));
    }
    if (arena == NULL || arena->blocks == NULL ||
        cuda->driver.address_reserve(&arena->base, whole, RELAY_COMMIT_BYTES, 0, 0) !=
            CUDA_SUCCESS) {
        if (arena != NULL) {
            free(arena->blocks);
        }
        free(arena);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no address space for %zu bytes", bytes);
    }
    arena->bytes = whole;
    pthread_mutex_lock(&cuda->memory_mutex);
    arena->next = cuda->arenas;
    cuda->arenas = arena;
    pthread_mutex_unlock(&cuda->memory_mutex);
    *base = (void *)(uintptr_t)arena->base;
    return RELAY_OK;
}

static void block_unmap(struct cuda_backend *cuda, struct cuda_arena *arena, size_t block)
{
    if (arena->blocks[block] != 0) {
        (void)cuda->driver.unmap(arena->base + block * RELAY_COMMIT_BYTES, RELAY_COMMIT_BYTES);
        (void)cuda->driver.release(arena->blocks[block]);
        arena->blocks[block] = 0;
    }
}

static CUresult block_map(struct cuda_backend *cuda, struct cuda_arena *arena, size_t block)
{
    CUmemAllocationProp prop;
    CUmemGenericAllocationHandle handle;
    CUresult result;
    memset(&prop, 0, sizeof(prop));
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = cuda->device;
    result = cuda->driver.create(&handle, RELAY_COMMIT_BYTES, &prop, 0);
    if (result != CUDA_SUCCESS) {
        return result;
    }
    result = cuda->driver.map(arena->base + block * RELAY_COMMIT_BYTES, RELAY_COMMIT_BYTES, 0,
                              handle, 0);
    if (result != CUDA_SUCCESS) {
        (void)cuda->driver.release(handle);
        return result;
    }
    arena->blocks[block] = handle;
    return CUDA_SUCCESS;
}

enum relay_code cuda_commit(struct relay_backend *backend, void *base, size_t offset, size_t bytes,
                            struct relay_error *err)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_arena *arena = arena_find(cuda, base);
    size_t first = offset / RELAY_COMMIT_BYTES;
    size_t count = bytes / RELAY_COMMIT_BYTES;
    CUmemAccessDesc access;
    CUresult result = CUDA_SUCCESS;
    size_t mapped = 0;
    enum relay_code code = cuda_enter(cuda, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (arena == NULL || offset > arena->bytes || bytes > arena->bytes - offset) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "commit of [%zu, +%zu) is not reserved",
                          offset, bytes);
    }
    /* Blocks that are memory already keep their content. */
    for (; result == CUDA_SUCCESS && mapped < count; mapped++) {
        if (arena->blocks[first + mapped] == 0) {
            result = block_map(cuda, arena, first + mapped);
        }
    }
    if (result == CUDA_SUCCESS) {
        memset(&access, 0, sizeof(access));
        access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        access.location.id = cuda->device;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        result = cuda->driver.set_access(arena->base + offset, bytes, &access, 1);
    }
    if (result != CUDA_SUCCESS) {
        code = cuda_check_driver(cuda, result, "device memory", err);
        for (size_t i = 0; i < mapped; i++) {
            block_unmap(cuda, arena, first + i);
        }
    }
    return code;
}

void cuda_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_arena *arena = arena_find(cuda, base);
    if (arena == NULL || cudaSetDevice(cuda->device) != cudaSuccess) {
        return;
    }
    for (size_t i = 0; i < bytes / RELAY_COMMIT_BYTES; i++) {
        block_unmap(cuda, arena, offset / RELAY_COMMIT_BYTES + i);
    }
}

static void arena_destroy(struct cuda_backend *cuda, struct cuda_arena *arena)
{
    for (size_t i = 0; i < arena->bytes / RELAY_COMMIT_BYTES; i++) {
        block_unmap(cuda, arena, i);
    }
    (void)cuda->driver.address_free(arena->base, arena->bytes);
    free(arena->blocks);
    free(arena);
}

void cuda_release(struct relay_backend *backend, void *base, size_t bytes)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_arena **at;
    struct cuda_arena *arena = NULL;
    (void)bytes;
    pthread_mutex_lock(&cuda->memory_mutex);
    for (at = &cuda->arenas; *at != NULL; at = &(*at)->next) {
        if ((*at)->base == (CUdeviceptr)(uintptr_t)base) {
            arena = *at;
            *at = arena->next;
            break;
        }
    }
    pthread_mutex_unlock(&cuda->memory_mutex);
    if (arena != NULL && cudaSetDevice(cuda->device) == cudaSuccess) {
        arena_destroy(cuda, arena);
    }
}

/* ---- pinned host memory ---- */

void *cuda_io_alloc(struct relay_backend *backend, size_t bytes)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_io_block *block = NULL;
    size_t whole;
    if (cuda_enter(cuda, NULL) != RELAY_OK || !relay_checked_add(bytes, IO_ALIGN, &whole)) {
        return NULL;
    }
    block = calloc(1, sizeof(*block));
    if (block == NULL) {
        return NULL;
    }
    if (cudaHostAlloc(&block->memory, whole, cudaHostAllocPortable | cudaHostAllocMapped) !=
        cudaSuccess) {
        (void)cudaGetLastError();
        free(block);
        return NULL;
    }
    block->bytes = whole;
    pthread_mutex_lock(&cuda->memory_mutex);
    block->next = cuda->io_blocks;
    cuda->io_blocks = block;
    pthread_mutex_unlock(&cuda->memory_mutex);
    return block->memory;
}

void cuda_io_free(struct relay_backend *backend, void *memory)
{
    struct cuda_backend *cuda = cuda_of(backend);
    struct cuda_io_block **at;
    struct cuda_io_block *block = NULL;
    pthread_mutex_lock(&cuda->memory_mutex);
    for (at = &cuda->io_blocks; *at != NULL; at = &(*at)->next) {
        if ((*at)->memory == memory) {
            block = *at;
            *at = block->next;
            break;
        }
    }
    pthread_mutex_unlock(&cuda->memory_mutex);
    if (block != NULL) {
        (void)cudaSetDevice(cuda->device);
        (void)cudaFreeHost(block->memory);
        free(block);
    }
}

void cuda_memory_close(struct cuda_backend *cuda)
{
    while (cuda->io_blocks != NULL) {
        cuda_io_free(&cuda->base, cuda->io_blocks->memory);
    }
    while (cuda->arenas != NULL) {
        cuda_release(&cuda->base, (void *)(uintptr_t)cuda->arenas->base, 0);
    }
}

/* ---- buffers ---- */

enum relay_code cuda_buffer_grow(struct cuda_backend *cuda, struct cuda_buffer *buffer,
                                 size_t bytes, bool *grown, struct relay_error *err)
{
    size_t whole = bytes + bytes / 4 + 4096;
    enum relay_code code;
    if (bytes <= buffer->bytes) {
        return RELAY_OK;
    }
    if (cuda->recording) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "a graph's problems must have run before it is recorded");
    }
    code = cuda_check(cuda, cudaStreamSynchronize(cuda->stream), "the stream", err);
    if (code != RELAY_OK) {
        return code;
    }
    (void)cudaFree(buffer->data);
    *buffer = (struct cuda_buffer){NULL, 0};
    code = cuda_check(cuda, cudaMalloc(&buffer->data, whole), "device memory", err);
    if (code == RELAY_OK) {
        buffer->bytes = whole;
        *grown = true;
    }
    return code;
}

enum relay_code cuda_staging_grow(struct cuda_backend *cuda, struct cuda_staging *staging,
                                  size_t bytes, struct relay_error *err)
{
    size_t whole = bytes + bytes / 4 + 4096;
    enum relay_code code = RELAY_OK;
    if (staging->done == NULL) {
        code = cuda_check(cuda, cudaEventCreateWithFlags(&staging->done, cudaEventDisableTiming),
                          "an event", err);
    }
    if (code != RELAY_OK || bytes <= staging->bytes) {
        return code;
    }
    (void)cudaFreeHost(staging->data);
    staging->data = NULL;
    staging->bytes = 0;
    code = cuda_check(
        cuda, cudaHostAlloc(&staging->data, whole, cudaHostAllocPortable | cudaHostAllocMapped),
        "pinned memory", err);
    if (code == RELAY_OK) {
        staging->bytes = whole;
    }
    return code;
}
