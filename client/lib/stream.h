/* One streaming call with a completion queue of its own: send a message, close the sending side,
 * wait for what happens next. For one thread at a time, but for relay_stream_next: who shares a
 * stream blocks there without its lock and handles the event under it. */
#ifndef RELAY_CLIENT_STREAM_H
#define RELAY_CLIENT_STREAM_H

#include "client_internal.h"

enum relay_stream_event {
    RELAY_STREAM_NOTHING,  /* nothing to act on; relay_stream_handle only */
    RELAY_STREAM_TIMEOUT,  /* nothing happened */
    RELAY_STREAM_SENT,     /* the next message may go */
    RELAY_STREAM_RECEIVED, /* relay_stream_take */
    RELAY_STREAM_END,      /* relay_stream_status */
};

struct relay_stream;

/* channel NULL = the client's own. *out is the caller's. */
RELAY_MUST_CHECK enum relay_code relay_stream_open(struct relay_client *client,
                                                   grpc_channel *channel, const char *path,
                                                   struct relay_stream **out,
                                                   struct relay_error *err);
/* Cancels what is still on the way and waits for that. NULL is fine. */
void relay_stream_close(struct relay_stream *stream);

/* False while a message is on the way, after the sending side was closed, or at the end. */
bool relay_stream_can_send(const struct relay_stream *stream);
/* Takes the buffer over, also on failure. Only when it can send. INTERNAL. */
RELAY_MUST_CHECK enum relay_code relay_stream_send(struct relay_stream *stream,
                                                   grpc_byte_buffer *message,
                                                   struct relay_error *err);
/* No more messages from here. Only when it can send. INTERNAL. */
RELAY_MUST_CHECK enum relay_code relay_stream_half_close(struct relay_stream *stream,
                                                         struct relay_error *err);
/* Blocks until something happens, at most timeout_ms. */
enum relay_stream_event relay_stream_wait(struct relay_stream *stream, uint32_t timeout_ms);
/* The same in two halves: the next event until the deadline, by one thread at a time, false when
 * there is none; and what it means. */
bool relay_stream_next(struct relay_stream *stream, gpr_timespec deadline, grpc_event *event);
enum relay_stream_event relay_stream_handle(struct relay_stream *stream, const grpc_event *event);
/* END has come or no event will: then ask before the next relay_stream_next. */
bool relay_stream_over(const struct relay_stream *stream);
/* END will come soon. */
void relay_stream_cancel(struct relay_stream *stream);
/* The message of the last RECEIVED; the caller's. */
grpc_byte_buffer *relay_stream_take(struct relay_stream *stream);
/* How the call ended, after END. */
enum relay_code relay_stream_status(const struct relay_stream *stream, struct relay_error *err);

#endif
