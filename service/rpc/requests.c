/* OpenRequests, GetRequests, TruncateRequests, CloseRequests. Looking is done on the queue's
 * thread, what takes or frees pages on the worker. */
#include "service/rpc/messages.h"

#include <string.h>

/* Most handles one message may name: as many as a session may have. */
static uint32_t handles_max(const struct relayd_rpc_unary *unary)
{
    return relayd_sessions_limits(unary->base.rpc->opt.sessions)->requests_per_session_max;
}

/* ---- OpenRequests -----------------------------------------------------------------------------
 */

static enum relay_code read_open(struct relayd_rpc_unary *unary, uint32_t index,
                                 const Relay__V1__OpenRequest *in, struct relayd_open_request *out,
                                 struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    if (in->prompt_id[0] != '\0') {
        code = relayd_rpc_check_prompt_id(&unary->detail, "requests.prompt_id", in->prompt_id, err);
    }
    if (code == RELAY_OK && strlen(in->variant) > RELAYD_VARIANT_BYTES_MAX) {
        code = RELAYD_RPC_BLAME(&unary->detail, "requests.variant", err,
                                "requests[%u].variant: at most %u bytes, got %zu", index,
                                RELAYD_VARIANT_BYTES_MAX, strlen(in->variant));
    }
    if (code == RELAY_OK && in->content_key.len > RELAYD_CONTENT_KEY_BYTES_MAX) {
        code = RELAYD_RPC_BLAME(&unary->detail, "requests.content_key", err,
                                "requests[%u].content_key: at most %u bytes, got %zu", index,
                                RELAYD_CONTENT_KEY_BYTES_MAX, in->content_key.len);
    }
    *out = (struct relayd_open_request){
        .tag = in->tag,
        .prompt =
            {
                .prompt_id = in->prompt_id,
                .variant = in->variant,
                .generation = in->generation,
                .content_key = in->content_key.data,
                .content_key_bytes = (uint32_t)in->content_key.len,
            },
        .tokens_reserved = in->tokens_reserved,
    };
    return code;
}

/* Room for the answer comes first: once they are open, the client must learn the handles. */
static enum relay_code opened_alloc(struct relayd_rpc_unary *unary, uint32_t n,
                                    Relay__V1__OpenRequestsResponse *out, struct relay_error *err)
{
    out->handles = relayd_rpc_alloc(unary, n * sizeof(*out->handles), err);
    out->generations = relayd_rpc_alloc(unary, n * sizeof(*out->generations), err);
    out->prompt_tokens = relayd_rpc_alloc(unary, n * sizeof(*out->prompt_tokens), err);
    if (out->handles == NULL || out->generations == NULL || out->prompt_tokens == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    out->n_handles = out->n_generations = out->n_prompt_tokens = n;
    return RELAY_OK;
}

static enum relay_code open_requests(struct relayd_rpc_unary *unary,
                                     const ProtobufCMessage *request, ProtobufCMessage *response,
                                     struct relay_error *err)
{
    const Relay__V1__OpenRequestsRequest *in = (const Relay__V1__OpenRequestsRequest *)request;
    Relay__V1__OpenRequestsResponse *out = (Relay__V1__OpenRequestsResponse *)response;
    struct relayd_session *session = NULL;
    enum relay_code code =
        relayd_rpc_check_max(unary, "requests", in->n_requests, handles_max(unary), err);
    if (code == RELAY_OK && in->n_requests == 0) {
        code = RELAYD_RPC_BLAME(&unary->detail, "requests", err, "requests: none came");
    }
    if (code != RELAY_OK) {
        return code;
    }
    uint32_t n = (uint32_t)in->n_requests;
    struct relayd_open_request *opens = relayd_rpc_alloc(unary, n * sizeof(*opens), err);
    struct relayd_opened_request *opened = relayd_rpc_alloc(unary, n * sizeof(*opened), err);
    if (opens == NULL || opened == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < n && code == RELAY_OK; i++) {
        code = read_open(unary, i, in->requests[i], &opens[i], err);
    }
    if (code == RELAY_OK) {
        code = opened_alloc(unary, n, out, err);
    }
    if (code == RELAY_OK) {
        code = relayd_rpc_session(unary, &in->session, &session, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    code = relayd_session_open_requests(session, opens, n, opened, &unary->detail.entries, err);
    relayd_session_release(session);
    for (uint32_t i = 0; i < n && code == RELAY_OK; i++) {
        out->handles[i] = opened[i].handle;
        out->generations[i] = opened[i].generation;
        out->prompt_tokens[i] = opened[i].prompt_tokens;
    }
    return code;
}

/* ---- GetRequests ------------------------------------------------------------------------------
 */

static enum relay_code write_states(struct relayd_rpc_unary *unary,
                                    const struct relayd_request_info *infos, uint32_t n,
                                    Relay__V1__GetRequestsResponse *out, struct relay_error *err)
{
    Relay__V1__RequestState *states = relayd_rpc_alloc(unary, n * sizeof(*states), err);
    out->requests = relayd_rpc_alloc(unary, n * sizeof(*out->requests), err);
    if (states == NULL || out->requests == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    out->n_requests = n;
    for (uint32_t i = 0; i < n; i++) {
        relay__v1__request_state__init(&states[i]);
        states[i].handle = infos[i].handle;
        states[i].tag = infos[i].tag;
        states[i].generation = infos[i].generation;
        states[i].length = infos[i].length;
        states[i].held_max = infos[i].held_max;
        states[i].last_step_id = infos[i].last_step_id;
        states[i].prompt_id = (char *)infos[i].prompt_id;
        states[i].prompt_tokens = infos[i].prompt_tokens;
        out->requests[i] = &states[i];
    }
    return RELAY_OK;
}

static enum relay_code get_requests(struct relayd_rpc_unary *unary, const ProtobufCMessage *request,
                                    ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__GetRequestsRequest *in = (const Relay__V1__GetRequestsRequest *)request;
    struct relayd_session *session = NULL;
    uint32_t max = handles_max(unary);
    uint32_t n = 0;
    enum relay_code code = relayd_rpc_check_max(unary, "handles", in->n_handles, max, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (in->n_handles > 0) {
        max = (uint32_t)in->n_handles;
    }
    struct relayd_request_info *infos = relayd_rpc_alloc(unary, max * sizeof(*infos), err);
    if (infos == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    code = relayd_rpc_session(unary, &in->session, &session, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = relayd_session_get_requests(session, in->handles, (uint32_t)in->n_handles, infos, max,
                                       &n, err);
    relayd_session_release(session);
    if (code == RELAY_OK && n > 0) {
        code = write_states(unary, infos, n, (Relay__V1__GetRequestsResponse *)response, err);
    }
    return code;
}

/* ---- TruncateRequests, CloseRequests ----------------------------------------------------------
 */

static enum relay_code truncate_requests(struct relayd_rpc_unary *unary,
                                         const ProtobufCMessage *request,
                                         ProtobufCMessage *response, struct relay_error *err)
{
    const Relay__V1__TruncateRequestsRequest *in =
        (const Relay__V1__TruncateRequestsRequest *)request;
    Relay__V1__TruncateRequestsResponse *out = (Relay__V1__TruncateRequestsResponse *)response;
    struct relayd_session *session = NULL;
    uint32_t n = (uint32_t)in->n_handles;
    uint32_t count = 0;
    enum relay_code code =
        relayd_rpc_check_max(unary, "handles", in->n_handles, handles_max(unary), err);
    if (code == RELAY_OK && in->n_handles != in->n_tokens_keep) {
        code = RELAYD_RPC_BLAME(&unary->detail, "tokens_keep", err,
                                "tokens_keep: expected %zu values, got %zu", in->n_handles,
                                in->n_tokens_keep);
    }
    if (code == RELAY_OK && n == 0) {
        code = RELAYD_RPC_BLAME(&unary->detail, "handles", err, "handles: none came");
    }
    if (code != RELAY_OK) {
        return code;
    }
    struct relayd_request_info *infos = relayd_rpc_alloc(unary, n * sizeof(*infos), err);
    out->lengths = relayd_rpc_alloc(unary, n * sizeof(*out->lengths), err);
    if (infos == NULL || out->lengths == NULL) {
        return RELAY_RESOURCE_EXHAUSTED;
    }
    code = relayd_rpc_session(unary, &in->session, &session, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = relayd_session_truncate_requests(session, in->handles, in->tokens_keep, n,
                                            &unary->detail.entries, err);
    if (code == RELAY_OK) {
        code = relayd_session_get_requests(session, in->handles, n, infos, n, &count, err);
    }
    relayd_session_release(session);
    for (uint32_t i = 0; i < count && code == RELAY_OK; i++) {
        out->lengths[i] = infos[i].length;
    }
    out->n_lengths = count;
    return code;
}

static enum relay_code close_requests(struct relayd_rpc_unary *unary,
                                      const ProtobufCMessage *request, ProtobufCMessage *response,
                                      struct relay_error *err)
{
    const Relay__V1__CloseRequestsRequest *in = (const Relay__V1__CloseRequestsRequest *)request;
    struct relayd_session *session = NULL;
    enum relay_code code =
        relayd_rpc_check_max(unary, "handles", in->n_handles, handles_max(unary), err);
    if (code == RELAY_OK) {
        code = relayd_rpc_session(unary, &in->session, &session, err);
    }
    if (code == RELAY_OK) {
        ((Relay__V1__CloseRequestsResponse *)response)->closed =
            relayd_session_close_requests(session, in->handles, (uint32_t)in->n_handles);
        relayd_session_release(session);
    }
    return code;
}

/* ---- the table --------------------------------------------------------------------------------
 */

static const struct relayd_rpc_unary_spec open_spec = {
    .request = &relay__v1__open_requests_request__descriptor,
    .response = &relay__v1__open_requests_response__descriptor,
    .handle = open_requests,
    .entries = &relay__v1__open_request__descriptor,
    .slow = true,
};
static const struct relayd_rpc_unary_spec get_spec = {
    .request = &relay__v1__get_requests_request__descriptor,
    .response = &relay__v1__get_requests_response__descriptor,
    .handle = get_requests,
};
static const struct relayd_rpc_unary_spec truncate_spec = {
    .request = &relay__v1__truncate_requests_request__descriptor,
    .response = &relay__v1__truncate_requests_response__descriptor,
    .handle = truncate_requests,
    .slow = true,
};
static const struct relayd_rpc_unary_spec close_spec = {
    .request = &relay__v1__close_requests_request__descriptor,
    .response = &relay__v1__close_requests_response__descriptor,
    .handle = close_requests,
    .slow = true,
};

const struct relayd_rpc_method relayd_rpc_request_methods[] = {
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "OpenRequests", &open_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "GetRequests", &get_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "TruncateRequests", &truncate_spec),
    RELAYD_RPC_UNARY(RELAYD_RPC_SERVICE "CloseRequests", &close_spec),
    {.start = NULL},
};
