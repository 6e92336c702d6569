/* Memory for messages on the way out. gRPC may read a slice after the call that sent it is over, so
 * tensors are copied once into a buffer from here, which comes back when the last slice is let go.
 *
 * Any thread; slices come back on gRPC's. The pool outlives its client until then. */
#ifndef RELAY_CLIENT_BUFFERS_H
#define RELAY_CLIENT_BUFFERS_H

#include <grpc/slice.h>
#include <relay/status.h>
#include <stddef.h>
#include <stdint.h>

struct relay_buffers;
struct relay_buffer;

/* NULL when memory is out. */
struct relay_buffers *relay_buffers_create(void);
/* Buffers still out are freed when they come back. */
void relay_buffers_destroy(struct relay_buffers *buffers);

/* A buffer of at least bytes with one reference, the caller's. NULL when memory is out. */
struct relay_buffer *relay_buffer_take(struct relay_buffers *buffers, size_t bytes);
void relay_buffer_release(struct relay_buffer *buffer);
uint8_t *relay_buffer_data(struct relay_buffer *buffer);
/* A slice of [offset, +bytes) that holds a reference of its own. */
grpc_slice relay_buffer_slice(struct relay_buffer *buffer, size_t offset, size_t bytes);

#endif
