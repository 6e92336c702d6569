#include "bench/rpc_echo.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define UNARY_PATH  "/echo/Unary"
#define STREAM_PATH "/echo/Stream"
/* As service/rpc/server.c has them. */
#define LOOKAHEAD_BYTES      (4 << 20)
#define READ_CHUNK_BYTES     (512 << 10)
#define READ_CHUNK_BYTES_MAX (4 << 20)
#define MESSAGE_BYTES_MAX    (64 << 20)

static grpc_arg int_arg(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static void nothing(void *user)
{
    (void)user;
}

/* A message of n bytes from memory that outlives it. */
static grpc_byte_buffer *message_of(void *memory, size_t n)
{
    grpc_slice slice = grpc_slice_new_with_user_data(memory, n, nothing, NULL);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* ---- server ---- */

struct echo_call {
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *received;
    int cancelled;
    bool stream, started, over;
    uint32_t pending;
};

struct echo_server {
    grpc_server *server;
    grpc_completion_queue *cq;
    void *memory;
    size_t answer_bytes;
    struct echo_call *waiting;
};

static void request_call(struct echo_server *s)
{
    struct echo_call *c = calloc(1, sizeof(*c));
    s->waiting = c;
    if (c != NULL) {
        grpc_call_details_init(&c->details);
        grpc_metadata_array_init(&c->metadata);
        c->pending = 1;
        (void)grpc_server_request_call(s->server, &c->call, &c->details, &c->metadata, s->cq, s->cq,
                                       c);
    }
}

static void batch(struct echo_call *c, const grpc_op *ops, size_t n)
{
    if (grpc_call_start_batch(c->call, ops, n, c, NULL) == GRPC_CALL_OK) {
        c->pending++;
    } else {
        c->over = true;
    }
}

static void receive(struct echo_call *c, bool first)
{
    const grpc_op ops[2] = {
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received},
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
    };
    batch(c, ops, first ? 2 : 1);
}

/* As long as the message's first bytes say. */
static void be_busy(const grpc_byte_buffer *message)
{
    const double start_us = now_us();
    const grpc_slice_buffer *slices = &message->data.raw.slice_buffer;
    uint32_t busy_us = 0;
    if (slices->count > 0 && GRPC_SLICE_LENGTH(slices->slices[0]) >= sizeof(busy_us)) {
        memcpy(&busy_us, GRPC_SLICE_START_PTR(slices->slices[0]), sizeof(busy_us));
    }
    while (now_us() - start_us < busy_us) {
    }
}

/* A message is here, or the answer to it is out and the next one too. */
static void answer(struct echo_server *s, struct echo_call *c)
{
    grpc_byte_buffer *message = message_of(s->memory, s->answer_bytes);
    be_busy(c->received);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    const grpc_op send = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    const grpc_op status = {.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
    const grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                           .data.recv_close_on_server.cancelled = &c->cancelled};
    const grpc_op again = {.op = GRPC_OP_RECV_MESSAGE,
                           .data.recv_message.recv_message = &c->received};
    if (c->stream) {
        const grpc_op ops[2] = {send, again};
        batch(c, ops, 2);
    } else {
        const grpc_op ops[3] = {send, status, close};
        batch(c, ops, 3);
        c->over = true;
    }
    grpc_byte_buffer_destroy(message);
}

static void finish(struct echo_call *c)
{
    grpc_byte_buffer_destroy(c->received);
    if (c->call != NULL) {
        grpc_call_unref(c->call);
    }
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    free(c);
}

static void on_event(struct echo_server *s, struct echo_call *c, bool ok)
{
    c->pending--;
    if (!c->started) {
        c->started = true;
        c->stream = ok && grpc_slice_str_cmp(c->details.method, STREAM_PATH) == 0;
        c->over = !ok;
        request_call(s);
        if (ok) {
            receive(c, true);
        }
    } else if (!c->over && ok && c->received != NULL) {
        answer(s, c);
    } else {
        c->over = true;
    }
    if (c->over && c->pending == 0) {
        finish(c);
    }
}

int rpc_echo_serve(const char *address, size_t answer_bytes, int ready_fd)
{
    const grpc_arg args[] = {
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MESSAGE_BYTES_MAX),
        int_arg(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES),
        int_arg(GRPC_ARG_TCP_READ_CHUNK_SIZE, READ_CHUNK_BYTES),
        int_arg(GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, READ_CHUNK_BYTES),
        int_arg(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, READ_CHUNK_BYTES_MAX),
    };
    const grpc_channel_args all = {sizeof(args) / sizeof(args[0]), (grpc_arg *)(uintptr_t)args};
    struct echo_server s = {.answer_bytes = answer_bytes, .memory = calloc(1, answer_bytes)};
    grpc_init();
    s.server = grpc_server_create(&all, NULL);
    s.cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s.server, s.cq, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    const int port = grpc_server_add_http2_port(s.server, address, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0 || s.memory == NULL) {
        fprintf(stderr, "echo server: cannot serve %s\n", address);
        return 1;
    }
    grpc_server_start(s.server);
    request_call(&s);
    dprintf(ready_fd, "%d\n", port);
    close(ready_fd);
    while (s.waiting != NULL) {
        const grpc_event event =
            grpc_completion_queue_next(s.cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_OP_COMPLETE) {
            on_event(&s, event.tag, event.success != 0);
        }
    }
    return 1;
}

/* ---- client ---- */

struct rpc_echo_client {
    grpc_channel *channel;
    grpc_completion_queue *cq;
    void *memory;
    size_t request_bytes, answer_bytes;
    grpc_call *stream; /* once asked for */
    grpc_metadata_array stream_metadata;
};

struct rpc_echo_client *rpc_echo_open(const char *target, size_t request_bytes, size_t answer_bytes)
{
    const grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MESSAGE_BYTES_MAX),
        int_arg(GRPC_ARG_ENABLE_RETRIES, 0),
        int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        int_arg(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES),
        int_arg(GRPC_ARG_TCP_READ_CHUNK_SIZE, READ_CHUNK_BYTES),
        int_arg(GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, READ_CHUNK_BYTES),
        int_arg(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, READ_CHUNK_BYTES_MAX),
    };
    const grpc_channel_args all = {sizeof(args) / sizeof(args[0]), (grpc_arg *)(uintptr_t)args};
    struct rpc_echo_client *client = calloc(1, sizeof(*client));
    if (client == NULL || (client->memory = calloc(1, request_bytes)) == NULL) {
        free(client);
        return NULL;
    }
    grpc_init();
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    client->channel = grpc_channel_create(target, credentials, &all);
    grpc_channel_credentials_release(credentials);
    client->cq = grpc_completion_queue_create_for_next(NULL);
    client->request_bytes = request_bytes;
    client->answer_bytes = answer_bytes;
    return client;
}

/* Waits for n tags. */
static bool wait_tags(struct rpc_echo_client *client, int n)
{
    bool ok = true;
    while (n-- > 0) {
        const grpc_event event =
            grpc_completion_queue_next(client->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        ok = ok && event.type == GRPC_OP_COMPLETE && event.success != 0;
    }
    return ok;
}

void rpc_echo_close(struct rpc_echo_client *client)
{
    if (client == NULL) {
        return;
    }
    if (client->stream != NULL) {
        grpc_call_cancel(client->stream, NULL);
        grpc_call_unref(client->stream);
        grpc_metadata_array_destroy(&client->stream_metadata);
    }
    grpc_channel_destroy(client->channel);
    grpc_completion_queue_shutdown(client->cq);
    while (grpc_completion_queue_next(client->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(client->cq);
    free(client->memory);
    free(client);
    grpc_shutdown();
}

static grpc_call *call_of(struct rpc_echo_client *client, const char *path)
{
    return grpc_channel_create_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, client->cq,
                                    grpc_slice_from_static_string(path), NULL,
                                    gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
}

/* The time since start_us if the answer has the size it should. */
static double took(const struct rpc_echo_client *client, double start_us, grpc_byte_buffer *answer,
                   bool ok)
{
    const double us = now_us() - start_us;
    ok = ok && answer != NULL && grpc_byte_buffer_length(answer) == client->answer_bytes;
    grpc_byte_buffer_destroy(answer);
    if (!ok) {
        fprintf(stderr, "echo: no answer of %zu bytes\n", client->answer_bytes);
        return -1;
    }
    return us;
}

double rpc_echo_unary(struct rpc_echo_client *client)
{
    memset(client->memory, 0, sizeof(uint32_t));
    const double start_us = now_us();
    grpc_byte_buffer *message = message_of(client->memory, client->request_bytes);
    grpc_byte_buffer *answer = NULL;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    grpc_call *call = call_of(client, UNARY_PATH);
    const grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &answer},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &trailing,
                                        .status = &status,
                                        .status_details = &details}},
    };
    bool ok = grpc_call_start_batch(call, ops, 6, call, NULL) == GRPC_CALL_OK;
    ok = ok && wait_tags(client, 1);
    const double us = took(client, start_us, answer, ok);
    grpc_call_unref(call);
    grpc_byte_buffer_destroy(message);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    if (ok) {
        grpc_slice_unref(details);
    }
    return us;
}

static bool open_stream(struct rpc_echo_client *client)
{
    grpc_metadata_array_init(&client->stream_metadata);
    client->stream = call_of(client, STREAM_PATH);
    const grpc_op ops[2] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &client->stream_metadata},
    };
    return grpc_call_start_batch(client->stream, ops, 2, client, NULL) == GRPC_CALL_OK &&
           wait_tags(client, 1);
}

double rpc_echo_stream(struct rpc_echo_client *client, uint32_t busy_us)
{
    grpc_byte_buffer *answer = NULL;
    if (client->stream == NULL && !open_stream(client)) {
        return -1;
    }
    memcpy(client->memory, &busy_us, sizeof(busy_us));
    const double start_us = now_us() + busy_us;
    grpc_byte_buffer *message = message_of(client->memory, client->request_bytes);
    const grpc_op send = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    const grpc_op receive_op = {.op = GRPC_OP_RECV_MESSAGE,
                                .data.recv_message.recv_message = &answer};
    bool ok = grpc_call_start_batch(client->stream, &receive_op, 1, client, NULL) == GRPC_CALL_OK &&
              grpc_call_start_batch(client->stream, &send, 1, client, NULL) == GRPC_CALL_OK;
    ok = ok && wait_tags(client, 2);
    grpc_byte_buffer_destroy(message);
    return took(client, start_us, answer, ok);
}
