/* Reading protobuf bytes across slices, never past a limit. Private to this room.
 *
 * Readers return NULL, or a static string that says what is wrong with the bytes. A cursor belongs
 * to one thread. */
#ifndef RELAY_WIRE_CURSOR_H
#define RELAY_WIRE_CURSOR_H

#include <proto/wire/wire.h>

enum relay_wire_type {
    RELAY_WIRE_VARINT = 0,
    RELAY_WIRE_FIXED64 = 1,
    RELAY_WIRE_LENGTH = 2,
    RELAY_WIRE_FIXED32 = 5,
};

struct relay_wire_cursor {
    const struct relay_wire_view *view;
    size_t next_slice;   /* the one after that `at` points into */
    const uint8_t *at;   /* next byte to read */
    const uint8_t *stop; /* end of the contiguous piece, cut to the limit */
    size_t stop_offset;  /* of stop, in the view */
    size_t limit;        /* offset in the view where reading ends */
};

/* The span must lie inside the view. */
void relay_wire_cursor_init(struct relay_wire_cursor *cursor, const struct relay_wire_view *view,
                            struct relay_wire_span span);

static inline size_t relay_wire_cursor_offset(const struct relay_wire_cursor *cursor)
{
    return cursor->stop_offset - (size_t)(cursor->stop - cursor->at);
}

static inline size_t relay_wire_cursor_left(const struct relay_wire_cursor *cursor)
{
    return cursor->limit - relay_wire_cursor_offset(cursor);
}

/* Makes at least one byte readable at `at`; false at the limit. */
bool relay_wire_cursor_fill(struct relay_wire_cursor *cursor);

const char *relay_wire_read_varint(struct relay_wire_cursor *cursor, uint64_t *value);
/* A varint that fits 32 bits. */
const char *relay_wire_read_u32(struct relay_wire_cursor *cursor, uint32_t *value);
const char *relay_wire_read_fixed64(struct relay_wire_cursor *cursor, uint64_t *value);
const char *relay_wire_read_bytes(struct relay_wire_cursor *cursor, void *dst, size_t length);
const char *relay_wire_read_tag(struct relay_wire_cursor *cursor, uint32_t *number,
                                uint32_t *wire_type);
/* The length of a length-delimited value, which lies inside the limit. */
const char *relay_wire_read_length(struct relay_wire_cursor *cursor, size_t *length);
/* The same as a span, and steps over the value. */
const char *relay_wire_read_span(struct relay_wire_cursor *cursor, struct relay_wire_span *span);
/* Steps over a value of any wire type but groups. */
const char *relay_wire_skip_value(struct relay_wire_cursor *cursor, uint32_t wire_type);
/* length is at most what is left. */
void relay_wire_skip(struct relay_wire_cursor *cursor, size_t length);

/* A cursor over the next length bytes (at most what is left); the first one steps over them. */
struct relay_wire_cursor relay_wire_cursor_split(struct relay_wire_cursor *cursor, size_t length);

#endif
