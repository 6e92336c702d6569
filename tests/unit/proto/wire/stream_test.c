/* StreamRelayAttention's messages against protobuf-c, and hostile bytes. */
#include "compare.h"
#include "testlib/check.h"

#include <proto/wire/unpack.h>

#define ENTRIES_MAX 64

static uint64_t handles[ENTRIES_MAX];
static uint32_t q_lens[ENTRIES_MAX];
static uint32_t positions[ENTRIES_MAX];
static const struct relay_wire_entry_storage storage = {handles, q_lens, positions, ENTRIES_MAX};

static grpc_slice slice_of(ProtobufCBinaryData data)
{
    return relay_wire_slice(data.data, data.len, NULL, NULL);
}

static bool packs_to(const ProtobufCMessage *message, grpc_byte_buffer *buffer)
{
    struct kit_bytes bytes = kit_flatten(buffer);
    uint8_t *packed = malloc(protobuf_c_message_get_packed_size(message) + 1);
    bool same = packed != NULL && protobuf_c_message_pack(message, packed) == bytes.length &&
                (bytes.length == 0 || memcmp(packed, bytes.data, bytes.length) == 0);
    free(packed);
    kit_free(&bytes);
    return same;
}

static enum relay_code decode_bytes(const uint8_t *data, size_t length, struct relay_error *err)
{
    grpc_byte_buffer *buffer = kit_buffer_cut(data, length, NULL, 0);
    struct relay_wire_stream_request out;
    struct relay_wire_view view;
    enum relay_code code = relay_wire_view_init(&view, buffer, err);
    if (code == RELAY_OK) {
        code = relay_wire_stream_request_decode(&view, &storage, &out, err);
    }
    grpc_byte_buffer_destroy(buffer);
    return code;
}

static void test_stream_request_both_ways(void)
{
    uint64_t seed = 5;
    int kinds[5] = {0};
    for (int round = 0; round < 6000; round++) {
        struct kit_bytes wire = {0};
        struct relay_wire_stream_request hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&wire, &relay__v1__stream_request__descriptor, &seed);
        grpc_byte_buffer *in = kit_buffer(wire.data, wire.length, &seed);
        CHECK_OK(relay_wire_view_init(&view, in, &err), err);
        if (wire.length == 0) {
            CHECK_CODE(relay_wire_stream_request_decode(&view, &storage, &hand, &err),
                       RELAY_INVALID_ARGUMENT);
            kinds[0]++;
        } else {
            Relay__V1__StreamRequest *pb =
                relay__v1__stream_request__unpack(NULL, wire.length, wire.data);
            CHECK(pb != NULL);
            CHECK_OK(relay_wire_stream_request_decode(&view, &storage, &hand, &err), err);
            const char *differs = compare_stream_request(&view, &hand, pb);
            if (differs != NULL) {
                CHECK_FAIL("round %d: %s differs", round, differs);
            }
            bool call = hand.kind == RELAY_WIRE_STREAM_CALL;
            grpc_byte_buffer *out = relay_wire_stream_request_encode(
                &hand, call ? slice_of(pb->call->k) : grpc_empty_slice(),
                call ? slice_of(pb->call->v) : grpc_empty_slice(),
                call ? slice_of(pb->call->q) : grpc_empty_slice());
            CHECK(packs_to(&pb->base, out));
            kinds[hand.kind]++;
            grpc_byte_buffer_destroy(out);
            relay__v1__stream_request__free_unpacked(pb, NULL);
        }
        grpc_byte_buffer_destroy(in);
        kit_free(&wire);
    }
    for (int i = 0; i < 5; i++) {
        CHECK(kinds[i] > 100);
    }
}

static void test_stream_response_both_ways(void)
{
    uint64_t seed = 6;
    int results = 0;
    for (int round = 0; round < 6000; round++) {
        struct kit_bytes wire = {0};
        struct relay_wire_stream_response hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&wire, &relay__v1__stream_response__descriptor, &seed);
        if (wire.length == 0) {
            continue;
        }
        grpc_byte_buffer *in = kit_buffer(wire.data, wire.length, &seed);
        Relay__V1__StreamResponse *pb =
            relay__v1__stream_response__unpack(NULL, wire.length, wire.data);
        CHECK(pb != NULL);
        CHECK_OK(relay_wire_view_init(&view, in, &err), err);
        CHECK_OK(relay_wire_stream_response_decode(&view, &hand, &err), err);
        const char *differs = compare_stream_response(&view, &hand, pb);
        if (differs != NULL) {
            CHECK_FAIL("round %d: %s differs", round, differs);
        }
        if (hand.kind == RELAY_WIRE_STREAM_RESULT && pb->result->code <= 16) {
            grpc_byte_buffer *out = relay_wire_layer_result_encode(
                &hand.result, slice_of(pb->result->lse), slice_of(pb->result->out));
            CHECK(packs_to(&pb->base, out));
            grpc_byte_buffer_destroy(out);
            results++;
        }
        grpc_byte_buffer_destroy(in);
        relay__v1__stream_response__free_unpacked(pb, NULL);
        kit_free(&wire);
    }
    CHECK(results > 100);
}

/* The body span of what is not decoded by hand unpacks to the message. */
static void test_stream_response_body_unpacks(void)
{
    Relay__V1__StepBegun begun = RELAY__V1__STEP_BEGUN__INIT, *read;
    Relay__V1__StreamResponse response = RELAY__V1__STREAM_RESPONSE__INIT;
    struct relay_wire_stream_response hand;
    struct relay_wire_arena arena;
    struct relay_wire_view view;
    struct relay_error err;
    ProtobufCMessage *message = NULL;

    begun.step_id = 77;
    begun.kv_tokens_free = 1234;
    response.message_case = RELAY__V1__STREAM_RESPONSE__MESSAGE_BEGUN;
    response.begun = &begun;
    grpc_byte_buffer *buffer = relay_wire_pack(&response.base);
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    CHECK_OK(relay_wire_stream_response_decode(&view, &hand, &err), err);
    CHECK_EQ(hand.kind, RELAY_WIRE_STREAM_BEGUN);
    relay_wire_arena_init(&arena);
    CHECK_OK(relay_wire_unpack_response(&view, hand.body, &relay__v1__step_begun__descriptor,
                                        &arena, &message, &err),
             err);
    read = (Relay__V1__StepBegun *)message;
    CHECK_EQ(read->step_id, 77);
    CHECK_EQ(read->kv_tokens_free, 1234);
    relay_wire_arena_fini(&arena);
    grpc_byte_buffer_destroy(buffer);
}

static void test_stream_request_truncated_at_every_byte(void)
{
    static uint8_t tensor[70] = {9};
    struct relay_wire_stream_request request = {.kind = RELAY_WIRE_STREAM_CALL};
    struct relay_error err;
    request.call.step_id = 300;
    request.call.layer = 5;
    request.call.row_begin = 128;
    request.call.row_count = 64;
    request.call.slot = 1;
    grpc_byte_buffer *buffer = relay_wire_stream_request_encode(
        &request, relay_wire_slice(tensor, sizeof(tensor), NULL, NULL),
        relay_wire_slice(tensor, sizeof(tensor), NULL, NULL),
        relay_wire_slice(tensor, sizeof(tensor), NULL, NULL));
    struct kit_bytes wire = kit_flatten(buffer);
    CHECK_OK(decode_bytes(wire.data, wire.length, &err), err);
    for (size_t length = 0; length < wire.length; length++) {
        uint8_t *cut = malloc(length + 1);
        CHECK(cut != NULL);
        memcpy(cut, wire.data, length);
        CHECK_CODE(decode_bytes(cut, length, &err), RELAY_INVALID_ARGUMENT);
        free(cut);
    }
    grpc_byte_buffer_destroy(buffer);
    kit_free(&wire);
}

static void test_stream_request_refuses_two_messages_and_unknown_ones(void)
{
    struct relay_error err;
    CHECK_CODE(decode_bytes((const uint8_t *)"\x22\x00\x22\x00", 4, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x22\x00\x0a\x00", 4, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x20\x01", 2, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x2a\x00", 2, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "StreamRequest") != NULL && strstr(err.msg, "field 5") != NULL);
    /* EndStep with a field 2, BeginStep with its reserved field 1, LayerCall with field 6. */
    CHECK_CODE(decode_bytes((const uint8_t *)"\x22\x02\x10\x01", 4, &err), RELAY_UNIMPLEMENTED);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x12\x02\x08\x01", 4, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "BeginStep") != NULL);
    CHECK_CODE(decode_bytes((const uint8_t *)"\x1a\x02\x30\x01", 4, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "LayerCall") != NULL && strstr(err.msg, "field 6") != NULL);
}

/* A client may prefer planes this server has never heard of. */
static void test_stream_attach_keeps_unknown_planes(void)
{
    static const uint8_t wire[] = {0x0a, 0x04, 0x12, 0x02, 0x10, 0x01};
    grpc_byte_buffer *buffer = kit_buffer_cut(wire, sizeof(wire), NULL, 0);
    struct relay_wire_stream_request out;
    struct relay_wire_view view;
    struct relay_error err;
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    CHECK_OK(relay_wire_stream_request_decode(&view, &storage, &out, &err), err);
    CHECK_EQ(out.attach.num_planes, 2);
    CHECK_EQ(out.attach.planes[0], 16);
    CHECK_EQ(out.attach.planes[1], RELAY__V1__PLANE__PLANE_INLINE);
    grpc_byte_buffer_destroy(buffer);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_stream_request_both_ways);
    CHECK_RUN(test_stream_response_both_ways);
    CHECK_RUN(test_stream_response_body_unpacks);
    CHECK_RUN(test_stream_request_truncated_at_every_byte);
    CHECK_RUN(test_stream_request_refuses_two_messages_and_unknown_ones);
    CHECK_RUN(test_stream_attach_keeps_unknown_planes);
    grpc_shutdown();
    return check_done();
}
