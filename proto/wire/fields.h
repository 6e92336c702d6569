/* Parsing a message by a table of its fields into a plain struct. Private to this room.
 *
 * One engine for all hot messages, so that every rule about hostile bytes is in one place. */
#ifndef RELAY_WIRE_FIELDS_H
#define RELAY_WIRE_FIELDS_H

#include <proto/wire/cursor.h>

enum relay_wire_kind {
    RELAY_WIRE_FIELD_U32,
    RELAY_WIRE_FIELD_U64,
    RELAY_WIRE_FIELD_BOOL,
    RELAY_WIRE_FIELD_ENUM,          /* 0..max, into a 32-bit enum */
    RELAY_WIRE_FIELD_FIXED64,       /* into uint64_t */
    RELAY_WIRE_FIELD_BYTES,         /* into struct relay_wire_span */
    RELAY_WIRE_FIELD_SESSION,       /* into uint8_t [16]; its length into uint32_t at aux */
    RELAY_WIRE_FIELD_TEXT,          /* into char [max], cut to fit, NUL-terminated */
    RELAY_WIRE_FIELD_U32_ARRAY,     /* into struct relay_wire_array of uint32_t */
    RELAY_WIRE_FIELD_FIXED64_ARRAY, /* into struct relay_wire_array of uint64_t */
    RELAY_WIRE_FIELD_MESSAGE,       /* by another table; bool at aux says that it came */
};

/* A repeated field on its way in. */
struct relay_wire_array {
    void *data; /* [max] */
    uint32_t count;
    uint32_t max;
};

struct relay_wire_table;

struct relay_wire_field {
    uint32_t number;
    enum relay_wire_kind kind;
    const char *name;
    size_t offset; /* of the member in the struct */
    size_t aux;    /* offset of a second member, see the kinds */
    uint32_t max;
    const struct relay_wire_table *message;
};

struct relay_wire_table {
    const char *name; /* of the message */
    const struct relay_wire_field *fields;
    size_t num_fields;
    bool skip_unknown; /* of responses only */
};

/* Members that do not come stay as they are: start from zero. INVALID_ARGUMENT or UNIMPLEMENTED,
 * naming message and field. */
RELAY_MUST_CHECK enum relay_code relay_wire_parse(struct relay_wire_cursor *cursor,
                                                  const struct relay_wire_table *table, void *out,
                                                  struct relay_error *err);

/* The one message inside a oneof of messages with numbers 1..members_max: which, and where. */
RELAY_MUST_CHECK enum relay_code relay_wire_parse_oneof(const struct relay_wire_view *view,
                                                        const char *name, uint32_t members_max,
                                                        bool skip_unknown, uint32_t *number,
                                                        struct relay_wire_span *body,
                                                        struct relay_error *err);

#endif
