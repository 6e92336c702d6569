/* Sends a stream's answers in order. Any thread; batches are started under the mutex. */
#include "service/rpc/outbox.h"

#include <string.h>

static void sent(struct relayd_rpc_tag *tag, bool ok);

void relayd_rpc_outbox_init(struct relayd_rpc_outbox *outbox, struct relayd_rpc_call *call)
{
    if (!outbox->mutex_made) {
        pthread_mutex_init(&outbox->mutex, NULL);
        outbox->mutex_made = true;
    }
    outbox->call = call;
    relayd_rpc_tag_init(&outbox->sent, call, sent);
    outbox->head = 0;
    outbox->count = 0;
    outbox->announced = 0;
    outbox->headers_sent = false;
    outbox->sending = false;
    outbox->finishing = false;
    outbox->finished = false;
    memset(&outbox->final, 0, sizeof(outbox->final));
}

static grpc_byte_buffer *pop(struct relayd_rpc_outbox *outbox)
{
    grpc_byte_buffer *message = outbox->ring[outbox->head];
    outbox->head = (outbox->head + 1) % RELAYD_RPC_OUTBOX_MAX;
    outbox->count--;
    return message;
}

static void throw_away(struct relayd_rpc_outbox *outbox)
{
    outbox->finished = true;
    while (outbox->count > 0) {
        grpc_byte_buffer_destroy(pop(outbox));
    }
}

void relayd_rpc_outbox_fini(struct relayd_rpc_outbox *outbox)
{
    throw_away(outbox);
}

void relayd_rpc_outbox_destroy(struct relayd_rpc_outbox *outbox)
{
    if (outbox->mutex_made) {
        pthread_mutex_destroy(&outbox->mutex);
    }
}

/* Starts the next batch, if nothing is on its way. Under the mutex. */
static void pump(struct relayd_rpc_outbox *outbox)
{
    struct relayd_rpc_call *call = outbox->call;
    grpc_byte_buffer *message = NULL;
    grpc_op ops[3];
    size_t n = 0;
    bool last = outbox->finishing && outbox->announced == 0 && outbox->count <= 1;
    if (outbox->sending || outbox->finished || (outbox->count == 0 && !last)) {
        return;
    }
    if (!outbox->headers_sent) {
        ops[n++] = relayd_rpc_op_headers();
        outbox->headers_sent = true;
    }
    if (outbox->count > 0) {
        message = pop(outbox);
        ops[n++] = relayd_rpc_op_message(call, message);
    }
    if (last) {
        ops[n++] = relayd_rpc_op_status(call, &outbox->final, NULL);
        outbox->finished = true;
    }
    outbox->sending = true;
    if (!relayd_rpc_call_batch(call, ops, n, &outbox->sent)) {
        outbox->sending = false;
        throw_away(outbox);
    }
    if (message != NULL) {
        grpc_byte_buffer_destroy(message);
    }
}

static void sent(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc_outbox *outbox =
        (struct relayd_rpc_outbox *)((char *)tag - offsetof(struct relayd_rpc_outbox, sent));
    struct relayd_rpc_call *call = outbox->call;
    pthread_mutex_lock(&outbox->mutex);
    outbox->sending = false;
    if (!ok) {
        throw_away(outbox);
    }
    pump(outbox);
    pthread_mutex_unlock(&outbox->mutex);
    relayd_rpc_call_drop(call);
}

/* Under the mutex. */
static void put(struct relayd_rpc_outbox *outbox, grpc_byte_buffer *message)
{
    if (outbox->finished) {
        grpc_byte_buffer_destroy(message);
        return;
    }
    if (outbox->count == RELAYD_RPC_OUTBOX_MAX) {
        grpc_byte_buffer_destroy(message);
        throw_away(outbox);
        grpc_call_cancel_with_status(outbox->call->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                     "too many answers wait to be read", NULL);
        return;
    }
    outbox->ring[(outbox->head + outbox->count) % RELAYD_RPC_OUTBOX_MAX] = message;
    outbox->count++;
}

void relayd_rpc_outbox_push(struct relayd_rpc_outbox *outbox, grpc_byte_buffer *message)
{
    pthread_mutex_lock(&outbox->mutex);
    put(outbox, message);
    pump(outbox);
    pthread_mutex_unlock(&outbox->mutex);
}

void relayd_rpc_outbox_announce(struct relayd_rpc_outbox *outbox)
{
    pthread_mutex_lock(&outbox->mutex);
    outbox->announced++;
    pthread_mutex_unlock(&outbox->mutex);
}

void relayd_rpc_outbox_push_announced(struct relayd_rpc_outbox *outbox, grpc_byte_buffer *message)
{
    pthread_mutex_lock(&outbox->mutex);
    outbox->announced--;
    if (message != NULL) {
        put(outbox, message);
    }
    pump(outbox);
    pthread_mutex_unlock(&outbox->mutex);
}

void relayd_rpc_outbox_finish(struct relayd_rpc_outbox *outbox, const struct relay_error *error)
{
    pthread_mutex_lock(&outbox->mutex);
    if (!outbox->finishing) {
        outbox->finishing = true;
        if (error != NULL) {
            outbox->final = *error;
        }
        pump(outbox);
    }
    pthread_mutex_unlock(&outbox->mutex);
}

void relayd_rpc_outbox_abandon(struct relayd_rpc_outbox *outbox)
{
    pthread_mutex_lock(&outbox->mutex);
    throw_away(outbox);
    pthread_mutex_unlock(&outbox->mutex);
}
