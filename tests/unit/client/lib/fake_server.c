#include "unit/client/lib/fake_server.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <proto/wire/stream.h>
#include <proto/wire/unpack.h>
#include <pthread.h>
#include <relay/v1/relay.pb-c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWERS_MAX 64u

struct fake_server {
    grpc_server *server;
    grpc_completion_queue *cq;
    pthread_t thread;
    char target[32];
    atomic_int behaviour;
    atomic_uint streams, calls, ends, half_closes, out_bytes;
    uint8_t zeros[65536];
    /* The thread's: a queue that is shut down takes no more batches, so calls end before it does.
     */
    uint32_t live; /* calls */
    bool stopped;  /* gRPC's server has */
};

/* One RPC: at most one tag of each kind is out. */
struct fake_call {
    struct fake_server *server;
    struct fake_tag {
        void (*on)(struct fake_call *call, bool ok);
        struct fake_call *call;
    } arrived, received, sent, closed;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *message;
    int cancelled;
    uint32_t pending;
    bool stream, sending, over, drained;
    enum fake_behaviour behaviour;
    grpc_byte_buffer *answers[ANSWERS_MAX];
    uint32_t first, count;
    grpc_status_code status;
    bool finishing;
};

static void batch(struct fake_call *c, const grpc_op *ops, size_t n, struct fake_tag *tag)
{
    if (grpc_call_start_batch(c->call, ops, n, tag, NULL) == GRPC_CALL_OK) {
        c->pending++;
    }
}

static void receive(struct fake_call *c)
{
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->message};
    batch(c, &op, 1, &c->received);
}

/* Sends what waits, then the status. */
static void pump(struct fake_call *c)
{
    grpc_op ops[2];
    size_t n = 0;
    if (c->sending || c->over || (c->count == 0 && !c->finishing)) {
        return;
    }
    grpc_byte_buffer *message = NULL;
    if (c->count > 0) {
        message = c->answers[c->first++ % ANSWERS_MAX];
        c->count--;
        ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    } else {
        ops[n] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
        ops[n++].data.send_status_from_server.status = c->status;
        c->over = true;
    }
    c->sending = true;
    batch(c, ops, n, &c->sent);
    if (message != NULL) {
        grpc_byte_buffer_destroy(message);
    }
}

static void push(struct fake_call *c, grpc_byte_buffer *message)
{
    c->answers[(c->first + c->count++) % ANSWERS_MAX] = message;
    pump(c);
}

static void finish(struct fake_call *c, grpc_status_code status)
{
    c->finishing = true;
    c->status = status;
    pump(c);
}

/* ---- the stream ---- */

static void push_response(struct fake_call *c, Relay__V1__StreamResponse *response)
{
    push(c, relay_wire_pack(&response->base));
}

static void push_attached(struct fake_call *c)
{
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__Attached attached = RELAY__V1__ATTACHED__INIT;
    attached.calls_in_flight_max = 8;
    attached.server_epoch = c->behaviour == FAKE_OTHER_EPOCH ? FAKE_EPOCH + 1 : FAKE_EPOCH;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_ATTACHED;
    response.attached = &attached;
    push_response(c, &response);
}

static void push_begun(struct fake_call *c, uint64_t step_id)
{
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__StepBegun begun = RELAY__V1__STEP_BEGUN__INIT;
    begun.step_id = step_id;
    begun.kv_tokens_free = 1000;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_BEGUN;
    response.begun = &begun;
    push_response(c, &response);
}

static void push_drain(struct fake_call *c)
{
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    Relay__V1__Drain drain = RELAY__V1__DRAIN__INIT;
    drain.deadline_ms = 1000;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_DRAIN;
    response.drain = &drain;
    push_response(c, &response);
}

static void push_result(struct fake_call *c, const struct relay_wire_layer_call *request,
                        uint32_t bytes)
{
    const struct relay_wire_layer_result result = {.step_id = request->step_id,
                                                   .layer = request->layer,
                                                   .row_begin = request->row_begin,
                                                   .has_timings = true,
                                                   .timings = {.compute_us = 5, .batch_rows = 1}};
    push(c, relay_wire_layer_result_encode(
                &result, grpc_empty_slice(),
                grpc_slice_from_copied_buffer((const char *)c->server->zeros, bytes)));
}

static void take_call(struct fake_call *c, const struct relay_wire_layer_call *request)
{
    const uint32_t out_bytes = atomic_load(&c->server->out_bytes);
    struct relay_wire_layer_call other = *request;
    atomic_fetch_add(&c->server->calls, 1);
    switch (c->behaviour) {
    case FAKE_ABORT:
        atomic_store(&c->server->behaviour, FAKE_GOOD);
        finish(c, GRPC_STATUS_ABORTED);
        return;
    case FAKE_END:
        atomic_store(&c->server->behaviour, FAKE_GOOD);
        finish(c, GRPC_STATUS_OK);
        return;
    case FAKE_TOO_LARGE:
        finish(c, GRPC_STATUS_RESOURCE_EXHAUSTED);
        return;
    case FAKE_GARBAGE: {
        grpc_slice slice = grpc_slice_from_static_string("\377\377\377\377");
        push(c, grpc_raw_byte_buffer_create(&slice, 1));
        return;
    }
    case FAKE_SHORT:
        push_result(c, request, out_bytes / 2);
        return;
    case FAKE_STRANGER:
        other.step_id += 1000;
        push_result(c, &other, out_bytes);
        push_begun(c, other.step_id);
        other = *request;
        other.row_begin += 1;
        push_result(c, &other, out_bytes);
        break;
    case FAKE_DRAIN:
        if (!c->drained) {
            c->drained = true;
            push_drain(c);
        }
        break;
    default:
        break;
    }
    push_result(c, request, out_bytes);
}

static void take_message(struct fake_call *c)
{
    uint64_t handles[16];
    uint32_t q_lens[16], positions[16];
    const struct relay_wire_entry_storage storage = {handles, q_lens, positions, 16};
    struct relay_wire_view view;
    struct relay_wire_stream_request request;
    if (relay_wire_view_init(&view, c->message, NULL) != RELAY_OK ||
        relay_wire_stream_request_decode(&view, &storage, &request, NULL) != RELAY_OK) {
        finish(c, GRPC_STATUS_INVALID_ARGUMENT);
        return;
    }
    switch (request.kind) {
    case RELAY_WIRE_STREAM_ATTACH:
        if (c->behaviour == FAKE_RESTARTED || c->behaviour == FAKE_FORGOT) {
            finish(c, GRPC_STATUS_NOT_FOUND);
        } else {
            push_attached(c);
        }
        break;
    case RELAY_WIRE_STREAM_BEGIN:
        push_begun(c, request.begin.step_id);
        break;
    case RELAY_WIRE_STREAM_CALL:
        take_call(c, &request.call);
        break;
    case RELAY_WIRE_STREAM_END:
        atomic_fetch_add(&c->server->ends, 1);
        break;
    }
}

/* ---- unary calls ---- */

static void answer_unary(struct fake_call *c)
{
    Relay__V1__OpenSessionResponse opened = RELAY__V1__OPEN_SESSION_RESPONSE__INIT;
    Relay__V1__GetServerInfoResponse info = RELAY__V1__GET_SERVER_INFO_RESPONSE__INIT;
    Relay__V1__CloseSessionResponse nothing = RELAY__V1__CLOSE_SESSION_RESPONSE__INIT;
    ProtobufCMessage *message = &nothing.base;
    if (grpc_slice_str_cmp(c->details.method, "/relay.v1.RelayAttention/OpenSession") == 0) {
        opened.session.data = c->server->zeros;
        opened.session.len = 16;
        opened.lease_ms = 60000;
        opened.server_epoch = FAKE_EPOCH;
        message = &opened.base;
    } else if (grpc_slice_str_cmp(c->details.method, "/relay.v1.RelayAttention/GetServerInfo") ==
               0) {
        info.server_epoch = c->behaviour == FAKE_RESTARTED ? FAKE_EPOCH + 1 : FAKE_EPOCH;
        message = &info.base;
    }
    push(c, relay_wire_pack(message));
    finish(c, GRPC_STATUS_OK);
}

/* ---- events ---- */

static void post(struct fake_server *server);

static void call_free(struct fake_call *c)
{
    while (c->count > 0) {
        grpc_byte_buffer_destroy(c->answers[c->first++ % ANSWERS_MAX]);
        c->count--;
    }
    grpc_byte_buffer_destroy(c->message);
    if (c->call != NULL) {
        grpc_call_unref(c->call);
    }
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    free(c);
}

static void arrived(struct fake_call *c, bool ok)
{
    const grpc_op headers = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    const grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                           .data.recv_close_on_server.cancelled = &c->cancelled};
    if (!ok) {
        return; /* the server stops */
    }
    post(c->server);
    c->behaviour = (enum fake_behaviour)atomic_load(&c->server->behaviour);
    c->stream =
        grpc_slice_str_cmp(c->details.method, "/relay.v1.RelayAttention/StreamRelayAttention") == 0;
    atomic_fetch_add(&c->server->streams, c->stream);
    batch(c, &close, 1, &c->closed);
    c->sending = true;
    batch(c, &headers, 1, &c->sent);
    receive(c);
}

static void received(struct fake_call *c, bool ok)
{
    if (!ok || c->message == NULL) {
        if (c->stream && ok && !c->finishing && c->cancelled == 0) {
            atomic_fetch_add(&c->server->half_closes, 1);
            finish(c, GRPC_STATUS_OK);
        }
        return;
    }
    if (c->finishing) {
        return;
    }
    if (!c->stream) {
        answer_unary(c);
        return;
    }
    take_message(c);
    grpc_byte_buffer_destroy(c->message);
    c->message = NULL;
    receive(c);
}

static void sent(struct fake_call *c, bool ok)
{
    c->sending = false;
    if (ok) {
        pump(c);
    }
}

static void closed(struct fake_call *c, bool ok)
{
    (void)ok;
    c->over = true;
}

static void post(struct fake_server *server)
{
    struct fake_call *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return;
    }
    c->server = server;
    c->arrived = (struct fake_tag){arrived, c};
    c->received = (struct fake_tag){received, c};
    c->sent = (struct fake_tag){sent, c};
    c->closed = (struct fake_tag){closed, c};
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    c->pending = 1;
    server->live++;
    (void)grpc_server_request_call(server->server, &c->call, &c->details, &c->metadata, server->cq,
                                   server->cq, &c->arrived);
}

static void *run(void *user)
{
    struct fake_server *server = user;
    for (;;) {
        const grpc_event event =
            grpc_completion_queue_next(server->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (event.type != GRPC_OP_COMPLETE) {
            continue;
        }
        if (event.tag == NULL) {
            server->stopped = true;
        } else {
            struct fake_tag *tag = event.tag;
            struct fake_call *c = tag->call;
            tag->on(c, event.success != 0);
            if (--c->pending == 0) {
                call_free(c);
                server->live--;
            }
        }
        if (server->stopped && server->live == 0) {
            grpc_completion_queue_shutdown(server->cq);
        }
    }
}

struct fake_server *fake_server_start(void)
{
    struct fake_server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return NULL;
    }
    grpc_init();
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    server->server = grpc_server_create(NULL, NULL);
    server->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(server->server, server->cq, NULL);
    const int port = grpc_server_add_http2_port(server->server, "127.0.0.1:0", credentials);
    grpc_server_credentials_release(credentials);
    snprintf(server->target, sizeof(server->target), "127.0.0.1:%d", port);
    grpc_server_start(server->server);
    post(server);
    if (pthread_create(&server->thread, NULL, run, server) != 0) {
        abort();
    }
    return server;
}

void fake_server_stop(struct fake_server *server)
{
    grpc_server_shutdown_and_notify(server->server, server->cq, NULL);
    grpc_server_cancel_all_calls(server->server);
    pthread_join(server->thread, NULL);
    grpc_server_destroy(server->server);
    grpc_completion_queue_destroy(server->cq);
    grpc_shutdown();
    free(server);
}

const char *fake_server_target(const struct fake_server *server)
{
    return server->target;
}

void fake_server_behave(struct fake_server *server, enum fake_behaviour behaviour)
{
    atomic_store(&server->behaviour, behaviour);
}

void fake_server_out_bytes(struct fake_server *server, uint32_t bytes)
{
    atomic_store(&server->out_bytes, bytes);
}

unsigned fake_server_streams(const struct fake_server *server)
{
    return atomic_load(&server->streams);
}

unsigned fake_server_calls(const struct fake_server *server)
{
    return atomic_load(&server->calls);
}

unsigned fake_server_ends(const struct fake_server *server)
{
    return atomic_load(&server->ends);
}

unsigned fake_server_half_closes(const struct fake_server *server)
{
    return atomic_load(&server->half_closes);
}
