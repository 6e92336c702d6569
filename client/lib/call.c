/* One unary call: send, wait, repeat when that is safe, and the server's words as an error.
 *
 * Each call plucks from a completion queue that no other thread uses meanwhile. */
#include "client_internal.h"

#include <proto/wire/status_details.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static grpc_completion_queue *queue_take(struct relay_client *client)
{
    grpc_completion_queue *queue = NULL;
    pthread_mutex_lock(&client->queues_mutex);
    if (client->num_queues > 0) {
        queue = client->queues[--client->num_queues];
    }
    pthread_mutex_unlock(&client->queues_mutex);
    return queue != NULL ? queue : grpc_completion_queue_create_for_pluck(NULL);
}

static void queue_give(struct relay_client *client, grpc_completion_queue *queue)
{
    pthread_mutex_lock(&client->queues_mutex);
    if (client->num_queues < RELAY_QUEUES_KEPT) {
        client->queues[client->num_queues++] = queue;
        queue = NULL;
    }
    pthread_mutex_unlock(&client->queues_mutex);
    if (queue != NULL) {
        grpc_completion_queue_shutdown(queue);
        grpc_completion_queue_destroy(queue);
    }
}

/* Appends to a text that may be full already. */
static void RELAY_PRINTF(3, 4) append(char *text, size_t bytes, const char *fmt, ...)
{
    const size_t used = strlen(text);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text + used, bytes - used, fmt, args);
    va_end(args);
}

static bool says(const char *text, const char *word)
{
    return word == NULL || word[0] == '\0' || strstr(text, word) != NULL;
}

/* What ErrorDetail knows and the message does not say yet. */
static void append_detail(char *text, size_t bytes, const Relay__V1__ErrorDetail *detail)
{
    if (!says(text, detail->field)) {
        append(text, bytes, " (%s)", detail->field);
    }
    if (!says(text, detail->expected) || !says(text, detail->got)) {
        append(text, bytes, " (expected %s, got %s)", detail->expected, detail->got);
    }
    for (size_t i = 0; i < detail->n_entries; i++) {
        const Relay__V1__EntryError *entry = detail->entries[i];
        if (entry->message[0] != '\0' && says(text, entry->message)) {
            continue;
        }
        append(text, bytes, "; entry %u: %s", entry->index, entry->message);
    }
    if (detail->retry_after_ms > 0) {
        append(text, bytes, " (try again in %llu ms)", (unsigned long long)detail->retry_after_ms);
    }
}

static void read_details(const grpc_metadata_array *trailers, char *text, size_t bytes)
{
    for (size_t i = 0; trailers != NULL && i < trailers->count; i++) {
        const grpc_metadata *md = &trailers->metadata[i];
        if (grpc_slice_str_cmp(md->key, RELAY_WIRE_STATUS_DETAILS_KEY) != 0) {
            continue;
        }
        struct relay_wire_arena arena;
        relay_wire_arena_init(&arena);
        enum relay_code code;
        Relay__V1__ErrorDetail *detail = NULL;
        /* Details that make no sense are left out; the status stands without them. */
        if (relay_wire_status_details_decode(&md->value, &arena, &code, &detail, NULL) ==
                RELAY_OK &&
            detail != NULL) {
            append_detail(text, bytes, detail);
        }
        relay_wire_arena_fini(&arena);
    }
}

enum relay_code relay_call_status(const struct relay_client *client, grpc_status_code status,
                                  const grpc_slice *message, const grpc_metadata_array *trailers,
                                  struct relay_error *err)
{
    if (status == GRPC_STATUS_OK) {
        return RELAY_OK;
    }
    char text[RELAY_ERROR_MSG_BYTES] = "";
    const size_t length = GRPC_SLICE_LENGTH(*message);
    append(text, sizeof(text), "%.*s", length < sizeof(text) ? (int)length : (int)sizeof(text),
           (const char *)GRPC_SLICE_START_PTR(*message));
    enum relay_code code = status > 0 && status <= 16 ? (enum relay_code)status : RELAY_UNKNOWN;
    /* A server that dies under a stream shows as INTERNAL when a proxy stands between. */
    if (code == RELAY_INTERNAL && strstr(text, "RST_STREAM") != NULL) {
        code = RELAY_UNAVAILABLE;
    }
    if (code == RELAY_UNAVAILABLE && strncmp(text, "failed to connect", 17) == 0) {
        return RELAY_FAIL(err, code, "no server at %.100s", client->target);
    }
    read_details(trailers, text, sizeof(text));
    return RELAY_FAIL(err, code, "%s", text[0] != '\0' ? text : relay_code_name(code));
}

/* One attempt. */
static enum relay_code attempt(struct relay_client *client, enum relay_method method,
                               const grpc_byte_buffer *request, uint64_t deadline_us,
                               grpc_byte_buffer **response, struct relay_error *err)
{
    const gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                     gpr_time_from_micros((int64_t)(deadline_us - relay_now_us()), GPR_TIMESPAN));
    grpc_completion_queue *queue = queue_take(client);
    grpc_call *call =
        grpc_channel_create_registered_call(client->channel, NULL, GRPC_PROPAGATE_DEFAULTS, queue,
                                            client->methods[method], deadline, NULL);
    /* Sending empties a buffer, and the call may be repeated. */
    grpc_byte_buffer *sending = grpc_byte_buffer_copy((grpc_byte_buffer *)(uintptr_t)request);
    grpc_byte_buffer *received = NULL;
    grpc_metadata_array initial, trailing;
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    grpc_status_code status = GRPC_STATUS_UNKNOWN;
    grpc_slice message = grpc_empty_slice();

    const grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = sending},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &trailing,
                                        .status = &status,
                                        .status_details = &message}},
    };
    enum relay_code code;
    const grpc_call_error started = grpc_call_start_batch(call, ops, 6, call, NULL);
    if (started != GRPC_CALL_OK) {
        code = RELAY_FAIL(err, RELAY_INTERNAL, "call could not start: %s",
                          grpc_call_error_to_string(started));
    } else {
        grpc_completion_queue_pluck(queue, call, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        code = relay_call_status(client, status, &message, &trailing, err);
        if (code == RELAY_OK && received == NULL) {
            code = RELAY_FAIL(err, RELAY_INTERNAL, "the server sent OK and no answer");
        }
    }
    grpc_call_unref(call);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    grpc_slice_unref(message);
    grpc_byte_buffer_destroy(sending);
    queue_give(client, queue);
    if (code != RELAY_OK) {
        grpc_byte_buffer_destroy(received);
        return code;
    }
    *response = received;
    return RELAY_OK;
}

void relay_call_reconnect(struct relay_client *client, uint64_t until_us)
{
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(client->channel, 1);
    if (state == GRPC_CHANNEL_READY) {
        return;
    }
    /* After it could not connect a channel waits, and fails calls meanwhile: for longer than a few
     * repeats take when the server was away for a while. And it connects only while somebody is in
     * one of its queues. */
    grpc_channel_reset_connect_backoff(client->channel);
    grpc_completion_queue *queue = queue_take(client);
    while (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_SHUTDOWN) {
        const gpr_timespec until =
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                         gpr_time_from_micros((int64_t)(until_us - relay_now_us()), GPR_TIMESPAN));
        grpc_channel_watch_connectivity_state(client->channel, state, until, queue, client);
        const grpc_event event =
            grpc_completion_queue_pluck(queue, client, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.success == 0) {
            break; /* it is time */
        }
        state = grpc_channel_check_connectivity_state(client->channel, 1);
    }
    queue_give(client, queue);
}

enum relay_code relay_call(struct relay_client *client, enum relay_method method,
                           const grpc_byte_buffer *request, uint32_t timeout_ms,
                           enum relay_repeat repeat, grpc_byte_buffer **response,
                           struct relay_error *err)
{
    if (timeout_ms == 0) {
        timeout_ms = client->options.timeout_ms;
    }
    const uint64_t deadline_us = relay_now_us() + (uint64_t)timeout_ms * 1000u;
    const uint32_t repeats_max = repeat == RELAY_REPEAT_SAFE ? client->options.retries_max : 0;
    for (uint32_t i = 0;; i++) {
        const enum relay_code code = attempt(client, method, request, deadline_us, response, err);
        if (code != RELAY_UNAVAILABLE || i >= repeats_max ||
            !relay_backoff(client, i, deadline_us)) {
            return code;
        }
    }
}

enum relay_code relay_call_message(struct relay_client *client, enum relay_method method,
                                   const ProtobufCMessage *request, enum relay_repeat repeat,
                                   const ProtobufCMessageDescriptor *descriptor,
                                   struct relay_wire_arena *arena, ProtobufCMessage **response,
                                   struct relay_error *err)
{
    grpc_byte_buffer *sending = relay_wire_pack(request);
    grpc_byte_buffer *received = NULL;
    struct relay_wire_view view;
    enum relay_code code = relay_call(client, method, sending, 0, repeat, &received, err);
    grpc_byte_buffer_destroy(sending);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_error why;
    code = relay_wire_view_init(&view, received, &why);
    if (code == RELAY_OK) {
        code = relay_wire_unpack_response(&view, relay_wire_whole(&view), descriptor, arena,
                                          response, &why);
    }
    grpc_byte_buffer_destroy(received);
    if (code != RELAY_OK) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server's answer is not readable: %.180s",
                          why.msg);
    }
    return RELAY_OK;
}
