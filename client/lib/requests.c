/* Requests: open, get, close, truncate. Any thread. */
#include "link.h"

#include <relay/v1/relay.pb-c.h>
#include <stdlib.h>
#include <string.h>

static char *text(const char *s)
{
    return (char *)(uintptr_t)(s != NULL ? s : "");
}

static ProtobufCBinaryData token(struct relay_session *session)
{
    return (ProtobufCBinaryData){sizeof(session->token), session->token};
}

/* Session-scoped calls are all safe to repeat: tags, absolute lengths, idempotent closes. */
static enum relay_code session_call(struct relay_session *session, enum relay_method method,
                                    const ProtobufCMessage *request,
                                    const ProtobufCMessageDescriptor *descriptor,
                                    struct relay_wire_arena *arena, ProtobufCMessage **response,
                                    struct relay_error *err)
{
    const enum relay_code code = relay_call_message(
        session->client, method, request, RELAY_REPEAT_SAFE, descriptor, arena, response, err);
    if (code == RELAY_OK) {
        relay_session_used(session);
    }
    return code;
}

static enum relay_code out_of_memory(struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
}

static enum relay_code fill_open(const struct relay_request_options *o, uint32_t i,
                                 Relay__V1__OpenRequest *m, struct relay_error *err)
{
    if (o->size != sizeof(*o)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "request options %u: size %zu is not %zu", i,
                          o->size, sizeof(*o));
    }
    relay__v1__open_request__init(m);
    /* A tag makes the open safe to repeat: the same tag is the same handle. */
    while (m->tag == 0) {
        relay_random(&m->tag, sizeof(m->tag));
    }
    m->prompt_id = text(o->prompt_id);
    m->variant = text(o->variant);
    m->generation = o->generation;
    m->content_key.data = (uint8_t *)(uintptr_t)o->content_key;
    m->content_key.len = o->content_key != NULL ? o->content_key_bytes : 0;
    m->tokens_reserved = o->tokens_reserved;
    return RELAY_OK;
}

enum relay_code relay_requests_open(struct relay_session *session,
                                    const struct relay_request_options *options, uint32_t n,
                                    struct relay_request *out, struct relay_error *err)
{
    if (n == 0 || options == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "no requests to open");
    }
    enum relay_code code = RELAY_OK;
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    Relay__V1__OpenRequestsRequest request = RELAY__V1__OPEN_REQUESTS_REQUEST__INIT;
    Relay__V1__OpenRequest *entries = calloc(n, sizeof(*entries));
    Relay__V1__OpenRequest **list = calloc(n, sizeof(*list));
    ProtobufCMessage *response = NULL;
    if (entries == NULL || list == NULL) {
        code = out_of_memory(err);
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        code = fill_open(&options[i], i, &entries[i], err);
        if (code != RELAY_OK) {
            goto out;
        }
        list[i] = &entries[i];
    }
    request.session = token(session);
    request.n_requests = n;
    request.requests = list;
    code = session_call(session, RELAY_METHOD_REQUESTS_OPEN, &request.base,
                        &relay__v1__open_requests_response__descriptor, &arena, &response, err);
    if (code != RELAY_OK) {
        goto out;
    }
    const Relay__V1__OpenRequestsResponse *m = (const Relay__V1__OpenRequestsResponse *)response;
    if (m->n_handles != n || m->n_generations != n || m->n_prompt_tokens != n) {
        code = RELAY_FAIL(err, RELAY_INTERNAL, "%zu handles for %u requests", m->n_handles, n);
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (struct relay_request){.handle = m->handles[i],
                                        .generation = m->generations[i],
                                        .prompt_tokens = m->prompt_tokens[i]};
    }
out:
    free(list);
    free(entries);
    relay_wire_arena_fini(&arena);
    return code;
}

enum relay_code relay_request_open(struct relay_session *session, const char *prompt_id,
                                   uint64_t *request, struct relay_error *err)
{
    struct relay_request_options options = RELAY_REQUEST_OPTIONS_INIT;
    struct relay_request opened;
    options.prompt_id = prompt_id;
    const enum relay_code code = relay_requests_open(session, &options, 1, &opened, err);
    if (code == RELAY_OK) {
        *request = opened.handle;
    }
    return code;
}

enum relay_code relay_requests_get(struct relay_session *session, const uint64_t *requests,
                                   uint32_t n, struct relay_request *out, struct relay_error *err)
{
    if (n == 0) {
        return RELAY_OK;
    }
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    Relay__V1__GetRequestsRequest request = RELAY__V1__GET_REQUESTS_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    relay_wire_arena_grant_messages(&arena, n, &relay__v1__request_state__descriptor);
    request.session = token(session);
    request.n_handles = n;
    request.handles = (uint64_t *)(uintptr_t)requests;
    enum relay_code code =
        session_call(session, RELAY_METHOD_REQUESTS_GET, &request.base,
                     &relay__v1__get_requests_response__descriptor, &arena, &response, err);
    if (code != RELAY_OK) {
        goto out;
    }
    const Relay__V1__GetRequestsResponse *m = (const Relay__V1__GetRequestsResponse *)response;
    if (m->n_requests != n) {
        code = RELAY_FAIL(err, RELAY_INTERNAL, "%zu answers for %u requests", m->n_requests, n);
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        const Relay__V1__RequestState *s = m->requests[i];
        out[i] = (struct relay_request){s->handle, s->generation, s->prompt_tokens,
                                        s->length, s->held_max,   s->last_step_id};
    }
out:
    relay_wire_arena_fini(&arena);
    return code;
}

enum relay_code relay_requests_close(struct relay_session *session, const uint64_t *requests,
                                     uint32_t n, struct relay_error *err)
{
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    Relay__V1__CloseRequestsRequest request = RELAY__V1__CLOSE_REQUESTS_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    request.session = token(session);
    request.n_handles = n;
    request.handles = (uint64_t *)(uintptr_t)requests;
    const enum relay_code code =
        session_call(session, RELAY_METHOD_REQUESTS_CLOSE, &request.base,
                     &relay__v1__close_requests_response__descriptor, &arena, &response, err);
    relay_wire_arena_fini(&arena);
    return code;
}

enum relay_code relay_requests_truncate(struct relay_session *session, const uint64_t *requests,
                                        const uint32_t *tokens_keep, uint32_t n,
                                        struct relay_error *err)
{
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    Relay__V1__TruncateRequestsRequest request = RELAY__V1__TRUNCATE_REQUESTS_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    relay_link_settle(session->link);
    request.session = token(session);
    request.n_handles = n;
    request.handles = (uint64_t *)(uintptr_t)requests;
    request.n_tokens_keep = n;
    request.tokens_keep = (uint32_t *)(uintptr_t)tokens_keep;
    const enum relay_code code =
        session_call(session, RELAY_METHOD_REQUESTS_TRUNCATE, &request.base,
                     &relay__v1__truncate_requests_response__descriptor, &arena, &response, err);
    relay_wire_arena_fini(&arena);
    return code;
}
