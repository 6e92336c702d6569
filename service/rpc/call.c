/* What every call does: counts, batches, the status at its end. Queue threads mostly; executor,
 * worker and gRPC's own threads drop counts and start batches too, one at a time per call. */
#include "service/rpc/call.h"
#include "service/base/log.h"
#include "service/rpc/server.h"

#include <grpc/support/time.h>
#include <proto/wire/status_details.h>
#include <stdio.h>
#include <string.h>

/* Advice with RESOURCE_EXHAUSTED and UNAVAILABLE: when to try again. */
#define RETRY_AFTER_MS 1000u

void relayd_rpc_tag_init(struct relayd_rpc_tag *tag, struct relayd_rpc_call *call,
                         relayd_rpc_event_fn on_event)
{
    tag->on_event = on_event;
    tag->call = call;
    atomic_init(&tag->published, 0);
}

void relayd_rpc_tag_publish(struct relayd_rpc_tag *tag)
{
    atomic_store_explicit(&tag->published, 1, memory_order_release);
}

/* ---- counts ---------------------------------------------------------------------------------- */

void relayd_rpc_call_hold(struct relayd_rpc_call *call)
{
    atomic_fetch_add_explicit(&call->ops, 1, memory_order_relaxed);
}

void relayd_rpc_call_ref(struct relayd_rpc_call *call)
{
    atomic_fetch_add_explicit(&call->refs, 1, memory_order_relaxed);
}

void relayd_rpc_call_drop(struct relayd_rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->ops, 1, memory_order_acq_rel) != 1) {
        return;
    }
    if (call->started && call->method->fini != NULL) {
        call->method->fini(call);
    }
    if (call->message != NULL) {
        grpc_byte_buffer_destroy(call->message);
        call->message = NULL;
    }
    if (call->has_trailer) {
        grpc_slice_unref(call->trailer.value);
        call->has_trailer = false;
    }
    if (call->has_status) {
        grpc_slice_unref(call->status_text);
        call->has_status = false;
    }
    grpc_metadata_array_destroy(&call->metadata);
    if (call->method->path == NULL) {
        grpc_call_details_destroy(&call->details);
    }
    if (call->call != NULL) {
        grpc_call_unref(call->call);
        call->call = NULL;
    }
    if (call->open) {
        bool failed = call->failed || relayd_rpc_call_cancelled(call);
        atomic_fetch_add_explicit(&call->rpc->calls_failed, failed, memory_order_relaxed);
        atomic_fetch_add_explicit(&call->rpc->calls_finished, 1, memory_order_relaxed);
    }
    relayd_rpc_call_unref(call);
}

void relayd_rpc_call_unref(struct relayd_rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->refs, 1, memory_order_acq_rel) == 1) {
        relayd_rpc_queue_recycle(call);
    }
}

/* ---- batches --------------------------------------------------------------------------------- */

bool relayd_rpc_call_batch(struct relayd_rpc_call *call, const grpc_op *ops, size_t num_ops,
                           struct relayd_rpc_tag *tag)
{
    relayd_rpc_call_hold(call);
    relayd_rpc_tag_publish(tag);
    grpc_call_error error = grpc_call_start_batch(call->call, ops, num_ops, tag, NULL);
    if (error == GRPC_CALL_OK) {
        return true;
    }
    RELAYD_LOG(ERROR, "rpc.batch_refused", "error=%d first_op=%d ops=%zu", (int)error,
               num_ops > 0 ? (int)ops[0].op : -1, num_ops);
    grpc_call_cancel_with_status(call->call, GRPC_STATUS_INTERNAL, "the batch was refused", NULL);
    call->failed = true;
    relayd_rpc_call_drop(call);
    return false;
}

static grpc_slice encode_detail(const struct relay_error *error,
                                const struct relayd_rpc_detail *detail)
{
    Relay__V1__ErrorDetail message;
    Relay__V1__EntryError entries[RELAYD_ENTRY_ERRORS_MAX];
    Relay__V1__EntryError *pointers[RELAYD_ENTRY_ERRORS_MAX];

    relay__v1__error_detail__init(&message);
    if (detail != NULL) {
        message.field = detail->field != NULL ? (char *)detail->field : message.field;
        message.expected = (char *)detail->expected;
        message.got = (char *)detail->got;
        for (uint32_t i = 0; i < detail->entries.n; i++) {
            relay__v1__entry_error__init(&entries[i]);
            entries[i].index = detail->entries.e[i].index;
            entries[i].code = (uint32_t)detail->entries.e[i].code;
            entries[i].message = (char *)detail->entries.e[i].msg;
            pointers[i] = &entries[i];
        }
        message.n_entries = detail->entries.n;
        message.entries = pointers;
    }
    if (error->code == RELAY_RESOURCE_EXHAUSTED || error->code == RELAY_UNAVAILABLE) {
        message.retry_after_ms = RETRY_AFTER_MS;
    }
    return relay_wire_status_details_encode(error->code, error->msg, &message);
}

grpc_op relayd_rpc_op_status(struct relayd_rpc_call *call, const struct relay_error *error,
                             const struct relayd_rpc_detail *detail)
{
    grpc_op op = {.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
    if (error == NULL || error->code == RELAY_OK) {
        op.data.send_status_from_server.status = GRPC_STATUS_OK;
        return op;
    }
    call->failed = true;
    call->has_status = true;
    call->status_text = grpc_slice_from_copied_string(error->msg);
    op.data.send_status_from_server.status = (grpc_status_code)error->code;
    op.data.send_status_from_server.status_details = &call->status_text;

    call->has_trailer = true;
    call->trailer = (grpc_metadata){0};
    call->trailer.key = grpc_slice_from_static_string(RELAY_WIRE_STATUS_DETAILS_KEY);
    call->trailer.value = encode_detail(error, detail);
    if (GRPC_SLICE_LENGTH(call->trailer.value) > 0) {
        op.data.send_status_from_server.trailing_metadata = &call->trailer;
        op.data.send_status_from_server.trailing_metadata_count = 1;
    }
    return op;
}

grpc_op relayd_rpc_op_message(struct relayd_rpc_call *call, grpc_byte_buffer *message)
{
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = message;
    atomic_fetch_add_explicit(&call->rpc->bytes_sent, grpc_byte_buffer_length(message),
                              memory_order_relaxed);
    return op;
}

void relayd_rpc_call_answer(struct relayd_rpc_call *call, grpc_byte_buffer *message,
                            const struct relay_error *error, const struct relayd_rpc_detail *detail,
                            struct relayd_rpc_tag *tag)
{
    grpc_op ops[3];
    size_t n = 0;
    ops[n++] = relayd_rpc_op_headers();
    if (message != NULL && (error == NULL || error->code == RELAY_OK)) {
        ops[n++] = relayd_rpc_op_message(call, message);
    }
    ops[n++] = relayd_rpc_op_status(call, error, detail);
    (void)relayd_rpc_call_batch(call, ops, n, tag);
    if (message != NULL) {
        grpc_byte_buffer_destroy(message);
    }
}

/* ---- what the call brought --------------------------------------------------------------------
 */

const char *relayd_rpc_tenant(const struct relayd_rpc_call *call)
{
    (void)call; /* credentials carry no identity yet: everybody is the one tenant */
    return "";
}

uint64_t relayd_rpc_deadline_ns(const struct relayd_rpc_call *call)
{
    gpr_timespec deadline = gpr_convert_clock_type(call->deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) {
        return UINT64_MAX;
    }
    /* Relative, because the service's clock need not be gRPC's. */
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
    uint64_t now_ns = relayd_clock_now_ns(call->rpc->opt.clock);
    if (left.tv_sec < 0) {
        return now_ns;
    }
    if (left.tv_sec > INT32_MAX) {
        return UINT64_MAX;
    }
    return now_ns + (uint64_t)left.tv_sec * 1000000000u + (uint64_t)left.tv_nsec;
}
