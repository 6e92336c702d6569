/* BatchedRelayAttention, the hot path: queue's thread -> executor -> the thread that sends.
 *
 * The head is parsed in place, tensors are copied once, straight into the call's slot, and the
 * answer is sent out of the slot without a copy; the slot goes back when gRPC has read it. Nothing
 * here allocates once a call object has been used before, beyond what gRPC does for itself. */
#include "service/rpc/slot.h"
#include "service/rpc/unary.h"

struct attend_call {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag answered;
    struct relayd_rpc_detail detail;
    struct relayd_session *session; /* until the end: the slot borrows its tenant and model */

    pthread_mutex_t mutex; /* guards in_flight: it is the executor's or gRPC's soon after */
    bool mutex_made;
    struct relayd_call *in_flight;
};

static void answered(struct relayd_rpc_tag *tag, bool ok)
{
    (void)ok; /* a client that is gone */
    relayd_rpc_call_drop(tag->call);
}

static void refuse(struct attend_call *attend, const struct relay_error *err)
{
    if (attend->detail.entries.n > 0 && attend->detail.field == NULL) {
        attend->detail.field = "handles";
    }
    relayd_rpc_call_answer(&attend->base, NULL, err, &attend->detail, &attend->answered);
}

/* ---- the answer: executor's thread ------------------------------------------------------------
 */

static void answer(struct attend_call *attend, struct relayd_call *slot)
{
    struct relay_wire_attend_response response = {
        .step_id = slot->step_id,
        .layer = slot->layer,
        .has_timings = slot->want_timings,
        .timings = relayd_rpc_slot_timings(slot),
    };
    grpc_slice lse, out;
    relayd_rpc_slot_slices(&attend->base, slot, &lse, &out);
    relayd_rpc_call_answer(&attend->base, relay_wire_attend_response_encode(&response, lse, out),
                           NULL, NULL, &attend->answered);
}

static void done(struct relayd_call *slot)
{
    struct attend_call *attend = slot->user;
    pthread_mutex_lock(&attend->mutex);
    attend->in_flight = NULL;
    pthread_mutex_unlock(&attend->mutex);
    if (slot->error.code == RELAY_OK) {
        answer(attend, slot);
    } else {
        struct relay_error err = slot->error;
        relayd_slots_give(slot);
        refuse(attend, &err);
    }
    relayd_rpc_call_drop(&attend->base);
}

/* ---- the request: queue's thread ---------------------------------------------------------------
 */

/* Takes a slot and fills it; hands it over. On failure no slot is held. */
static enum relay_code submit(struct attend_call *attend, const struct relay_wire_view *view,
                              const struct relay_wire_attend_request *request,
                              struct relay_error *err)
{
    const struct relay_wire_entries *entries = &request->entries;
    struct relayd_call *slot = NULL;
    struct relayd_call_desc desc = {
        .step_id = request->step_id,
        .layer = request->layer,
        .part = request->part,
        .sharing = request->sharing,
        .want_lse = request->want_lse,
        .want_timings = request->want_timings,
        .handles = entries->handles,
        .q_lens = entries->num_q_lens == 0 ? NULL : entries->q_lens,
        .positions = entries->positions,
        .num_entries = entries->num_handles,
        .q_bytes = request->q.length,
        .k_bytes = request->k.length,
        .v_bytes = request->v.length,
        .received_ns = attend->base.received_ns,
        .deadline_ns = relayd_rpc_deadline_ns(&attend->base),
    };
    enum relay_code code = relayd_session_call_begin(attend->session, &desc, &slot, err);
    if (code != RELAY_OK) {
        return code;
    }
    relayd_rpc_slot_gather(slot, view, request->q, request->k, request->v);
    /* Before the hand-over: afterwards the call may be over at any time. */
    grpc_byte_buffer_destroy(attend->base.message);
    attend->base.message = NULL;
    pthread_mutex_lock(&attend->mutex);
    attend->in_flight = slot;
    pthread_mutex_unlock(&attend->mutex);
    relayd_rpc_call_hold(&attend->base);
    code = relayd_session_call_submit(attend->session, slot, entries->handles, done, attend,
                                      &attend->detail.entries, err);
    if (code != RELAY_OK) {
        pthread_mutex_lock(&attend->mutex);
        attend->in_flight = NULL;
        pthread_mutex_unlock(&attend->mutex);
        relayd_slots_give(slot);
        relayd_rpc_call_drop(&attend->base);
    }
    return code;
}

static enum relay_code take(struct attend_call *attend, struct relay_error *err)
{
    struct relayd_rpc_call *call = &attend->base;
    const struct relay_wire_entry_storage *storage = NULL;
    struct relay_wire_view view;
    struct relay_wire_attend_request request;
    enum relay_code code = relayd_rpc_entry_storage(call->queue, &storage, err);
    if (code == RELAY_OK) {
        code = relay_wire_view_init(&view, call->message, err);
    }
    if (code == RELAY_OK) {
        code = relay_wire_attend_request_decode(&view, storage, &request, err);
    }
    if (code == RELAY_OK) {
        code = relayd_rpc_check_entries(&request.entries, &attend->detail.field, err);
    }
    if (code == RELAY_OK) {
        code =
            relayd_session_acquire(call->rpc->opt.sessions, relayd_rpc_tenant(call),
                                   request.session, request.session_bytes, &attend->session, err);
    }
    if (code == RELAY_OK) {
        code = submit(attend, &view, &request, err);
    }
    return code;
}

static void start(struct relayd_rpc_call *call)
{
    struct attend_call *attend = (struct attend_call *)call;
    struct relay_error err = {0};
    if (!attend->mutex_made) {
        pthread_mutex_init(&attend->mutex, NULL);
        attend->mutex_made = true;
    }
    relayd_rpc_tag_init(&attend->answered, call, answered);
    attend->in_flight = NULL;
    attend->session = NULL;
    relayd_rpc_detail_clear(&attend->detail);
    err.code = take(attend, &err);
    if (err.code != RELAY_OK) {
        refuse(attend, &err);
    }
}

static void cancelled(struct relayd_rpc_call *call)
{
    struct attend_call *attend = (struct attend_call *)call;
    pthread_mutex_lock(&attend->mutex);
    if (attend->in_flight != NULL) {
        atomic_store_explicit(&attend->in_flight->cancelled, true, memory_order_relaxed);
    }
    pthread_mutex_unlock(&attend->mutex);
}

static void fini(struct relayd_rpc_call *call)
{
    relayd_session_release(((struct attend_call *)call)->session);
}

static void destroy(struct relayd_rpc_call *call)
{
    struct attend_call *attend = (struct attend_call *)call;
    if (attend->mutex_made) {
        pthread_mutex_destroy(&attend->mutex);
    }
}

const struct relayd_rpc_method relayd_rpc_attend_methods[] = {
    {
        .path = RELAYD_RPC_SERVICE "BatchedRelayAttention",
        .reads_first = true,
        .posted = 8,
        .call_bytes = sizeof(struct attend_call),
        .start = start,
        .cancelled = cancelled,
        .fini = fini,
        .destroy = destroy,
    },
    {.start = NULL},
};
