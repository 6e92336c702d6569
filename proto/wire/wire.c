/* Views, spans and slices: see wire.h. */
#include <grpc/compression.h>
#include <grpc/grpc.h>
#include <proto/wire/cursor.h>
#include <string.h>

enum relay_code relay_wire_view_init(struct relay_wire_view *view, const grpc_byte_buffer *buffer,
                                     struct relay_error *err)
{
    if (buffer == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "no message");
    }
    if (buffer->type != GRPC_BB_RAW || buffer->data.raw.compression != GRPC_COMPRESS_NONE) {
        return RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "compressed message");
    }
    *view = (struct relay_wire_view){
        .slices = buffer->data.raw.slice_buffer.slices,
        .num_slices = buffer->data.raw.slice_buffer.count,
        .length = buffer->data.raw.slice_buffer.length,
    };
    return RELAY_OK;
}

void relay_wire_gather(const struct relay_wire_view *view, struct relay_wire_span span, void *dst)
{
    struct relay_wire_cursor cursor;
    relay_wire_cursor_init(&cursor, view, span);
    (void)relay_wire_read_bytes(&cursor, dst, span.length);
}

const void *relay_wire_piece(const struct relay_wire_view *view, struct relay_wire_span *span,
                             size_t *length)
{
    struct relay_wire_cursor cursor;
    relay_wire_cursor_init(&cursor, view, *span);
    if (!relay_wire_cursor_fill(&cursor)) {
        return NULL;
    }
    *length = (size_t)(cursor.stop - cursor.at);
    span->offset += *length;
    span->length -= *length;
    return cursor.at;
}

grpc_slice relay_wire_slice(const void *data, size_t length, void (*release_fn)(void *user),
                            void *user)
{
    if (length > RELAY_WIRE_COPY_BYTES_MAX) {
        /* Core never writes through the pointer of a slice it sends. */
        return release_fn != NULL ? grpc_slice_new_with_user_data((void *)(uintptr_t)data, length,
                                                                  release_fn, user)
                                  : grpc_slice_from_static_buffer(data, length);
    }
    grpc_slice slice =
        length > 0 ? grpc_slice_from_copied_buffer(data, length) : grpc_empty_slice();
    if (release_fn != NULL) {
        release_fn(user);
    }
    return slice;
}
