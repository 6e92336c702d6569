/* Every decoder of proto/wire on hostile bytes, and against protobuf-c where both accept.
 *
 * The first byte says which decoder and the second how the rest is cut into slices. As a libFuzzer
 * target (clang, RELAY_LIBFUZZER) this file holds only the entry point; built alone it has a main
 * that replays files, or with --corpus DIR writes a small seed corpus. */
#include "unit/proto/wire/compare.h"
#include "unit/proto/wire/types.h"

#include <proto/wire/convert.h>
#include <proto/wire/status_details.h>
#include <proto/wire/unpack.h>
#include <stdio.h>

#define ENTRIES_MAX 128
#define DECODERS    6

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t handles[ENTRIES_MAX];
static uint32_t q_lens[ENTRIES_MAX];
static uint32_t positions[ENTRIES_MAX];
static const struct relay_wire_entry_storage storage = {handles, q_lens, positions, ENTRIES_MAX};

static void require(bool holds, const char *what, const char *detail)
{
    if (!holds) {
        fprintf(stderr, "%s: %s\n", what, detail != NULL ? detail : "does not hold");
        abort();
    }
}

/* A decoder takes it or names one of the two codes that bad bytes may get. */
static bool accepted(enum relay_code code, const struct relay_error *err)
{
    if (code == RELAY_OK) {
        return true;
    }
    require(code == RELAY_INVALID_ARGUMENT || code == RELAY_UNIMPLEMENTED, "code",
            relay_code_name(code));
    require(err->msg[0] != '\0', "message", NULL);
    return false;
}

/* What a hand-written decoder takes, protobuf-c must take, and see the same. */
static ProtobufCMessage *must_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                                     size_t size)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, size, data);
    require(message != NULL, type->name, "protobuf-c refuses it");
    return message;
}

static void fuzz_request(const struct relay_wire_view *view, const uint8_t *data, size_t size)
{
    struct relay_wire_attend_request hand;
    struct relay_error err;
    if (accepted(relay_wire_attend_request_decode(view, &storage, &hand, &err), &err)) {
        ProtobufCMessage *pb =
            must_unpack(&relay__v1__batched_relay_attention_request__descriptor, data, size);
        const char *differs =
            compare_request(view, &hand, (Relay__V1__BatchedRelayAttentionRequest *)pb);
        require(differs == NULL, "request", differs);
        protobuf_c_message_free_unpacked(pb, NULL);
    }
}

static void fuzz_response(const struct relay_wire_view *view, const uint8_t *data, size_t size)
{
    struct relay_wire_attend_response hand;
    struct relay_error err;
    if (accepted(relay_wire_attend_response_decode(view, &hand, &err), &err)) {
        ProtobufCMessage *pb =
            must_unpack(&relay__v1__batched_relay_attention_response__descriptor, data, size);
        const char *differs =
            compare_response(view, &hand, (Relay__V1__BatchedRelayAttentionResponse *)pb);
        require(differs == NULL, "response", differs);
        protobuf_c_message_free_unpacked(pb, NULL);
    }
}

static void fuzz_stream(const struct relay_wire_view *view, const uint8_t *data, size_t size)
{
    struct relay_wire_stream_request request;
    struct relay_wire_stream_response response;
    struct relay_error err;
    if (accepted(relay_wire_stream_request_decode(view, &storage, &request, &err), &err)) {
        ProtobufCMessage *pb = must_unpack(&relay__v1__stream_request__descriptor, data, size);
        const char *differs =
            compare_stream_request(view, &request, (Relay__V1__StreamRequest *)pb);
        require(differs == NULL, "stream request", differs);
        protobuf_c_message_free_unpacked(pb, NULL);
    }
    if (accepted(relay_wire_stream_response_decode(view, &response, &err), &err) &&
        response.kind == RELAY_WIRE_STREAM_RESULT) {
        ProtobufCMessage *pb = must_unpack(&relay__v1__stream_response__descriptor, data, size);
        const char *differs =
            compare_stream_response(view, &response, (Relay__V1__StreamResponse *)pb);
        require(differs == NULL, "stream response", differs);
        protobuf_c_message_free_unpacked(pb, NULL);
    }
}

static void fuzz_upload(const struct relay_wire_view *view, const uint8_t *data, size_t size)
{
    struct relay_wire_upload upload;
    struct relay_error err;
    if (accepted(relay_wire_upload_decode(view, &upload, &err), &err) &&
        upload.kind == RELAY_WIRE_UPLOAD_CHUNK) {
        ProtobufCMessage *pb =
            must_unpack(&relay__v1__register_prompt_request__descriptor, data, size);
        Relay__V1__RegisterPromptRequest *request = (Relay__V1__RegisterPromptRequest *)pb;
        require(request->message_case == RELAY__V1__REGISTER_PROMPT_REQUEST__MESSAGE_CHUNK,
                "upload", "no chunk");
        const char *differs = compare_chunk(view, &upload.chunk, request->chunk);
        require(differs == NULL, "chunk", differs);
        protobuf_c_message_free_unpacked(pb, NULL);
    }
}

/* A model that comes through must be one that the kernels' own check can read. */
static void fuzz_model(const ProtobufCMessage *message, struct relay_wire_arena *arena)
{
    const Relay__V1__OpenSessionRequest *request = (const Relay__V1__OpenSessionRequest *)message;
    struct relay_model model;
    struct relay_error err;
    Relay__V1__ModelSpec *spec;
    if (relay_wire_model_from_spec(request->model, arena, &model, &err) == RELAY_OK) {
        require(relay_wire_model_to_spec(&model, arena, &spec, &err) == RELAY_OK, "spec", err.msg);
        require(protobuf_c_message_get_packed_size(&spec->base) ==
                    protobuf_c_message_get_packed_size(&request->model->base),
                "spec", "another size");
    }
}

static void fuzz_unpack(const struct relay_wire_view *view, size_t which, const uint8_t *data,
                        size_t size)
{
    const ProtobufCMessageDescriptor *type = wire_types[which % WIRE_TYPES_COUNT];
    struct relay_wire_arena arena;
    struct relay_error err;
    ProtobufCMessage *message = NULL;

    relay_wire_arena_init(&arena);
    if (accepted(relay_wire_unpack_request(view, type, &arena, &message, &err), &err)) {
        ProtobufCMessage *pb = must_unpack(type, data, size);
        require(protobuf_c_message_check(message), type->name, "check fails");
        require(protobuf_c_message_get_packed_size(message) ==
                    protobuf_c_message_get_packed_size(pb),
                type->name, "another size");
        protobuf_c_message_free_unpacked(pb, NULL);
        if (type == &relay__v1__open_session_request__descriptor) {
            fuzz_model(message, &arena);
        }
    }
    require(arena.bytes_used <= arena.bytes_max, "arena", "past its cap");
    relay_wire_arena_fini(&arena);

    /* With unknown fields let through, protobuf-c meets more; memory is capped all the same. */
    relay_wire_arena_init(&arena);
    (void)accepted(
        relay_wire_unpack_response(view, relay_wire_whole(view), type, &arena, &message, &err),
        &err);
    require(arena.bytes_used <= arena.bytes_max, "arena", "past its cap");
    relay_wire_arena_fini(&arena);
}

static void fuzz_details(const uint8_t *data, size_t size)
{
    grpc_slice value = grpc_slice_from_copied_buffer((const char *)data, size);
    struct relay_wire_arena arena;
    struct relay_error err;
    Relay__V1__ErrorDetail *detail = NULL;
    enum relay_code code = RELAY_OK;

    relay_wire_arena_init(&arena);
    if (accepted(relay_wire_status_details_decode(&value, &arena, &code, &detail, &err), &err) &&
        detail != NULL) {
        grpc_slice again = relay_wire_status_details_encode(code, "again", detail);
        require(GRPC_SLICE_LENGTH(again) <= RELAY_WIRE_STATUS_DETAILS_BYTES_MAX, "details",
                "too long");
        grpc_slice_unref(again);
    }
    relay_wire_arena_fini(&arena);
    grpc_slice_unref(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool started;
    struct relay_wire_view view;
    struct relay_error err;
    uint64_t seed;

    if (size < 2) {
        return 0;
    }
    if (!started) {
        grpc_init();
        started = true;
    }
    seed = data[1];
    grpc_byte_buffer *buffer = kit_buffer(data + 2, size - 2, &seed);
    require(relay_wire_view_init(&view, buffer, &err) == RELAY_OK, "view", NULL);
    switch (data[0] % DECODERS) {
    case 0:
        fuzz_request(&view, data + 2, size - 2);
        break;
    case 1:
        fuzz_response(&view, data + 2, size - 2);
        break;
    case 2:
        fuzz_stream(&view, data + 2, size - 2);
        break;
    case 3:
        fuzz_upload(&view, data + 2, size - 2);
        break;
    case 4:
        fuzz_unpack(&view, data[0] / DECODERS, data + 2, size - 2);
        break;
    default:
        fuzz_details(data + 2, size - 2);
        break;
    }
    grpc_byte_buffer_destroy(buffer);
    return 0;
}

#ifndef RELAY_LIBFUZZER

static int write_seed(const char *folder, size_t n, uint8_t decoder, const struct kit_bytes *bytes)
{
    uint8_t head[2] = {decoder, (uint8_t)(n * 37)};
    char path[1024];
    FILE *out;
    int length = snprintf(path, sizeof(path), "%s/seed-%03zu", folder, n);

    if (length < 0 || (size_t)length >= sizeof(path) || (out = fopen(path, "wb")) == NULL) {
        fprintf(stderr, "cannot write to %s\n", folder);
        return 1;
    }
    fwrite(head, 1, sizeof(head), out);
    if (bytes->length > 0) {
        fwrite(bytes->data, 1, bytes->length, out);
    }
    return fclose(out) == 0 ? 0 : 1;
}

/* A few valid messages for every decoder and every message type. */
static int write_corpus(const char *folder)
{
    static const ProtobufCMessageDescriptor *const hot[] = {
        &relay__v1__batched_relay_attention_request__descriptor,
        &relay__v1__batched_relay_attention_response__descriptor,
        &relay__v1__stream_request__descriptor,
        &relay__v1__stream_response__descriptor,
        &relay__v1__register_prompt_request__descriptor,
    };
    static const uint8_t decoder_of[] = {0, 1, 2, 2, 3};
    uint64_t seed = 10;
    size_t n = 0;
    int rc = 0;

    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; rc == 0 && i < sizeof(hot) / sizeof(hot[0]) + WIRE_TYPES_COUNT; i++) {
            bool is_hot = i < sizeof(hot) / sizeof(hot[0]);
            size_t type = is_hot ? 0 : i - sizeof(hot) / sizeof(hot[0]);
            struct kit_bytes bytes = {0};
            kit_random_message(&bytes, is_hot ? hot[i] : wire_types[type], &seed);
            rc = write_seed(folder, n++, is_hot ? decoder_of[i] : (uint8_t)(type * DECODERS + 4),
                            &bytes);
            kit_free(&bytes);
        }
    }
    if (rc == 0) {
        Relay__V1__ErrorDetail detail = RELAY__V1__ERROR_DETAIL__INIT;
        grpc_slice value = relay_wire_status_details_encode(RELAY_NOT_FOUND, "seed", &detail);
        struct kit_bytes bytes = {0};
        kit_put(&bytes, GRPC_SLICE_START_PTR(value), GRPC_SLICE_LENGTH(value));
        rc = write_seed(folder, n, 5, &bytes);
        kit_free(&bytes);
        grpc_slice_unref(value);
    }
    return rc;
}

static int replay(const char *path)
{
    struct kit_bytes bytes = {0};
    uint8_t piece[4096];
    size_t n;
    FILE *in = fopen(path, "rb");
    if (in == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        return 1;
    }
    while ((n = fread(piece, 1, sizeof(piece), in)) > 0) {
        kit_put(&bytes, piece, n);
    }
    fclose(in);
    (void)LLVMFuzzerTestOneInput(bytes.data, bytes.length);
    kit_free(&bytes);
    return 0;
}

int main(int argc, char **argv)
{
    int rc = 0;
    if (argc == 3 && strcmp(argv[1], "--corpus") == 0) {
        return write_corpus(argv[2]);
    }
    for (int i = 1; i < argc && rc == 0; i++) {
        rc = replay(argv[i]);
    }
    printf("%d inputs replayed\n", argc - 1);
    return rc;
}

#endif
