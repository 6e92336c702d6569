/* The descriptor-driven walk: see scan.h. Any thread. */
#include <proto/wire/scan.h>

/* The contract nests 3 deep and has no recursive message; a deeper descriptor is refused. */
#define DEPTH_MAX 8
/* Fields of one message that the walk can tell apart. */
#define FIELDS_MAX 64

struct scan {
    bool skip_unknown;
    struct relay_error *err;
};

static enum relay_code malformed(const struct scan *scan, const ProtobufCMessageDescriptor *message,
                                 const ProtobufCFieldDescriptor *field, const char *why)
{
    return RELAY_FAIL(scan->err, RELAY_INVALID_ARGUMENT, "%s%s%s: %s", message->short_name,
                      field != NULL ? "." : "", field != NULL ? field->name : "", why);
}

/* UTF-8 and NUL over the pieces of a string. lower and upper bound the next continuation byte:
 * they shut out overlong forms, surrogates and what is past U+10FFFF. */
struct utf8 {
    unsigned more; /* continuation bytes still to come */
    uint8_t lower;
    uint8_t upper;
};

static const char *utf8_step(struct utf8 *state, uint8_t byte)
{
    static const char invalid[] = "invalid UTF-8";

    if (state->more > 0) {
        if (byte < state->lower || byte > state->upper) {
            return invalid;
        }
        *state = (struct utf8){state->more - 1, 0x80, 0xbf};
        return NULL;
    }
    if (byte == 0) {
        return "NUL in a string";
    }
    if (byte < 0x80) {
        return NULL;
    }
    if (byte >= 0xc2 && byte <= 0xdf) {
        *state = (struct utf8){1, 0x80, 0xbf};
    } else if (byte >= 0xe0 && byte <= 0xef) {
        *state = (struct utf8){2, byte == 0xe0 ? 0xa0 : 0x80, byte == 0xed ? 0x9f : 0xbf};
    } else if (byte >= 0xf0 && byte <= 0xf4) {
        *state = (struct utf8){3, byte == 0xf0 ? 0x90 : 0x80, byte == 0xf4 ? 0x8f : 0xbf};
    } else {
        return invalid;
    }
    return NULL;
}

static const char *scan_string(struct relay_wire_cursor *cursor)
{
    struct utf8 state = {0, 0, 0};
    while (relay_wire_cursor_fill(cursor)) {
        while (cursor->at < cursor->stop) {
            const char *why = utf8_step(&state, *cursor->at++);
            if (why != NULL) {
                return why;
            }
        }
    }
    return state.more > 0 ? "invalid UTF-8" : NULL;
}

static uint32_t element_wire_type(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return RELAY_WIRE_FIXED64;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return RELAY_WIRE_FIXED32;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return RELAY_WIRE_LENGTH;
    default:
        return RELAY_WIRE_VARINT;
    }
}

/* One number of a scalar field or of a packed array. */
static enum relay_code scan_number(struct relay_wire_cursor *cursor, const struct scan *scan,
                                   const ProtobufCMessageDescriptor *message,
                                   const ProtobufCFieldDescriptor *field)
{
    uint64_t value = 0;
    const char *why;

    if (element_wire_type(field->type) != RELAY_WIRE_VARINT) {
        why = relay_wire_skip_value(cursor, element_wire_type(field->type));
        return why == NULL ? RELAY_OK : malformed(scan, message, field, why);
    }
    why = relay_wire_read_varint(cursor, &value);
    if (why != NULL) {
        return malformed(scan, message, field, why);
    }
    if (field->type == PROTOBUF_C_TYPE_UINT32 && value > UINT32_MAX) {
        return malformed(scan, message, field, "value does not fit 32 bits");
    }
    if (field->type == PROTOBUF_C_TYPE_INT32 && value > INT32_MAX && value < (uint64_t)INT32_MIN) {
        return malformed(scan, message, field, "value does not fit 32 bits");
    }
    if (field->type == PROTOBUF_C_TYPE_ENUM && !scan->skip_unknown &&
        (value > INT32_MAX ||
         protobuf_c_enum_descriptor_get_value(field->descriptor, (int)value) == NULL)) {
        return RELAY_FAIL(scan->err, RELAY_UNIMPLEMENTED, "%s.%s has no value %lld here",
                          message->short_name, field->name, (long long)value);
    }
    return RELAY_OK;
}

static enum relay_code scan_message(struct relay_wire_cursor *cursor, const struct scan *scan,
                                    const ProtobufCMessageDescriptor *message, unsigned depth);

static enum relay_code scan_field(struct relay_wire_cursor *cursor, const struct scan *scan,
                                  const ProtobufCMessageDescriptor *message,
                                  const ProtobufCFieldDescriptor *field, uint32_t wire_type,
                                  unsigned depth)
{
    struct relay_wire_cursor part;
    enum relay_code code = RELAY_OK;
    const char *why;
    size_t length;
    uint32_t expected = element_wire_type(field->type);

    if (wire_type == expected && expected != RELAY_WIRE_LENGTH) {
        return scan_number(cursor, scan, message, field);
    }
    if (wire_type != RELAY_WIRE_LENGTH ||
        (expected != RELAY_WIRE_LENGTH && field->label != PROTOBUF_C_LABEL_REPEATED)) {
        return malformed(scan, message, field, "wrong wire type");
    }
    why = relay_wire_read_length(cursor, &length);
    if (why != NULL) {
        return malformed(scan, message, field, why);
    }
    part = relay_wire_cursor_split(cursor, length);
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        return scan_message(&part, scan, field->descriptor, depth + 1);
    }
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        why = scan_string(&part);
        return why == NULL ? RELAY_OK : malformed(scan, message, field, why);
    }
    while (field->type != PROTOBUF_C_TYPE_BYTES && code == RELAY_OK &&
           relay_wire_cursor_left(&part) > 0) {
        code = scan_number(&part, scan, message, field);
    }
    return code;
}

/* A singular message and a oneof may come once: merging is how small messages grow large. */
static const char *seen_again(const ProtobufCMessageDescriptor *message, size_t index,
                              uint64_t *seen)
{
    const ProtobufCFieldDescriptor *field = &message->fields[index];
    bool oneof = (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0;
    bool singular =
        field->type == PROTOBUF_C_TYPE_MESSAGE && field->label != PROTOBUF_C_LABEL_REPEATED;

    for (size_t i = 0; oneof && i < message->n_fields; i++) {
        if ((*seen >> i & 1) != 0 &&
            (message->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 &&
            message->fields[i].quantifier_offset == field->quantifier_offset) {
            return "more than one member of a oneof";
        }
    }
    if (singular && (*seen >> index & 1) != 0) {
        return "given twice";
    }
    *seen |= (uint64_t)1 << index;
    return NULL;
}

static enum relay_code scan_message(struct relay_wire_cursor *cursor, const struct scan *scan,
                                    const ProtobufCMessageDescriptor *message, unsigned depth)
{
    uint64_t seen = 0;

    if (depth > DEPTH_MAX || message->n_fields > FIELDS_MAX) {
        return malformed(scan, message, NULL, "nested too deep");
    }
    while (relay_wire_cursor_left(cursor) > 0) {
        const ProtobufCFieldDescriptor *field;
        enum relay_code code;
        uint32_t number, wire_type;
        const char *why = relay_wire_read_tag(cursor, &number, &wire_type);

        if (why != NULL) {
            return malformed(scan, message, NULL, why);
        }
        field = protobuf_c_message_descriptor_get_field(message, number);
        if (field == NULL) {
            if (!scan->skip_unknown) {
                return RELAY_FAIL(scan->err, RELAY_UNIMPLEMENTED, "%s has no field %u here",
                                  message->short_name, number);
            }
            why = relay_wire_skip_value(cursor, wire_type);
            if (why != NULL) {
                return malformed(scan, message, NULL, why);
            }
            continue;
        }
        why = seen_again(message, (size_t)(field - message->fields), &seen);
        if (why != NULL) {
            return malformed(scan, message, field, why);
        }
        code = scan_field(cursor, scan, message, field, wire_type, depth);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

enum relay_code relay_wire_scan(struct relay_wire_cursor *cursor,
                                const ProtobufCMessageDescriptor *descriptor, bool skip_unknown,
                                struct relay_error *err)
{
    struct scan scan = {skip_unknown, err};
    return scan_message(cursor, &scan, descriptor, 0);
}
