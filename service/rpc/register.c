/* RegisterPrompt: header -> UploadState, or Prompt at once when it is there already; chunks;
 * half-close commits; a broken stream aborts. Worker threads, one message at a time; nothing is
 * visible before the commit. */
#include "service/rpc/chunks.h"
#include "service/rpc/messages.h"

#include <proto/wire/convert.h>
#include <string.h>

struct register_call {
    struct relayd_rpc_stream stream;
    struct relayd_upload *upload; /* open from the header to the commit or the break */
    bool kept;                    /* it has an upload_id: a break leaves a partial */
    bool ended;                   /* nothing more is read */
    struct relayd_rpc_chunks chunks;
};

static void stop(struct register_call *reg, grpc_byte_buffer *last, const struct relay_error *err)
{
    if (reg->upload != NULL) {
        relayd_upload_abort(reg->upload);
        reg->upload = NULL;
    }
    reg->ended = true;
    relayd_rpc_stream_finish(&reg->stream, last, err);
}

/* ---- answers ----------------------------------------------------------------------------------
 */

/* ABORTED: another stream goes on with the upload. */
static enum relay_code send_state(struct register_call *reg, struct relay_error *err)
{
    const struct relayd_store_options *limits =
        relayd_store_limits(reg->stream.base.rpc->opt.store);
    uint32_t held[RELAY_LAYERS_MAX];
    uint32_t layers;
    Relay__V1__UploadState state;
    Relay__V1__RegisterPromptResponse response;
    relay__v1__upload_state__init(&state);
    relay__v1__register_prompt_response__init(&response);
    const enum relay_code code = relayd_upload_held(reg->upload, held, &layers, err);
    if (code != RELAY_OK) {
        return code;
    }
    state.n_held = layers;
    state.held = held;
    state.chunk_bytes_max = limits->chunk_bytes_max;
    state.unacked_bytes_max = limits->unacked_bytes_max;
    state.expires_ms = reg->kept ? limits->upload_expiry_ms : 0;
    response.message_case = RELAY__V1__REGISTER_PROMPT_RESPONSE__MESSAGE_STATE;
    response.state = &state;
    relayd_rpc_stream_send(&reg->stream, relay_wire_pack(&response.base));
    return RELAY_OK;
}

static void finish_prompt(struct register_call *reg, const struct relayd_prompt_info *info)
{
    struct relay_error err = {0};
    struct relay_wire_arena arena;
    Relay__V1__Prompt prompt;
    Relay__V1__RegisterPromptResponse response;
    grpc_byte_buffer *message = NULL;
    relay_wire_arena_init(&arena);
    relay__v1__register_prompt_response__init(&response);
    response.message_case = RELAY__V1__REGISTER_PROMPT_RESPONSE__MESSAGE_PROMPT;
    response.prompt = &prompt;
    if (relayd_rpc_prompt(&arena, info, &prompt, &err) == RELAY_OK) {
        message = relay_wire_pack(&response.base);
    }
    stop(reg, message, &err);
    relay_wire_arena_fini(&arena);
}

/* ---- the header -------------------------------------------------------------------------------
 */

static enum relay_code check_bytes(struct relayd_rpc_detail *detail, const char *field, size_t got,
                                   size_t max, struct relay_error *err)
{
    return got <= max ? RELAY_OK
                      : RELAYD_RPC_BLAME(detail, field, err, "%s: at most %zu bytes, got %zu",
                                         field, max, got);
}

static enum relay_code read_labels(struct relayd_rpc_detail *detail,
                                   const Relay__V1__RegisterHeader *header,
                                   struct relay_wire_arena *arena, struct relayd_upload_desc *out,
                                   struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    size_t n = header->n_labels;
    if (n > RELAYD_LABELS_MAX) {
        return RELAYD_RPC_BLAME(detail, "labels", err, "labels: at most %u, got %zu",
                                RELAYD_LABELS_MAX, n);
    }
    relay_wire_arena_grant(arena, (n + 1) * sizeof(struct relayd_label));
    struct relayd_label *labels = relay_wire_arena_alloc(arena, (n + 1) * sizeof(*labels));
    if (labels == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for labels");
    }
    memset(labels, 0, (n + 1) * sizeof(*labels));
    for (size_t i = 0; i < n && code == RELAY_OK; i++) {
        size_t key = strlen(header->labels[i]->key);
        size_t value = strlen(header->labels[i]->value);
        code = check_bytes(detail, "labels.key", key, RELAYD_LABEL_BYTES_MAX, err);
        if (code == RELAY_OK) {
            code = check_bytes(detail, "labels.value", value, RELAYD_LABEL_BYTES_MAX, err);
        }
        if (code == RELAY_OK) {
            memcpy(labels[i].key, header->labels[i]->key, key);
            memcpy(labels[i].value, header->labels[i]->value, value);
        }
    }
    out->labels = labels;
    out->num_labels = (uint32_t)n;
    return code;
}

static enum relay_code check_header(struct relayd_rpc_detail *detail,
                                    const Relay__V1__RegisterHeader *header,
                                    struct relay_error *err)
{
    enum relay_code code = relayd_rpc_check_prompt_id(detail, "prompt_id", header->prompt_id, err);
    if (code == RELAY_OK) {
        code =
            check_bytes(detail, "variant", strlen(header->variant), RELAYD_VARIANT_BYTES_MAX, err);
    }
    if (code == RELAY_OK) {
        code = check_bytes(detail, "content_key", header->content_key.len,
                           RELAYD_CONTENT_KEY_BYTES_MAX, err);
    }
    if (code == RELAY_OK && header->upload_id.len != 0 &&
        header->upload_id.len != RELAYD_UPLOAD_ID_BYTES) {
        code =
            RELAYD_RPC_BLAME(detail, "upload_id", err, "upload_id: expected 0 or %u bytes, got %zu",
                             RELAYD_UPLOAD_ID_BYTES, header->upload_id.len);
    }
    if (code == RELAY_OK && header->num_tokens == 0) {
        code = RELAYD_RPC_BLAME(detail, "num_tokens", err, "num_tokens: at least 1, got 0");
    }
    if (code == RELAY_OK && header->n_token_ids != 0 && header->n_token_ids != header->num_tokens) {
        code = RELAYD_RPC_BLAME(detail, "token_ids", err,
                                "token_ids: expected 0 or %u values, got %zu", header->num_tokens,
                                header->n_token_ids);
    }
    return code;
}

static enum relay_code read_header(struct register_call *reg, const struct relay_wire_view *view,
                                   struct relay_wire_span span, struct relay_wire_arena *arena,
                                   struct relay_model *model, struct relayd_upload_desc *out,
                                   struct relay_error *err)
{
    struct relayd_rpc_detail *detail = &reg->stream.detail;
    ProtobufCMessage *message = NULL;
    enum relay_code code = relay_wire_unpack_request_span(
        view, span, &relay__v1__register_header__descriptor, arena, &message, err);
    if (code != RELAY_OK) {
        return code;
    }
    const Relay__V1__RegisterHeader *header = (const Relay__V1__RegisterHeader *)message;
    code = check_header(detail, header, err);
    if (code == RELAY_OK) {
        code = relay_wire_model_from_spec(header->model, arena, model, err);
        if (code != RELAY_OK) {
            detail->field = "model";
        }
    }
    if (code != RELAY_OK) {
        return code;
    }
    *out = (struct relayd_upload_desc){
        .tenant = relayd_rpc_tenant(&reg->stream.base),
        .prompt_id = header->prompt_id,
        .model = model,
        .num_tokens = header->num_tokens,
        .variant = header->variant,
        .content_key = header->content_key.data,
        .content_key_bytes = (uint32_t)header->content_key.len,
        .on_exists = (enum relayd_on_exists)header->on_exists,
        .upload_id = header->upload_id.len != 0 ? header->upload_id.data : NULL,
        .idle_ttl_ms = header->idle_ttl_ms,
        .pinned = header->pinned,
    };
    return read_labels(detail, header, arena, out, err);
}

static void take_header(struct register_call *reg, const struct relay_wire_view *view,
                        struct relay_wire_span span)
{
    struct relay_error err = {0};
    struct relay_model model;
    struct relayd_upload_desc desc;
    struct relayd_prompt_info exists; /* ~10 KiB: fine on a worker's stack */
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    enum relay_code code = read_header(reg, view, span, &arena, &model, &desc, &err);
    if (code == RELAY_OK) {
        code = relayd_upload_begin(reg->stream.base.rpc->opt.store, &desc, &reg->upload, &exists,
                                   &err);
    }
    if (code == RELAY_OK && reg->upload == NULL) {
        finish_prompt(reg, &exists);
    } else {
        if (code == RELAY_OK) {
            reg->kept = desc.upload_id != NULL;
            code = send_state(reg, &err);
        }
        if (code != RELAY_OK) {
            stop(reg, NULL, &err);
        }
    }
    relay_wire_arena_fini(&arena);
}

/* ---- messages ---------------------------------------------------------------------------------
 */

static void take_chunk(struct register_call *reg, const struct relay_wire_view *view,
                       const struct relay_wire_chunk *chunk)
{
    struct relay_error err = {0};
    struct relayd_kv_chunk kv;
    enum relay_code code =
        relayd_rpc_chunks_gather(&reg->stream, &reg->chunks, view, chunk, &kv, &err);
    if (code == RELAY_OK) {
        code = relayd_upload_chunk(reg->upload, &kv, &err);
    }
    if (code == RELAY_OK) {
        code = send_state(reg, &err);
    }
    if (code != RELAY_OK) {
        stop(reg, NULL, &err);
    }
}

static void message(struct relayd_rpc_stream *stream)
{
    struct register_call *reg = (struct register_call *)stream;
    struct relay_wire_view view;
    struct relay_wire_upload upload;
    struct relay_error err = {0};
    if (relayd_rpc_call_cancelled(&stream->base)) {
        err.code = RELAY_CANCELLED;
        stop(reg, NULL, &err);
        return;
    }
    enum relay_code code = relayd_rpc_chunks_decode(stream, &view, &upload, &err);
    if (code == RELAY_OK && (upload.kind == RELAY_WIRE_UPLOAD_HEADER) != (reg->upload == NULL)) {
        code = RELAYD_RPC_BLAME(&stream->detail, "message", &err,
                                reg->upload == NULL
                                    ? "the first message must be the header"
                                    : "the header comes once: every other message is a chunk");
    }
    if (code != RELAY_OK) {
        stop(reg, NULL, &err);
    } else if (upload.kind == RELAY_WIRE_UPLOAD_HEADER) {
        take_header(reg, &view, upload.header);
    } else {
        take_chunk(reg, &view, &upload.chunk);
    }
    if (!reg->ended) {
        relayd_rpc_stream_recv(stream);
    }
}

static void end(struct relayd_rpc_stream *stream, enum relayd_rpc_end how)
{
    struct register_call *reg = (struct register_call *)stream;
    struct relay_error err = {0};
    struct relayd_prompt_info info;
    if (how == RELAYD_RPC_END_BROKEN) {
        (void)RELAY_FAIL(&err, RELAY_CANCELLED, "the upload broke off");
        stop(reg, NULL, &err);
        return;
    }
    if (reg->upload == NULL) {
        (void)RELAYD_RPC_BLAME(&stream->detail, "message", &err, "no header came");
        stop(reg, NULL, &err);
        return;
    }
    struct relayd_upload *upload = reg->upload;
    reg->upload = NULL; /* the commit ends it in every case */
    if (relayd_upload_commit(upload, &info, &err) == RELAY_OK) {
        finish_prompt(reg, &info);
    } else {
        stop(reg, NULL, &err);
    }
}

/* ---- the call ---------------------------------------------------------------------------------
 */

static void start(struct relayd_rpc_call *call)
{
    struct register_call *reg = (struct register_call *)call;
    relayd_rpc_stream_init(&reg->stream);
    reg->upload = NULL;
    reg->kept = false;
    reg->ended = false;
    relayd_rpc_stream_recv(&reg->stream);
}

static void fini(struct relayd_rpc_call *call)
{
    struct register_call *reg = (struct register_call *)call;
    if (reg->upload != NULL) { /* gRPC refused a batch */
        relayd_upload_abort(reg->upload);
        reg->upload = NULL;
    }
    relayd_rpc_chunks_fini(&reg->chunks);
    relayd_rpc_stream_fini(&reg->stream);
}

static void destroy(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_destroy((struct relayd_rpc_stream *)call);
}

static const struct relayd_rpc_stream_spec spec = {.message = message, .end = end, .slow = true};

const struct relayd_rpc_method relayd_rpc_register_methods[] = {
    {
        .path = RELAYD_RPC_SERVICE "RegisterPrompt",
        .posted = 2,
        .call_bytes = sizeof(struct register_call),
        .start = start,
        .fini = fini,
        .destroy = destroy,
        .spec = &spec,
    },
    {.start = NULL},
};
