/* BatchedRelayAttention's messages: see attend.h. */
#include <proto/wire/tables.h>
#include <string.h>

struct request_parse {
    struct relay_wire_attend_request request;
    struct relay_wire_entry_arrays arrays;
};

#define AT(member) offsetof(struct request_parse, member)

static const struct relay_wire_field request_fields[] = {
    {1, RELAY_WIRE_FIELD_SESSION, "session", AT(request.session), AT(request.session_bytes), 0,
     NULL},
    {2, RELAY_WIRE_FIELD_U64, "step_id", AT(request.step_id), 0, 0, NULL},
    {3, RELAY_WIRE_FIELD_U32, "layer", AT(request.layer), 0, 0, NULL},
    {4, RELAY_WIRE_FIELD_ENUM, "part", AT(request.part), 0, RELAY_PART_CONTEXT_ONLY, NULL},
    {5, RELAY_WIRE_FIELD_BOOL, "want_lse", AT(request.want_lse), 0, 0, NULL},
    {6, RELAY_WIRE_FIELD_BOOL, "want_timings", AT(request.want_timings), 0, 0, NULL},
    {7, RELAY_WIRE_FIELD_FIXED64_ARRAY, "handles", AT(arrays.handles), 0, 0, NULL},
    {8, RELAY_WIRE_FIELD_U32_ARRAY, "q_lens", AT(arrays.q_lens), 0, 0, NULL},
    {9, RELAY_WIRE_FIELD_U32_ARRAY, "positions", AT(arrays.positions), 0, 0, NULL},
    {10, RELAY_WIRE_FIELD_ENUM, "sharing", AT(request.sharing), 0, RELAY_SHARING_NEVER, NULL},
    {13, RELAY_WIRE_FIELD_BYTES, "k", AT(request.k), 0, 0, NULL},
    {14, RELAY_WIRE_FIELD_BYTES, "v", AT(request.v), 0, 0, NULL},
    {15, RELAY_WIRE_FIELD_BYTES, "q", AT(request.q), 0, 0, NULL},
};
#undef AT

static const struct relay_wire_table request_table = {
    .name = "BatchedRelayAttentionRequest",
    .fields = request_fields,
    .num_fields = RELAY_WIRE_COUNT(request_fields),
};

#define AT(member) offsetof(struct relay_wire_attend_response, member)

static const struct relay_wire_field response_fields[] = {
    {1, RELAY_WIRE_FIELD_U64, "step_id", AT(step_id), 0, 0, NULL},
    {2, RELAY_WIRE_FIELD_U32, "layer", AT(layer), 0, 0, NULL},
    {3, RELAY_WIRE_FIELD_MESSAGE, "timings", AT(timings), AT(has_timings), 0,
     &relay_wire_timings_table},
    {14, RELAY_WIRE_FIELD_BYTES, "lse", AT(lse), 0, 0, NULL},
    {15, RELAY_WIRE_FIELD_BYTES, "out", AT(out), 0, 0, NULL},
};
#undef AT

static const struct relay_wire_table response_table = {
    .name = "BatchedRelayAttentionResponse",
    .fields = response_fields,
    .num_fields = RELAY_WIRE_COUNT(response_fields),
    .skip_unknown = true,
};

static const struct relay_wire_span nothing = {0, 0};

enum relay_code relay_wire_attend_request_decode(const struct relay_wire_view *view,
                                                 const struct relay_wire_entry_storage *storage,
                                                 struct relay_wire_attend_request *out,
                                                 struct relay_error *err)
{
    struct request_parse parse;
    struct relay_wire_cursor cursor;
    enum relay_code code;

    memset(&parse, 0, sizeof(parse));
    parse.arrays = relay_wire_entry_arrays_of(storage);
    relay_wire_cursor_init(&cursor, view, (struct relay_wire_span){0, view->length});
    code = relay_wire_parse(&cursor, &request_table, &parse, err);
    if (code == RELAY_OK) {
        parse.request.entries = relay_wire_entries_of(&parse.arrays);
        *out = parse.request;
    }
    return code;
}

grpc_byte_buffer *relay_wire_attend_request_encode(const struct relay_wire_attend_request *request,
                                                   grpc_slice k, grpc_slice v, grpc_slice q)
{
    struct relay_wire_writer writer;
    struct relay_wire_tensor tensors[] = {{13, k}, {14, v}, {15, q}};

    relay_wire_writer_init(&writer, 7 * RELAY_WIRE_SCALAR_BYTES_MAX + RELAY_WIRE_SESSION_BYTES +
                                        relay_wire_entries_bytes_max(&request->entries));
    relay_wire_put_bytes(&writer, 1, request->session, request->session_bytes);
    relay_wire_put_u64(&writer, 2, request->step_id);
    relay_wire_put_u64(&writer, 3, request->layer);
    relay_wire_put_u64(&writer, 4, request->part);
    relay_wire_put_u64(&writer, 5, request->want_lse);
    relay_wire_put_u64(&writer, 6, request->want_timings);
    relay_wire_put_entries(&writer, &request->entries);
    relay_wire_put_u64(&writer, 10, request->sharing);
    return relay_wire_writer_finish(&writer, 0, tensors, RELAY_WIRE_COUNT(tensors));
}

enum relay_code relay_wire_attend_response_decode(const struct relay_wire_view *view,
                                                  struct relay_wire_attend_response *out,
                                                  struct relay_error *err)
{
    struct relay_wire_attend_response response = {.lse = nothing, .out = nothing};
    struct relay_wire_cursor cursor;
    enum relay_code code;

    relay_wire_cursor_init(&cursor, view, (struct relay_wire_span){0, view->length});
    code = relay_wire_parse(&cursor, &response_table, &response, err);
    if (code == RELAY_OK) {
        *out = response;
    }
    return code;
}

static const size_t response_head_bytes_max =
    2 * RELAY_WIRE_SCALAR_BYTES_MAX + RELAY_WIRE_TIMINGS_BYTES_MAX;

grpc_byte_buffer *relay_wire_attend_response_encode(
    const struct relay_wire_attend_response *response, grpc_slice lse, grpc_slice out)
{
    struct relay_wire_writer writer;
    struct relay_wire_tensor tensors[] = {{14, lse}, {15, out}};

    relay_wire_writer_init(&writer, response_head_bytes_max);
    relay_wire_put_u64(&writer, 1, response->step_id);
    relay_wire_put_u64(&writer, 2, response->layer);
    if (response->has_timings) {
        relay_wire_put_timings(&writer, 3, &response->timings);
    }
    return relay_wire_writer_finish(&writer, 0, tensors, RELAY_WIRE_COUNT(tensors));
}

size_t relay_wire_attend_response_bytes(size_t lse_bytes, size_t out_bytes)
{
    return response_head_bytes_max + 2 * RELAY_WIRE_SCALAR_BYTES_MAX + lse_bytes + out_bytes;
}
