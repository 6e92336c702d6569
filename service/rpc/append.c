/* AppendKv: header, then chunks of prefilled tokens; the answer at half-close says what every layer
 * holds. Worker threads, one message at a time. A broken stream leaves what was stored: an append
 * never shortens, so it can be sent again. */
#include "service/rpc/chunks.h"
#include "service/rpc/messages.h"

#include <string.h>

struct append_call {
    struct relayd_rpc_stream stream;
    bool opened; /* the header came */
    uint8_t token[RELAYD_SESSION_TOKEN_BYTES];
    uint64_t handle;
    struct relayd_rpc_chunks chunks;
};

static void stop(struct append_call *append, grpc_byte_buffer *last, const struct relay_error *err)
{
    relayd_rpc_stream_finish(&append->stream, last, err);
}

/* Looked up again for every message: that renews the lease, and sees a session that has ended. */
static enum relay_code acquire(struct append_call *append, struct relayd_session **out,
                               struct relay_error *err)
{
    struct relayd_rpc_call *call = &append->stream.base;
    return relayd_session_acquire(call->rpc->opt.sessions, relayd_rpc_tenant(call), append->token,
                                  sizeof(append->token), out, err);
}

static enum relay_code read_header(struct append_call *append, const struct relay_wire_view *view,
                                   struct relay_wire_span span, struct relay_error *err)
{
    struct relayd_rpc_detail *detail = &append->stream.detail;
    struct relay_wire_arena arena;
    ProtobufCMessage *message = NULL;
    relay_wire_arena_init(&arena);
    enum relay_code code = relay_wire_unpack_request_span(
        view, span, &relay__v1__append_kv_header__descriptor, &arena, &message, err);
    if (code == RELAY_OK) {
        const Relay__V1__AppendKvHeader *header = (const Relay__V1__AppendKvHeader *)message;
        append->handle = header->handle;
        if (header->session.len == sizeof(append->token)) {
            memcpy(append->token, header->session.data, sizeof(append->token));
        } else {
            code = RELAYD_RPC_BLAME(detail, "session", err, "session: expected %zu bytes, got %zu",
                                    sizeof(append->token), header->session.len);
        }
    }
    relay_wire_arena_fini(&arena);
    return code;
}

/* A wrong handle is told before its bytes come. */
static enum relay_code take_header(struct append_call *append, const struct relay_wire_view *view,
                                   struct relay_wire_span span, struct relay_error *err)
{
    struct relayd_session *session = NULL;
    struct relayd_request_info info;
    uint32_t count = 0;
    enum relay_code code = read_header(append, view, span, err);
    if (code == RELAY_OK) {
        code = acquire(append, &session, err);
    }
    if (code == RELAY_OK) {
        append->opened = true;
        code = relayd_session_get_requests(session, &append->handle, 1, &info, 1, &count, err);
        if (code != RELAY_OK) {
            append->stream.detail.field = "handle";
        }
    }
    relayd_session_release(session);
    return code;
}

static enum relay_code take_chunk(struct append_call *append, const struct relay_wire_view *view,
                                  const struct relay_wire_chunk *chunk, struct relay_error *err)
{
    struct relayd_session *session = NULL;
    struct relayd_kv_chunk kv;
    enum relay_code code =
        relayd_rpc_chunks_gather(&append->stream, &append->chunks, view, chunk, &kv, err);
    if (code == RELAY_OK) {
        code = acquire(append, &session, err);
    }
    if (code == RELAY_OK) {
        code = relayd_session_append(session, append->handle, &kv, err);
    }
    relayd_session_release(session);
    return code;
}

static void message(struct relayd_rpc_stream *stream)
{
    struct append_call *append = (struct append_call *)stream;
    struct relay_wire_view view;
    struct relay_wire_upload upload;
    struct relay_error err = {0};
    enum relay_code code = relayd_rpc_chunks_decode(stream, &view, &upload, &err);
    if (code == RELAY_OK && relayd_rpc_call_cancelled(&stream->base)) {
        code = RELAY_FAIL(&err, RELAY_CANCELLED, "the append broke off");
    } else if (code == RELAY_OK && (upload.kind == RELAY_WIRE_UPLOAD_HEADER) == append->opened) {
        code = RELAYD_RPC_BLAME(&stream->detail, "message", &err,
                                append->opened
                                    ? "the header comes once: every other message is a chunk"
                                    : "the first message must be the header");
    } else if (code == RELAY_OK && upload.kind == RELAY_WIRE_UPLOAD_HEADER) {
        code = take_header(append, &view, upload.header, &err);
    } else if (code == RELAY_OK) {
        code = take_chunk(append, &view, &upload.chunk, &err);
    }
    if (code == RELAY_OK) {
        relayd_rpc_stream_recv(stream);
    } else {
        stop(append, NULL, &err);
    }
}

static void end(struct relayd_rpc_stream *stream, enum relayd_rpc_end how)
{
    struct append_call *append = (struct append_call *)stream;
    struct relayd_session *session = NULL;
    struct relay_error err = {0};
    struct relayd_request_info info;
    uint32_t held[RELAY_LAYERS_MAX];
    uint32_t count = 0;
    enum relay_code code;
    if (how == RELAYD_RPC_END_BROKEN) {
        code = RELAY_FAIL(&err, RELAY_CANCELLED, "the append broke off");
    } else if (!append->opened) {
        code = RELAYD_RPC_BLAME(&stream->detail, "message", &err, "no header came");
    } else {
        code = acquire(append, &session, &err);
    }
    if (code == RELAY_OK) {
        code = relayd_session_request_held(session, append->handle, held, &err);
    }
    if (code == RELAY_OK) {
        code = relayd_session_get_requests(session, &append->handle, 1, &info, 1, &count, &err);
    }
    if (code == RELAY_OK) {
        Relay__V1__AppendKvResponse response;
        relay__v1__append_kv_response__init(&response);
        response.n_held = relayd_session_model(session)->num_layers;
        response.held = held;
        response.length = info.length;
        response.held_max = info.held_max;
        stop(append, relay_wire_pack(&response.base), NULL);
    } else {
        stop(append, NULL, &err);
    }
    relayd_session_release(session);
}

static void start(struct relayd_rpc_call *call)
{
    struct append_call *append = (struct append_call *)call;
    relayd_rpc_stream_init(&append->stream);
    append->opened = false;
    relayd_rpc_stream_recv(&append->stream);
}

static void fini(struct relayd_rpc_call *call)
{
    struct append_call *append = (struct append_call *)call;
    relayd_rpc_chunks_fini(&append->chunks);
    relayd_rpc_stream_fini(&append->stream);
}

static void destroy(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_destroy((struct relayd_rpc_stream *)call);
}

static const struct relayd_rpc_stream_spec spec = {.message = message, .end = end, .slow = true};

const struct relayd_rpc_method relayd_rpc_append_methods[] = {
    {
        .path = RELAYD_RPC_SERVICE "AppendKv",
        .posted = 2,
        .call_bytes = sizeof(struct append_call),
        .start = start,
        .fini = fini,
        .destroy = destroy,
        .spec = &spec,
    },
    {.start = NULL},
};
