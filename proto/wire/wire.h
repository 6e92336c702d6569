/* A received message as slices, spans of it, and slices to send.
 *
 * Tensors are never copied by this room: decoders say where in the message they lie (a span), and
 * the caller copies them once, to where they belong; encoders put a slice of the caller's memory
 * behind a small head. Functions are pure but for reference counts and may run on any thread. */
#ifndef RELAY_WIRE_WIRE_H
#define RELAY_WIRE_WIRE_H

#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <relay/status.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A tensor up to so many bytes is copied behind the head: cheaper than a slice of its own. */
#define RELAY_WIRE_COPY_BYTES_MAX ((size_t)1024)
/* Bytes of a session token. */
#define RELAY_WIRE_SESSION_BYTES 16

/* Borrows the slices of a byte buffer, which must outlive it. */
struct relay_wire_view {
    const grpc_slice *slices;
    size_t num_slices;
    size_t length; /* bytes, all slices together */
};

/* UNIMPLEMENTED for a compressed buffer, INVALID_ARGUMENT for none (NULL). */
RELAY_MUST_CHECK enum relay_code relay_wire_view_init(struct relay_wire_view *view,
                                                      const grpc_byte_buffer *buffer,
                                                      struct relay_error *err);

/* Bytes [offset, +length) of a view; length 0 also for a field that did not come. */
struct relay_wire_span {
    size_t offset;
    size_t length;
};

/* Copies the span to dst [span.length]. The span must be one that a decoder gave for this view. */
void relay_wire_gather(const struct relay_wire_view *view, struct relay_wire_span span, void *dst);
/* The next contiguous piece of a span: returns it, sets length, shortens the span from the front.
 * NULL at the end. For those who read in place (checksums). */
const void *relay_wire_piece(const struct relay_wire_view *view, struct relay_wire_span *span,
                             size_t *length);

/* A slice of the caller's memory: release_fn(user) runs exactly once, on any thread, when nobody
 * reads it any more; at once when the bytes are few enough to copy. release_fn may be NULL (memory
 * that outlives the call). data may be NULL with length 0. */
grpc_slice relay_wire_slice(const void *data, size_t length, void (*release_fn)(void *user),
                            void *user);

#endif
