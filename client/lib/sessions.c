/* Sessions: open, close, what was granted. Any thread. */
#include "link.h"

#include <proto/wire/convert.h>
#include <stdlib.h>
#include <string.h>

/* What a chunk of an append may have when the server names no limit. */
#define CHUNK_BYTES_DEFAULT ((uint64_t)1 << 20)
/* A spec of many layers is packed from borrowed arrays; this holds its pointers and kinds. */
#define SPEC_ARENA_BYTES ((size_t)4 << 20)

void relay_layer_token_bytes(const struct relay_model *model, uint32_t layer,
                             enum relay_dtype dtype, size_t *k_bytes, size_t *v_bytes)
{
    const struct relay_layer_kind *kind = relay_model_kind(model, layer);
    if (dtype == RELAY_DTYPE_UNSPECIFIED) {
        dtype = model->kv_dtype;
    }
    const size_t row = kind->num_kv_heads * relay_dtype_size(dtype);
    *k_bytes = row * kind->head_dim_qk;
    *v_bytes = kind->v_from_k ? 0 : row * kind->head_dim_v;
}

static enum relay_code check(const struct relay_client *client, const struct relay_model *model,
                             const struct relay_session_options *o, struct relay_error *err)
{
    if (o->size != sizeof(*o)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "session options: size %zu is not %zu",
                          o->size, sizeof(*o));
    }
    if (model == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model is NULL");
    }
    if (o->response_bytes_max > client->options.receive_bytes_max) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "response_bytes_max %u is more than the client's receive_bytes_max %u",
                          o->response_bytes_max, client->options.receive_bytes_max);
    }
    if (relay_dtype_size(o->io_dtype) == 0 ||
        (o->out_dtype != RELAY_DTYPE_UNSPECIFIED && relay_dtype_size(o->out_dtype) == 0)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "io_dtype or out_dtype is no dtype");
    }
    return relay_model_validate(model, err);
}

/* Fills in what the server granted. */
static enum relay_code granted(struct relay_session *session,
                               const Relay__V1__OpenSessionResponse *m, struct relay_error *err)
{
    if (m->session.len != sizeof(session->token)) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the server's session has %zu bytes, not %zu",
                          m->session.len, sizeof(session->token));
    }
    memcpy(session->token, m->session.data, sizeof(session->token));
    session->lease_ms = m->lease_ms;
    session->server_epoch = m->server_epoch;
    session->chunk_bytes_max = CHUNK_BYTES_DEFAULT;
    if (m->limits != NULL && m->limits->chunk_bytes_max > 0) {
        session->chunk_bytes_max = m->limits->chunk_bytes_max;
    }
    atomic_store(&session->used_us, relay_now_us());
    return RELAY_OK;
}

enum relay_code relay_session_open(struct relay_client *client, const struct relay_model *model,
                                   const struct relay_session_options *options,
                                   struct relay_session **out, struct relay_error *err)
{
    const struct relay_session_options defaults = RELAY_SESSION_OPTIONS_INIT;
    const struct relay_session_options *o = options != NULL ? options : &defaults;
    enum relay_code code = check(client, model, o, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    relay_wire_arena_grant(&arena, SPEC_ARENA_BYTES);
    Relay__V1__OpenSessionRequest request = RELAY__V1__OPEN_SESSION_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    struct relay_session *session = calloc(1, sizeof(*session));
    if (session == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        goto out;
    }
    session->client = client;
    session->io_dtype = o->io_dtype;
    session->out_dtype = o->out_dtype == RELAY_DTYPE_UNSPECIFIED ? o->io_dtype : o->out_dtype;
    code = relay_model_copy(model, &session->model, err);
    if (code != RELAY_OK) {
        goto out;
    }
    code = relay_wire_model_to_spec(session->model, &arena, &request.model, err);
    if (code != RELAY_OK) {
        goto out;
    }
    request.io_dtype = (Relay__V1__DType)o->io_dtype;
    request.out_dtype = (Relay__V1__DType)o->out_dtype;
    request.lease_ms = o->lease_ms;
    request.rows_max = o->rows_max;
    request.response_bytes_max = o->response_bytes_max;
    code =
        relay_call_message(client, RELAY_METHOD_SESSION_OPEN, &request.base, RELAY_REPEAT_NEVER,
                           &relay__v1__open_session_response__descriptor, &arena, &response, err);
    if (code != RELAY_OK) {
        goto out;
    }
    code = granted(session, (const Relay__V1__OpenSessionResponse *)response, err);
    if (code == RELAY_OK && o->stream) {
        code = relay_link_create(session, o->spin_us, &session->link, err);
    }
    if (code == RELAY_OK && o->keepalive) {
        code = relay_keepalive_add(client->keepalive, session, err);
    }
out:
    relay_wire_arena_fini(&arena);
    if (code != RELAY_OK) {
        /* One that the server opened and this function could not use ends with its lease. */
        if (session != NULL) {
            relay_link_destroy(session->link);
            relay_model_destroy(session->model);
        }
        free(session);
        return code;
    }
    *out = session;
    return RELAY_OK;
}

void relay_session_close(struct relay_session *session)
{
    if (session == NULL) {
        return;
    }
    relay_keepalive_remove(session->client->keepalive, session);
    relay_link_destroy(session->link);
    Relay__V1__CloseSessionRequest request = RELAY__V1__CLOSE_SESSION_REQUEST__INIT;
    request.session.data = session->token;
    request.session.len = sizeof(session->token);
    grpc_byte_buffer *sending = relay_wire_pack(&request.base);
    grpc_byte_buffer *received = NULL;
    if (relay_call(session->client, RELAY_METHOD_SESSION_CLOSE, sending, 0, RELAY_REPEAT_SAFE,
                   &received, NULL) == RELAY_OK) {
        grpc_byte_buffer_destroy(received);
    }
    grpc_byte_buffer_destroy(sending);
    relay_model_destroy(session->model);
    free(session);
}

bool relay_session_draining(struct relay_session *session)
{
    if (session->link == NULL) {
        return false;
    }
    relay_link_poll(session->link);
    return relay_link_draining(session->link);
}

uint32_t relay_session_lease_ms(const struct relay_session *session)
{
    return session->lease_ms;
}

uint64_t relay_session_server_epoch(const struct relay_session *session)
{
    return session->server_epoch;
}
