/* Appending prefilled context tokens: a client stream of chunks, one answer. Any thread. */
#include "chunks.h"
#include "link.h"
#include "stream.h"

#include <relay/v1/relay.pb-c.h>

struct append {
    struct relay_session *session;
    const struct relay_kv *layers;
    uint32_t token_end;
    uint32_t layer; /* where it is */
    uint32_t token;
    uint32_t token_begin;
};

/* The next chunk; *out is NULL after the last one. */
static enum relay_code next_chunk(struct append *a, grpc_byte_buffer **out, struct relay_error *err)
{
    const struct relay_model *model = a->session->model;
    while (a->layer < model->num_layers &&
           (a->token == a->token_end || relay_model_kv_layer(model, a->layer) != a->layer)) {
        a->layer++;
        a->token = a->token_begin;
    }
    if (a->layer == model->num_layers) {
        *out = NULL;
        return RELAY_OK;
    }
    const struct relay_kv *kv = &a->layers[a->layer];
    size_t k_bytes, v_bytes;
    relay_layer_token_bytes(model, a->layer, kv->dtype, &k_bytes, &v_bytes);
    if (kv->k == NULL || k_bytes == 0 || (v_bytes > 0 && kv->v == NULL)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layers[%u]: k, v or dtype is missing",
                          a->layer);
    }
    uint64_t count = a->session->chunk_bytes_max / (k_bytes + v_bytes);
    const uint32_t left = a->token_end - a->token;
    count = count > left ? left : count;
    count = count > 0 ? count : 1; /* too big even so: the server says how much */
    const size_t at = a->token - a->token_begin;
    const struct relay_wire_chunk chunk = {.layer = a->layer,
                                           .token_begin = a->token,
                                           .token_count = (uint32_t)count,
                                           .dtype = kv->dtype};
    grpc_byte_buffer *message = relay_chunk_message(
        a->session->client, chunk, (const uint8_t *)kv->k + at * k_bytes, count * k_bytes,
        v_bytes > 0 ? (const uint8_t *)kv->v + at * v_bytes : NULL, count * v_bytes, true);
    if (message == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    a->token += (uint32_t)count;
    *out = message;
    return RELAY_OK;
}

static enum relay_code send_header(struct relay_stream *stream, struct relay_session *session,
                                   uint64_t request, struct relay_error *err)
{
    Relay__V1__AppendKvHeader header = RELAY__V1__APPEND_KV_HEADER__INIT;
    Relay__V1__AppendKvRequest message = RELAY__V1__APPEND_KV_REQUEST__INIT;
    header.session.data = session->token;
    header.session.len = sizeof(session->token);
    header.handle = request;
    message.message_case = RELAY__V1__APPEND_KV_REQUEST__MESSAGE_HEADER;
    message.header = &header;
    return relay_stream_send(stream, relay_wire_pack(&message.base), err);
}

static enum relay_code attempt(struct append a, uint64_t request, struct relay_error *err)
{
    struct relay_client *client = a.session->client;
    struct relay_stream *stream = NULL;
    bool answered = false;
    enum relay_code code =
        relay_stream_open(client, NULL, "/relay.v1.RelayAttention/AppendKv", &stream, err);
    if (code == RELAY_OK) {
        code = send_header(stream, a.session, request, err);
    }
    while (code == RELAY_OK) {
        if (relay_stream_can_send(stream)) {
            grpc_byte_buffer *message = NULL;
            code = next_chunk(&a, &message, err);
            if (code == RELAY_OK) {
                code = message != NULL ? relay_stream_send(stream, message, err)
                                       : relay_stream_half_close(stream, err);
            }
            continue;
        }
        const enum relay_stream_event event =
            relay_stream_wait(stream, client->options.upload_stall_ms);
        if (event == RELAY_STREAM_TIMEOUT) {
            code = RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "append: no progress for %u ms",
                              client->options.upload_stall_ms);
        } else if (event == RELAY_STREAM_RECEIVED) {
            grpc_byte_buffer_destroy(relay_stream_take(stream));
            answered = true;
        } else if (event == RELAY_STREAM_END) {
            code = relay_stream_status(stream, err);
            if (code == RELAY_OK && !answered) {
                code = RELAY_FAIL(err, RELAY_INTERNAL, "the server sent OK and no answer");
            }
            break;
        }
    }
    relay_stream_close(stream);
    return code;
}

enum relay_code relay_request_append(struct relay_session *session, uint64_t request,
                                     uint32_t token_begin, uint32_t token_count,
                                     const struct relay_kv *layers, struct relay_error *err)
{
    if (token_count == 0 || layers == NULL || token_count > UINT32_MAX - token_begin) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "append: no tokens, no layers, or too many");
    }
    const struct append a = {.session = session,
                             .layers = layers,
                             .token_begin = token_begin,
                             .token_end = token_begin + token_count,
                             .token = token_begin};
    relay_link_settle(session->link);
    const uint64_t deadline_us =
        relay_now_us() + (uint64_t)session->client->options.upload_stall_ms * 1000u;
    for (uint32_t i = 0;; i++) {
        /* Tokens that are in already are written again with the same bytes: safe to repeat. */
        const enum relay_code code = attempt(a, request, err);
        if (code == RELAY_OK) {
            relay_session_used(session);
        }
        /* The server may not have noticed yet that the attempt before broke off: "is running". */
        const bool again =
            code == RELAY_UNAVAILABLE || (i > 0 && code == RELAY_FAILED_PRECONDITION);
        if (!again || i >= session->client->options.retries_max ||
            !relay_backoff(session->client, i, deadline_us)) {
            return code;
        }
    }
}
