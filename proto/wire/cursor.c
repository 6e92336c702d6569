/* Reading protobuf bytes across slices: see cursor.h. */
#include <proto/wire/cursor.h>
#include <string.h>

static const char truncated[] = "truncated";

void relay_wire_cursor_init(struct relay_wire_cursor *cursor, const struct relay_wire_view *view,
                            struct relay_wire_span span)
{
    struct relay_wire_cursor whole = {.view = view, .limit = view->length};
    relay_wire_skip(&whole, span.offset);
    *cursor = relay_wire_cursor_split(&whole, span.length);
}

bool relay_wire_cursor_fill(struct relay_wire_cursor *cursor)
{
    while (cursor->at == cursor->stop) {
        const grpc_slice *slice;
        size_t length;
        if (cursor->stop_offset == cursor->limit) {
            return false;
        }
        slice = &cursor->view->slices[cursor->next_slice++];
        length = GRPC_SLICE_LENGTH(*slice);
        if (length > cursor->limit - cursor->stop_offset) {
            length = cursor->limit - cursor->stop_offset;
        }
        cursor->at = GRPC_SLICE_START_PTR(*slice);
        cursor->stop = cursor->at + length;
        cursor->stop_offset += length;
    }
    return true;
}

const char *relay_wire_read_varint(struct relay_wire_cursor *cursor, uint64_t *value)
{
    uint64_t v = 0;
    if (cursor->at < cursor->stop && *cursor->at < 0x80) {
        *value = *cursor->at++; /* most varints */
        return NULL;
    }
    for (unsigned shift = 0; shift < 70; shift += 7) {
        uint8_t byte;
        if (!relay_wire_cursor_fill(cursor)) {
            return truncated;
        }
        byte = *cursor->at++;
        if (shift == 63 && byte > 1) {
            return byte < 0x80 ? "varint does not fit 64 bits" : "varint longer than 10 bytes";
        }
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = v;
            return NULL;
        }
    }
    return "varint longer than 10 bytes";
}

const char *relay_wire_read_u32(struct relay_wire_cursor *cursor, uint32_t *value)
{
    uint64_t v;
    const char *why = relay_wire_read_varint(cursor, &v);
    if (why != NULL) {
        return why;
    }
    if (v > UINT32_MAX) {
        return "value does not fit 32 bits";
    }
    *value = (uint32_t)v;
    return NULL;
}

const char *relay_wire_read_bytes(struct relay_wire_cursor *cursor, void *dst, size_t length)
{
    uint8_t *to = dst;
    if (length > relay_wire_cursor_left(cursor)) {
        return truncated;
    }
    while (length > 0 && relay_wire_cursor_fill(cursor)) {
        size_t n = (size_t)(cursor->stop - cursor->at);
        n = n < length ? n : length;
        memcpy(to, cursor->at, n);
        cursor->at += n;
        to += n;
        length -= n;
    }
    return NULL;
}

const char *relay_wire_read_fixed64(struct relay_wire_cursor *cursor, uint64_t *value)
{
    uint8_t copy[8];
    const uint8_t *b = cursor->at;
    if (cursor->stop - cursor->at >= 8) {
        cursor->at += 8;
    } else {
        const char *why = relay_wire_read_bytes(cursor, copy, sizeof(copy));
        if (why != NULL) {
            return why;
        }
        b = copy;
    }
    *value = (uint64_t)b[0] | (uint64_t)b[1] << 8 | (uint64_t)b[2] << 16 | (uint64_t)b[3] << 24 |
             (uint64_t)b[4] << 32 | (uint64_t)b[5] << 40 | (uint64_t)b[6] << 48 |
             (uint64_t)b[7] << 56;
    return NULL;
}

const char *relay_wire_read_tag(struct relay_wire_cursor *cursor, uint32_t *number,
                                uint32_t *wire_type)
{
    uint32_t tag;
    const char *why = relay_wire_read_u32(cursor, &tag);
    if (why != NULL) {
        return why;
    }
    *number = tag >> 3;
    *wire_type = tag & 7;
    if (*number == 0) {
        return "field number 0";
    }
    if (*wire_type > RELAY_WIRE_FIXED32 || *wire_type == 3 || *wire_type == 4) {
        return "a group or an unknown wire type";
    }
    return NULL;
}

const char *relay_wire_read_length(struct relay_wire_cursor *cursor, size_t *length)
{
    uint64_t v;
    const char *why = relay_wire_read_varint(cursor, &v);
    if (why != NULL) {
        return why;
    }
    if (v > relay_wire_cursor_left(cursor)) {
        return truncated;
    }
    *length = (size_t)v;
    return NULL;
}

const char *relay_wire_read_span(struct relay_wire_cursor *cursor, struct relay_wire_span *span)
{
    size_t length;
    const char *why = relay_wire_read_length(cursor, &length);
    if (why != NULL) {
        return why;
    }
    *span = (struct relay_wire_span){relay_wire_cursor_offset(cursor), length};
    relay_wire_skip(cursor, length);
    return NULL;
}

const char *relay_wire_skip_value(struct relay_wire_cursor *cursor, uint32_t wire_type)
{
    uint64_t value;
    size_t length;
    const char *why = NULL;
    switch (wire_type) {
    case RELAY_WIRE_VARINT:
        return relay_wire_read_varint(cursor, &value);
    case RELAY_WIRE_FIXED64:
        length = 8;
        break;
    case RELAY_WIRE_FIXED32:
        length = 4;
        break;
    case RELAY_WIRE_LENGTH:
        why = relay_wire_read_length(cursor, &length);
        break;
    default:
        return "a group or an unknown wire type";
    }
    if (why != NULL) {
        return why;
    }
    if (length > relay_wire_cursor_left(cursor)) {
        return truncated;
    }
    relay_wire_skip(cursor, length);
    return NULL;
}

void relay_wire_skip(struct relay_wire_cursor *cursor, size_t length)
{
    while (length > 0 && relay_wire_cursor_fill(cursor)) {
        size_t n = (size_t)(cursor->stop - cursor->at);
        n = n < length ? n : length;
        cursor->at += n;
        length -= n;
    }
}

struct relay_wire_cursor relay_wire_cursor_split(struct relay_wire_cursor *cursor, size_t length)
{
    struct relay_wire_cursor part = *cursor;
    part.limit = relay_wire_cursor_offset(cursor) + length;
    if (part.stop_offset > part.limit) {
        part.stop -= part.stop_offset - part.limit;
        part.stop_offset = part.limit;
    }
    relay_wire_skip(cursor, length);
    return part;
}
