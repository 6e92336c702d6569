/* Guarded protobuf-c: see unpack.h. */
#include <grpc/grpc.h>
#include <proto/wire/scan.h>
#include <proto/wire/unpack.h>

/* The span's bytes in one piece: in place where they are, else copied to the arena. */
static const uint8_t *flatten(const struct relay_wire_view *view, struct relay_wire_span span,
                              struct relay_wire_arena *arena)
{
    struct relay_wire_span rest = span;
    size_t length = 0;
    const uint8_t *piece = relay_wire_piece(view, &rest, &length);
    uint8_t *copy;

    if (length == span.length) {
        return piece;
    }
    relay_wire_arena_grant(arena, span.length + RELAY_WIRE_ARENA_ALIGN);
    copy = relay_wire_arena_alloc(arena, span.length);
    if (copy != NULL) {
        relay_wire_gather(view, span, copy);
    }
    return copy;
}

static enum relay_code unpack(const struct relay_wire_view *view, struct relay_wire_span span,
                              const ProtobufCMessageDescriptor *descriptor, bool skip_unknown,
                              struct relay_wire_arena *arena, ProtobufCMessage **out,
                              struct relay_error *err)
{
    struct relay_wire_cursor cursor;
    const uint8_t *bytes;
    ProtobufCMessage *message;
    enum relay_code code;

    relay_wire_cursor_init(&cursor, view, span);
    code = relay_wire_scan(&cursor, descriptor, skip_unknown, err);
    if (code != RELAY_OK) {
        return code;
    }
    bytes = flatten(view, span, arena);
    if (bytes == NULL && span.length > 0) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    relay_wire_arena_grant(arena, span.length * RELAY_WIRE_GROWTH_MAX + RELAY_WIRE_SLACK_BYTES);
    arena->exhausted = false;
    message = protobuf_c_message_unpack(descriptor, &arena->allocator, span.length, bytes);
    if (message != NULL) {
        *out = message;
        return RELAY_OK;
    }
    return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s: %s", descriptor->short_name,
                      arena->exhausted ? "needs too much memory for its size" : "malformed");
}

enum relay_code relay_wire_unpack_request(const struct relay_wire_view *view,
                                          const ProtobufCMessageDescriptor *descriptor,
                                          struct relay_wire_arena *arena, ProtobufCMessage **out,
                                          struct relay_error *err)
{
    return unpack(view, relay_wire_whole(view), descriptor, false, arena, out, err);
}

enum relay_code relay_wire_unpack_request_span(const struct relay_wire_view *view,
                                               struct relay_wire_span span,
                                               const ProtobufCMessageDescriptor *descriptor,
                                               struct relay_wire_arena *arena,
                                               ProtobufCMessage **out, struct relay_error *err)
{
    return unpack(view, span, descriptor, false, arena, out, err);
}

enum relay_code relay_wire_unpack_response(const struct relay_wire_view *view,
                                           struct relay_wire_span span,
                                           const ProtobufCMessageDescriptor *descriptor,
                                           struct relay_wire_arena *arena, ProtobufCMessage **out,
                                           struct relay_error *err)
{
    return unpack(view, span, descriptor, true, arena, out, err);
}

grpc_byte_buffer *relay_wire_pack(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    grpc_byte_buffer *buffer;
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}
