/* Upload messages: see upload.h. */
#include <proto/wire/tables.h>
#include <proto/wire/upload.h>
#include <string.h>

#define AT(member) offsetof(struct relay_wire_chunk, member)
static const struct relay_wire_field chunk_fields[] = {
    {1, RELAY_WIRE_FIELD_U32, "layer", AT(layer), 0, 0, NULL},
    {2, RELAY_WIRE_FIELD_U32, "token_begin", AT(token_begin), 0, 0, NULL},
    {3, RELAY_WIRE_FIELD_U32, "token_count", AT(token_count), 0, 0, NULL},
    {4, RELAY_WIRE_FIELD_ENUM, "dtype", AT(dtype), 0, RELAY_DTYPE_F8_E4M3, NULL},
    {5, RELAY_WIRE_FIELD_FIXED64, "xxh64", AT(xxh64), 0, 0, NULL},
    {14, RELAY_WIRE_FIELD_BYTES, "k", AT(k), 0, 0, NULL},
    {15, RELAY_WIRE_FIELD_BYTES, "v", AT(v), 0, 0, NULL},
};
#undef AT

static const struct relay_wire_table chunk_table = {
    .name = "KvChunk",
    .fields = chunk_fields,
    .num_fields = RELAY_WIRE_COUNT(chunk_fields),
};

enum relay_code relay_wire_upload_decode(const struct relay_wire_view *view,
                                         struct relay_wire_upload *out, struct relay_error *err)
{
    struct relay_wire_upload upload;
    struct relay_wire_cursor cursor;
    struct relay_wire_span body;
    uint32_t number;
    enum relay_code code = relay_wire_parse_oneof(view, "upload message", RELAY_WIRE_UPLOAD_CHUNK,
                                                  false, &number, &body, err);

    if (code != RELAY_OK) {
        return code;
    }
    memset(&upload, 0, sizeof(upload));
    upload.kind = (enum relay_wire_upload_kind)number;
    if (upload.kind == RELAY_WIRE_UPLOAD_HEADER) {
        upload.header = body;
    } else {
        relay_wire_cursor_init(&cursor, view, body);
        code = relay_wire_parse(&cursor, &chunk_table, &upload.chunk, err);
    }
    if (code == RELAY_OK) {
        *out = upload;
    }
    return code;
}

grpc_byte_buffer *relay_wire_chunk_encode(const struct relay_wire_chunk *chunk, grpc_slice k,
                                          grpc_slice v)
{
    struct relay_wire_tensor tensors[] = {{14, k}, {15, v}};
    struct relay_wire_writer writer;

    relay_wire_writer_init(&writer, 5 * RELAY_WIRE_SCALAR_BYTES_MAX);
    relay_wire_put_u64(&writer, 1, chunk->layer);
    relay_wire_put_u64(&writer, 2, chunk->token_begin);
    relay_wire_put_u64(&writer, 3, chunk->token_count);
    relay_wire_put_u64(&writer, 4, chunk->dtype);
    relay_wire_put_fixed64(&writer, 5, chunk->xxh64);
    return relay_wire_writer_finish(&writer, RELAY_WIRE_UPLOAD_CHUNK, tensors,
                                    RELAY_WIRE_COUNT(tensors));
}
