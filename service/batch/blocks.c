/* Free blocks in a list per power of two, linked through their first bytes; one mutex, held for a
 * few instructions. What would make the kept bytes too many goes back to the backend. */
#include "service/batch/blocks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SMALLEST_LOG2 16 /* calls of a few rows are all alike */
#define NUM_BINS      (64 - SMALLEST_LOG2)

struct free_block {
    struct free_block *next;
};

struct relayd_blocks {
    struct relay_backend *backend;
    atomic_uint refs;
    pthread_mutex_t mutex; /* guards what follows */
    size_t kept;
    struct free_block *free[NUM_BINS];
};

enum relay_code relayd_blocks_create(struct relay_backend *backend, struct relayd_blocks **out,
                                     struct relay_error *err)
{
    struct relayd_blocks *blocks = calloc(1, sizeof(*blocks));
    if (blocks == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for calls");
    }
    blocks->backend = backend;
    atomic_init(&blocks->refs, 1);
    pthread_mutex_init(&blocks->mutex, NULL);
    *out = blocks;
    return RELAY_OK;
}

struct relayd_blocks *relayd_blocks_ref(struct relayd_blocks *blocks)
{
    atomic_fetch_add_explicit(&blocks->refs, 1, memory_order_relaxed);
    return blocks;
}

void relayd_blocks_release(struct relayd_blocks *blocks)
{
    if (blocks == NULL || atomic_fetch_sub_explicit(&blocks->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < NUM_BINS; i++) {
        while (blocks->free[i] != NULL) {
            struct free_block *block = blocks->free[i];
            blocks->free[i] = block->next;
            relay_backend_io_free(blocks->backend, block);
        }
    }
    pthread_mutex_destroy(&blocks->mutex);
    free(blocks);
}

/* NUM_BINS when there is no such size. */
static size_t bin_of(size_t bytes)
{
    size_t bin = 0;
    while (bin < NUM_BINS && ((size_t)1 << (bin + SMALLEST_LOG2)) < bytes) {
        bin++;
    }
    return bin;
}

void *relayd_blocks_take(struct relayd_blocks *blocks, size_t bytes)
{
    const size_t bin = bin_of(bytes);
    if (bin == NUM_BINS) {
        return NULL;
    }
    const size_t size = (size_t)1 << (bin + SMALLEST_LOG2);
    pthread_mutex_lock(&blocks->mutex);
    struct free_block *block = blocks->free[bin];
    if (block != NULL) {
        blocks->free[bin] = block->next;
        blocks->kept -= size;
    }
    pthread_mutex_unlock(&blocks->mutex);
    return block != NULL ? block : relay_backend_io_alloc(blocks->backend, size);
}

void relayd_blocks_give(struct relayd_blocks *blocks, void *memory, size_t bytes)
{
    const size_t bin = bin_of(bytes);
    if (memory == NULL || bin == NUM_BINS) {
        return;
    }
    const size_t size = (size_t)1 << (bin + SMALLEST_LOG2);
    struct free_block *block = memory;
    pthread_mutex_lock(&blocks->mutex);
    const bool keep = blocks->kept + size <= RELAYD_BLOCKS_KEPT_MAX;
    if (keep) {
        block->next = blocks->free[bin];
        blocks->free[bin] = block;
        blocks->kept += size;
    }
    pthread_mutex_unlock(&blocks->mutex);
    if (!keep) {
        relay_backend_io_free(blocks->backend, memory);
    }
}
