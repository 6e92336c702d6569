/* What a link sends and what comes: messages out in order, answers to their calls and steps. Under
 * the link's mutex, on whichever thread submits or pumps. */
#include "link_internal.h"

#include <relay/v1/relay.pb-c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the queue ---- */

void relay_link_enqueue(struct relay_link *link, struct relay_link_item *item)
{
    item->next = NULL;
    item->queued = true;
    if (link->last != NULL) {
        link->last->next = item;
    } else {
        link->first = item;
    }
    link->last = item;
}

void relay_link_dequeue(struct relay_link *link, struct relay_link_item *item)
{
    struct relay_link_item *before = NULL;
    if (!item->queued) {
        return;
    }
    for (struct relay_link_item *at = link->first; at != item; at = at->next) {
        before = at;
    }
    if (before != NULL) {
        before->next = item->next;
    } else {
        link->first = item->next;
    }
    if (link->last == item) {
        link->last = before;
    }
    item->queued = false;
}

/* ---- out ---- */

/* gRPC has read a tensor. Any thread; the call may be gone right after. gRPC hands the slice from
 * thread to thread, which nobody else can see: the load pairs with the release in tensor(). */
static void slice_read(void *user)
{
    struct relay_step_call *call = user;
    (void)atomic_load_explicit(&call->slices, memory_order_acquire);
    atomic_fetch_sub_explicit(&call->slices, 1, memory_order_release);
}

static grpc_slice tensor(struct relay_step_call *call, const void *data, size_t bytes)
{
    if (data == NULL || bytes == 0) {
        return grpc_empty_slice();
    }
    atomic_fetch_add_explicit(&call->slices, 1, memory_order_release);
    return relay_wire_slice(data, bytes, slice_read, call);
}

static grpc_byte_buffer *encode_call(struct relay_step_call *call)
{
    const struct relay_wire_stream_request request = {
        .kind = RELAY_WIRE_STREAM_CALL,
        .call = {.step_id = call->step_id,
                 .layer = call->layer,
                 .row_begin = call->row_begin,
                 .row_count = call->row_count},
    };
    return relay_wire_stream_request_encode(&request, tensor(call, call->k, call->k_bytes),
                                            tensor(call, call->v, call->v_bytes),
                                            tensor(call, call->q, call->q_bytes));
}

static grpc_byte_buffer *encode_other(const struct relay_wire_stream_request *request)
{
    return relay_wire_stream_request_encode(request, grpc_empty_slice(), grpc_empty_slice(),
                                            grpc_empty_slice());
}

static struct relay_link_step *step_of_begin(struct relay_link_item *item)
{
    return (struct relay_link_step *)((char *)item - offsetof(struct relay_link_step, begin_item));
}

static struct relay_link_step *step_of_end(struct relay_link_item *item)
{
    return (struct relay_link_step *)((char *)item - offsetof(struct relay_link_step, end_item));
}

static void let_go(struct relay_link *link, struct relay_link_step *step)
{
    struct relay_link_step **at = &link->steps;
    while (*at != step) {
        at = &(*at)->next;
    }
    *at = step->next;
    step->free(step);
}

static grpc_byte_buffer *encode(struct relay_link *link, struct relay_link_item *item)
{
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_END};
    struct relay_step_call *call;
    switch (item->kind) {
    case RELAY_LINK_CALL:
        call = (struct relay_step_call *)((char *)item - offsetof(struct relay_step_call, item));
        call->state = RELAY_LINK_CALL_SENT;
        call->ends_before = link->ends_sent;
        link->in_flight++;
        return encode_call(call);
    case RELAY_LINK_BEGIN:
        request.kind = RELAY_WIRE_STREAM_BEGIN;
        request.begin = step_of_begin(item)->begin;
        break;
    case RELAY_LINK_END:
        request.end.step_id = step_of_end(item)->begin.step_id;
        link->ends_sent++;
        let_go(link, step_of_end(item));
        break;
    }
    return encode_other(&request);
}

/* True when it was sent; else the stream is about to end. */
static bool send_message(struct relay_link *link, grpc_byte_buffer *message)
{
    if (relay_stream_send(link->stream, message, NULL) != RELAY_OK) {
        relay_stream_cancel(link->stream);
        return false;
    }
    return true;
}

void relay_link_flush(struct relay_link *link)
{
    bool sent = true;
    while (sent && link->attached && link->first != NULL && relay_stream_can_send(link->stream) &&
           (link->first->kind != RELAY_LINK_CALL || link->in_flight < link->in_flight_max)) {
        struct relay_link_item *item = link->first;
        relay_link_dequeue(link, item);
        sent = send_message(link, encode(link, item));
    }
    /* A server that goes away waits for its streams to end. */
    if (sent && link->attached && link->draining && !link->half_closed && link->steps == NULL &&
        link->oldest == NULL && relay_stream_can_send(link->stream)) {
        link->half_closed = relay_stream_half_close(link->stream, NULL) == RELAY_OK;
    }
}

/* ---- in ---- */

void relay_link_call_done(struct relay_link *link, struct relay_step_call *call,
                          const struct relay_error *err)
{
    relay_link_dequeue(link, &call->item);
    *(call->prev != NULL ? &call->prev->next : &link->oldest) = call->next;
    *(call->next != NULL ? &call->next->prev : &link->newest) = call->prev;
    call->state = RELAY_LINK_CALL_DONE;
    call->error.code = RELAY_OK;
    if (err != NULL) {
        call->error = *err;
    }
    if (call->given_up) {
        free(call);
    }
    relay_link_wake(link);
}

/* Steps die with a stream, K/V stays: begins the open ones again and sends what has no answer. */
static void take_attached(struct relay_link *link, const Relay__V1__Attached *m)
{
    struct relay_session *session = link->session;
    if (m->server_epoch != session->server_epoch) {
        struct relay_error err;
        (void)RELAY_FAIL(&err, RELAY_FAILED_PRECONDITION,
                         "the server has restarted: all handles are lost");
        relay_link_lose(link, &err);
        return;
    }
    /* A place at the server is free again a moment after its answer is here, once the answer's
     * memory is: so at most half of them are used by calls without an answer. */
    link->in_flight_max = m->calls_in_flight_max / 2 > 0 ? m->calls_in_flight_max / 2 : 1;
    link->attached = true;
    link->ends_seen = link->ends_sent; /* the older stream's steps have ended */
    uint64_t last = atomic_load(&session->step_id);
    while (last < m->last_step_id &&
           !atomic_compare_exchange_weak(&session->step_id, &last, m->last_step_id)) {
    }
    for (struct relay_link_step *step = link->steps; step != NULL; step = step->next) {
        if (step->state != RELAY_LINK_STEP_REFUSED) {
            step->state = RELAY_LINK_STEP_ASKED;
            relay_link_enqueue(link, &step->begin_item);
        }
    }
    for (struct relay_step_call *call = link->oldest, *next; call != NULL; call = next) {
        next = call->next;
        if (call->step == NULL) { /* relay_link_settle's: attaching has ended the steps */
            relay_link_call_done(link, call, NULL);
        } else {
            relay_link_enqueue(link, &call->item);
        }
    }
}

/* The server's words, and those of entries that they leave out. */
static void refuse(struct relay_link_step *step, const Relay__V1__StepBegun *m)
{
    char text[RELAY_ERROR_MSG_BYTES];
    const enum relay_code code = m->code <= 16 ? (enum relay_code)m->code : RELAY_UNKNOWN;
    int used = snprintf(text, sizeof(text), "%s",
                        m->message[0] != '\0' ? m->message : "the step was refused");
    for (size_t i = 0; i < m->n_errors; i++) {
        const Relay__V1__EntryError *e = m->errors[i];
        if (strstr(m->message, e->message) == NULL && used < (int)sizeof(text)) {
            used += snprintf(text + used, sizeof(text) - (size_t)used, "; entry %u: %s", e->index,
                             e->message);
        }
    }
    (void)RELAY_FAIL(&step->error, code, "%s", text);
    step->state = RELAY_LINK_STEP_REFUSED;
}

static void take_begun(struct relay_link *link, const Relay__V1__StepBegun *m)
{
    struct relay_link_step *step = link->steps;
    while (step != NULL && step->begin.step_id != m->step_id) {
        step = step->next;
    }
    if (step == NULL || step->state != RELAY_LINK_STEP_ASKED) {
        return; /* ended meanwhile */
    }
    step->kv_tokens_free = m->kv_tokens_free;
    if (m->code == 0) {
        step->state = RELAY_LINK_STEP_ADMITTED;
    } else {
        refuse(step, m);
        /* Calls that are under way get the server's answers, which say the same. */
        for (struct relay_step_call *call = link->oldest, *next; call != NULL; call = next) {
            next = call->next;
            if (call->step == step && call->state == RELAY_LINK_CALL_WAITING) {
                relay_link_call_done(link, call, &step->error);
            }
        }
    }
    relay_link_wake(link);
}

enum relay_code relay_step_call_take(struct relay_step_call *call,
                                     const struct relay_wire_view *view, struct relay_wire_span out,
                                     struct relay_wire_span lse,
                                     const struct relay_wire_timings *timings,
                                     struct relay_error *err)
{
    if (out.length != call->out_bytes || (call->lse != NULL && lse.length != call->lse_bytes)) {
        return RELAY_FAIL(err, RELAY_INTERNAL,
                          "the server's answer has %zu bytes of out and %zu of lse, expected %zu "
                          "and %zu",
                          out.length, lse.length, call->out_bytes,
                          call->lse != NULL ? call->lse_bytes : 0);
    }
    relay_wire_gather(view, out, call->out);
    if (call->lse != NULL) {
        relay_wire_gather(view, lse, call->lse);
    }
    call->timings = (struct relay_timings){
        .queue_us = timings->queue_us,
        .plan_us = timings->plan_us,
        .compute_us = timings->compute_us,
        .batch_rows = timings->batch_rows,
        .batch_sessions = timings->batch_sessions,
        .prompt_bytes = timings->prompt_bytes,
        .kv_bytes = timings->kv_bytes,
        .total_us = relay_now_us() - call->submitted_us,
    };
    return RELAY_OK;
}

static void take_result(struct relay_link *link, const struct relay_wire_view *view,
                        const struct relay_wire_layer_result *m)
{
    struct relay_error err = {.code = RELAY_OK};
    struct relay_step_call *call = link->oldest;
    while (call != NULL && (call->state != RELAY_LINK_CALL_SENT || call->step_id != m->step_id ||
                            call->layer != m->layer || call->row_begin != m->row_begin)) {
        call = call->next;
    }
    if (call == NULL) {
        return;
    }
    link->in_flight--;
    if (link->ends_seen < call->ends_before) {
        link->ends_seen = call->ends_before;
    }
    if (m->code == RELAY_OK) {
        if (call->out != NULL) { /* else given up */
            err.code = relay_step_call_take(call, view, m->out, m->lse, &m->timings, &err);
        }
    } else if (call->step != NULL && call->step->state == RELAY_LINK_STEP_REFUSED) {
        err = call->step->error;
    } else {
        (void)RELAY_FAIL(&err, m->code, "%s",
                         m->message[0] != '\0' ? m->message : relay_code_name(m->code));
    }
    relay_link_call_done(link, call, &err);
}

/* Messages that come once in a while. */
static enum relay_code take_other(struct relay_link *link, const struct relay_wire_view *view,
                                  const struct relay_wire_stream_response *response,
                                  struct relay_error *err)
{
    const ProtobufCMessageDescriptor *const descriptor =
        response->kind == RELAY_WIRE_STREAM_ATTACHED ? &relay__v1__attached__descriptor
                                                     : &relay__v1__step_begun__descriptor;
    struct relay_wire_arena arena;
    ProtobufCMessage *message = NULL;
    relay_wire_arena_init(&arena);
    const enum relay_code code =
        relay_wire_unpack_response(view, response->body, descriptor, &arena, &message, err);
    if (code == RELAY_OK && response->kind == RELAY_WIRE_STREAM_ATTACHED) {
        take_attached(link, (const Relay__V1__Attached *)message);
    } else if (code == RELAY_OK) {
        take_begun(link, (const Relay__V1__StepBegun *)message);
    }
    relay_wire_arena_fini(&arena);
    return code;
}

static void take_message(struct relay_link *link, const grpc_byte_buffer *received)
{
    struct relay_wire_view view;
    struct relay_wire_stream_response response;
    struct relay_error why;
    enum relay_code code = relay_wire_view_init(&view, received, &why);
    if (code == RELAY_OK) {
        code = relay_wire_stream_response_decode(&view, &response, &why);
    }
    if (code == RELAY_OK) {
        relay_session_used(link->session);
        switch (response.kind) {
        case RELAY_WIRE_STREAM_RESULT:
            link->attempts = 0;
            take_result(link, &view, &response.result);
            break;
        case RELAY_WIRE_STREAM_DRAIN:
            link->draining = true;
            break;
        case RELAY_WIRE_STREAM_BEGUN:
            link->attempts = 0;
            code = take_other(link, &view, &response, &why);
            break;
        case RELAY_WIRE_STREAM_ATTACHED:
            code = take_other(link, &view, &response, &why);
            break;
        }
    }
    if (code != RELAY_OK) {
        (void)RELAY_FAIL(&link->unreadable, RELAY_INTERNAL,
                         "the server's answer is not readable: %.180s", why.msg);
        relay_stream_cancel(link->stream);
    }
}

void relay_link_handle(struct relay_link *link, const grpc_event *event)
{
    grpc_byte_buffer *received;
    switch (relay_stream_handle(link->stream, event)) {
    case RELAY_STREAM_RECEIVED:
        received = relay_stream_take(link->stream);
        take_message(link, received);
        grpc_byte_buffer_destroy(received);
        break;
    case RELAY_STREAM_SENT:
    case RELAY_STREAM_NOTHING:
    case RELAY_STREAM_TIMEOUT:
    case RELAY_STREAM_END:
        break;
    }
    if (link->stream != NULL && relay_stream_over(link->stream)) {
        relay_link_broken(link);
    } else if (link->stream != NULL) {
        relay_link_flush(link);
    }
}
