#include "e2e/faults_peer.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVICE "/relay.v1.RelayAttention/"

void faults_peer_open(struct faults_peer *peer, const char *target)
{
    grpc_init();
    /* A pool of its own: peers of one process are connections of their own. */
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL},
        {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH},
        {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)GRPC_ARG_ENABLE_RETRIES},
    };
    args[0].value.integer = 1;
    args[1].value.integer = -1;
    args[2].value.integer = 0;
    const grpc_channel_args all = {sizeof(args) / sizeof(args[0]), args};
    grpc_channel_credentials *insecure = grpc_insecure_credentials_create();
    peer->channel = grpc_channel_create(target, insecure, &all);
    grpc_channel_credentials_release(insecure);
    peer->queue = grpc_completion_queue_create_for_pluck(NULL);
}

void faults_peer_close(struct faults_peer *peer)
{
    if (peer->channel == NULL) {
        return;
    }
    grpc_channel_destroy(peer->channel);
    grpc_completion_queue_shutdown(peer->queue);
    while (grpc_completion_queue_pluck(peer->queue, NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL)
               .type != GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(peer->queue);
    grpc_shutdown();
    memset(peer, 0, sizeof(*peer));
}

/* ---- calls ---- */

enum { TAG_START, TAG_SEND, TAG_RECEIVE, TAG_STATUS, NUM_TAGS };

struct faults_call {
    struct faults_peer *peer;
    grpc_call *call;
    bool pending[NUM_TAGS]; /* a tag is the address of its flag */
    bool over;              /* a send failed or the other side has ended */
    grpc_byte_buffer *sending, *received;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice text;
};

/* Starts a batch under a tag. Refusal by gRPC is a mistake in the test. */
static void start(struct faults_call *call, const grpc_op *ops, size_t n, int tag)
{
    const grpc_call_error error =
        grpc_call_start_batch(call->call, ops, n, &call->pending[tag], NULL);
    if (error != GRPC_CALL_OK) {
        fprintf(stderr, "grpc_call_start_batch: %s\n", grpc_call_error_to_string(error));
        abort();
    }
    call->pending[tag] = true;
}

/* Waits for a tag. False: not in time. *ok: what gRPC said of the batch. */
static bool pluck(struct faults_call *call, int tag, uint32_t timeout_ms, bool *ok)
{
    const gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    const grpc_event event =
        grpc_completion_queue_pluck(call->peer->queue, &call->pending[tag], deadline, NULL);
    if (event.type != GRPC_OP_COMPLETE) {
        return false;
    }
    call->pending[tag] = false;
    *ok = event.success != 0;
    return true;
}

struct faults_call *faults_call_open(struct faults_peer *peer, const char *method)
{
    struct faults_call *call = calloc(1, sizeof(*call));
    char path[128];
    snprintf(path, sizeof(path), "%s%s", method[0] == '/' ? "" : SERVICE, method);
    if (call == NULL) {
        abort();
    }
    call->peer = peer;
    call->text = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    grpc_slice slice = grpc_slice_from_copied_string(path);
    call->call = grpc_channel_create_call(peer->channel, NULL, GRPC_PROPAGATE_DEFAULTS, peer->queue,
                                          slice, NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_slice_unref(slice);
    const grpc_op first[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &call->initial},
    };
    const grpc_op last = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                          .data.recv_status_on_client = {.trailing_metadata = &call->trailing,
                                                         .status = &call->status,
                                                         .status_details = &call->text}};
    start(call, first, 2, TAG_START);
    start(call, &last, 1, TAG_STATUS);
    return call;
}

void faults_call_close(struct faults_call *call)
{
    bool ok;
    if (call == NULL) {
        return;
    }
    if (call->pending[TAG_STATUS]) {
        grpc_call_cancel(call->call, NULL);
    }
    for (int tag = 0; tag < NUM_TAGS; tag++) {
        while (call->pending[tag] && !pluck(call, tag, FAULTS_TIMEOUT_MS, &ok)) {
        }
    }
    grpc_call_unref(call->call);
    grpc_byte_buffer_destroy(call->sending);
    grpc_byte_buffer_destroy(call->received);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->text);
    free(call);
}

/* Waits for a send that is on its way. */
static bool sent(struct faults_call *call, uint32_t timeout_ms)
{
    bool ok = true;
    if (call->pending[TAG_SEND]) {
        if (!pluck(call, TAG_SEND, timeout_ms, &ok)) {
            return false;
        }
        grpc_byte_buffer_destroy(call->sending);
        call->sending = NULL;
        call->over = call->over || !ok;
    }
    return !call->over;
}

bool faults_call_send(struct faults_call *call, grpc_byte_buffer *message, uint32_t timeout_ms)
{
    if (!sent(call, timeout_ms)) {
        grpc_byte_buffer_destroy(message);
        return false;
    }
    const grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    call->sending = message;
    start(call, &op, 1, TAG_SEND);
    return sent(call, timeout_ms);
}

bool faults_call_half_close(struct faults_call *call)
{
    const grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    if (!sent(call, FAULTS_TIMEOUT_MS)) {
        return false;
    }
    start(call, &op, 1, TAG_SEND);
    return sent(call, FAULTS_TIMEOUT_MS);
}

enum faults_event faults_call_receive(struct faults_call *call, uint32_t timeout_ms,
                                      grpc_byte_buffer **message)
{
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE,
                        .data.recv_message.recv_message = &call->received};
    bool ok;
    if (!call->pending[TAG_RECEIVE]) {
        start(call, &op, 1, TAG_RECEIVE);
    }
    if (!pluck(call, TAG_RECEIVE, timeout_ms, &ok)) {
        return FAULTS_SILENCE;
    }
    if (!ok || call->received == NULL) {
        call->over = true;
        return FAULTS_END;
    }
    *message = call->received;
    call->received = NULL;
    return FAULTS_MESSAGE;
}

enum relay_code faults_call_status(struct faults_call *call, struct relay_error *err)
{
    bool ok;
    if (call->pending[TAG_STATUS] && !pluck(call, TAG_STATUS, FAULTS_TIMEOUT_MS, &ok)) {
        return RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "the call does not end");
    }
    char *text = grpc_slice_to_c_string(call->text);
    const enum relay_code code = (enum relay_code)call->status;
    (void)RELAY_FAIL(err, code, "%.200s", text);
    gpr_free(text);
    return code;
}

/* ---- unary ---- */

enum relay_code faults_unary_bytes(struct faults_peer *peer, const char *method,
                                   grpc_byte_buffer *request, uint32_t timeout_ms,
                                   grpc_byte_buffer **response, struct relay_error *err)
{
    struct faults_call *call = faults_call_open(peer, method);
    grpc_byte_buffer *message = NULL;
    enum relay_code code;
    (void)(faults_call_send(call, request, timeout_ms) && faults_call_half_close(call));
    if (faults_call_receive(call, timeout_ms, &message) == FAULTS_SILENCE) {
        code = RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "%s: no answer", method);
    } else {
        code = faults_call_status(call, err);
    }
    if (code == RELAY_OK && message == NULL) {
        code = RELAY_FAIL(err, RELAY_INTERNAL, "%s: no message", method);
    }
    faults_call_close(call);
    if (code != RELAY_OK) {
        grpc_byte_buffer_destroy(message);
        return code;
    }
    *response = message;
    return RELAY_OK;
}

ProtobufCMessage *faults_unpack(grpc_byte_buffer *buffer,
                                const ProtobufCMessageDescriptor *descriptor)
{
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) {
        return NULL;
    }
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, NULL, GRPC_SLICE_LENGTH(all),
                                                          GRPC_SLICE_START_PTR(all));
    grpc_slice_unref(all);
    return message;
}

enum relay_code faults_unary(struct faults_peer *peer, const char *method,
                             const ProtobufCMessage *request,
                             const ProtobufCMessageDescriptor *descriptor,
                             ProtobufCMessage **response, struct relay_error *err)
{
    grpc_byte_buffer *bytes = NULL;
    enum relay_code code =
        faults_unary_bytes(peer, method, relay_wire_pack(request), FAULTS_TIMEOUT_MS, &bytes, err);
    if (code == RELAY_OK && response != NULL) {
        *response = faults_unpack(bytes, descriptor);
        if (*response == NULL) {
            code = RELAY_FAIL(err, RELAY_INTERNAL, "%s: the answer does not parse", method);
        }
    }
    grpc_byte_buffer_destroy(bytes);
    return code;
}
