/* Slots in and out of the wire. Decoding and gathering on the queue's thread, slices on the
 * executor's; what they point to is read by whichever thread drives gRPC. */
#include "service/rpc/slot.h"

#include <stdlib.h>

/* ---- in ---- */

enum relay_code relayd_rpc_entry_storage(struct relayd_rpc_queue *queue,
                                         const struct relay_wire_entry_storage **out,
                                         struct relay_error *err)
{
    struct relay_wire_entry_storage *storage = &queue->entries;
    if (storage->handles == NULL) {
        size_t n = relayd_sessions_limits(queue->rpc->opt.sessions)->rows_max;
        storage->handles = reallocarray(NULL, n, sizeof(uint64_t) + 2 * sizeof(uint32_t));
        if (storage->handles == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a call");
        }
        storage->q_lens = (uint32_t *)(storage->handles + n);
        storage->positions = storage->q_lens + n;
        storage->entries_max = (uint32_t)n;
    }
    *out = storage;
    return RELAY_OK;
}

enum relay_code relayd_rpc_check_entries(const struct relay_wire_entries *entries,
                                         const char **field, struct relay_error *err)
{
    if (entries->num_q_lens != 0 && entries->num_q_lens != entries->num_handles) {
        *field = "q_lens";
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "q_lens: expected %u values, got %u",
                          entries->num_handles, entries->num_q_lens);
    }
    if (entries->num_positions != entries->num_handles) {
        *field = "positions";
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "positions: expected %u values, got %u",
                          entries->num_handles, entries->num_positions);
    }
    return RELAY_OK;
}

void relayd_rpc_slot_gather(struct relayd_call *slot, const struct relay_wire_view *view,
                            struct relay_wire_span q, struct relay_wire_span k,
                            struct relay_wire_span v)
{
    relay_wire_gather(view, q, (void *)(uintptr_t)slot->io.q);
    if (k.length > 0) {
        relay_wire_gather(view, k, (void *)(uintptr_t)slot->io.k);
    }
    if (v.length > 0) {
        relay_wire_gather(view, v, (void *)(uintptr_t)slot->io.v);
    }
}

/* ---- out ---- */

/* A slice of the slot has been read. Any thread. */
static void slice_read(void *user)
{
    struct relayd_call *slot = user;
    /* gRPC hands the slot from thread to thread, which nobody else can see: pairs with the release
     * in relayd_rpc_slot_slices. The reader is read before the slot may be another call's. */
    (void)atomic_load_explicit(&slot->readers, memory_order_acquire);
    struct relayd_rpc_call *call = slot->reader;
    if (atomic_fetch_sub_explicit(&slot->readers, 1, memory_order_acq_rel) == 1) {
        relayd_slots_give(slot);
    }
    relayd_rpc_call_unref(call);
}

static grpc_slice slot_slice(struct relayd_rpc_call *call, struct relayd_call *slot,
                             const void *data, size_t bytes)
{
    relayd_rpc_call_ref(call);
    return relay_wire_slice(data, bytes, slice_read, slot);
}

void relayd_rpc_slot_slices(struct relayd_rpc_call *call, struct relayd_call *slot, grpc_slice *lse,
                            grpc_slice *out)
{
    const struct relay_layer_kind *kind =
        relay_model_kind(relayd_model_spec(slot->model), slot->layer);
    size_t heads = (size_t)slot->rows * kind->num_q_heads;
    size_t lse_bytes = slot->want_lse ? heads * sizeof(float) : 0;
    size_t out_bytes = heads * kind->head_dim_v * relay_dtype_size(slot->out_dtype);
    const void *lse_data = slot->want_lse ? slot->io.lse : NULL;
    const void *out_data = slot->io.out;
    /* Both are counted first: a short one is copied and read at once. */
    slot->reader = call;
    atomic_store_explicit(&slot->readers, 2, memory_order_release);
    *lse = slot_slice(call, slot, lse_data, lse_bytes);
    *out = slot_slice(call, slot, out_data, out_bytes);
}

struct relay_wire_timings relayd_rpc_slot_timings(const struct relayd_call *slot)
{
    return (struct relay_wire_timings){
        .queue_us = slot->timings.queue_us,
        .plan_us = slot->timings.plan_us,
        .compute_us = slot->timings.compute_us,
        .batch_rows = slot->timings.batch_rows,
        .batch_sessions = slot->timings.batch_sessions,
        .prompt_bytes = slot->timings.prompt_bytes,
        .kv_bytes = slot->timings.kv_bytes,
    };
}
