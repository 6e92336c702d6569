/* grpc-status-details-bin: see status_details.h. */
#include <proto/wire/cursor.h>
#include <proto/wire/status_details.h>
#include <proto/wire/writer.h>
#include <string.h>

/* google.rpc.Status {int32 code = 1; string message = 2; repeated Any details = 3} and
 * google.protobuf.Any {string type_url = 1; bytes value = 2}. */
enum { STATUS_CODE = 1, STATUS_MESSAGE = 2, STATUS_DETAILS = 3, ANY_TYPE_URL = 1, ANY_VALUE = 2 };

static const char type_url[] = "type.googleapis.com/relay.v1.ErrorDetail";

static size_t field_bytes(size_t length)
{
    return 1 + relay_wire_varint_bytes(length) + length;
}

/* How many of the entries fit when everything else takes `used` bytes. */
static size_t entries_that_fit(const Relay__V1__ErrorDetail *detail, size_t used)
{
    size_t n = 0;
    while (n < detail->n_entries) {
        used += field_bytes(relay__v1__entry_error__get_packed_size(detail->entries[n]));
        if (used > RELAY_WIRE_STATUS_DETAILS_BYTES_MAX) {
            break;
        }
        n++;
    }
    return n;
}

grpc_slice relay_wire_status_details_encode(enum relay_code code, const char *message,
                                            const Relay__V1__ErrorDetail *detail)
{
    Relay__V1__ErrorDetail cut = *detail;
    struct relay_wire_writer writer;
    grpc_slice slice;
    size_t message_bytes = strlen(message);
    size_t detail_bytes, any_bytes, used;

    cut.n_entries = 0;
    detail_bytes = relay__v1__error_detail__get_packed_size(&cut);
    /* Lengths below are reckoned at their longest, so that entries cannot push a prefix out. */
    used = 5 * RELAY_WIRE_SCALAR_BYTES_MAX + message_bytes + sizeof(type_url) + detail_bytes;
    if (used > RELAY_WIRE_STATUS_DETAILS_BYTES_MAX) {
        return grpc_empty_slice();
    }
    cut.n_entries = entries_that_fit(detail, used);
    detail_bytes = relay__v1__error_detail__get_packed_size(&cut);
    any_bytes = field_bytes(sizeof(type_url) - 1) + field_bytes(detail_bytes);

    relay_wire_writer_init(&writer, RELAY_WIRE_STATUS_DETAILS_BYTES_MAX);
    relay_wire_put_u64(&writer, STATUS_CODE, code);
    relay_wire_put_bytes(&writer, STATUS_MESSAGE, message, message_bytes);
    relay_wire_put_varint(&writer, STATUS_DETAILS << 3 | RELAY_WIRE_LENGTH);
    relay_wire_put_varint(&writer, any_bytes);
    relay_wire_put_bytes(&writer, ANY_TYPE_URL, type_url, sizeof(type_url) - 1);
    relay_wire_put_varint(&writer, ANY_VALUE << 3 | RELAY_WIRE_LENGTH);
    relay_wire_put_varint(&writer, detail_bytes);
    writer.at += relay__v1__error_detail__pack(&cut, writer.at);
    slice = grpc_slice_from_copied_buffer((const char *)writer.begin,
                                          (size_t)(writer.at - writer.begin));
    grpc_slice_unref(writer.slice);
    return slice;
}

/* The value of an Any that holds an ErrorDetail; found stays as it is for any other. */
static const char *read_any(struct relay_wire_cursor *cursor, struct relay_wire_span *value,
                            bool *found)
{
    struct relay_wire_span url = {0, 0}, bytes = {0, 0};
    char name[sizeof(type_url)];
    const char *why = NULL;

    while (why == NULL && relay_wire_cursor_left(cursor) > 0) {
        uint32_t number, wire_type;
        why = relay_wire_read_tag(cursor, &number, &wire_type);
        if (why != NULL) {
            break;
        }
        if (wire_type == RELAY_WIRE_LENGTH && (number == ANY_TYPE_URL || number == ANY_VALUE)) {
            why = relay_wire_read_span(cursor, number == ANY_TYPE_URL ? &url : &bytes);
        } else {
            why = relay_wire_skip_value(cursor, wire_type);
        }
    }
    if (why == NULL && url.length == sizeof(type_url) - 1) {
        relay_wire_gather(cursor->view, url, name);
        if (memcmp(name, type_url, url.length) == 0) {
            *value = bytes;
            *found = true;
        }
    }
    return why;
}

static const char *read_status(struct relay_wire_cursor *cursor, uint64_t *code,
                               struct relay_wire_span *value, bool *found)
{
    const char *why = NULL;
    while (why == NULL && relay_wire_cursor_left(cursor) > 0) {
        uint32_t number, wire_type;
        why = relay_wire_read_tag(cursor, &number, &wire_type);
        if (why != NULL) {
            break;
        }
        if (number == STATUS_CODE && wire_type == RELAY_WIRE_VARINT) {
            why = relay_wire_read_varint(cursor, code);
        } else if (number == STATUS_DETAILS && wire_type == RELAY_WIRE_LENGTH && !*found) {
            size_t length = 0;
            why = relay_wire_read_length(cursor, &length);
            if (why == NULL) {
                struct relay_wire_cursor any = relay_wire_cursor_split(cursor, length);
                why = read_any(&any, value, found);
            }
        } else {
            why = relay_wire_skip_value(cursor, wire_type);
        }
    }
    return why;
}

enum relay_code relay_wire_status_details_decode(const grpc_slice *value,
                                                 struct relay_wire_arena *arena,
                                                 enum relay_code *code,
                                                 Relay__V1__ErrorDetail **detail,
                                                 struct relay_error *err)
{
    struct relay_wire_view view = {value, 1, GRPC_SLICE_LENGTH(*value)};
    struct relay_wire_cursor cursor;
    struct relay_wire_span span = {0, 0};
    ProtobufCMessage *message = NULL;
    uint64_t number = 0;
    bool found = false;
    const char *why;

    relay_wire_cursor_init(&cursor, &view, relay_wire_whole(&view));
    why = read_status(&cursor, &number, &span, &found);
    if (why != NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "google.rpc.Status: %s", why);
    }
    if (found) {
        enum relay_code rc = relay_wire_unpack_response(
            &view, span, &relay__v1__error_detail__descriptor, arena, &message, err);
        if (rc != RELAY_OK) {
            return rc;
        }
    }
    *code = number <= RELAY_UNAUTHENTICATED ? (enum relay_code)number : RELAY_UNKNOWN;
    *detail = (Relay__V1__ErrorDetail *)message;
    return RELAY_OK;
}
