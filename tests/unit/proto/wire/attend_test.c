/* BatchedRelayAttention's messages against protobuf-c, and hostile bytes. */
#include "compare.h"
#include "testlib/check.h"

#define ENTRIES_MAX 64

static uint64_t handles[ENTRIES_MAX];
static uint32_t q_lens[ENTRIES_MAX];
static uint32_t positions[ENTRIES_MAX];
static const struct relay_wire_entry_storage storage = {handles, q_lens, positions, ENTRIES_MAX};

static const ProtobufCMessageDescriptor *const request_type =
    &relay__v1__batched_relay_attention_request__descriptor;
static const ProtobufCMessageDescriptor *const response_type =
    &relay__v1__batched_relay_attention_response__descriptor;

static Relay__V1__BatchedRelayAttentionRequest *unpack_request(const uint8_t *data, size_t length)
{
    return relay__v1__batched_relay_attention_request__unpack(NULL, length, data);
}

static void free_request(Relay__V1__BatchedRelayAttentionRequest *message)
{
    relay__v1__batched_relay_attention_request__free_unpacked(message, NULL);
}

/* Decodes the buffer by hand. */
static enum relay_code decode(const grpc_byte_buffer *buffer, struct relay_wire_view *view,
                              struct relay_wire_attend_request *out, struct relay_error *err)
{
    enum relay_code code = relay_wire_view_init(view, buffer, err);
    return code != RELAY_OK ? code : relay_wire_attend_request_decode(view, &storage, out, err);
}

static enum relay_code decode_bytes(const uint8_t *data, size_t length, struct relay_error *err)
{
    grpc_byte_buffer *buffer = kit_buffer_cut(data, length, NULL, 0);
    struct relay_wire_attend_request out;
    struct relay_wire_view view;
    enum relay_code code = decode(buffer, &view, &out, err);
    grpc_byte_buffer_destroy(buffer);
    return code;
}

static void test_attend_request_decodes_what_protobuf_c_decodes(void)
{
    uint64_t seed = 2;
    for (int round = 0; round < 4000; round++) {
        struct kit_bytes wire = {0};
        struct relay_wire_attend_request hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&wire, request_type, &seed);
        grpc_byte_buffer *buffer = kit_buffer(wire.data, wire.length, &seed);
        Relay__V1__BatchedRelayAttentionRequest *pb = unpack_request(wire.data, wire.length);
        CHECK(pb != NULL);
        CHECK_OK(decode(buffer, &view, &hand, &err), err);
        const char *differs = compare_request(&view, &hand, pb);
        if (differs != NULL) {
            CHECK_FAIL("round %d: %s differs", round, differs);
        }
        free_request(pb);
        grpc_byte_buffer_destroy(buffer);
        kit_free(&wire);
    }
}

static grpc_slice slice_of(ProtobufCBinaryData data)
{
    return relay_wire_slice(data.data, data.len, NULL, NULL);
}

/* Decoded by hand and encoded by hand gives the bytes that protobuf-c packs. */
static void test_attend_request_encodes_what_protobuf_c_encodes(void)
{
    uint64_t seed = 3;
    for (int round = 0; round < 2000; round++) {
        struct kit_bytes wire = {0};
        struct relay_wire_attend_request hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&wire, request_type, &seed);
        grpc_byte_buffer *in = kit_buffer_cut(wire.data, wire.length, NULL, 0);
        Relay__V1__BatchedRelayAttentionRequest *pb = unpack_request(wire.data, wire.length);
        CHECK(pb != NULL);
        CHECK_OK(decode(in, &view, &hand, &err), err);
        grpc_byte_buffer *out = relay_wire_attend_request_encode(&hand, slice_of(pb->k),
                                                                 slice_of(pb->v), slice_of(pb->q));
        struct kit_bytes encoded = kit_flatten(out);
        uint8_t *packed = malloc(protobuf_c_message_get_packed_size(&pb->base) + 1);
        CHECK(packed != NULL);
        CHECK_EQ(protobuf_c_message_pack(&pb->base, packed), encoded.length);
        CHECK(encoded.length == 0 || memcmp(packed, encoded.data, encoded.length) == 0);
        free(packed);
        kit_free(&encoded);
        free_request(pb);
        grpc_byte_buffer_destroy(in);
        grpc_byte_buffer_destroy(out);
        kit_free(&wire);
    }
}

static void test_attend_response_both_ways(void)
{
    uint64_t seed = 4;
    for (int round = 0; round < 3000; round++) {
        struct kit_bytes wire = {0};
        struct relay_wire_attend_response hand;
        struct relay_wire_view view;
        struct relay_error err;

        kit_random_message(&wire, response_type, &seed);
        grpc_byte_buffer *in = kit_buffer(wire.data, wire.length, &seed);
        Relay__V1__BatchedRelayAttentionResponse *pb =
            relay__v1__batched_relay_attention_response__unpack(NULL, wire.length, wire.data);
        CHECK(pb != NULL);
        CHECK_OK(relay_wire_view_init(&view, in, &err), err);
        CHECK_OK(relay_wire_attend_response_decode(&view, &hand, &err), err);
        const char *differs = compare_response(&view, &hand, pb);
        if (differs != NULL) {
            CHECK_FAIL("round %d: %s differs", round, differs);
        }
        grpc_byte_buffer *out =
            relay_wire_attend_response_encode(&hand, slice_of(pb->lse), slice_of(pb->out));
        struct kit_bytes encoded = kit_flatten(out);
        uint8_t *packed = malloc(protobuf_c_message_get_packed_size(&pb->base) + 1);
        CHECK(packed != NULL);
        CHECK_EQ(protobuf_c_message_pack(&pb->base, packed), encoded.length);
        CHECK(encoded.length == 0 || memcmp(packed, encoded.data, encoded.length) == 0);
        CHECK(encoded.length <= relay_wire_attend_response_bytes(pb->lse.len, pb->out.len));
        free(packed);
        kit_free(&encoded);
        relay__v1__batched_relay_attention_response__free_unpacked(pb, NULL);
        grpc_byte_buffer_destroy(in);
        grpc_byte_buffer_destroy(out);
        kit_free(&wire);
    }
}

static void test_attend_response_bytes_bounds_the_longest_head(void)
{
    struct relay_wire_attend_response response = {
        .step_id = UINT64_MAX,
        .layer = UINT32_MAX,
        .has_timings = true,
        .timings = {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT64_MAX,
                    UINT64_MAX},
    };
    uint8_t tensor[5000] = {0};
    grpc_byte_buffer *buffer = relay_wire_attend_response_encode(
        &response, relay_wire_slice(tensor, sizeof(tensor), NULL, NULL),
        relay_wire_slice(tensor, sizeof(tensor), NULL, NULL));
    CHECK(grpc_byte_buffer_length(buffer) <=
          relay_wire_attend_response_bytes(sizeof(tensor), sizeof(tensor)));
    grpc_byte_buffer_destroy(buffer);
}

/* A request with every field, as bytes. */
static struct kit_bytes full_request(void)
{
    static const uint8_t session[RELAY_WIRE_SESSION_BYTES] = "0123456789abcde";
    static const uint64_t some_handles[] = {1, UINT64_MAX, 0x0102030405060708};
    static const uint32_t some_q_lens[] = {1, 300, 70000};
    static const uint32_t some_positions[] = {0, 127, UINT32_MAX};
    static const uint8_t k[40] = {1}, v[40] = {2}, q[80] = {3};
    struct relay_wire_attend_request request = {
        .session_bytes = sizeof(session),
        .step_id = 12345678901234,
        .layer = 17,
        .part = RELAY_PART_CONTEXT_ONLY,
        .sharing = RELAY_SHARING_NEVER,
        .want_lse = true,
        .want_timings = true,
        .entries = {some_handles, some_q_lens, some_positions, 3, 3, 3},
    };
    grpc_byte_buffer *buffer;
    struct kit_bytes bytes;
    memcpy(request.session, session, sizeof(session));
    buffer = relay_wire_attend_request_encode(&request, relay_wire_slice(k, sizeof(k), NULL, NULL),
                                              relay_wire_slice(v, sizeof(v), NULL, NULL),
                                              relay_wire_slice(q, sizeof(q), NULL, NULL));
    bytes = kit_flatten(buffer);
    grpc_byte_buffer_destroy(buffer);
    return bytes;
}

/* Cut anywhere, a message is refused as malformed, or is what protobuf-c makes of the same bytes.
 */
static void test_attend_request_truncated_at_every_byte(void)
{
    struct kit_bytes wire = full_request();
    size_t refused = 0;
    for (size_t length = 0; length < wire.length; length++) {
        /* On the heap, so that a sanitizer sees a read past the end. */
        uint8_t *cut = malloc(length + 1);
        CHECK(cut != NULL);
        memcpy(cut, wire.data, length);
        grpc_byte_buffer *buffer = kit_buffer_cut(cut, length, NULL, 0);
        Relay__V1__BatchedRelayAttentionRequest *pb = unpack_request(cut, length);
        struct relay_wire_attend_request hand;
        struct relay_wire_view view;
        struct relay_error err;
        enum relay_code code = decode(buffer, &view, &hand, &err);
        if (pb == NULL) {
            CHECK_EQ(code, RELAY_INVALID_ARGUMENT);
            refused++;
        } else {
            CHECK_EQ(code, RELAY_OK);
            CHECK(compare_request(&view, &hand, pb) == NULL);
            free_request(pb);
        }
        grpc_byte_buffer_destroy(buffer);
        free(cut);
    }
    CHECK(refused > wire.length / 2);
    kit_free(&wire);
}

static void test_attend_request_cut_into_slices_at_every_byte(void)
{
    struct kit_bytes wire = full_request();
    Relay__V1__BatchedRelayAttentionRequest *pb = unpack_request(wire.data, wire.length);
    size_t *every = calloc(wire.length, sizeof(*every));
    struct relay_wire_attend_request hand;
    struct relay_wire_view view;
    struct relay_error err;

    CHECK(pb != NULL && every != NULL);
    for (size_t cut = 0; cut <= wire.length; cut++) {
        grpc_byte_buffer *buffer = kit_buffer_cut(wire.data, wire.length, &cut, 1);
        CHECK_OK(decode(buffer, &view, &hand, &err), err);
        CHECK(compare_request(&view, &hand, pb) == NULL);
        grpc_byte_buffer_destroy(buffer);
    }
    for (size_t i = 0; i < wire.length; i++) {
        every[i] = i;
    }
    grpc_byte_buffer *buffer = kit_buffer_cut(wire.data, wire.length, every, wire.length);
    CHECK_OK(decode(buffer, &view, &hand, &err), err);
    CHECK(compare_request(&view, &hand, pb) == NULL);
    grpc_byte_buffer_destroy(buffer);
    free(every);
    free_request(pb);
    kit_free(&wire);
}

static void test_attend_request_names_unknown_fields_and_values(void)
{
    static const uint32_t unknown[] = {11, 12, 16, 200, 536870911};
    struct kit_bytes wire = {0};
    struct relay_error err;

    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        char name[32];
        kit_free(&wire);
        kit_field_varint(&wire, unknown[i], 1);
        CHECK_CODE(decode_bytes(wire.data, wire.length, &err), RELAY_UNIMPLEMENTED);
        snprintf(name, sizeof(name), "field %u ", unknown[i]);
        CHECK(strstr(err.msg, name) != NULL);
    }
    kit_free(&wire);
    kit_field_varint(&wire, 4, 3);
    CHECK_CODE(decode_bytes(wire.data, wire.length, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "part") != NULL);
    kit_free(&wire);
    kit_field_varint(&wire, 10, UINT64_MAX);
    CHECK_CODE(decode_bytes(wire.data, wire.length, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "sharing") != NULL);
    kit_free(&wire);
}

static void test_attend_response_skips_unknown_fields(void)
{
    struct kit_bytes wire = {0}, timings = {0};
    struct relay_wire_attend_response hand;
    struct relay_wire_view view;
    struct relay_error err;

    kit_field_varint(&timings, 99, 7);
    kit_field_varint(&timings, 1, 42);
    kit_field_bytes(&wire, 13, "new", 3);
    kit_field_bytes(&wire, 3, timings.data, timings.length);
    kit_tag(&wire, 77, 1);
    kit_put(&wire, "12345678", 8);
    kit_tag(&wire, 78, 5);
    kit_put(&wire, "1234", 4);
    kit_field_varint(&wire, 2, 5);
    grpc_byte_buffer *buffer = kit_buffer_cut(wire.data, wire.length, NULL, 0);
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    CHECK_OK(relay_wire_attend_response_decode(&view, &hand, &err), err);
    CHECK_EQ(hand.layer, 5);
    CHECK(hand.has_timings);
    CHECK_EQ(hand.timings.queue_us, 42);
    grpc_byte_buffer_destroy(buffer);
    kit_free(&wire);
    kit_free(&timings);
}

static void test_attend_request_limits_entries(void)
{
    for (int packed = 0; packed < 2; packed++) {
        for (uint32_t n = ENTRIES_MAX; n <= ENTRIES_MAX + 1; n++) {
            struct kit_bytes wire = {0}, list = {0};
            struct relay_error err;
            for (uint32_t i = 0; i < n; i++) {
                if (packed) {
                    kit_varint(&list, i);
                } else {
                    kit_field_varint(&wire, 9, i);
                }
            }
            if (packed) {
                kit_field_bytes(&wire, 9, list.data, list.length);
            }
            CHECK_CODE(decode_bytes(wire.data, wire.length, &err),
                       n > ENTRIES_MAX ? RELAY_INVALID_ARGUMENT : RELAY_OK);
            CHECK(n == ENTRIES_MAX || strstr(err.msg, "positions") != NULL);
            kit_free(&wire);
            kit_free(&list);
        }
    }
}

static void test_attend_request_refuses_malformed(void)
{
    static const struct {
        const char *what;
        const char *bytes;
        size_t length;
    } cases[] = {
        {"field number 0", "\x00\x01", 2},
        {"a group", "\x0b\x0c", 2},
        {"wire type 6", "\x16\x01", 2},
        {"wire type 7", "\x17\x01", 2},
        {"a tag past 32 bits", "\x90\x80\x80\x80\x80\x01\x01", 7},
        {"a tag without a value", "\x10", 1},
        {"a varint of 11 bytes", "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12},
        {"a varint past 64 bits", "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11},
        {"a layer past 32 bits", "\x18\xff\xff\xff\xff\x1f", 6},
        {"a scalar as bytes", "\x12\x01\x01", 3},
        {"a tensor as a varint", "\x78\x01", 2},
        {"handles as varints", "\x38\x01", 2},
        {"packed handles of 7 bytes", "\x3a\x07\x01\x02\x03\x04\x05\x06\x07", 9},
        {"a packed varint cut by its list", "\x42\x02\x01\x80\x01", 5},
        {"a tensor past the end", "\x7a\x05\x01\x02\x03\x04", 6},
        {"a tensor of 2^63 bytes", "\x7a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x01", 12},
        {"a tensor of 2^64-1 bytes", "\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01", 12},
        {"a session of 15 bytes",
         "\x0a\x0f\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30\x30", 17},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct relay_error err;
        enum relay_code code = decode_bytes((const uint8_t *)cases[i].bytes, cases[i].length, &err);
        if (code != RELAY_INVALID_ARGUMENT) {
            CHECK_FAIL("%s: %s", cases[i].what, relay_code_name(code));
        }
    }
}

static void test_attend_request_failure_leaves_the_output(void)
{
    struct relay_wire_attend_request out = {.step_id = 99};
    uint8_t bad[] = {0x10, 0x05, 0x18};
    grpc_byte_buffer *buffer = kit_buffer_cut(bad, sizeof(bad), NULL, 0);
    struct relay_wire_view view;
    struct relay_error err;
    CHECK_CODE(decode(buffer, &view, &out, &err), RELAY_INVALID_ARGUMENT);
    CHECK_EQ(out.step_id, 99);
    grpc_byte_buffer_destroy(buffer);
}

static void count_release(void *user)
{
    (*(int *)user)++;
}

static void test_attend_encoders_send_tensors_from_where_they_lie(void)
{
    static uint8_t tensors[3][8192];
    int released[3] = {0};
    struct relay_wire_attend_request request = {.step_id = 1};
    grpc_slice slices[3];
    bool found[3] = {false};

    for (int i = 0; i < 3; i++) {
        slices[i] = relay_wire_slice(tensors[i], sizeof(tensors[i]), count_release, &released[i]);
    }
    grpc_byte_buffer *buffer =
        relay_wire_attend_request_encode(&request, slices[0], slices[1], slices[2]);
    for (size_t s = 0; s < buffer->data.raw.slice_buffer.count; s++) {
        for (int i = 0; i < 3; i++) {
            found[i] |= GRPC_SLICE_START_PTR(buffer->data.raw.slice_buffer.slices[s]) == tensors[i];
        }
    }
    CHECK(found[0] && found[1] && found[2]);
    CHECK(released[0] == 0 && released[1] == 0 && released[2] == 0);
    grpc_byte_buffer_destroy(buffer);
    CHECK(released[0] == 1 && released[1] == 1 && released[2] == 1);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_attend_request_decodes_what_protobuf_c_decodes);
    CHECK_RUN(test_attend_request_encodes_what_protobuf_c_encodes);
    CHECK_RUN(test_attend_response_both_ways);
    CHECK_RUN(test_attend_response_bytes_bounds_the_longest_head);
    CHECK_RUN(test_attend_request_truncated_at_every_byte);
    CHECK_RUN(test_attend_request_cut_into_slices_at_every_byte);
    CHECK_RUN(test_attend_request_names_unknown_fields_and_values);
    CHECK_RUN(test_attend_response_skips_unknown_fields);
    CHECK_RUN(test_attend_request_limits_entries);
    CHECK_RUN(test_attend_request_refuses_malformed);
    CHECK_RUN(test_attend_request_failure_leaves_the_output);
    CHECK_RUN(test_attend_encoders_send_tensors_from_where_they_lie);
    grpc_shutdown();
    return check_done();
}
