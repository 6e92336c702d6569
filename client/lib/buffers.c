#include "buffers.h"

#include <proto/wire/wire.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Free buffers kept for reuse: fresh large blocks cost a page fault per 4 KiB. */
#define BUFFERS_KEPT      8u
#define BUFFER_BYTES_KEPT ((size_t)8 << 20)

struct relay_buffer {
    struct relay_buffers *pool;
    struct relay_buffer *next; /* in the free list */
    size_t bytes_max;
    atomic_uint refs;
    uint8_t data[];
};

struct relay_buffers {
    pthread_mutex_t mutex; /* guards all below */
    struct relay_buffer *free;
    uint32_t num_free;
    size_t refs; /* buffers out, and the client */
};

struct relay_buffers *relay_buffers_create(void)
{
    struct relay_buffers *buffers = calloc(1, sizeof(*buffers));
    if (buffers == NULL) {
        return NULL;
    }
    pthread_mutex_init(&buffers->mutex, NULL);
    buffers->refs = 1;
    return buffers;
}

/* Ends with the mutex unlocked, and the pool freed if nobody is left. */
static void unref_locked(struct relay_buffers *buffers)
{
    struct relay_buffer *free_list = NULL;
    const int last = --buffers->refs == 0;
    if (last) {
        free_list = buffers->free;
        buffers->free = NULL;
    }
    pthread_mutex_unlock(&buffers->mutex);
    if (!last) {
        return;
    }
    while (free_list != NULL) {
        struct relay_buffer *next = free_list->next;
        free(free_list);
        free_list = next;
    }
    pthread_mutex_destroy(&buffers->mutex);
    free(buffers);
}

void relay_buffers_destroy(struct relay_buffers *buffers)
{
    if (buffers == NULL) {
        return;
    }
    pthread_mutex_lock(&buffers->mutex);
    unref_locked(buffers);
}

struct relay_buffer *relay_buffer_take(struct relay_buffers *buffers, size_t bytes)
{
    struct relay_buffer *buffer = NULL;
    pthread_mutex_lock(&buffers->mutex);
    for (struct relay_buffer **at = &buffers->free; *at != NULL; at = &(*at)->next) {
        if ((*at)->bytes_max >= bytes) {
            buffer = *at;
            *at = buffer->next;
            buffers->num_free--;
            break;
        }
    }
    buffers->refs++;
    pthread_mutex_unlock(&buffers->mutex);
    if (buffer == NULL) {
        buffer = bytes <= SIZE_MAX - sizeof(*buffer) ? malloc(sizeof(*buffer) + bytes) : NULL;
        if (buffer == NULL) {
            pthread_mutex_lock(&buffers->mutex);
            unref_locked(buffers);
            return NULL;
        }
        buffer->pool = buffers;
        buffer->bytes_max = bytes;
    }
    buffer->next = NULL;
    atomic_init(&buffer->refs, 1);
    return buffer;
}

void relay_buffer_release(struct relay_buffer *buffer)
{
    if (buffer == NULL || atomic_fetch_sub_explicit(&buffer->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    struct relay_buffers *pool = buffer->pool;
    struct relay_buffer *drop = NULL;
    pthread_mutex_lock(&pool->mutex);
    if (buffer->bytes_max > BUFFER_BYTES_KEPT) {
        drop = buffer;
    } else {
        buffer->next = pool->free;
        pool->free = buffer;
        if (++pool->num_free > BUFFERS_KEPT) {
            /* The oldest is the least likely to be warm, or to have the size in use now. */
            struct relay_buffer **last = &pool->free;
            while ((*last)->next != NULL) {
                last = &(*last)->next;
            }
            drop = *last;
            *last = NULL;
            pool->num_free--;
        }
    }
    unref_locked(pool);
    free(drop);
}

uint8_t *relay_buffer_data(struct relay_buffer *buffer)
{
    return buffer->data;
}

static void release(void *user)
{
    relay_buffer_release(user);
}

grpc_slice relay_buffer_slice(struct relay_buffer *buffer, size_t offset, size_t bytes)
{
    atomic_fetch_add_explicit(&buffer->refs, 1, memory_order_relaxed);
    return relay_wire_slice(buffer->data + offset, bytes, release, buffer);
}
