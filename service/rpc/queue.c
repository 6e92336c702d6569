/* Completion queues: one thread each, which waits for events, hands them to their tags, and keeps
 * arrivals posted. The free lists are under the queue's mutex, because the last user of a call may
 * be on any thread. */
#include "service/base/log.h"
#include "service/rpc/server.h"

#include <grpc/support/time.h>
#include <stdlib.h>

static void arrived(struct relayd_rpc_tag *tag, bool ok);
static void closed(struct relayd_rpc_tag *tag, bool ok);

/* ---- call objects -----------------------------------------------------------------------------
 */

static struct relayd_rpc_call *call_take(struct relayd_rpc_queue *queue, uint32_t method_index)
{
    const struct relayd_rpc_method *method = queue->rpc->methods[method_index];
    pthread_mutex_lock(&queue->mutex);
    struct relayd_rpc_call *call = queue->free[method_index];
    if (call != NULL) {
        queue->free[method_index] = call->next;
    } else {
        call = calloc(1, method->call_bytes);
    }
    if (call != NULL) {
        queue->live++;
    }
    pthread_mutex_unlock(&queue->mutex);
    if (call == NULL) {
        return NULL;
    }
    call->rpc = queue->rpc;
    call->queue = queue;
    call->method = method;
    call->method_index = method_index;
    call->next = NULL;
    call->call = NULL;
    call->message = NULL;
    call->open = false;
    call->started = false;
    call->failed = false;
    call->closed_cancelled = 0;
    grpc_metadata_array_init(&call->metadata);
    if (method->path == NULL) {
        grpc_call_details_init(&call->details);
    }
    relayd_rpc_tag_init(&call->arrived, call, arrived);
    relayd_rpc_tag_init(&call->closed, call, closed);
    atomic_store_explicit(&call->ops, 1, memory_order_relaxed); /* the arrival's */
    atomic_store_explicit(&call->refs, 1, memory_order_relaxed);
    atomic_store_explicit(&call->cancelled, false, memory_order_relaxed);
    return call;
}

void relayd_rpc_queue_recycle(struct relayd_rpc_call *call)
{
    struct relayd_rpc_queue *queue = call->queue;
    pthread_mutex_lock(&queue->mutex);
    call->next = queue->free[call->method_index];
    queue->free[call->method_index] = call;
    queue->live--;
    if (queue->live == 0) {
        pthread_cond_broadcast(&queue->empty);
    }
    pthread_mutex_unlock(&queue->mutex);
}

static void free_calls(struct relayd_rpc_queue *queue)
{
    for (uint32_t i = 0; i < RELAYD_RPC_METHODS_MAX; i++) {
        while (queue->free[i] != NULL) {
            struct relayd_rpc_call *call = queue->free[i];
            queue->free[i] = call->next;
            if (call->method->destroy != NULL) {
                call->method->destroy(call);
            }
            free(call);
        }
    }
}

/* ---- arrivals ---------------------------------------------------------------------------------
 */

void relayd_rpc_queue_post(struct relayd_rpc_queue *queue, uint32_t method_index)
{
    struct relayd_rpc *rpc = queue->rpc;
    struct relayd_rpc_call *call = call_take(queue, method_index);
    if (call == NULL) {
        RELAYD_LOG(ERROR, "rpc.post_failed", "msg=\"no memory for a call\"");
        return;
    }
    grpc_call_error error;
    relayd_rpc_tag_publish(&call->arrived);
    if (call->method->path == NULL) {
        error = grpc_server_request_call(rpc->server, &call->call, &call->details, &call->metadata,
                                         queue->cq, queue->cq, &call->arrived);
    } else {
        error = grpc_server_request_registered_call(
            rpc->server, rpc->registered[method_index], &call->call, &call->deadline,
            &call->metadata, call->method->reads_first ? &call->message : NULL, queue->cq,
            queue->cq, &call->arrived);
    }
    if (error != GRPC_CALL_OK) {
        RELAYD_LOG(ERROR, "rpc.post_failed", "error=%d", (int)error);
        relayd_rpc_call_drop(call);
    }
}

static void arrived(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc_call *call = tag->call;
    struct relayd_rpc *rpc = call->rpc;
    if (!ok) { /* the server shuts down */
        relayd_rpc_call_drop(call);
        return;
    }
    call->open = true;
    call->received_ns = relayd_clock_now_ns(rpc->opt.clock);
    if (call->method->path == NULL) {
        call->deadline = call->details.deadline;
    }
    atomic_fetch_add_explicit(&rpc->calls_started, 1, memory_order_relaxed);
    if (call->message != NULL) {
        atomic_fetch_add_explicit(&rpc->bytes_received, grpc_byte_buffer_length(call->message),
                                  memory_order_relaxed);
    }
    if (!atomic_load_explicit(&rpc->draining, memory_order_relaxed)) {
        relayd_rpc_queue_post(call->queue, call->method_index);
    }
    /* On a tag of its own: it comes when the call is over, however it ended. */
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &call->closed_cancelled;
    if (relayd_rpc_call_batch(call, &op, 1, &call->closed)) {
        call->started = true;
        call->method->start(call);
    }
    relayd_rpc_call_drop(call);
}

static void closed(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc_call *call = tag->call;
    if (!ok || call->closed_cancelled != 0) {
        atomic_store_explicit(&call->cancelled, true, memory_order_relaxed);
        if (call->method->cancelled != NULL) {
            call->method->cancelled(call);
        }
    }
    relayd_rpc_call_drop(call);
}

/* ---- the thread -------------------------------------------------------------------------------
 */

void relayd_rpc_queue_dispatch(const grpc_event *event)
{
    struct relayd_rpc_tag *tag = event->tag;
    (void)atomic_load_explicit(&tag->published, memory_order_acquire);
    tag->on_event(tag, event->success != 0);
}

/* After an event polls for spin_us without sleeping: a wake-up costs more than a short message. */
static void *queue_thread(void *arg)
{
    struct relayd_rpc_queue *queue = arg;
    const uint32_t spin_us = queue->rpc->opt.spin_us;
    const gpr_timespec spin = gpr_time_from_micros(spin_us, GPR_TIMESPAN);
    gpr_timespec spin_until = gpr_inf_past(GPR_CLOCK_MONOTONIC);
    for (;;) {
        bool spinning = spin_us > 0 && gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), spin_until) < 0;
        gpr_timespec deadline =
            spinning ? gpr_inf_past(GPR_CLOCK_MONOTONIC) : gpr_inf_future(GPR_CLOCK_MONOTONIC);
        grpc_event event = grpc_completion_queue_next(queue->cq, deadline, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (event.type != GRPC_OP_COMPLETE) {
            continue;
        }
        relayd_rpc_queue_dispatch(&event);
        if (spin_us > 0) {
            spin_until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), spin);
        }
    }
}

enum relay_code relayd_rpc_queue_init(struct relayd_rpc_queue *queue, struct relayd_rpc *rpc,
                                      struct relay_error *err)
{
    queue->rpc = rpc;
    queue->cq = grpc_completion_queue_create_for_next(NULL);
    if (queue->cq == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no completion queue");
    }
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->empty, NULL);
    return RELAY_OK;
}

enum relay_code relayd_rpc_queue_start(struct relayd_rpc_queue *queue, struct relay_error *err)
{
    if (pthread_create(&queue->thread, NULL, queue_thread, queue) != 0) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no thread for a completion queue");
    }
    queue->started = true;
    for (uint32_t i = 0; i < queue->rpc->num_methods; i++) {
        for (uint32_t k = 0; k < queue->rpc->methods[i]->posted; k++) {
            relayd_rpc_queue_post(queue, i);
        }
    }
    return RELAY_OK;
}

void relayd_rpc_queue_wait_empty(struct relayd_rpc_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    while (queue->live > 0) {
        pthread_cond_wait(&queue->empty, &queue->mutex);
    }
    pthread_mutex_unlock(&queue->mutex);
}

void relayd_rpc_queue_fini(struct relayd_rpc_queue *queue)
{
    grpc_completion_queue_shutdown(queue->cq);
    if (queue->started) {
        pthread_join(queue->thread, NULL);
    } else {
        queue_thread(queue);
    }
    grpc_completion_queue_destroy(queue->cq);
    free_calls(queue);
    free(queue->entries.handles);
    pthread_cond_destroy(&queue->empty);
    pthread_mutex_destroy(&queue->mutex);
}
