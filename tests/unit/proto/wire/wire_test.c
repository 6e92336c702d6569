/* Views, spans and slices. */
#include "kit.h"
#include "testlib/check.h"

#include <grpc/compression.h>

static void test_wire_view_refuses_compressed_and_missing(void)
{
    grpc_slice slice = grpc_slice_from_static_string("abc");
    grpc_byte_buffer *raw = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_byte_buffer *gzip = grpc_raw_compressed_byte_buffer_create(&slice, 1, GRPC_COMPRESS_GZIP);
    struct relay_wire_view view;
    struct relay_error err;

    CHECK_OK(relay_wire_view_init(&view, raw, &err), err);
    CHECK_EQ(view.length, 3);
    CHECK_CODE(relay_wire_view_init(&view, gzip, &err), RELAY_UNIMPLEMENTED);
    CHECK_CODE(relay_wire_view_init(&view, NULL, &err), RELAY_INVALID_ARGUMENT);
    grpc_byte_buffer_destroy(raw);
    grpc_byte_buffer_destroy(gzip);
}

static void test_wire_gather_and_piece_cross_slices(void)
{
    uint64_t seed = 1;
    uint8_t data[300], copy[300], pieces[300];
    struct relay_wire_view view;
    struct relay_error err;

    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)kit_random(&seed);
    }
    for (int round = 0; round < 500; round++) {
        grpc_byte_buffer *buffer = kit_buffer(data, sizeof(data), &seed);
        size_t begin = kit_below(&seed, sizeof(data) + 1);
        struct relay_wire_span span = {begin, kit_below(&seed, sizeof(data) + 1 - begin)};
        struct relay_wire_span rest = span;
        size_t length, total = 0;
        const void *piece;

        CHECK_OK(relay_wire_view_init(&view, buffer, &err), err);
        relay_wire_gather(&view, span, copy);
        CHECK(memcmp(copy, data + begin, span.length) == 0);
        while ((piece = relay_wire_piece(&view, &rest, &length)) != NULL) {
            CHECK(length > 0 && total + length <= span.length);
            memcpy(pieces + total, piece, length);
            total += length;
        }
        CHECK_EQ(total, span.length);
        CHECK(memcmp(pieces, data + begin, total) == 0);
        grpc_byte_buffer_destroy(buffer);
    }
}

static void count_release(void *user)
{
    (*(int *)user)++;
}

static void test_wire_slice_copies_small_and_points_at_large(void)
{
    uint8_t data[RELAY_WIRE_COPY_BYTES_MAX + 1] = {7};
    int released = 0;
    grpc_slice small = relay_wire_slice(data, RELAY_WIRE_COPY_BYTES_MAX, count_release, &released);
    CHECK_EQ(released, 1);
    CHECK(GRPC_SLICE_START_PTR(small) != data);
    CHECK_EQ(GRPC_SLICE_LENGTH(small), RELAY_WIRE_COPY_BYTES_MAX);

    grpc_slice large = relay_wire_slice(data, sizeof(data), count_release, &released);
    CHECK_EQ(released, 1);
    CHECK(GRPC_SLICE_START_PTR(large) == data);
    grpc_slice_unref(large);
    CHECK_EQ(released, 2);

    grpc_slice borrowed = relay_wire_slice(data, sizeof(data), NULL, NULL);
    CHECK(GRPC_SLICE_START_PTR(borrowed) == data);
    grpc_slice empty = relay_wire_slice(NULL, 0, count_release, &released);
    CHECK_EQ(released, 3);
    CHECK_EQ(GRPC_SLICE_LENGTH(empty), 0);
    grpc_slice_unref(borrowed);
    grpc_slice_unref(empty);
    grpc_slice_unref(small);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_wire_view_refuses_compressed_and_missing);
    CHECK_RUN(test_wire_gather_and_piece_cross_slices);
    CHECK_RUN(test_wire_slice_copies_small_and_points_at_large);
    grpc_shutdown();
    return check_done();
}
