#include "stream.h"

#include <grpc/support/alloc.h>
#include <stdlib.h>

/* Tags. The first batch carries the initial metadata of both sides and is nobody's event. */
enum { TAG_START = 1, TAG_SEND, TAG_RECV, TAG_STATUS };

struct relay_stream {
    struct relay_client *client;
    grpc_completion_queue *queue;
    grpc_call *call;
    uint32_t pending; /* tags on the way */
    bool send_pending, half_closed, ended;
    grpc_byte_buffer *sending;
    grpc_byte_buffer *received; /* filled by core, then waiting to be taken */
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice message;
};

static enum relay_code start(struct relay_stream *stream, const grpc_op *ops, size_t n,
                             uintptr_t tag, struct relay_error *err)
{
    const grpc_call_error error = grpc_call_start_batch(stream->call, ops, n, (void *)tag, NULL);
    if (error != GRPC_CALL_OK) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "stream: %s", grpc_call_error_to_string(error));
    }
    stream->pending++;
    return RELAY_OK;
}

static enum relay_code receive(struct relay_stream *stream, struct relay_error *err)
{
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE,
                        .data.recv_message.recv_message = &stream->received};
    return start(stream, &op, 1, TAG_RECV, err);
}

enum relay_code relay_stream_open(struct relay_client *client, grpc_channel *channel,
                                  const char *path, struct relay_stream **out,
                                  struct relay_error *err)
{
    struct relay_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    stream->client = client;
    stream->message = grpc_empty_slice();
    grpc_metadata_array_init(&stream->initial);
    grpc_metadata_array_init(&stream->trailing);
    stream->queue = grpc_completion_queue_create_for_next(NULL);
    /* No deadline: how long without progress is too long is the caller's to say. */
    grpc_slice method = grpc_slice_from_static_string(path);
    stream->call = grpc_channel_create_call(channel != NULL ? channel : client->channel, NULL,
                                            GRPC_PROPAGATE_DEFAULTS, stream->queue, method, NULL,
                                            gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    const grpc_op first[2] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &stream->initial},
    };
    const grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                            .data.recv_status_on_client = {.trailing_metadata = &stream->trailing,
                                                           .status = &stream->status,
                                                           .status_details = &stream->message}};
    enum relay_code code = start(stream, &status, 1, TAG_STATUS, err);
    if (code == RELAY_OK) {
        code = start(stream, first, 2, TAG_START, err);
    }
    if (code == RELAY_OK) {
        code = receive(stream, err);
    }
    if (code != RELAY_OK) {
        relay_stream_close(stream);
        return code;
    }
    *out = stream;
    return RELAY_OK;
}

void relay_stream_close(struct relay_stream *stream)
{
    if (stream == NULL) {
        return;
    }
    if (!stream->ended) {
        grpc_call_cancel(stream->call, NULL);
    }
    while (stream->pending > 0) {
        if (grpc_completion_queue_next(stream->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL)
                .type == GRPC_OP_COMPLETE) {
            stream->pending--;
        }
    }
    grpc_call_unref(stream->call);
    grpc_completion_queue_shutdown(stream->queue);
    while (
        grpc_completion_queue_next(stream->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
        GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(stream->queue);
    grpc_byte_buffer_destroy(stream->sending);
    grpc_byte_buffer_destroy(stream->received);
    grpc_metadata_array_destroy(&stream->initial);
    grpc_metadata_array_destroy(&stream->trailing);
    grpc_slice_unref(stream->message);
    free(stream);
}

bool relay_stream_can_send(const struct relay_stream *stream)
{
    return !stream->send_pending && !stream->half_closed && !stream->ended;
}

enum relay_code relay_stream_send(struct relay_stream *stream, grpc_byte_buffer *message,
                                  struct relay_error *err)
{
    const grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    const enum relay_code code = start(stream, &op, 1, TAG_SEND, err);
    if (code != RELAY_OK) {
        grpc_byte_buffer_destroy(message);
        return code;
    }
    stream->sending = message;
    stream->send_pending = true;
    return RELAY_OK;
}

enum relay_code relay_stream_half_close(struct relay_stream *stream, struct relay_error *err)
{
    const grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    const enum relay_code code = start(stream, &op, 1, TAG_SEND, err);
    if (code == RELAY_OK) {
        stream->send_pending = true;
        stream->half_closed = true;
    }
    return code;
}

bool relay_stream_next(struct relay_stream *stream, gpr_timespec deadline, grpc_event *event)
{
    *event = grpc_completion_queue_next(stream->queue, deadline, NULL);
    return event->type == GRPC_OP_COMPLETE;
}

enum relay_stream_event relay_stream_handle(struct relay_stream *stream, const grpc_event *event)
{
    enum relay_stream_event what = RELAY_STREAM_NOTHING;
    stream->pending--;
    switch ((uintptr_t)event->tag) {
    case TAG_SEND:
        stream->send_pending = false;
        grpc_byte_buffer_destroy(stream->sending);
        stream->sending = NULL;
        /* A send that failed is explained by the status to come. */
        if (event->success) {
            what = RELAY_STREAM_SENT;
        }
        break;
    case TAG_RECV:
        if (event->success && stream->received != NULL) {
            what = RELAY_STREAM_RECEIVED;
        }
        break;
    case TAG_STATUS:
        /* Messages that came before it are still in the queue; END is told after them. */
        stream->ended = true;
        break;
    default:
        break;
    }
    return what == RELAY_STREAM_NOTHING && relay_stream_over(stream) ? RELAY_STREAM_END : what;
}

bool relay_stream_over(const struct relay_stream *stream)
{
    return stream->ended && stream->pending == 0;
}

void relay_stream_cancel(struct relay_stream *stream)
{
    grpc_call_cancel(stream->call, NULL);
}

enum relay_stream_event relay_stream_wait(struct relay_stream *stream, uint32_t timeout_ms)
{
    const gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    enum relay_stream_event what = RELAY_STREAM_NOTHING;
    while (what == RELAY_STREAM_NOTHING) {
        grpc_event event;
        if (relay_stream_over(stream)) {
            return RELAY_STREAM_END;
        }
        if (!relay_stream_next(stream, deadline, &event)) {
            return RELAY_STREAM_TIMEOUT;
        }
        what = relay_stream_handle(stream, &event);
    }
    return what;
}

grpc_byte_buffer *relay_stream_take(struct relay_stream *stream)
{
    grpc_byte_buffer *message = stream->received;
    stream->received = NULL;
    /* When that fails the call is over, and its status says so. */
    if (receive(stream, NULL) != RELAY_OK) {
        grpc_call_cancel(stream->call, NULL);
    }
    return message;
}

enum relay_code relay_stream_status(const struct relay_stream *stream, struct relay_error *err)
{
    return relay_call_status(stream->client, stream->status, &stream->message, &stream->trailing,
                             err);
}
