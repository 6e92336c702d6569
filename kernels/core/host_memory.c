/* Address space and memory for K/V pages on the host. No state; any thread. */
#include "core/host_memory.h"

#include "core/checked.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define IO_ALIGN ((size_t)64)

enum relay_code relay_host_reserve(struct relay_backend *backend, size_t bytes, void **base,
                                   struct relay_error *err)
{
    size_t padded;
    unsigned char *map;
    size_t head;
    (void)backend;
    if (!relay_checked_add(bytes, RELAY_COMMIT_BYTES, &padded)) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot reserve %zu bytes", bytes);
    }
    map = mmap(NULL, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot reserve %zu bytes: %s", bytes,
                          strerror(errno));
    }
    /* Start on a huge page: what is over at both ends goes back. */
    head = (RELAY_COMMIT_BYTES - (uintptr_t)map % RELAY_COMMIT_BYTES) % RELAY_COMMIT_BYTES;
    if (head != 0) {
        (void)munmap(map, head);
    }
    {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        size_t used = head + (bytes + page - 1) / page * page;
        if (used < padded) {
            (void)munmap(map + used, padded - used);
        }
    }
    *base = map + head;
    return RELAY_OK;
}

enum relay_code relay_host_commit(struct relay_backend *backend, void *base, size_t offset,
                                  size_t bytes, struct relay_error *err)
{
    unsigned char *at = (unsigned char *)base + offset;
    (void)backend;
    if (mprotect(at, bytes, PROT_READ | PROT_WRITE) != 0) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot commit %zu bytes: %s", bytes,
                          strerror(errno));
    }
    /* A wish: without huge pages everything still works, a third slower. */
    (void)madvise(at, bytes, MADV_HUGEPAGE);
    return RELAY_OK;
}

void relay_host_decommit(struct relay_backend *backend, void *base, size_t offset, size_t bytes)
{
    unsigned char *at = (unsigned char *)base + offset;
    (void)backend;
    (void)madvise(at, bytes, MADV_DONTNEED);
    (void)mprotect(at, bytes, PROT_NONE);
}

void relay_host_release(struct relay_backend *backend, void *base, size_t bytes)
{
    (void)backend;
    if (base != NULL) {
        (void)munmap(base, bytes);
    }
}

void *relay_host_io_alloc(struct relay_backend *backend, size_t bytes)
{
    size_t padded;
    (void)backend;
    if (!relay_checked_add(bytes, IO_ALIGN, &padded)) {
        return NULL;
    }
    return aligned_alloc(IO_ALIGN, padded / IO_ALIGN * IO_ALIGN);
}

void relay_host_io_free(struct relay_backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}

uint64_t relay_host_memory_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}
