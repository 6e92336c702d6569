/* Moves streams' messages. Receiving belongs to the thread that has the message (queue or worker,
 * one after the other); sending is under the stream's mutex and may be asked for by any thread. */
#include "service/rpc/stream.h"

#include <string.h>

static void received(struct relayd_rpc_tag *tag, bool ok);
static void sent(struct relayd_rpc_tag *tag, bool ok);

void relayd_rpc_stream_init(struct relayd_rpc_stream *stream)
{
    if (!stream->mutex_made) {
        pthread_mutex_init(&stream->mutex, NULL);
        stream->mutex_made = true;
    }
    relayd_rpc_tag_init(&stream->received, &stream->base, received);
    relayd_rpc_tag_init(&stream->sent_tag, &stream->base, sent);
    stream->asked_twice = false;
    stream->headers_sent = false;
    stream->sending = false;
    stream->finishing = false;
    stream->finished = false;
    stream->waiting = NULL;
    memset(&stream->final, 0, sizeof(stream->final));
    relayd_rpc_detail_clear(&stream->detail);
}

void relayd_rpc_stream_fini(struct relayd_rpc_stream *stream)
{
    if (stream->waiting != NULL) {
        grpc_byte_buffer_destroy(stream->waiting);
        stream->waiting = NULL;
    }
}

void relayd_rpc_stream_destroy(struct relayd_rpc_stream *stream)
{
    if (stream->mutex_made) {
        pthread_mutex_destroy(&stream->mutex);
    }
}

/* ---- sending ----------------------------------------------------------------------------------
 */

/* Starts what waits, if nothing is on its way. Under the mutex. */
static void pump(struct relayd_rpc_stream *stream)
{
    struct relayd_rpc_call *call = &stream->base;
    grpc_op ops[3];
    size_t n = 0;
    if (stream->sending || stream->finished || (stream->waiting == NULL && !stream->finishing)) {
        return;
    }
    if (!stream->headers_sent) {
        ops[n++] = relayd_rpc_op_headers();
        stream->headers_sent = true;
    }
    grpc_byte_buffer *message = stream->waiting;
    stream->waiting = NULL;
    if (message != NULL) {
        ops[n++] = relayd_rpc_op_message(call, message);
    }
    if (stream->finishing) {
        ops[n++] = relayd_rpc_op_status(call, &stream->final, &stream->detail);
        stream->finished = true;
    }
    stream->sending = true;
    if (!relayd_rpc_call_batch(call, ops, n, &stream->sent_tag)) {
        stream->finished = true; /* the call is dead: nothing more can be sent */
    }
    if (message != NULL) {
        grpc_byte_buffer_destroy(message);
    }
}

static void sent(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc_stream *stream = (struct relayd_rpc_stream *)tag->call;
    const struct relayd_rpc_stream_spec *spec = stream->base.method->spec;
    pthread_mutex_lock(&stream->mutex);
    stream->sending = false;
    if (!ok) {
        stream->finished = true; /* nobody reads any more */
    }
    pump(stream);
    pthread_mutex_unlock(&stream->mutex);
    if (spec->sent != NULL) {
        spec->sent(stream);
    }
    relayd_rpc_call_drop(&stream->base);
}

static void replace(struct relayd_rpc_stream *stream, grpc_byte_buffer *message)
{
    if (stream->waiting != NULL) {
        grpc_byte_buffer_destroy(stream->waiting);
    }
    stream->waiting = message;
}

void relayd_rpc_stream_send(struct relayd_rpc_stream *stream, grpc_byte_buffer *message)
{
    pthread_mutex_lock(&stream->mutex);
    if (stream->finishing || stream->finished) {
        grpc_byte_buffer_destroy(message);
    } else {
        replace(stream, message);
        pump(stream);
    }
    pthread_mutex_unlock(&stream->mutex);
}

void relayd_rpc_stream_finish(struct relayd_rpc_stream *stream, grpc_byte_buffer *last,
                              const struct relay_error *error)
{
    pthread_mutex_lock(&stream->mutex);
    if (stream->finishing || stream->finished) {
        if (last != NULL) {
            grpc_byte_buffer_destroy(last);
        }
    } else {
        stream->finishing = true;
        if (error != NULL) {
            stream->final = *error;
        }
        if (last != NULL) {
            replace(stream, last);
        }
        pump(stream);
    }
    pthread_mutex_unlock(&stream->mutex);
}

/* ---- receiving --------------------------------------------------------------------------------
 */

void relayd_rpc_stream_recv(struct relayd_rpc_stream *stream)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    if (stream->base.message != NULL) {
        grpc_byte_buffer_destroy(stream->base.message);
        stream->base.message = NULL;
    }
    op.data.recv_message.recv_message = &stream->base.message;
    (void)relayd_rpc_call_batch(&stream->base, &op, 1, &stream->received);
}

/* The tag's hold on the call is dropped by whoever handled the event. */
static void handle(struct relayd_rpc_stream *stream)
{
    const struct relayd_rpc_stream_spec *spec = stream->base.method->spec;
    if (stream->base.message != NULL) {
        spec->message(stream);
    } else {
        spec->end(stream, relayd_rpc_call_cancelled(&stream->base) ? RELAYD_RPC_END_BROKEN
                                                                   : RELAYD_RPC_END_HALF_CLOSE);
    }
    relayd_rpc_call_drop(&stream->base);
}

static void handle_work(struct relayd_work *work)
{
    handle((struct relayd_rpc_stream *)((char *)work - offsetof(struct relayd_rpc_stream, work)));
}

static void received(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc_call *call = tag->call;
    struct relayd_rpc_stream *stream = (struct relayd_rpc_stream *)call;
    const struct relayd_rpc_stream_spec *spec = call->method->spec;
    if (!ok) {
        atomic_store_explicit(&call->cancelled, true, memory_order_relaxed);
    }
    if (call->message != NULL) {
        atomic_fetch_add_explicit(&call->rpc->bytes_received,
                                  grpc_byte_buffer_length(call->message), memory_order_relaxed);
    } else if (!stream->asked_twice) {
        /* A half-close and a lost connection look alike here; what tells them apart is the close
         * tag, which may be right behind. So go once more through the queue. */
        stream->asked_twice = true;
        if (relayd_rpc_call_batch(call, NULL, 0, &stream->received)) {
            relayd_rpc_call_drop(call);
            return;
        }
        atomic_store_explicit(&call->cancelled, true, memory_order_relaxed);
    }
    if (spec->slow) {
        stream->work.run = handle_work;
        relayd_worker_submit(call->rpc->opt.worker, &stream->work);
    } else {
        handle(stream);
    }
}
