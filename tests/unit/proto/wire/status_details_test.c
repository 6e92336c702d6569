/* The details trailer: round trips, its size, and foreign or hostile bytes. */
#include "kit.h"
#include "testlib/check.h"

#include <proto/wire/status_details.h>

#define ENTRIES 400

static Relay__V1__EntryError errors[ENTRIES];
static Relay__V1__EntryError *list[ENTRIES];

static Relay__V1__ErrorDetail detail_with(size_t n)
{
    Relay__V1__ErrorDetail detail = RELAY__V1__ERROR_DETAIL__INIT;
    for (size_t i = 0; i < n; i++) {
        relay__v1__entry_error__init(&errors[i]);
        errors[i].index = (uint32_t)i;
        errors[i].code = RELAY_NOT_FOUND;
        errors[i].message = (char *)(uintptr_t) "no such handle";
        list[i] = &errors[i];
    }
    detail.field = (char *)(uintptr_t) "handles";
    detail.entries = list;
    detail.n_entries = n;
    detail.expected = (char *)(uintptr_t) "4096";
    detail.got = (char *)(uintptr_t) "4095";
    detail.retry_after_ms = 250;
    return detail;
}

static void test_status_details_round_trip(void)
{
    for (size_t n = 0; n <= ENTRIES; n += n < 10 ? 1 : 130) {
        Relay__V1__ErrorDetail detail = detail_with(n), *read = NULL;
        struct relay_wire_arena arena;
        struct relay_error err;
        enum relay_code code;
        grpc_slice value = relay_wire_status_details_encode(RELAY_NOT_FOUND, "2 entries", &detail);

        CHECK(GRPC_SLICE_LENGTH(value) > 0);
        CHECK(GRPC_SLICE_LENGTH(value) <= RELAY_WIRE_STATUS_DETAILS_BYTES_MAX);
        relay_wire_arena_init(&arena);
        CHECK_OK(relay_wire_status_details_decode(&value, &arena, &code, &read, &err), err);
        CHECK_EQ(code, RELAY_NOT_FOUND);
        CHECK(read != NULL);
        CHECK_STR(read->field, "handles");
        CHECK_STR(read->expected, "4096");
        CHECK_STR(read->got, "4095");
        CHECK_EQ(read->retry_after_ms, 250);
        CHECK(n > 150 ? read->n_entries > 150 && read->n_entries < n : read->n_entries == n);
        for (size_t i = 0; i < read->n_entries; i++) {
            CHECK_EQ(read->entries[i]->index, i);
            CHECK_EQ(read->entries[i]->code, RELAY_NOT_FOUND);
            CHECK_STR(read->entries[i]->message, "no such handle");
        }
        relay_wire_arena_fini(&arena);
        grpc_slice_unref(value);
    }
}

/* The bytes are those of google.rpc.Status, written out here by hand. */
static void test_status_details_are_google_rpc_status(void)
{
    Relay__V1__ErrorDetail detail = RELAY__V1__ERROR_DETAIL__INIT;
    struct kit_bytes any = {0}, status = {0};
    grpc_slice value;

    detail.field = (char *)(uintptr_t) "q";
    value = relay_wire_status_details_encode(RELAY_INVALID_ARGUMENT, "bad", &detail);
    kit_field_bytes(&any, 1, "type.googleapis.com/relay.v1.ErrorDetail", 40);
    kit_field_bytes(&any, 2, "\x0a\x01q", 3);
    kit_field_varint(&status, 1, 3);
    kit_field_bytes(&status, 2, "bad", 3);
    kit_field_bytes(&status, 3, any.data, any.length);
    CHECK_EQ(GRPC_SLICE_LENGTH(value), status.length);
    CHECK(memcmp(GRPC_SLICE_START_PTR(value), status.data, status.length) == 0);
    grpc_slice_unref(value);
    kit_free(&any);
    kit_free(&status);
}

static void test_status_details_too_long_are_left_out(void)
{
    Relay__V1__ErrorDetail detail = RELAY__V1__ERROR_DETAIL__INIT;
    char *text = calloc(1, RELAY_WIRE_STATUS_DETAILS_BYTES_MAX + 1);
    CHECK(text != NULL);
    memset(text, 'x', RELAY_WIRE_STATUS_DETAILS_BYTES_MAX);
    detail.field = text;
    grpc_slice value = relay_wire_status_details_encode(RELAY_INTERNAL, "", &detail);
    CHECK_EQ(GRPC_SLICE_LENGTH(value), 0);
    grpc_slice_unref(value);
    free(text);
}

static void test_status_details_of_others_hold_no_detail(void)
{
    struct kit_bytes any = {0}, status = {0};
    struct relay_wire_arena arena;
    Relay__V1__ErrorDetail *read = NULL;
    struct relay_error err;
    enum relay_code code;

    kit_field_bytes(&any, 1, "type.googleapis.com/google.rpc.RetryInfo", 40);
    kit_field_bytes(&any, 2, "\x0a\x00", 2);
    kit_field_varint(&status, 1, 77);
    kit_field_bytes(&status, 3, any.data, any.length);
    kit_field_varint(&status, 9, 1);
    grpc_slice value = grpc_slice_from_copied_buffer((const char *)status.data, status.length);
    relay_wire_arena_init(&arena);
    CHECK_OK(relay_wire_status_details_decode(&value, &arena, &code, &read, &err), err);
    CHECK(read == NULL);
    CHECK_EQ(code, RELAY_UNKNOWN);
    relay_wire_arena_fini(&arena);
    grpc_slice_unref(value);
    kit_free(&any);
    kit_free(&status);
}

static void test_status_details_truncated_at_every_byte(void)
{
    Relay__V1__ErrorDetail detail = detail_with(3), *read;
    grpc_slice value = relay_wire_status_details_encode(RELAY_NOT_FOUND, "m", &detail);
    size_t refused = 0;
    for (size_t length = 0; length < GRPC_SLICE_LENGTH(value); length++) {
        grpc_slice cut =
            grpc_slice_from_copied_buffer((const char *)GRPC_SLICE_START_PTR(value), length);
        struct relay_wire_arena arena;
        struct relay_error err;
        enum relay_code code, rc;
        relay_wire_arena_init(&arena);
        read = NULL;
        rc = relay_wire_status_details_decode(&cut, &arena, &code, &read, &err);
        CHECK(rc == RELAY_INVALID_ARGUMENT || (rc == RELAY_OK && read == NULL));
        refused += rc != RELAY_OK;
        relay_wire_arena_fini(&arena);
        grpc_slice_unref(cut);
    }
    CHECK(refused > 50);
    grpc_slice_unref(value);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_status_details_round_trip);
    CHECK_RUN(test_status_details_are_google_rpc_status);
    CHECK_RUN(test_status_details_too_long_are_left_out);
    CHECK_RUN(test_status_details_of_others_hold_no_detail);
    CHECK_RUN(test_status_details_truncated_at_every_byte);
    grpc_shutdown();
    return check_done();
}
