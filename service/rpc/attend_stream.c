/* StreamRelayAttention, the engine's road: messages in on the queue's thread, answers out from the
 * executor's through the outbox.
 *
 * One RECV is always outstanding: gRPC keeps up to 16 MiB of what nobody reads. A client that sends
 * on without reading its answers fills its outbox and is cut off. All of a call's state here
 * belongs to its queue's thread, except the outbox and the calls in flight, which have mutexes of
 * their own.
 */
#include "service/rpc/attend_stream.h"

#include "service/rpc/outbox.h"
#include "service/rpc/slot.h"
#include "service/rpc/unary.h"
#include "service/session/stream.h"

#include <proto/wire/stream.h>
#include <proto/wire/unpack.h>
#include <relay/v1/relay.pb-c.h>
#include <string.h>

#define IN_FLIGHT_MAX 64u

struct attend_stream {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag received;
    struct relayd_rpc_outbox outbox;
    struct relayd_session *session;
    struct relayd_stream *stream; /* attached, or NULL */
    struct relayd_stream_info info;
    const char *plane_reason;
    bool receiving; /* a RECV is outstanding */
    bool over;      /* nothing more is read */
    bool listed;
    struct attend_stream *prev, *next; /* under the list's mutex */

    pthread_mutex_t mutex; /* guards in_flight */
    bool mutex_made;
    struct relayd_call *in_flight[IN_FLIGHT_MAX];
};

/* ---- messages out ---- */

static void push_message(struct attend_stream *s, Relay__V1__StreamResponse *response)
{
    relayd_rpc_outbox_push(&s->outbox, relay_wire_pack(&response->base));
}

/* Event of the session: any thread. */
static void on_ready(void *user)
{
    struct attend_stream *s = user;
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__Attached attached = RELAY__V1__ATTACHED__INIT;
    attached.plane = RELAY__V1__PLANE__PLANE_INLINE;
    attached.plane_reason = (char *)(uintptr_t)s->plane_reason;
    attached.calls_in_flight_max = s->info.calls_in_flight_max;
    attached.last_step_id = s->info.last_step_id;
    attached.server_epoch = s->base.rpc->epoch;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_ATTACHED;
    response.attached = &attached;
    push_message(s, &response);
}

/* Event of the session: any thread. */
static void on_lost(void *user, enum relay_code code, const char *why)
{
    struct attend_stream *s = user;
    struct relay_error err = {0};
    (void)RELAY_FAIL(&err, code, "%s", why);
    relayd_rpc_outbox_finish(&s->outbox, &err);
}

static void push_begun(struct attend_stream *s, uint64_t step_id, const struct relay_error *err,
                       const struct relayd_entry_errors *errors, uint64_t kv_tokens_free)
{
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__StepBegun begun = RELAY__V1__STEP_BEGUN__INIT;
    Relay__V1__EntryError entries[RELAYD_ENTRY_ERRORS_MAX];
    Relay__V1__EntryError *pointers[RELAYD_ENTRY_ERRORS_MAX];
    for (uint32_t i = 0; i < errors->n; i++) {
        relay__v1__entry_error__init(&entries[i]);
        entries[i].index = errors->e[i].index;
        entries[i].code = (uint32_t)errors->e[i].code;
        entries[i].message = (char *)(uintptr_t)errors->e[i].msg;
        pointers[i] = &entries[i];
    }
    begun.step_id = step_id;
    begun.code = (uint32_t)err->code;
    begun.n_errors = errors->n;
    begun.errors = pointers;
    begun.kv_tokens_free = kv_tokens_free;
    if (err->code != RELAY_OK) {
        begun.message = (char *)(uintptr_t)err->msg;
    }
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_BEGUN;
    response.begun = &begun;
    push_message(s, &response);
}

static grpc_byte_buffer *encode_refusal(uint64_t step_id, uint32_t layer, uint32_t row_begin,
                                        const struct relay_error *err)
{
    struct relay_wire_layer_result result = {
        .step_id = step_id,
        .layer = layer,
        .row_begin = row_begin,
        .code = err->code,
    };
    memcpy(result.message, err->msg, sizeof(result.message));
    return relay_wire_layer_result_encode(&result, grpc_empty_slice(), grpc_empty_slice());
}

/* ---- calls ---- */

static void track(struct attend_stream *s, struct relayd_call *old, struct relayd_call *new)
{
    pthread_mutex_lock(&s->mutex);
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++) {
        if (s->in_flight[i] == old) {
            s->in_flight[i] = new;
            break;
        }
    }
    pthread_mutex_unlock(&s->mutex);
}

/* On the executor's thread. */
static void done(struct relayd_call *slot)
{
    struct attend_stream *s = slot->user;
    grpc_byte_buffer *message;
    track(s, slot, NULL);
    if (slot->error.code != RELAY_OK) {
        message = encode_refusal(slot->step_id, slot->layer, slot->row_begin, &slot->error);
        relayd_slots_give(slot);
    } else {
        struct relay_wire_layer_result result = {
            .step_id = slot->step_id,
            .layer = slot->layer,
            .row_begin = slot->row_begin,
            .has_timings = slot->want_timings,
            .timings = relayd_rpc_slot_timings(slot),
        };
        grpc_slice lse, out;
        relayd_rpc_slot_slices(&s->base, slot, &lse, &out);
        message = relay_wire_layer_result_encode(&result, lse, out);
    }
    relayd_rpc_outbox_push_announced(&s->outbox, message);
    relayd_rpc_call_drop(&s->base);
}

static enum relay_code take_call(struct attend_stream *s, const struct relay_wire_view *view,
                                 const struct relay_wire_layer_call *request,
                                 struct relay_error *err)
{
    struct relayd_call *slot = NULL;
    const struct relayd_layer_call desc = {
        .step_id = request->step_id,
        .layer = request->layer,
        .row_begin = request->row_begin,
        .row_count = request->row_count,
        .q_bytes = request->q.length,
        .k_bytes = request->k.length,
        .v_bytes = request->v.length,
        .received_ns = relayd_clock_now_ns(s->base.rpc->opt.clock),
    };
    enum relay_code code = relayd_stream_call_begin(s->stream, &desc, &slot, err);
    if (code != RELAY_OK) {
        return code;
    }
    relayd_rpc_slot_gather(slot, view, request->q, request->k, request->v);
    track(s, NULL, slot);
    relayd_rpc_call_hold(&s->base);
    relayd_rpc_outbox_announce(&s->outbox);
    code = relayd_stream_call_submit(s->stream, slot, done, s, err);
    if (code != RELAY_OK) {
        track(s, slot, NULL);
        relayd_slots_give(slot);
        relayd_rpc_outbox_push_announced(&s->outbox, NULL);
        relayd_rpc_call_drop(&s->base);
    }
    return code;
}

/* ---- messages in: queue's thread. An error ends the stream ---- */

static void list(struct attend_stream *s);

static enum relay_code take_attach(struct attend_stream *s, const struct relay_wire_attach *attach,
                                   struct relay_error *err)
{
    const struct relayd_stream_events events = {on_ready, on_lost, s};
    if (s->stream != NULL) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "the stream is attached already");
    }
    if (attach->num_planes > 0 && attach->planes[0] != RELAY__V1__PLANE__PLANE_INLINE) {
        s->plane_reason = "this server has the inline plane only";
    }
    enum relay_code code =
        relayd_session_acquire(s->base.rpc->opt.sessions, relayd_rpc_tenant(&s->base),
                               attach->session, attach->session_bytes, &s->session, err);
    if (code != RELAY_OK) {
        return code;
    }
    relayd_rpc_call_hold(&s->base); /* until leave: events come while attached */
    code = relayd_stream_attach(s->session, &events, &s->info, &s->stream, err);
    if (code != RELAY_OK) {
        relayd_rpc_call_drop(&s->base);
        return code;
    }
    list(s);
    return RELAY_OK;
}

static void take_begin(struct attend_stream *s, const struct relay_wire_begin *begin)
{
    const uint64_t now_ns = relayd_clock_now_ns(s->base.rpc->opt.clock);
    struct relayd_entry_errors errors = {0};
    struct relay_error err = {0};
    const char *field = NULL;
    uint64_t kv_tokens_free = 0;
    const struct relayd_step_desc desc = {
        .step_id = begin->step_id,
        .part = begin->part,
        .sharing = begin->sharing,
        .want_lse = begin->want_lse,
        .want_timings = begin->want_timings,
        .deadline_ns =
            begin->timeout_us == 0 ? UINT64_MAX : now_ns + (uint64_t)begin->timeout_us * 1000,
        .align_ns = (uint64_t)begin->align_us * 1000,
        .handles = begin->entries.handles,
        .q_lens = begin->entries.num_q_lens == 0 ? NULL : begin->entries.q_lens,
        .positions = begin->entries.positions,
        .num_entries = begin->entries.num_handles,
    };
    err.code = relayd_rpc_check_entries(&begin->entries, &field, &err);
    if (err.code == RELAY_OK) {
        err.code = relayd_stream_begin(s->stream, &desc, &kv_tokens_free, &errors, &err);
    } else {
        relayd_stream_refuse(s->stream, begin->step_id, &err);
    }
    push_begun(s, begin->step_id, &err, &errors, kv_tokens_free);
}

static enum relay_code take(struct attend_stream *s, struct relay_error *err)
{
    const struct relay_wire_entry_storage *storage = NULL;
    struct relay_wire_view view;
    struct relay_wire_stream_request request;
    enum relay_code code = relayd_rpc_entry_storage(s->base.queue, &storage, err);
    if (code == RELAY_OK) {
        code = relay_wire_view_init(&view, s->base.message, err);
    }
    if (code == RELAY_OK) {
        code = relay_wire_stream_request_decode(&view, storage, &request, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    if (request.kind == RELAY_WIRE_STREAM_ATTACH) {
        return take_attach(s, &request.attach, err);
    }
    if (s->stream == NULL) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "a stream begins with Attach");
    }
    struct relay_error refused = {0};
    switch (request.kind) {
    case RELAY_WIRE_STREAM_BEGIN:
        take_begin(s, &request.begin);
        break;
    case RELAY_WIRE_STREAM_CALL:
        refused.code = take_call(s, &view, &request.call, &refused);
        if (refused.code != RELAY_OK) {
            relayd_rpc_outbox_push(&s->outbox,
                                   encode_refusal(request.call.step_id, request.call.layer,
                                                  request.call.row_begin, &refused));
        }
        break;
    case RELAY_WIRE_STREAM_END:
        relayd_stream_end_step(s->stream, request.end.step_id);
        break;
    case RELAY_WIRE_STREAM_ATTACH:
        break;
    }
    return RELAY_OK;
}

/* ---- reading and leaving: queue's thread ---- */

static void unlist(struct attend_stream *s);

/* Nothing more will be read: leaves the session. */
static void leave(struct attend_stream *s)
{
    s->over = true;
    if (s->stream == NULL) {
        return;
    }
    unlist(s);
    if (relayd_rpc_call_cancelled(&s->base)) { /* nobody waits for what has not been launched */
        pthread_mutex_lock(&s->mutex);
        for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++) {
            if (s->in_flight[i] != NULL) {
                atomic_store_explicit(&s->in_flight[i]->cancelled, true, memory_order_relaxed);
            }
        }
        pthread_mutex_unlock(&s->mutex);
    }
    relayd_stream_detach(s->stream);
    s->stream = NULL;
    relayd_rpc_call_drop(&s->base);
}

static void receive(struct attend_stream *s)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    if (s->over || s->receiving) {
        return;
    }
    if (s->base.message != NULL) {
        grpc_byte_buffer_destroy(s->base.message);
        s->base.message = NULL;
    }
    op.data.recv_message.recv_message = &s->base.message;
    s->receiving = true;
    if (!relayd_rpc_call_batch(&s->base, &op, 1, &s->received)) {
        s->receiving = false;
        relayd_rpc_outbox_abandon(&s->outbox);
        leave(s);
    }
}

static void received(struct relayd_rpc_tag *tag, bool ok)
{
    struct attend_stream *s = (struct attend_stream *)tag->call;
    struct relayd_rpc_call *call = &s->base;
    s->receiving = false;
    if (!ok ||
        call->message == NULL) { /* half-closed or gone: calls in flight are answered still */
        leave(s);
        relayd_rpc_outbox_finish(&s->outbox, NULL);
    } else if (!s->over) {
        struct relay_error err = {0};
        atomic_fetch_add_explicit(&call->rpc->bytes_received,
                                  grpc_byte_buffer_length(call->message), memory_order_relaxed);
        err.code = take(s, &err);
        if (err.code != RELAY_OK) {
            leave(s);
            relayd_rpc_outbox_finish(&s->outbox, &err);
        }
        receive(s);
    }
    relayd_rpc_call_drop(call);
}

static void start(struct relayd_rpc_call *call)
{
    struct attend_stream *s = (struct attend_stream *)call;
    if (!s->mutex_made) {
        pthread_mutex_init(&s->mutex, NULL);
        s->mutex_made = true;
    }
    relayd_rpc_tag_init(&s->received, call, received);
    relayd_rpc_outbox_init(&s->outbox, call);
    s->session = NULL;
    s->stream = NULL;
    s->plane_reason = "";
    s->receiving = false;
    s->over = false;
    memset(s->in_flight, 0, sizeof(s->in_flight));
    receive(s);
}

static void cancelled(struct relayd_rpc_call *call)
{
    struct attend_stream *s = (struct attend_stream *)call;
    relayd_rpc_outbox_abandon(&s->outbox);
    if (!s->receiving) { /* else the RECV comes back and leaves */
        leave(s);
    }
}

static void fini(struct relayd_rpc_call *call)
{
    struct attend_stream *s = (struct attend_stream *)call;
    relayd_rpc_outbox_fini(&s->outbox);
    relayd_session_release(s->session);
    s->session = NULL;
}

static void destroy(struct relayd_rpc_call *call)
{
    struct attend_stream *s = (struct attend_stream *)call;
    relayd_rpc_outbox_destroy(&s->outbox);
    if (s->mutex_made) {
        pthread_mutex_destroy(&s->mutex);
    }
}

/* ---- drain ---- */

void relayd_rpc_attend_streams_init(struct relayd_rpc_attend_streams *streams)
{
    pthread_mutex_init(&streams->mutex, NULL);
    streams->first = NULL;
    streams->draining = false;
}

void relayd_rpc_attend_streams_fini(struct relayd_rpc_attend_streams *streams)
{
    pthread_mutex_destroy(&streams->mutex);
}

/* Under the list's mutex. */
static void push_drain(struct attend_stream *s)
{
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__Drain drain = RELAY__V1__DRAIN__INIT;
    drain.deadline_ms = s->base.rpc->attend_streams.deadline_ms;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_DRAIN;
    response.drain = &drain;
    push_message(s, &response);
}

static void list(struct attend_stream *s)
{
    struct relayd_rpc_attend_streams *streams = &s->base.rpc->attend_streams;
    pthread_mutex_lock(&streams->mutex);
    s->listed = true;
    s->prev = NULL;
    s->next = streams->first;
    if (s->next != NULL) {
        s->next->prev = s;
    }
    streams->first = s;
    if (streams->draining) {
        push_drain(s);
    }
    pthread_mutex_unlock(&streams->mutex);
}

static void unlist(struct attend_stream *s)
{
    struct relayd_rpc_attend_streams *streams = &s->base.rpc->attend_streams;
    pthread_mutex_lock(&streams->mutex);
    if (s->listed) {
        s->listed = false;
        if (s->prev != NULL) {
            s->prev->next = s->next;
        } else {
            streams->first = s->next;
        }
        if (s->next != NULL) {
            s->next->prev = s->prev;
        }
    }
    pthread_mutex_unlock(&streams->mutex);
}

void relayd_rpc_attend_streams_drain(struct relayd_rpc_attend_streams *streams,
                                     uint32_t deadline_ms)
{
    pthread_mutex_lock(&streams->mutex);
    streams->draining = true;
    streams->deadline_ms = deadline_ms;
    for (struct attend_stream *s = streams->first; s != NULL; s = s->next) {
        push_drain(s);
    }
    pthread_mutex_unlock(&streams->mutex);
}

const struct relayd_rpc_method relayd_rpc_attend_stream_methods[] = {
    {
        .path = RELAYD_RPC_SERVICE "StreamRelayAttention",
        .posted = 4,
        .call_bytes = sizeof(struct attend_stream),
        .start = start,
        .cancelled = cancelled,
        .fini = fini,
        .destroy = destroy,
    },
    {.start = NULL},
};
