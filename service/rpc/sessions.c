/* OpenSession, CloseSession. On the worker: opening makes a model's pool, closing frees pages. */
#include "service/rpc/messages.h"

#include <proto/wire/convert.h>
#include <string.h>

/* Nothing optional exists yet, so every name is one this server does not know. */
static enum relay_code check_features(struct relayd_rpc_unary *unary,
                                      const Relay__V1__OpenSessionRequest *in,
                                      struct relay_error *err)
{
    enum relay_code code =
        relayd_rpc_check_max(unary, "features", in->n_features, RELAYD_RPC_FEATURES_MAX, err);
    if (code == RELAY_OK && in->n_features > 0) {
        unary->detail.field = "features";
        code = RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "features: this server has no \"%.64s\"",
                          in->features[0]);
    }
    return code;
}

static enum relay_code open_session(struct relayd_rpc_unary *unary, const ProtobufCMessage *request,
                                    ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__OpenSessionRequest *in = (const Relay__V1__OpenSessionRequest *)request;
    Relay__V1__OpenSessionResponse *out = (Relay__V1__OpenSessionResponse *)response;
    struct answer {
        struct relayd_session_info info;
        Relay__V1__Limits limits;
    };
    struct relay_model model;
    struct answer *answer = relayd_rpc_alloc(unary, sizeof(*answer), err);
    if (answer == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    enum relay_code code = check_features(unary, in, err);
    if (code == RELAY_OK) {
        code = relay_wire_model_from_spec(in->model, &unary->arena, &model, err);
        if (code != RELAY_OK) {
            unary->detail.field = "model";
        }
    }
    if (code != RELAY_OK) {
        return code;
    }
    struct relayd_session_desc desc = {
        .tenant = relayd_rpc_tenant(&unary->base),
        .model = &model,
        .io_dtype = (enum relay_dtype)in->io_dtype,
        .out_dtype = (enum relay_dtype)in->out_dtype,
        .lease_ms = in->lease_ms,
        .rows_max = in->rows_max,
        .response_bytes_max = in->response_bytes_max,
    };
    code = relayd_session_open(unary->base.rpc->opt.sessions, &desc, &answer->info, err);
    if (code != RELAY_OK) {
        return code;
    }
    relayd_rpc_limits(unary->base.rpc, &answer->info, &answer->limits);
    out->session.data = answer->info.token;
    out->session.len = sizeof(answer->info.token);
    out->lease_ms = answer->info.lease_ms;
    out->limits = &answer->limits;
    out->server_epoch = unary->base.rpc->epoch;
    return RELAY_OK;
}

/* Idempotent: a session that is gone already is closed. */
static enum relay_code close_session(struct relayd_rpc_unary *unary,
                                     const ProtobufCMessage *request, ProtobufCMessage *response,
                                     struct relay_error *err)
{
    const Relay__V1__CloseSessionRequest *in = (const Relay__V1__CloseSessionRequest *)request;
    struct relayd_session *session = NULL;
    (void)response;
    enum relay_code code = relayd_rpc_session(unary, &in->session, &session, err);
    if (code == RELAY_NOT_FOUND) {
        return RELAY_OK;
    }
    if (code == RELAY_OK) {
        relayd_session_close(session);
        relayd_session_release(session);
    }
    return code;
}

static const struct relayd_rpc_unary_spec open_spec = {
    .request = &relay__v1__open_session_request__descriptor,
    .response = &relay__v1__open_session_response__descriptor,
    .handle = open_session,
    .slow = true,
};
static const struct relayd_rpc_unary_spec close_spec = {
    .request = &relay__v1__close_session_request__descriptor,
    .response = &relay__v1__close_session_response__descriptor,
    .handle = close_session,
    .slow = true,
};

const struct relayd_rpc_method relayd_rpc_session_methods[] = {
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "OpenSession", &open_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "CloseSession", &close_spec),
    {.start = NULL},
};
