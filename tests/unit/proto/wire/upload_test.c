/* Upload messages against protobuf-c, and hostile bytes. */
#include "compare.h"
#include "testlib/check.h"

#include <proto/wire/unpack.h>

static grpc_slice slice_of(ProtobufCBinaryData data)
{
    return relay_wire_slice(data.data, data.len, NULL, NULL);
}

static enum relay_code decode_bytes(const uint8_t *data, size_t length,
                                    struct relay_wire_upload *out, struct relay_error *err)
{
    grpc_byte_buffer *buffer = kit_buffer_cut(data, length, NULL, 0);
    struct relay_wire_view view;
    enum relay_code code = relay_wire_view_init(&view, buffer, err);
    if (code == RELAY_OK) {
        code = relay_wire_upload_decode(&view, out, err);
    }
    grpc_byte_buffer_destroy(buffer);
    return code;
}

static void test_upload_chunk_both_ways(void)
{
    uint64_t seed = 7;
    for (int round = 0; round < 3000; round++) {
        struct kit_bytes chunk = {0}, wire = {0};
        struct relay_wire_upload hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&chunk, &relay__v1__kv_chunk__descriptor, &seed);
        kit_field_bytes(&wire, 2, chunk.data, chunk.length);
        grpc_byte_buffer *in = kit_buffer(wire.data, wire.length, &seed);
        Relay__V1__RegisterPromptRequest *pb =
            relay__v1__register_prompt_request__unpack(NULL, wire.length, wire.data);
        CHECK(pb != NULL);
        CHECK_OK(relay_wire_view_init(&view, in, &err), err);
        CHECK_OK(relay_wire_upload_decode(&view, &hand, &err), err);
        CHECK_EQ(hand.kind, RELAY_WIRE_UPLOAD_CHUNK);
        const char *differs = compare_chunk(&view, &hand.chunk, pb->chunk);
        if (differs != NULL) {
            CHECK_FAIL("round %d: %s differs", round, differs);
        }
        grpc_byte_buffer *out =
            relay_wire_chunk_encode(&hand.chunk, slice_of(pb->chunk->k), slice_of(pb->chunk->v));
        struct kit_bytes encoded = kit_flatten(out);
        uint8_t *packed = malloc(protobuf_c_message_get_packed_size(&pb->base));
        CHECK(packed != NULL);
        CHECK_EQ(protobuf_c_message_pack(&pb->base, packed), encoded.length);
        CHECK(memcmp(packed, encoded.data, encoded.length) == 0);
        free(packed);
        kit_free(&encoded);
        relay__v1__register_prompt_request__free_unpacked(pb, NULL);
        grpc_byte_buffer_destroy(in);
        grpc_byte_buffer_destroy(out);
        kit_free(&chunk);
        kit_free(&wire);
    }
}

static void test_upload_headers_unpack_from_their_span(void)
{
    Relay__V1__AppendKvHeader header = RELAY__V1__APPEND_KV_HEADER__INIT, *read;
    Relay__V1__AppendKvRequest request = RELAY__V1__APPEND_KV_REQUEST__INIT;
    struct relay_wire_upload upload;
    struct relay_wire_arena arena;
    struct relay_wire_view view;
    struct relay_error err;
    ProtobufCMessage *message = NULL;

    header.handle = 0x1122334455667788;
    request.message_case = RELAY__V1__APPEND_KV_REQUEST__MESSAGE_HEADER;
    request.header = &header;
    grpc_byte_buffer *buffer = relay_wire_pack(&request.base);
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    CHECK_OK(relay_wire_upload_decode(&view, &upload, &err), err);
    CHECK_EQ(upload.kind, RELAY_WIRE_UPLOAD_HEADER);
    relay_wire_arena_init(&arena);
    CHECK_OK(relay_wire_unpack_request_span(&view, upload.header,
                                            &relay__v1__append_kv_header__descriptor, &arena,
                                            &message, &err),
             err);
    read = (Relay__V1__AppendKvHeader *)message;
    CHECK(read->handle == header.handle);
    relay_wire_arena_fini(&arena);
    grpc_byte_buffer_destroy(buffer);
}

static void test_upload_chunk_truncated_at_every_byte(void)
{
    static uint8_t tensor[60] = {1};
    struct relay_wire_chunk chunk = {
        .layer = 3, .token_begin = 256, .token_count = 64, .dtype = RELAY_DTYPE_BF16, .xxh64 = 5};
    grpc_byte_buffer *buffer =
        relay_wire_chunk_encode(&chunk, relay_wire_slice(tensor, sizeof(tensor), NULL, NULL),
                                relay_wire_slice(tensor, sizeof(tensor), NULL, NULL));
    struct kit_bytes wire = kit_flatten(buffer);
    struct relay_wire_upload out;
    struct relay_error err;

    CHECK_OK(decode_bytes(wire.data, wire.length, &out, &err), err);
    for (size_t length = 0; length < wire.length; length++) {
        uint8_t *cut = malloc(length + 1);
        CHECK(cut != NULL);
        memcpy(cut, wire.data, length);
        CHECK_CODE(decode_bytes(cut, length, &out, &err), RELAY_INVALID_ARGUMENT);
        free(cut);
    }
    grpc_byte_buffer_destroy(buffer);
    kit_free(&wire);
}

static void test_upload_refuses_unknown(void)
{
    struct relay_wire_upload out;
    struct relay_error err;
    CHECK_CODE(decode_bytes((const uint8_t *)"\x1a\x00", 2, &out, &err), RELAY_UNIMPLEMENTED);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x12\x02\x20\x05", 4, &out, &err),
               RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "dtype") != NULL);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x12\x02\x30\x05", 4, &out, &err),
               RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "KvChunk") != NULL);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x12\x00\x12\x00", 4, &out, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(decode_bytes(NULL, 0, &out, &err), RELAY_INVALID_ARGUMENT);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_upload_chunk_both_ways);
    CHECK_RUN(test_upload_headers_unpack_from_their_span);
    CHECK_RUN(test_upload_chunk_truncated_at_every_byte);
    CHECK_RUN(test_upload_refuses_unknown);
    grpc_shutdown();
    return check_done();
}
