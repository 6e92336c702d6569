#include "e2e/faults_engine.h"
#include "testlib/rng.h"

#include <proto/wire/attend.h>
#include <stdio.h>
#include <string.h>

/* A slice of n floats, a function of the seed. */
static grpc_slice floats(size_t n, uint64_t seed)
{
    grpc_slice slice = grpc_slice_malloc(n * sizeof(float));
    float *x = (float *)(void *)GRPC_SLICE_START_PTR(slice);
    struct rng rng = {seed};
    for (size_t i = 0; i < n; i++) {
        x[i] = rng_unit(&rng);
    }
    return slice;
}

static ProtobufCBinaryData token_of(struct faults_engine *engine)
{
    return (ProtobufCBinaryData){sizeof(engine->token), engine->token};
}

enum relay_code faults_engine_open(struct faults_engine *engine, struct faults_peer *peer,
                                   const struct faults_model *model, uint64_t seed,
                                   uint32_t lease_ms, uint32_t rows_max, struct relay_error *err)
{
    struct relay_wire_arena arena;
    Relay__V1__OpenSessionRequest request = RELAY__V1__OPEN_SESSION_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    memset(engine, 0, sizeof(*engine));
    engine->peer = peer;
    engine->model = model;
    engine->seed = seed;
    request.model = faults_spec(model, &arena);
    request.io_dtype = RELAY__V1__DTYPE__DTYPE_F32;
    request.lease_ms = lease_ms;
    request.rows_max = rows_max;
    request.response_bytes_max = 32u << 20;
    const enum relay_code code =
        faults_unary(peer, "OpenSession", &request.base,
                     &relay__v1__open_session_response__descriptor, &message, err);
    relay_wire_arena_fini(&arena);
    if (code == RELAY_OK) {
        const Relay__V1__OpenSessionResponse *response = (Relay__V1__OpenSessionResponse *)message;
        memcpy(engine->token, response->session.data, sizeof(engine->token));
        protobuf_c_message_free_unpacked(message, NULL);
    }
    return code;
}

enum relay_code faults_engine_requests(struct faults_engine *engine, const char *prompt_id,
                                       uint32_t n, uint32_t tokens_reserved,
                                       struct relay_error *err)
{
    Relay__V1__OpenRequestsRequest request = RELAY__V1__OPEN_REQUESTS_REQUEST__INIT;
    Relay__V1__OpenRequest one = RELAY__V1__OPEN_REQUEST__INIT;
    Relay__V1__OpenRequest *all[FAULTS_REQUESTS_MAX];
    ProtobufCMessage *message = NULL;
    if (prompt_id != NULL) {
        one.prompt_id = (char *)(uintptr_t)prompt_id;
    }
    one.tokens_reserved = tokens_reserved;
    for (uint32_t i = 0; i < n; i++) {
        all[i] = &one;
    }
    request.session = token_of(engine);
    request.n_requests = n;
    request.requests = all;
    const enum relay_code code =
        faults_unary(engine->peer, "OpenRequests", &request.base,
                     &relay__v1__open_requests_response__descriptor, &message, err);
    if (code == RELAY_OK) {
        const Relay__V1__OpenRequestsResponse *response =
            (Relay__V1__OpenRequestsResponse *)message;
        for (size_t i = 0; i < response->n_handles; i++) {
            engine->handles[engine->num_requests++] = response->handles[i];
        }
        protobuf_c_message_free_unpacked(message, NULL);
    }
    return code;
}

enum relay_code faults_engine_drop(struct faults_engine *engine, uint32_t n,
                                   struct relay_error *err)
{
    Relay__V1__CloseRequestsRequest request = RELAY__V1__CLOSE_REQUESTS_REQUEST__INIT;
    request.session = token_of(engine);
    request.n_handles = n;
    request.handles = engine->handles;
    const enum relay_code code =
        faults_unary(engine->peer, "CloseRequests", &request.base, NULL, NULL, err);
    if (code == RELAY_OK) {
        engine->num_requests -= n;
        memmove(engine->handles, engine->handles + n,
                engine->num_requests * sizeof(engine->handles[0]));
    }
    return code;
}

static bool send_request(struct faults_engine *engine,
                         const struct relay_wire_stream_request *request, grpc_slice k,
                         grpc_slice v, grpc_slice q, uint32_t timeout_ms)
{
    return faults_call_send(engine->stream, relay_wire_stream_request_encode(request, k, v, q),
                            timeout_ms);
}

static bool send_plain(struct faults_engine *engine,
                       const struct relay_wire_stream_request *request)
{
    return send_request(engine, request, grpc_empty_slice(), grpc_empty_slice(), grpc_empty_slice(),
                        FAULTS_TIMEOUT_MS);
}

enum relay_code faults_engine_attach(struct faults_engine *engine, struct relay_error *err)
{
    struct faults_answer answer;
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_ATTACH};
    request.attach.session_bytes = RELAY_WIRE_SESSION_BYTES;
    memcpy(request.attach.session, engine->token, sizeof(engine->token));
    engine->stream = faults_call_open(engine->peer, "StreamRelayAttention");
    (void)send_plain(engine, &request);
    switch (faults_engine_answer(engine, FAULTS_TIMEOUT_MS, NULL, 0, &answer)) {
    case FAULTS_MESSAGE:
        return answer.kind == RELAY_WIRE_STREAM_ATTACHED
                   ? RELAY_OK
                   : RELAY_FAIL(err, RELAY_INTERNAL, "answer %d to Attach", (int)answer.kind);
    case FAULTS_END:
        return faults_call_status(engine->stream, err);
    default:
        return RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "no answer to Attach");
    }
}

void faults_engine_close(struct faults_engine *engine)
{
    Relay__V1__CloseSessionRequest request = RELAY__V1__CLOSE_SESSION_REQUEST__INIT;
    faults_call_close(engine->stream);
    if (engine->peer != NULL) {
        request.session = token_of(engine);
        (void)faults_unary(engine->peer, "CloseSession", &request.base, NULL, NULL, NULL);
    }
    memset(engine, 0, sizeof(*engine));
}

bool faults_engine_begin(struct faults_engine *engine, uint64_t step_id, uint32_t position,
                         uint32_t q_len, enum relay_part part)
{
    uint32_t q_lens[FAULTS_REQUESTS_MAX], positions[FAULTS_REQUESTS_MAX];
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_BEGIN};
    for (uint32_t i = 0; i < engine->num_requests; i++) {
        q_lens[i] = q_len;
        positions[i] = position;
    }
    request.begin = (struct relay_wire_begin){
        .step_id = step_id,
        .part = part,
        .entries = {.handles = engine->handles,
                    .q_lens = q_lens,
                    .positions = positions,
                    .num_handles = engine->num_requests,
                    .num_q_lens = engine->num_requests,
                    .num_positions = engine->num_requests},
    };
    return send_plain(engine, &request);
}

/* What the tensors of a layer are made from. */
static uint64_t seed_of(const struct faults_engine *engine, uint32_t position, uint32_t layer)
{
    return engine->seed * 7919u + position * 31u + layer;
}

bool faults_engine_call(struct faults_engine *engine, uint64_t step_id, uint32_t position,
                        uint32_t q_len, uint32_t layer, enum relay_part part, uint32_t timeout_ms)
{
    const uint64_t seed = seed_of(engine, position, layer);
    const size_t rows = (size_t)engine->num_requests * q_len;
    const size_t kv = part == RELAY_PART_PROMPT_ONLY ? 0 : rows * faults_kv_floats(engine->model);
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_CALL};
    request.call = (struct relay_wire_layer_call){.step_id = step_id, .layer = layer};
    return send_request(engine, &request, kv == 0 ? grpc_empty_slice() : floats(kv, seed ^ 1),
                        kv == 0 ? grpc_empty_slice() : floats(kv, seed ^ 2),
                        floats(rows * faults_q_floats(engine->model), seed ^ 3), timeout_ms);
}

bool faults_engine_end(struct faults_engine *engine, uint64_t step_id)
{
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_END};
    request.end.step_id = step_id;
    return send_plain(engine, &request);
}

/* ---- answers ---- */

static void read_begun(const struct relay_wire_view *view, struct relay_wire_span body,
                       struct faults_answer *answer)
{
    struct relay_wire_arena arena;
    ProtobufCMessage *message = NULL;
    relay_wire_arena_init(&arena);
    if (relay_wire_unpack_response(view, body, &relay__v1__step_begun__descriptor, &arena, &message,
                                   NULL) == RELAY_OK) {
        const Relay__V1__StepBegun *begun = (Relay__V1__StepBegun *)message;
        answer->code = (enum relay_code)begun->code;
        answer->step_id = begun->step_id;
        answer->kv_tokens_free = begun->kv_tokens_free;
        snprintf(answer->message, sizeof(answer->message), "%s", begun->message);
    } else {
        answer->code = RELAY_INTERNAL;
    }
    relay_wire_arena_fini(&arena);
}

static void read_answer(grpc_byte_buffer *buffer, void *out, size_t room,
                        struct faults_answer *answer)
{
    struct relay_wire_view view;
    struct relay_wire_stream_response response;
    memset(answer, 0, sizeof(*answer));
    if (relay_wire_view_init(&view, buffer, NULL) != RELAY_OK ||
        relay_wire_stream_response_decode(&view, &response, NULL) != RELAY_OK) {
        answer->kind = RELAY_WIRE_STREAM_RESULT;
        answer->code = RELAY_INTERNAL;
        snprintf(answer->message, sizeof(answer->message), "an answer does not parse");
        return;
    }
    answer->kind = response.kind;
    if (response.kind == RELAY_WIRE_STREAM_BEGUN) {
        read_begun(&view, response.body, answer);
    } else if (response.kind == RELAY_WIRE_STREAM_RESULT) {
        answer->code = response.result.code;
        answer->step_id = response.result.step_id;
        answer->layer = response.result.layer;
        answer->out_bytes = response.result.out.length;
        memcpy(answer->message, response.result.message, sizeof(answer->message));
        if (out != NULL && response.result.out.length <= room) {
            relay_wire_gather(&view, response.result.out, out);
        }
    }
}

enum faults_event faults_engine_answer(struct faults_engine *engine, uint32_t timeout_ms, void *out,
                                       size_t room, struct faults_answer *answer)
{
    grpc_byte_buffer *buffer = NULL;
    const enum faults_event event = faults_call_receive(engine->stream, timeout_ms, &buffer);
    if (event == FAULTS_MESSAGE) {
        read_answer(buffer, out, room, answer);
        grpc_byte_buffer_destroy(buffer);
    }
    return event;
}

/* The answer of this kind; a Drain may come in between. */
static enum relay_code expect(struct faults_engine *engine, enum relay_wire_stream_answer kind,
                              float *out, size_t room, struct relay_error *err)
{
    struct faults_answer answer;
    for (;;) {
        switch (faults_engine_answer(engine, FAULTS_TIMEOUT_MS, out, room, &answer)) {
        case FAULTS_MESSAGE:
            break;
        case FAULTS_END: {
            const enum relay_code code = faults_call_status(engine->stream, err);
            return code != RELAY_OK ? code
                                    : RELAY_FAIL(err, RELAY_INTERNAL, "the stream ended with OK");
        }
        default:
            return RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "no answer %d", (int)kind);
        }
        if (answer.kind == kind) {
            return answer.code == RELAY_OK ? RELAY_OK
                                           : RELAY_FAIL(err, answer.code, "%.240s", answer.message);
        }
        if (answer.kind != RELAY_WIRE_STREAM_DRAIN) {
            return RELAY_FAIL(err, RELAY_INTERNAL, "answer %d, wanted %d", (int)answer.kind,
                              (int)kind);
        }
    }
}

enum relay_code faults_engine_step(struct faults_engine *engine, uint64_t step_id,
                                   uint32_t position, enum relay_part part, float *out, int *at,
                                   struct relay_error *err)
{
    const size_t n = engine->num_requests * faults_q_floats(engine->model);
    (void)faults_engine_begin(engine, step_id, position, 1, part);
    enum relay_code code = expect(engine, RELAY_WIRE_STREAM_BEGUN, NULL, 0, err);
    int layer = -1;
    for (uint32_t l = 0; code == RELAY_OK && l < engine->model->model.num_layers; l++) {
        layer = (int)l;
        (void)faults_engine_call(engine, step_id, position, 1, l, part, FAULTS_TIMEOUT_MS);
        code = expect(engine, RELAY_WIRE_STREAM_RESULT, out == NULL ? NULL : out + l * n,
                      n * sizeof(float), err);
    }
    if (code == RELAY_OK) {
        (void)faults_engine_end(engine, step_id);
    }
    if (at != NULL) {
        *at = layer;
    }
    return code;
}

enum relay_code faults_engine_unary(struct faults_engine *engine, uint64_t step_id,
                                    uint32_t position, uint32_t layer, float *out,
                                    struct relay_error *err)
{
    const uint64_t seed = seed_of(engine, position, layer);
    const size_t rows = engine->num_requests, kv = rows * faults_kv_floats(engine->model);
    const size_t n = rows * faults_q_floats(engine->model);
    uint32_t q_lens[FAULTS_REQUESTS_MAX], positions[FAULTS_REQUESTS_MAX];
    struct relay_wire_attend_response response;
    struct relay_wire_view view;
    grpc_byte_buffer *answer = NULL;
    for (size_t i = 0; i < rows; i++) {
        q_lens[i] = 1;
        positions[i] = position;
    }
    struct relay_wire_attend_request request = {
        .session_bytes = RELAY_WIRE_SESSION_BYTES,
        .layer = layer,
        .step_id = step_id,
        .entries = {.handles = engine->handles,
                    .q_lens = q_lens,
                    .positions = positions,
                    .num_handles = engine->num_requests,
                    .num_q_lens = engine->num_requests,
                    .num_positions = engine->num_requests},
    };
    memcpy(request.session, engine->token, sizeof(engine->token));
    enum relay_code code = faults_unary_bytes(
        engine->peer, "BatchedRelayAttention",
        relay_wire_attend_request_encode(&request, floats(kv, seed ^ 1), floats(kv, seed ^ 2),
                                         floats(n, seed ^ 3)),
        FAULTS_TIMEOUT_MS, &answer, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = relay_wire_view_init(&view, answer, err);
    if (code == RELAY_OK) {
        code = relay_wire_attend_response_decode(&view, &response, err);
    }
    if (code == RELAY_OK && response.out.length == n * sizeof(float)) {
        relay_wire_gather(&view, response.out, out);
    }
    grpc_byte_buffer_destroy(answer);
    return code;
}
