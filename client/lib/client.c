/* The client object: connection, server info, health. */
#include "client_internal.h"

#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/health/v1/health.pb-c.h>
#include <relay/v1/relay.pb-c.h>
#include <stdlib.h>
#include <string.h>

static const char *const method_paths[RELAY_NUM_METHODS] = {
#define RELAY_METHOD_PATH(name, path) path,
    RELAY_METHODS(RELAY_METHOD_PATH)
#undef RELAY_METHOD_PATH
};

/* Servers end connections that ping more often. */
#define KEEPALIVE_TIME_MS_MIN 10000u

#define LOOKAHEAD_BYTES      (4u << 20)
#define READ_CHUNK_BYTES     (512u << 10)
#define READ_CHUNK_BYTES_MAX (4u << 20)

static grpc_arg arg_int(const char *key, uint32_t value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER,
                      .key = (char *)(uintptr_t)key,
                      .value.integer = value > INT32_MAX ? INT32_MAX : (int)value};
}

#define CHANNEL_ARGS_MAX 16u
/* Answers of 256 KiB in few reads, and without waiting for a window to grow. */
#define LOOKAHEAD_BYTES      (4u << 20)
#define READ_CHUNK_BYTES     (512u << 10)
#define READ_CHUNK_BYTES_MAX (4u << 20)

/* What all our channels have; how many. */
static size_t channel_args(const struct relay_client_options *o, grpc_arg *args)
{
    size_t n = 0;
    args[n++] = arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, o->receive_bytes_max);
    args[n++] = arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, INT32_MAX);
    /* Repeats are ours, and core's cost latency. */
    args[n++] = arg_int(GRPC_ARG_ENABLE_RETRIES, 0);
    args[n++] = arg_int(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES);
    args[n++] = arg_int(GRPC_ARG_TCP_READ_CHUNK_SIZE, READ_CHUNK_BYTES);
    args[n++] = arg_int(GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, READ_CHUNK_BYTES);
    args[n++] = arg_int(GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, READ_CHUNK_BYTES_MAX);
    if (o->keepalive_time_ms > 0) {
        args[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, o->keepalive_time_ms);
        args[n++] = arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, o->keepalive_timeout_ms);
        args[n++] = arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
        args[n++] = arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
    return n;
}

enum relay_code relay_client_channel(const struct relay_client *client, grpc_channel **out,
                                     struct relay_error *err)
{
    const struct relay_client_options *o = &client->options;
    grpc_arg args[CHANNEL_ARGS_MAX];
    size_t n = channel_args(o, args);
    /* Channels with equal arguments would share one connection, uploads with calls. */
    args[n++] = arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    /* Core waits a second before it tries a dead server again; relay_backoff decides that here. */
    args[n++] = arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, o->backoff_ms_min);
    args[n++] = arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, o->backoff_ms_max);
    const grpc_channel_args all = {n, args};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(client->target, credentials, &all);
    grpc_channel_credentials_release(credentials);
    if (channel == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: gRPC takes no \"%.100s\"",
                          client->target);
    }
    *out = channel;
    return RELAY_OK;
}

enum relay_code relay_client_channel_of(const struct relay_client *client, int fd,
                                        grpc_channel **out, struct relay_error *err)
{
    grpc_arg args[CHANNEL_ARGS_MAX];
    size_t n = channel_args(&client->options, args);
    args[n++] = (grpc_arg){
        .type = GRPC_ARG_STRING,
        .key = (char *)(uintptr_t)GRPC_ARG_DEFAULT_AUTHORITY,
        .value.string = (char *)(uintptr_t)relay_target_authority(client->target),
    };
    const grpc_channel_args all = {n, args};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create_from_fd(client->target, fd, credentials, &all);
    grpc_channel_credentials_release(credentials);
    if (channel == NULL) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "gRPC takes no connected socket");
    }
    *out = channel;
    return RELAY_OK;
}

static enum relay_code check_options(const struct relay_client_options *o, struct relay_error *err)
{
    if (o->size != sizeof(*o)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "client options: size %zu is not %zu",
                          o->size, sizeof(*o));
    }
    if (o->timeout_ms == 0 || o->upload_stall_ms == 0 || o->backoff_ms_min == 0 ||
        o->backoff_ms_max < o->backoff_ms_min || o->receive_bytes_max < 65536 ||
        (o->keepalive_time_ms > 0 &&
         (o->keepalive_time_ms < KEEPALIVE_TIME_MS_MIN || o->keepalive_timeout_ms == 0))) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "client options: timeout_ms, upload_stall_ms and backoff_ms_min are at "
                          "least 1, backoff_ms_max at least backoff_ms_min, receive_bytes_max at "
                          "least 65536, keepalive_time_ms 0 or at least 10000, and then "
                          "keepalive_timeout_ms at least 1");
    }
    return RELAY_OK;
}

enum relay_code relay_client_open(const char *target, const struct relay_client_options *options,
                                  struct relay_client **out, struct relay_error *err)
{
    const struct relay_client_options defaults = RELAY_CLIENT_OPTIONS_INIT;
    if (options == NULL) {
        options = &defaults;
    }
    char *parsed = NULL;
    enum relay_code code = check_options(options, err);
    if (code == RELAY_OK) {
        code = relay_target_parse(target, &parsed, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_client *client = calloc(1, sizeof(*client));
    if (client == NULL) {
        free(parsed);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    grpc_init();
    client->options = *options;
    client->target = parsed;
    pthread_mutex_init(&client->queues_mutex, NULL);
    client->buffers = relay_buffers_create();
    if (client->buffers == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        goto out;
    }
    code = relay_keepalive_create(client, &client->keepalive, err);
    if (code != RELAY_OK) {
        goto out;
    }
    code = relay_client_channel(client, &client->channel, err);
    if (code != RELAY_OK) {
        goto out;
    }
    for (uint32_t i = 0; i < RELAY_NUM_METHODS; i++) {
        client->methods[i] =
            grpc_channel_register_call(client->channel, method_paths[i], NULL, NULL);
    }
out:
    if (code != RELAY_OK) {
        relay_client_close(client);
        return code;
    }
    *out = client;
    return RELAY_OK;
}

void relay_client_close(struct relay_client *client)
{
    if (client == NULL) {
        return;
    }
    relay_keepalive_destroy(client->keepalive);
    if (client->channel != NULL) {
        grpc_channel_destroy(client->channel);
    }
    for (uint32_t i = 0; i < client->num_queues; i++) {
        grpc_completion_queue_shutdown(client->queues[i]);
        grpc_completion_queue_destroy(client->queues[i]);
    }
    relay_buffers_destroy(client->buffers);
    pthread_mutex_destroy(&client->queues_mutex);
    free(client->target);
    free(client);
    grpc_shutdown();
}

/* Copies a string behind the struct it belongs to and moves on. */
static const char *put(char **at, const char *s)
{
    char *copy = *at;
    const size_t bytes = strlen(s) + 1;
    memcpy(copy, s, bytes);
    *at += bytes;
    return copy;
}

static struct relay_server_info *make_info(const Relay__V1__GetServerInfoResponse *m)
{
    const char *device = m->n_devices > 0 ? m->devices[0] : "";
    struct relay_server_info *info =
        calloc(1, sizeof(*info) + strlen(m->version) + strlen(m->backend) + strlen(device) +
                      strlen(m->isa) + 4);
    if (info == NULL) {
        return NULL;
    }
    char *at = (char *)(info + 1);
    info->version = put(&at, m->version);
    info->backend = put(&at, m->backend);
    info->device = put(&at, device);
    info->isa = put(&at, m->isa);
    info->uptime_ms = m->uptime_ms;
    info->server_epoch = m->server_epoch;
    for (size_t i = 0; i < m->n_memory; i++) {
        info->prompt_bytes_used += m->memory[i]->prompt_bytes_used;
        info->prompt_bytes_max += m->memory[i]->prompt_bytes_max;
        info->request_bytes_used += m->memory[i]->request_bytes_used;
        info->request_bytes_max += m->memory[i]->request_bytes_max;
    }
    if (m->limits != NULL) {
        info->message_bytes_max = m->limits->message_bytes_max;
        info->response_bytes_max = m->limits->response_bytes_max;
        info->rows_max = m->limits->rows_max;
        info->entries_max = m->limits->entries_max;
    }
    info->sessions = m->sessions;
    info->requests = m->requests;
    info->prompts = m->prompts;
    info->uploads = m->uploads;
    info->calls_in_flight = m->calls_in_flight;
    info->threads = m->threads;
    info->page_tokens = m->page_tokens;
    info->batch_invariant = m->batch_invariant;
    info->calls = m->calls;
    info->calls_failed = m->calls_failed;
    info->launches = m->launches;
    info->rows = m->rows;
    info->prompt_bytes_read = m->prompt_bytes_read;
    info->kv_bytes_read = m->kv_bytes_read;
    info->compute_us = m->compute_us;
    info->bytes_received = m->bytes_received;
    info->bytes_sent = m->bytes_sent;
    info->rpcs_open = m->rpcs_open;
    return info;
}

enum relay_code relay_client_server_info(struct relay_client *client,
                                         struct relay_server_info **out, struct relay_error *err)
{
    Relay__V1__GetServerInfoRequest request = RELAY__V1__GET_SERVER_INFO_REQUEST__INIT;
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    relay_wire_arena_init(&arena);
    enum relay_code code = relay_call_message(
        client, RELAY_METHOD_SERVER_INFO, &request.base, RELAY_REPEAT_SAFE,
        &relay__v1__get_server_info_response__descriptor, &arena, &response, err);
    if (code == RELAY_OK) {
        struct relay_server_info *info =
            make_info((const Relay__V1__GetServerInfoResponse *)response);
        if (info == NULL) {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        } else {
            *out = info;
        }
    }
    relay_wire_arena_fini(&arena);
    return code;
}

void relay_server_info_free(struct relay_server_info *info)
{
    free(info);
}

enum relay_code relay_client_health(struct relay_client *client, const char *service, bool *serving,
                                    struct relay_error *err)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)(service != NULL ? service : "");
    struct relay_wire_arena arena;
    ProtobufCMessage *response = NULL;
    relay_wire_arena_init(&arena);
    const enum relay_code code = relay_call_message(
        client, RELAY_METHOD_HEALTH, &request.base, RELAY_REPEAT_SAFE,
        &grpc__health__v1__health_check_response__descriptor, &arena, &response, err);
    if (code == RELAY_OK) {
        *serving = ((const Grpc__Health__V1__HealthCheckResponse *)response)->status ==
                   GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    }
    relay_wire_arena_fini(&arena);
    return code;
}
