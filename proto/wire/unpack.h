/* protobuf-c behind guards: for every message that is not hot.
 *
 * protobuf-c alone grows hostile bytes 30-56 times, cuts strings at NUL, and lets unknown fields
 * and enum values pass. Here the raw bytes are walked first, by the message's descriptor, and the
 * unpack takes its memory from an arena with a cap. Any thread; an arena belongs to one. */
#ifndef RELAY_WIRE_UNPACK_H
#define RELAY_WIRE_UNPACK_H

#include <proto/wire/wire.h>
#include <protobuf-c/protobuf-c.h>

/* Memory an unpack may take: RELAY_WIRE_GROWTH_MAX times the wire bytes, plus this. */
#define RELAY_WIRE_GROWTH_MAX  ((size_t)8)
#define RELAY_WIRE_SLACK_BYTES ((size_t)64 << 10)
/* What an arena allocation is rounded up to. */
#define RELAY_WIRE_ARENA_ALIGN ((size_t)16)

struct relay_wire_block; /* private */

/* A bump allocator that never gives more than it was granted and frees all at once. It holds a
 * pointer to itself: do not move it between init and fini. */
struct relay_wire_arena {
    ProtobufCAllocator allocator; /* its face for protobuf-c; free does nothing */
    struct relay_wire_block *blocks;
    size_t bytes_used;
    size_t bytes_max;
    bool exhausted; /* some allocation was refused */
};

/* An arena that has been granted nothing yet. */
void relay_wire_arena_init(struct relay_wire_arena *arena);
/* Frees all of it. Fine on a zeroed or finished arena. */
void relay_wire_arena_fini(struct relay_wire_arena *arena);
/* Lets it give bytes more. */
void relay_wire_arena_grant(struct relay_wire_arena *arena, size_t bytes);
/* Lets it give what n repeated submessages take, however short they are on the wire: a message may
 * bring as many as its limit says. */
void relay_wire_arena_grant_messages(struct relay_wire_arena *arena, size_t n,
                                     const ProtobufCMessageDescriptor *descriptor);
/* Aligned for any type; NULL when it would go past the grant or memory is out. */
void *relay_wire_arena_alloc(struct relay_wire_arena *arena, size_t bytes);

/* A request from the network. Grants the arena what the message may take, and puts the message into
 * it: it lives until the arena's fini and needs no free_unpacked.
 *   UNIMPLEMENTED     an unknown field or enum value at any depth, naming message and field
 *   INVALID_ARGUMENT  malformed; a singular message or a oneof given twice; a string with NUL or
 *                     invalid UTF-8, naming it; more memory than the grant
 *   RESOURCE_EXHAUSTED  out of memory */
RELAY_MUST_CHECK enum relay_code relay_wire_unpack_request(
    const struct relay_wire_view *view, const ProtobufCMessageDescriptor *descriptor,
    struct relay_wire_arena *arena, ProtobufCMessage **out, struct relay_error *err);
/* The same for a message inside a message, whose bytes a decoder gave as a span. */
RELAY_MUST_CHECK enum relay_code relay_wire_unpack_request_span(
    const struct relay_wire_view *view, struct relay_wire_span span,
    const ProtobufCMessageDescriptor *descriptor, struct relay_wire_arena *arena,
    ProtobufCMessage **out, struct relay_error *err);
/* A response from a server: as above, but unknown fields and enum values pass. */
RELAY_MUST_CHECK enum relay_code relay_wire_unpack_response(
    const struct relay_wire_view *view, struct relay_wire_span span,
    const ProtobufCMessageDescriptor *descriptor, struct relay_wire_arena *arena,
    ProtobufCMessage **out, struct relay_error *err);

/* The whole of a view as a span. */
static inline struct relay_wire_span relay_wire_whole(const struct relay_wire_view *view)
{
    return (struct relay_wire_span){0, view->length};
}

/* A buffer with the message, one slice. The caller destroys it. Cannot fail. */
grpc_byte_buffer *relay_wire_pack(const ProtobufCMessage *message);

#endif
