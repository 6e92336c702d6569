/* Guarded protobuf-c: what it accepts is what protobuf-c makes of it, and bombs stay small. */
#include "compare.h"
#include "testlib/check.h"
#include "types.h"

#include <proto/wire/unpack.h>

static enum relay_code unpack_bytes(const struct kit_bytes *wire,
                                    const ProtobufCMessageDescriptor *type,
                                    struct relay_wire_arena *arena, ProtobufCMessage **out,
                                    struct relay_error *err)
{
    grpc_byte_buffer *buffer = kit_buffer_cut(wire->data, wire->length, NULL, 0);
    struct relay_wire_view view;
    enum relay_code code;

    relay_wire_arena_init(arena);
    code = relay_wire_view_init(&view, buffer, err);
    if (code == RELAY_OK) {
        code = relay_wire_unpack_request(&view, type, arena, out, err);
    }
    grpc_byte_buffer_destroy(buffer);
    return code;
}

static enum relay_code unpack_code(const struct kit_bytes *wire,
                                   const ProtobufCMessageDescriptor *type, struct relay_error *err)
{
    struct relay_wire_arena arena;
    ProtobufCMessage *message;
    enum relay_code code = unpack_bytes(wire, type, &arena, &message, err);
    relay_wire_arena_fini(&arena);
    return code;
}

static bool same_packed(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    size_t n = protobuf_c_message_get_packed_size(a), m = protobuf_c_message_get_packed_size(b);
    uint8_t *x = malloc(n + 1), *y = malloc(m + 1);
    bool same = x != NULL && y != NULL && n == m;
    if (same) {
        protobuf_c_message_pack(a, x);
        protobuf_c_message_pack(b, y);
        same = memcmp(x, y, n) == 0;
    }
    free(x);
    free(y);
    return same;
}

static void test_unpack_takes_every_valid_message(void)
{
    uint64_t seed = 8;
    for (int round = 0; round < 6000; round++) {
        const ProtobufCMessageDescriptor *type = wire_types[(size_t)round % WIRE_TYPES_COUNT];
        struct relay_wire_arena arena;
        struct kit_bytes wire = {0};
        struct relay_wire_view view;
        struct relay_error err;
        ProtobufCMessage *message = NULL;

        kit_random_message(&wire, type, &seed);
        ProtobufCMessage *pb = protobuf_c_message_unpack(type, NULL, wire.length, wire.data);
        CHECK(pb != NULL);
        grpc_byte_buffer *buffer = kit_buffer(wire.data, wire.length, &seed);
        CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
        relay_wire_arena_init(&arena);
        CHECK_OK(relay_wire_unpack_request(&view, type, &arena, &message, &err), err);
        CHECK(same_packed(message, pb));
        grpc_byte_buffer *packed = relay_wire_pack(message);
        CHECK_EQ(grpc_byte_buffer_length(packed), protobuf_c_message_get_packed_size(pb));
        grpc_byte_buffer_destroy(packed);
        relay_wire_arena_fini(&arena);
        grpc_byte_buffer_destroy(buffer);
        protobuf_c_message_free_unpacked(pb, NULL);
        kit_free(&wire);
    }
}

static void test_unpack_truncated_at_every_byte(void)
{
    uint64_t seed = 9;
    size_t refused = 0;
    for (int round = 0; round < 400; round++) {
        const ProtobufCMessageDescriptor *type = wire_types[(size_t)round % WIRE_TYPES_COUNT];
        struct kit_bytes wire = {0};
        kit_random_message(&wire, type, &seed);
        for (size_t length = 0; length < wire.length && length < 200; length++) {
            struct kit_bytes cut = {0};
            struct relay_error err;
            kit_put(&cut, wire.data, length);
            ProtobufCMessage *pb = protobuf_c_message_unpack(type, NULL, cut.length, cut.data);
            enum relay_code code = unpack_code(&cut, type, &err);
            if (pb == NULL) {
                CHECK_EQ(code, RELAY_INVALID_ARGUMENT);
                refused++;
            } else {
                CHECK_EQ(code, RELAY_OK);
                protobuf_c_message_free_unpacked(pb, NULL);
            }
            kit_free(&cut);
        }
        kit_free(&wire);
    }
    CHECK(refused > 1000);
}

static void test_unpack_names_unknown_fields_at_any_depth(void)
{
    struct kit_bytes kind = {0}, model = {0}, wire = {0};
    struct relay_error err;

    kit_field_varint(&kind, 77, 1);
    kit_field_bytes(&model, 2, kind.data, kind.length);
    kit_field_bytes(&wire, 1, model.data, model.length);
    CHECK_CODE(unpack_code(&wire, &relay__v1__open_session_request__descriptor, &err),
               RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "LayerKind") != NULL && strstr(err.msg, "field 77") != NULL);
    kit_free(&wire);
    kit_field_varint(&wire, 99, 1);
    CHECK_CODE(unpack_code(&wire, &relay__v1__get_server_info_request__descriptor, &err),
               RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "GetServerInfoRequest") != NULL && strstr(err.msg, "99") != NULL);
    kit_free(&wire);
    /* The number a later version means for a prompt's parent. */
    kit_field_bytes(&wire, 1, "\x32\x06parent", 8);
    CHECK_CODE(unpack_code(&wire, &relay__v1__register_prompt_request__descriptor, &err),
               RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "RegisterHeader") != NULL);
    kit_free(&wire);
    kit_free(&model);
    kit_free(&kind);
}

static void test_unpack_names_unknown_enum_values(void)
{
    static const uint64_t values[] = {5, 1000, UINT64_MAX, (uint64_t)1 << 32};
    struct relay_error err;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        struct kit_bytes wire = {0};
        kit_field_varint(&wire, 2, values[i]);
        CHECK_CODE(unpack_code(&wire, &relay__v1__open_session_request__descriptor, &err),
                   RELAY_UNIMPLEMENTED);
        CHECK(strstr(err.msg, "OpenSessionRequest.io_dtype") != NULL);
        kit_free(&wire);
    }
}

static void test_unpack_response_lets_the_new_pass(void)
{
    struct kit_bytes wire = {0};
    struct relay_wire_arena arena;
    struct relay_wire_view view;
    struct relay_error err;
    ProtobufCMessage *message = NULL;

    kit_field_varint(&wire, 200, 5);
    kit_field_varint(&wire, 11, 31);
    kit_field_bytes(&wire, 1, "9.9", 3);
    grpc_byte_buffer *buffer = kit_buffer_cut(wire.data, wire.length, NULL, 0);
    CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
    relay_wire_arena_init(&arena);
    CHECK_OK(relay_wire_unpack_response(&view, relay_wire_whole(&view),
                                        &relay__v1__get_server_info_response__descriptor, &arena,
                                        &message, &err),
             err);
    CHECK_STR(((Relay__V1__GetServerInfoResponse *)message)->version, "9.9");
    relay_wire_arena_fini(&arena);
    grpc_byte_buffer_destroy(buffer);
    kit_free(&wire);
}

static void test_unpack_refuses_bad_strings(void)
{
    static const struct {
        const char *bytes;
        size_t length;
        bool good;
    } cases[] = {
        {"ad\0zz", 5, false},
        {"\0", 1, false},
        {"ok", 2, true},
        {"\x80", 1, false},
        {"\xc3\xa9", 2, true},
        {"\xc3", 1, false},
        {"\xc0\x80", 2, false},
        {"\xc1\xbf", 2, false},
        {"\xe0\x80\x80", 3, false},
        {"\xe2\x82\xac", 3, true},
        {"\xed\xa0\x80", 3, false},
        {"\xed\x9f\xbf", 3, true},
        {"\xe2\x82", 2, false},
        {"\xf0\x9f\x98\x80", 4, true},
        {"\xf0\x80\x80\x80", 4, false},
        {"\xf4\x8f\xbf\xbf", 4, true},
        {"\xf4\x90\x80\x80", 4, false},
        {"\xf5\x80\x80\x80", 4, false},
        {"\xff", 1, false},
        {"a\xc3(", 3, false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kit_bytes wire = {0};
        struct relay_error err;
        kit_field_bytes(&wire, 2, cases[i].bytes, cases[i].length);
        enum relay_code code = unpack_code(&wire, &relay__v1__get_prompt_request__descriptor, &err);
        if (code != (cases[i].good ? RELAY_OK : RELAY_INVALID_ARGUMENT)) {
            CHECK_FAIL("string %zu: %s", i, relay_code_name(code));
        }
        CHECK(cases[i].good || strstr(err.msg, "GetPromptRequest.prompt_id") != NULL);
        kit_free(&wire);
    }
}

static void test_unpack_refuses_merges(void)
{
    struct kit_bytes wire = {0};
    struct relay_error err;

    kit_field_bytes(&wire, 1, NULL, 0);
    CHECK_CODE(unpack_code(&wire, &relay__v1__open_session_request__descriptor, &err), RELAY_OK);
    kit_field_bytes(&wire, 1, NULL, 0);
    CHECK_CODE(unpack_code(&wire, &relay__v1__open_session_request__descriptor, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "model") != NULL);
    kit_free(&wire);
    kit_field_bytes(&wire, 1, NULL, 0);
    kit_field_bytes(&wire, 2, NULL, 0);
    CHECK_CODE(unpack_code(&wire, &relay__v1__register_prompt_request__descriptor, &err),
               RELAY_INVALID_ARGUMENT);
    kit_free(&wire);
    /* Two oneofs side by side are no conflict. */
    kit_field_varint(&wire, 4, 1);
    kit_field_varint(&wire, 5, 1);
    CHECK_CODE(unpack_code(&wire, &relay__v1__update_prompt_request__descriptor, &err), RELAY_OK);
    kit_free(&wire);
}

/* A bomb must fail, and whatever it made the unpack take must stay under the cap. */
static void check_bomb(const char *name, const struct kit_bytes *wire,
                       const ProtobufCMessageDescriptor *type)
{
    size_t cap = wire->length * RELAY_WIRE_GROWTH_MAX + RELAY_WIRE_SLACK_BYTES;
    struct relay_wire_arena arena;
    struct relay_error err;
    ProtobufCMessage *message;
    enum relay_code code = unpack_bytes(wire, type, &arena, &message, &err);
    size_t used = arena.bytes_used;
    relay_wire_arena_fini(&arena);
    if (code != RELAY_INVALID_ARGUMENT && code != RELAY_UNIMPLEMENTED) {
        CHECK_FAIL("%s: %s", name, relay_code_name(code));
    }
    if (used > cap) {
        CHECK_FAIL("%s: %zu bytes taken, %zu are the cap", name, used, cap);
    }
}

#define BOMB_ITEMS 200000

static void test_unpack_bombs_stay_under_the_cap(void)
{
    struct kit_bytes empty = {0}, model = {0}, merged = {0}, unknown = {0}, nested = {0};

    for (int i = 0; i < BOMB_ITEMS; i++) {
        kit_field_bytes(&empty, 2, NULL, 0);
        kit_field_bytes(&merged, 1, "\x0a\x00", 2);
        kit_field_varint(&unknown, 100, 0);
    }
    check_bomb("empty submessages", &empty, &relay__v1__open_requests_request__descriptor);
    CHECK_STILL();
    kit_field_bytes(&model, 1, empty.data, empty.length);
    check_bomb("empty submessages, one deep", &model, &relay__v1__open_session_request__descriptor);
    CHECK_STILL();
    check_bomb("merged submessages", &merged, &relay__v1__open_session_request__descriptor);
    CHECK_STILL();
    check_bomb("unknown fields", &unknown, &relay__v1__open_session_request__descriptor);
    CHECK_STILL();
    for (int i = 0; i < 9000; i++) {
        struct kit_bytes outer = {0};
        kit_field_bytes(&outer, 1, nested.data, nested.length);
        kit_free(&nested);
        nested = outer;
    }
    check_bomb("nested submessages", &nested, &relay__v1__register_prompt_request__descriptor);
    CHECK_STILL();
    check_bomb("nested reflection", &nested,
               &grpc__reflection__v1__server_reflection_response__descriptor);
    CHECK_STILL();
    kit_free(&empty);
    kit_free(&model);
    kit_free(&merged);
    kit_free(&unknown);
    kit_free(&nested);
}

/* What real clients send must fit the cap: many small requests, long packed arrays. */
static void test_unpack_takes_large_honest_messages(void)
{
    struct kit_bytes wire = {0}, tokens = {0}, header = {0};
    struct relay_error err;

    for (uint64_t i = 0; i < 4096; i++) {
        struct kit_bytes request = {0};
        kit_tag(&request, 1, 1);
        kit_put(&request, &i, sizeof(i));
        kit_field_bytes(&request, 2, "support-bot/v3", 14);
        kit_field_bytes(&wire, 2, request.data, request.length);
        kit_free(&request);
    }
    CHECK_OK(unpack_code(&wire, &relay__v1__open_requests_request__descriptor, &err), err);
    kit_free(&wire);
    for (uint32_t i = 0; i < 200000; i++) {
        kit_varint(&tokens, i % 100);
    }
    kit_field_bytes(&header, 13, tokens.data, tokens.length);
    kit_field_bytes(&wire, 1, header.data, header.length);
    CHECK_OK(unpack_code(&wire, &relay__v1__register_prompt_request__descriptor, &err), err);
    kit_free(&wire);
    kit_free(&tokens);
    kit_free(&header);
}

static void test_arena_gives_what_was_granted_and_no_more(void)
{
    struct relay_wire_arena arena;
    relay_wire_arena_init(&arena);
    CHECK(relay_wire_arena_alloc(&arena, 1) == NULL);
    CHECK(arena.exhausted);
    relay_wire_arena_grant(&arena, 64);
    char *a = relay_wire_arena_alloc(&arena, 17);
    char *b = relay_wire_arena_alloc(&arena, 32);
    CHECK(a != NULL && b != NULL);
    CHECK_EQ((uintptr_t)b % RELAY_WIRE_ARENA_ALIGN, 0);
    memset(a, 1, 17);
    memset(b, 2, 32);
    CHECK_EQ(a[16], 1);
    CHECK(relay_wire_arena_alloc(&arena, 1) == NULL);
    CHECK(relay_wire_arena_alloc(&arena, SIZE_MAX) == NULL);
    relay_wire_arena_grant(&arena, 1 << 20);
    CHECK(relay_wire_arena_alloc(&arena, 1 << 20) != NULL);
    relay_wire_arena_fini(&arena);
    relay_wire_arena_fini(&arena);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_unpack_takes_every_valid_message);
    CHECK_RUN(test_unpack_truncated_at_every_byte);
    CHECK_RUN(test_unpack_names_unknown_fields_at_any_depth);
    CHECK_RUN(test_unpack_names_unknown_enum_values);
    CHECK_RUN(test_unpack_response_lets_the_new_pass);
    CHECK_RUN(test_unpack_refuses_bad_strings);
    CHECK_RUN(test_unpack_refuses_merges);
    CHECK_RUN(test_unpack_bombs_stay_under_the_cap);
    CHECK_RUN(test_unpack_takes_large_honest_messages);
    CHECK_RUN(test_arena_gives_what_was_granted_and_no_more);
    grpc_shutdown();
    return check_done();
}
