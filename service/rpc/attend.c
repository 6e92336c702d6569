/* BatchedRelayAttention, the hot path: queue's thread -> executor -> the thread that sends.
 *
 * The head is parsed in place, tensors are copied once, straight into the call's slot, and the
 * answer is sent out of the slot without a copy; the slot goes back when gRPC has read it. Nothing
 * here allocates once a call object has been used before, beyond what gRPC does for itself. */
#include "service/rpc/server.h"
#include "service/rpc/unary.h"

#include <proto/wire/attend.h>
#include <stdlib.h>

struct attend_call {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag answered;
    struct relayd_rpc_detail detail;
    struct relay_wire_entry_storage storage; /* kept from use to use */

    pthread_mutex_t mutex; /* guards in_flight: it is the executor's or gRPC's soon after */
    bool mutex_made;
    struct relayd_call *in_flight;

    struct relayd_call *slot; /* being sent */
    atomic_uint slices;       /* of the slot that gRPC still reads */
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

/* A slice of the slot has been read. Any thread. */
static void slice_read(void *user)
{
    struct attend_call *attend = user;
    if (atomic_fetch_sub_explicit(&attend->slices, 1, memory_order_acq_rel) == 1) {
        relayd_slots_give(attend->slot);
    }
    relayd_rpc_call_unref(&attend->base);
}

static grpc_slice slot_slice(struct attend_call *attend, const void *data, size_t bytes)
{
    relayd_rpc_call_ref(&attend->base);
    return relay_wire_slice(data, bytes, slice_read, attend);
}

static void answer(struct attend_call *attend, struct relayd_call *slot)
{
    const struct relay_layer_kind *kind =
        relay_model_kind(relayd_model_spec(slot->model), slot->layer);
    size_t heads = (size_t)slot->rows * kind->num_q_heads;
    struct relay_wire_attend_response response = {
        .step_id = slot->step_id,
        .layer = slot->layer,
        .has_timings = slot->want_timings,
        .timings =
            {
                .queue_us = slot->timings.queue_us,
                .plan_us = slot->timings.plan_us,
                .compute_us = slot->timings.compute_us,
                .batch_rows = slot->timings.batch_rows,
                .batch_sessions = slot->timings.batch_sessions,
                .prompt_bytes = slot->timings.prompt_bytes,
                .kv_bytes = slot->timings.kv_bytes,
            },
    };
    const void *lse = slot->want_lse ? slot->io.lse : NULL;
    const void *out = slot->io.out;
    size_t lse_bytes = slot->want_lse ? heads * sizeof(float) : 0;
    size_t out_bytes = heads * kind->head_dim_v * relay_dtype_size(slot->out_dtype);

    /* Both slices are counted first: a short one is copied and read at once. */
    attend->slot = slot;
    atomic_store_explicit(&attend->slices, 2, memory_order_release);
    grpc_slice lse_slice = slot_slice(attend, lse, lse_bytes);
    grpc_slice out_slice = slot_slice(attend, out, out_bytes);
    relayd_rpc_call_answer(&attend->base,
                           relay_wire_attend_response_encode(&response, lse_slice, out_slice), NULL,
                           NULL, &attend->answered);
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

static enum relay_code storage_alloc(struct attend_call *attend, struct relay_error *err)
{
    struct relay_wire_entry_storage *storage = &attend->storage;
    size_t n = relayd_sessions_limits(attend->base.rpc->opt.sessions)->rows_max;
    if (storage->handles != NULL) {
        return RELAY_OK;
    }
    storage->handles = reallocarray(NULL, n, sizeof(uint64_t) + 2 * sizeof(uint32_t));
    if (storage->handles == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a call");
    }
    storage->q_lens = (uint32_t *)(storage->handles + n);
    storage->positions = storage->q_lens + n;
    storage->entries_max = (uint32_t)n;
    return RELAY_OK;
}

static enum relay_code check_counts(struct attend_call *attend,
                                    const struct relay_wire_entries *entries,
                                    struct relay_error *err)
{
    if (entries->num_q_lens != 0 && entries->num_q_lens != entries->num_handles) {
        attend->detail.field = "q_lens";
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "q_lens: expected %u values, got %u",
                          entries->num_handles, entries->num_q_lens);
    }
    if (entries->num_positions != entries->num_handles) {
        attend->detail.field = "positions";
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "positions: expected %u values, got %u",
                          entries->num_handles, entries->num_positions);
    }
    return RELAY_OK;
}

static void gather(struct relayd_call *slot, const struct relay_wire_view *view,
                   const struct relay_wire_attend_request *request)
{
    relay_wire_gather(view, request->q, (void *)slot->io.q);
    if (request->k.length > 0) {
        relay_wire_gather(view, request->k, (void *)slot->io.k);
    }
    if (request->v.length > 0) {
        relay_wire_gather(view, request->v, (void *)slot->io.v);
    }
}

/* Takes a slot and fills it; hands it over. On failure no slot is held. */
static enum relay_code submit(struct attend_call *attend, struct relayd_session *session,
                              const struct relay_wire_view *view,
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
    enum relay_code code = relayd_session_call_begin(session, &desc, &slot, err);
    if (code != RELAY_OK) {
        return code;
    }
    gather(slot, view, request);
    /* Before the hand-over: afterwards the call may be over at any time. */
    grpc_byte_buffer_destroy(attend->base.message);
    attend->base.message = NULL;
    pthread_mutex_lock(&attend->mutex);
    attend->in_flight = slot;
    pthread_mutex_unlock(&attend->mutex);
    relayd_rpc_call_hold(&attend->base);
    code = relayd_session_call_submit(session, slot, entries->handles, done, attend,
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
    struct relay_wire_view view;
    struct relay_wire_attend_request request;
    struct relayd_session *session = NULL;
    enum relay_code code = storage_alloc(attend, err);
    if (code == RELAY_OK) {
        code = relay_wire_view_init(&view, call->message, err);
    }
    if (code == RELAY_OK) {
        code = relay_wire_attend_request_decode(&view, &attend->storage, &request, err);
    }
    if (code == RELAY_OK) {
        code = check_counts(attend, &request.entries, err);
    }
    if (code == RELAY_OK) {
        code = relayd_session_acquire(call->rpc->opt.sessions, relayd_rpc_tenant(call),
                                      request.session, request.session_bytes, &session, err);
    }
    if (code == RELAY_OK) {
        code = submit(attend, session, &view, &request, err);
    }
    relayd_session_release(session);
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
    attend->detail.field = NULL;
    attend->detail.expected[0] = '\0';
    attend->detail.got[0] = '\0';
    attend->detail.entries.n = 0;
    attend->detail.entries.total = 0;
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

static void destroy(struct relayd_rpc_call *call)
{
    struct attend_call *attend = (struct attend_call *)call;
    free(attend->storage.handles);
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
        .destroy = destroy,
    },
    {.start = NULL},
};
