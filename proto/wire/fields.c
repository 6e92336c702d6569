/* The table-driven parser: see fields.h. Any thread. */
#include <proto/wire/fields.h>
#include <string.h>

static enum relay_code malformed(const char *message, const char *field, const char *why,
                                 struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s%s%s: %s", message, field != NULL ? "." : "",
                      field != NULL ? field : "", why);
}

static enum relay_code unknown_field(const char *message, uint32_t number, struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "%s has no field %u here", message, number);
}

static bool is_array(enum relay_wire_kind kind)
{
    return kind == RELAY_WIRE_FIELD_U32_ARRAY || kind == RELAY_WIRE_FIELD_FIXED64_ARRAY;
}

static uint32_t element_wire_type(enum relay_wire_kind kind)
{
    switch (kind) {
    case RELAY_WIRE_FIELD_U32:
    case RELAY_WIRE_FIELD_U64:
    case RELAY_WIRE_FIELD_BOOL:
    case RELAY_WIRE_FIELD_ENUM:
    case RELAY_WIRE_FIELD_U32_ARRAY:
        return RELAY_WIRE_VARINT;
    case RELAY_WIRE_FIELD_FIXED64:
    case RELAY_WIRE_FIELD_FIXED64_ARRAY:
        return RELAY_WIRE_FIXED64;
    default:
        return RELAY_WIRE_LENGTH;
    }
}

/* One element of an array; full says that there was no room for it. */
static const char *read_element(struct relay_wire_cursor *cursor, enum relay_wire_kind kind,
                                struct relay_wire_array *array, bool *full)
{
    const char *why;
    uint64_t v64 = 0;
    uint32_t v32 = 0;

    why = kind == RELAY_WIRE_FIELD_U32_ARRAY ? relay_wire_read_u32(cursor, &v32)
                                             : relay_wire_read_fixed64(cursor, &v64);
    if (why != NULL) {
        return why;
    }
    if (array->count == array->max) {
        *full = true;
        return "too many";
    }
    if (kind == RELAY_WIRE_FIELD_U32_ARRAY) {
        ((uint32_t *)array->data)[array->count++] = v32;
    } else {
        ((uint64_t *)array->data)[array->count++] = v64;
    }
    return NULL;
}

/* Packed fixed64 in one go: tensors are little-endian here too, so no other host is served. */
static const char *read_packed_fixed64(struct relay_wire_cursor *cursor, size_t length,
                                       struct relay_wire_array *array, bool *full)
{
    size_t n = length / sizeof(uint64_t);
    const char *why;

    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian host");
    if (length % sizeof(uint64_t) != 0) {
        return "truncated";
    }
    if (n > array->max - array->count) {
        *full = true;
        return "too many";
    }
    if (n == 0) {
        return NULL;
    }
    why = relay_wire_read_bytes(cursor, (uint64_t *)array->data + array->count, length);
    array->count += (uint32_t)n;
    return why;
}

static enum relay_code read_array(struct relay_wire_cursor *cursor,
                                  const struct relay_wire_table *table,
                                  const struct relay_wire_field *field, uint32_t wire_type,
                                  struct relay_wire_array *array, struct relay_error *err)
{
    const char *why;
    bool full = false;

    if (wire_type != RELAY_WIRE_LENGTH) {
        why = read_element(cursor, field->kind, array, &full);
    } else {
        size_t length;
        why = relay_wire_read_length(cursor, &length);
        if (why == NULL && field->kind == RELAY_WIRE_FIELD_FIXED64_ARRAY) {
            why = read_packed_fixed64(cursor, length, array, &full);
        } else if (why == NULL) {
            struct relay_wire_cursor packed = relay_wire_cursor_split(cursor, length);
            while (why == NULL && relay_wire_cursor_left(&packed) > 0) {
                why = read_element(&packed, field->kind, array, &full);
            }
        }
    }
    if (full) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.%s: more than %u entries", table->name,
                          field->name, array->max);
    }
    return why == NULL ? RELAY_OK : malformed(table->name, field->name, why, err);
}

static enum relay_code read_message(struct relay_wire_cursor *cursor,
                                    const struct relay_wire_table *table,
                                    const struct relay_wire_field *field, char *out,
                                    struct relay_error *err)
{
    struct relay_wire_cursor part;
    size_t length;
    bool *has = (bool *)(void *)(out + field->aux);
    const char *why = relay_wire_read_length(cursor, &length);
    if (why == NULL && *has) {
        why = "given twice";
    }
    if (why != NULL) {
        return malformed(table->name, field->name, why, err);
    }
    *has = true;
    part = relay_wire_cursor_split(cursor, length);
    return relay_wire_parse(&part, field->message, out + field->offset, err);
}

/* The kinds whose value is one varint or fixed64. */
static enum relay_code read_scalar(struct relay_wire_cursor *cursor,
                                   const struct relay_wire_table *table,
                                   const struct relay_wire_field *field, char *to,
                                   struct relay_error *err)
{
    uint64_t v64 = 0;
    uint32_t v32 = 0;
    const char *why;

    if (field->kind == RELAY_WIRE_FIELD_U32) {
        why = relay_wire_read_u32(cursor, &v32);
    } else if (field->kind == RELAY_WIRE_FIELD_FIXED64) {
        why = relay_wire_read_fixed64(cursor, &v64);
    } else {
        why = relay_wire_read_varint(cursor, &v64);
    }
    if (why != NULL) {
        return malformed(table->name, field->name, why, err);
    }
    switch (field->kind) {
    case RELAY_WIRE_FIELD_U32:
        memcpy(to, &v32, sizeof(v32));
        break;
    case RELAY_WIRE_FIELD_BOOL:
        *(bool *)(void *)to = v64 != 0;
        break;
    case RELAY_WIRE_FIELD_ENUM:
        if (v64 > field->max) {
            return RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "%s.%s has no value %lld here", table->name,
                              field->name, (long long)v64);
        }
        v32 = (uint32_t)v64;
        memcpy(to, &v32, sizeof(v32));
        break;
    default:
        memcpy(to, &v64, sizeof(v64));
        break;
    }
    return RELAY_OK;
}

/* The kinds whose value is bytes. */
static enum relay_code read_bytes(struct relay_wire_cursor *cursor,
                                  const struct relay_wire_table *table,
                                  const struct relay_wire_field *field, char *out,
                                  struct relay_error *err)
{
    struct relay_wire_span span = {0, 0};
    char *to = out + field->offset;
    const char *why = relay_wire_read_span(cursor, &span);

    if (why != NULL) {
        return malformed(table->name, field->name, why, err);
    }
    if (field->kind == RELAY_WIRE_FIELD_BYTES) {
        memcpy(to, &span, sizeof(span));
    } else if (field->kind == RELAY_WIRE_FIELD_SESSION) {
        uint32_t length = (uint32_t)span.length;
        if (span.length != 0 && span.length != RELAY_WIRE_SESSION_BYTES) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.%s: %u bytes expected, got %zu",
                              table->name, field->name, RELAY_WIRE_SESSION_BYTES, span.length);
        }
        relay_wire_gather(cursor->view, span, to);
        memcpy(out + field->aux, &length, sizeof(length));
    } else {
        if (span.length >= field->max) {
            span.length = field->max - 1;
        }
        relay_wire_gather(cursor->view, span, to);
        to[span.length] = '\0';
    }
    return RELAY_OK;
}

static enum relay_code read_field(struct relay_wire_cursor *cursor,
                                  const struct relay_wire_table *table,
                                  const struct relay_wire_field *field, uint32_t wire_type,
                                  char *out, struct relay_error *err)
{
    bool packed = is_array(field->kind) && wire_type == RELAY_WIRE_LENGTH;

    if (wire_type != element_wire_type(field->kind) && !packed) {
        return malformed(table->name, field->name, "wrong wire type", err);
    }
    if (is_array(field->kind)) {
        return read_array(cursor, table, field, wire_type,
                          (struct relay_wire_array *)(void *)(out + field->offset), err);
    }
    if (field->kind == RELAY_WIRE_FIELD_MESSAGE) {
        return read_message(cursor, table, field, out, err);
    }
    if (wire_type == RELAY_WIRE_LENGTH) {
        return read_bytes(cursor, table, field, out, err);
    }
    return read_scalar(cursor, table, field, out + field->offset, err);
}

static const struct relay_wire_field *find_field(const struct relay_wire_table *table,
                                                 uint32_t number)
{
    for (size_t i = 0; i < table->num_fields; i++) {
        if (table->fields[i].number == number) {
            return &table->fields[i];
        }
    }
    return NULL;
}

enum relay_code relay_wire_parse(struct relay_wire_cursor *cursor,
                                 const struct relay_wire_table *table, void *out,
                                 struct relay_error *err)
{
    while (relay_wire_cursor_left(cursor) > 0) {
        const struct relay_wire_field *field;
        enum relay_code code = RELAY_OK;
        uint32_t number, wire_type;
        const char *why = relay_wire_read_tag(cursor, &number, &wire_type);

        if (why != NULL) {
            return malformed(table->name, NULL, why, err);
        }
        field = find_field(table, number);
        if (field != NULL) {
            code = read_field(cursor, table, field, wire_type, out, err);
        } else if (table->skip_unknown) {
            why = relay_wire_skip_value(cursor, wire_type);
            code = why == NULL ? RELAY_OK : malformed(table->name, NULL, why, err);
        } else {
            code = unknown_field(table->name, number, err);
        }
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

enum relay_code relay_wire_parse_oneof(const struct relay_wire_view *view, const char *name,
                                       uint32_t members_max, bool skip_unknown, uint32_t *number,
                                       struct relay_wire_span *body, struct relay_error *err)
{
    struct relay_wire_cursor cursor;
    struct relay_wire_span span = {0, 0};
    uint32_t found = 0;

    relay_wire_cursor_init(&cursor, view, (struct relay_wire_span){0, view->length});
    while (relay_wire_cursor_left(&cursor) > 0) {
        uint32_t n, wire_type;
        const char *why = relay_wire_read_tag(&cursor, &n, &wire_type);
        if (why == NULL && n > members_max) {
            if (!skip_unknown) {
                return unknown_field(name, n, err);
            }
            why = relay_wire_skip_value(&cursor, wire_type);
        } else if (why == NULL) {
            why = found != 0                       ? "more than one message inside"
                  : wire_type != RELAY_WIRE_LENGTH ? "wrong wire type"
                                                   : relay_wire_read_span(&cursor, &span);
            found = n;
        }
        if (why != NULL) {
            return malformed(name, NULL, why, err);
        }
    }
    if (found == 0) {
        return malformed(name, NULL, "no message inside", err);
    }
    *number = found;
    *body = span;
    return RELAY_OK;
}
