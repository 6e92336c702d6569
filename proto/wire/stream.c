/* StreamRelayAttention's messages: see stream.h. */
#include <proto/wire/stream.h>
#include <proto/wire/tables.h>
#include <string.h>

struct attach_parse {
    struct relay_wire_attach attach;
    struct relay_wire_array planes;
};

#define AT(member) offsetof(struct attach_parse, member)
static const struct relay_wire_field attach_fields[] = {
    {1, RELAY_WIRE_FIELD_SESSION, "session", AT(attach.session), AT(attach.session_bytes), 0, NULL},
    {2, RELAY_WIRE_FIELD_U32_ARRAY, "planes", AT(planes), 0, 0, NULL},
};
#undef AT

struct begin_parse {
    struct relay_wire_begin begin;
    struct relay_wire_entry_arrays arrays;
};

#define AT(member) offsetof(struct begin_parse, member)
static const struct relay_wire_field begin_fields[] = {
    {2, RELAY_WIRE_FIELD_U64, "step_id", AT(begin.step_id), 0, 0, NULL},
    {4, RELAY_WIRE_FIELD_ENUM, "part", AT(begin.part), 0, RELAY_PART_CONTEXT_ONLY, NULL},
    {5, RELAY_WIRE_FIELD_BOOL, "want_lse", AT(begin.want_lse), 0, 0, NULL},
    {6, RELAY_WIRE_FIELD_BOOL, "want_timings", AT(begin.want_timings), 0, 0, NULL},
    {7, RELAY_WIRE_FIELD_FIXED64_ARRAY, "handles", AT(arrays.handles), 0, 0, NULL},
    {8, RELAY_WIRE_FIELD_U32_ARRAY, "q_lens", AT(arrays.q_lens), 0, 0, NULL},
    {9, RELAY_WIRE_FIELD_U32_ARRAY, "positions", AT(arrays.positions), 0, 0, NULL},
    {10, RELAY_WIRE_FIELD_ENUM, "sharing", AT(begin.sharing), 0, RELAY_SHARING_NEVER, NULL},
    {11, RELAY_WIRE_FIELD_U32, "timeout_us", AT(begin.timeout_us), 0, 0, NULL},
    {12, RELAY_WIRE_FIELD_U32, "align_us", AT(begin.align_us), 0, 0, NULL},
};
#undef AT

#define AT(member) offsetof(struct relay_wire_layer_call, member)
static const struct relay_wire_field call_fields[] = {
    {1, RELAY_WIRE_FIELD_U64, "step_id", AT(step_id), 0, 0, NULL},
    {2, RELAY_WIRE_FIELD_U32, "layer", AT(layer), 0, 0, NULL},
    {3, RELAY_WIRE_FIELD_U32, "row_begin", AT(row_begin), 0, 0, NULL},
    {4, RELAY_WIRE_FIELD_U32, "row_count", AT(row_count), 0, 0, NULL},
    {5, RELAY_WIRE_FIELD_U32, "slot", AT(slot), 0, 0, NULL},
    {13, RELAY_WIRE_FIELD_BYTES, "k", AT(k), 0, 0, NULL},
    {14, RELAY_WIRE_FIELD_BYTES, "v", AT(v), 0, 0, NULL},
    {15, RELAY_WIRE_FIELD_BYTES, "q", AT(q), 0, 0, NULL},
};
#undef AT

static const struct relay_wire_field end_fields[] = {
    {1, RELAY_WIRE_FIELD_U64, "step_id", 0, 0, 0, NULL},
};

#define AT(member) offsetof(struct relay_wire_layer_result, member)
static const struct relay_wire_field result_fields[] = {
    {1, RELAY_WIRE_FIELD_U64, "step_id", AT(step_id), 0, 0, NULL},
    {2, RELAY_WIRE_FIELD_U32, "layer", AT(layer), 0, 0, NULL},
    {3, RELAY_WIRE_FIELD_U32, "row_begin", AT(row_begin), 0, 0, NULL},
    {4, RELAY_WIRE_FIELD_U32, "code", AT(code), 0, 0, NULL},
    {5, RELAY_WIRE_FIELD_TEXT, "message", AT(message), 0, RELAY_WIRE_RESULT_MESSAGE_BYTES, NULL},
    {6, RELAY_WIRE_FIELD_MESSAGE, "timings", AT(timings), AT(has_timings), 0,
     &relay_wire_timings_table},
    {7, RELAY_WIRE_FIELD_U32, "slot", AT(slot), 0, 0, NULL},
    {14, RELAY_WIRE_FIELD_BYTES, "lse", AT(lse), 0, 0, NULL},
    {15, RELAY_WIRE_FIELD_BYTES, "out", AT(out), 0, 0, NULL},
};
#undef AT

#define TABLE(message, list, skip)                                                                 \
    {                                                                                              \
        .name = message, .fields = list, .num_fields = RELAY_WIRE_COUNT(list),                     \
        .skip_unknown = skip                                                                       \
    }
static const struct relay_wire_table attach_table = TABLE("Attach", attach_fields, false);
static const struct relay_wire_table begin_table = TABLE("BeginStep", begin_fields, false);
static const struct relay_wire_table call_table = TABLE("LayerCall", call_fields, false);
static const struct relay_wire_table end_table = TABLE("EndStep", end_fields, false);
static const struct relay_wire_table result_table = TABLE("LayerResult", result_fields, true);
#undef TABLE

static enum relay_code parse_attach(struct relay_wire_cursor *cursor, struct relay_wire_attach *out,
                                    struct relay_error *err)
{
    struct attach_parse parse;
    enum relay_code code;
    memset(&parse, 0, sizeof(parse));
    parse.planes = (struct relay_wire_array){parse.attach.planes, 0, RELAY_WIRE_PLANES_MAX};
    code = relay_wire_parse(cursor, &attach_table, &parse, err);
    parse.attach.num_planes = parse.planes.count;
    *out = parse.attach;
    return code;
}

static enum relay_code parse_begin(struct relay_wire_cursor *cursor,
                                   const struct relay_wire_entry_storage *storage,
                                   struct relay_wire_begin *out, struct relay_error *err)
{
    struct begin_parse parse;
    enum relay_code code;
    memset(&parse, 0, sizeof(parse));
    parse.arrays = relay_wire_entry_arrays_of(storage);
    code = relay_wire_parse(cursor, &begin_table, &parse, err);
    parse.begin.entries = relay_wire_entries_of(&parse.arrays);
    *out = parse.begin;
    return code;
}

enum relay_code relay_wire_stream_request_decode(const struct relay_wire_view *view,
                                                 const struct relay_wire_entry_storage *storage,
                                                 struct relay_wire_stream_request *out,
                                                 struct relay_error *err)
{
    struct relay_wire_stream_request request;
    struct relay_wire_cursor cursor;
    struct relay_wire_span body;
    uint32_t number;
    enum relay_code code = relay_wire_parse_oneof(view, "StreamRequest", RELAY_WIRE_STREAM_END,
                                                  false, &number, &body, err);

    if (code != RELAY_OK) {
        return code;
    }
    memset(&request, 0, sizeof(request));
    request.kind = (enum relay_wire_stream_kind)number;
    relay_wire_cursor_init(&cursor, view, body);
    switch (request.kind) {
    case RELAY_WIRE_STREAM_ATTACH:
        code = parse_attach(&cursor, &request.attach, err);
        break;
    case RELAY_WIRE_STREAM_BEGIN:
        code = parse_begin(&cursor, storage, &request.begin, err);
        break;
    case RELAY_WIRE_STREAM_CALL:
        code = relay_wire_parse(&cursor, &call_table, &request.call, err);
        break;
    case RELAY_WIRE_STREAM_END:
        code = relay_wire_parse(&cursor, &end_table, &request.end, err);
        break;
    }
    if (code == RELAY_OK) {
        *out = request;
    }
    return code;
}

static void put_attach(struct relay_wire_writer *writer, const struct relay_wire_attach *attach)
{
    relay_wire_writer_init(writer, 2 * RELAY_WIRE_SCALAR_BYTES_MAX + RELAY_WIRE_SESSION_BYTES +
                                       5 * (size_t)attach->num_planes);
    relay_wire_put_bytes(writer, 1, attach->session, attach->session_bytes);
    relay_wire_put_u32s(writer, 2, attach->planes, attach->num_planes);
}

static void put_begin(struct relay_wire_writer *writer, const struct relay_wire_begin *begin)
{
    relay_wire_writer_init(writer, 7 * RELAY_WIRE_SCALAR_BYTES_MAX +
                                       relay_wire_entries_bytes_max(&begin->entries));
    relay_wire_put_u64(writer, 2, begin->step_id);
    relay_wire_put_u64(writer, 4, begin->part);
    relay_wire_put_u64(writer, 5, begin->want_lse);
    relay_wire_put_u64(writer, 6, begin->want_timings);
    relay_wire_put_entries(writer, &begin->entries);
    relay_wire_put_u64(writer, 10, begin->sharing);
    relay_wire_put_u64(writer, 11, begin->timeout_us);
    relay_wire_put_u64(writer, 12, begin->align_us);
}

static void put_call(struct relay_wire_writer *writer, const struct relay_wire_layer_call *call)
{
    relay_wire_writer_init(writer, 5 * RELAY_WIRE_SCALAR_BYTES_MAX);
    relay_wire_put_u64(writer, 1, call->step_id);
    relay_wire_put_u64(writer, 2, call->layer);
    relay_wire_put_u64(writer, 3, call->row_begin);
    relay_wire_put_u64(writer, 4, call->row_count);
    relay_wire_put_u64(writer, 5, call->slot);
}

grpc_byte_buffer *relay_wire_stream_request_encode(const struct relay_wire_stream_request *request,
                                                   grpc_slice k, grpc_slice v, grpc_slice q)
{
    struct relay_wire_tensor tensors[] = {{13, k}, {14, v}, {15, q}};
    struct relay_wire_writer writer;

    switch (request->kind) {
    case RELAY_WIRE_STREAM_ATTACH:
        put_attach(&writer, &request->attach);
        break;
    case RELAY_WIRE_STREAM_BEGIN:
        put_begin(&writer, &request->begin);
        break;
    case RELAY_WIRE_STREAM_CALL:
        put_call(&writer, &request->call);
        break;
    case RELAY_WIRE_STREAM_END:
        relay_wire_writer_init(&writer, RELAY_WIRE_SCALAR_BYTES_MAX);
        relay_wire_put_u64(&writer, 1, request->end.step_id);
        break;
    }
    return relay_wire_writer_finish(&writer, request->kind, tensors, RELAY_WIRE_COUNT(tensors));
}

enum relay_code relay_wire_stream_response_decode(const struct relay_wire_view *view,
                                                  struct relay_wire_stream_response *out,
                                                  struct relay_error *err)
{
    struct relay_wire_stream_response response;
    struct relay_wire_cursor cursor;
    uint32_t number;
    enum relay_code code;

    memset(&response, 0, sizeof(response));
    code = relay_wire_parse_oneof(view, "StreamResponse", RELAY_WIRE_STREAM_DRAIN, true, &number,
                                  &response.body, err);
    if (code != RELAY_OK) {
        return code;
    }
    response.kind = (enum relay_wire_stream_answer)number;
    if (response.kind == RELAY_WIRE_STREAM_RESULT) {
        relay_wire_cursor_init(&cursor, view, response.body);
        code = relay_wire_parse(&cursor, &result_table, &response.result, err);
        if (code != RELAY_OK) {
            return code;
        }
        if ((uint32_t)response.result.code > RELAY_UNAUTHENTICATED) {
            response.result.code = RELAY_UNKNOWN;
        }
    }
    *out = response;
    return RELAY_OK;
}

grpc_byte_buffer *relay_wire_layer_result_encode(const struct relay_wire_layer_result *result,
                                                 grpc_slice lse, grpc_slice out)
{
    struct relay_wire_tensor tensors[] = {{14, lse}, {15, out}};
    struct relay_wire_writer writer;

    relay_wire_writer_init(&writer, 6 * RELAY_WIRE_SCALAR_BYTES_MAX +
                                        RELAY_WIRE_RESULT_MESSAGE_BYTES +
                                        RELAY_WIRE_TIMINGS_BYTES_MAX);
    relay_wire_put_u64(&writer, 1, result->step_id);
    relay_wire_put_u64(&writer, 2, result->layer);
    relay_wire_put_u64(&writer, 3, result->row_begin);
    relay_wire_put_u64(&writer, 4, result->code);
    relay_wire_put_bytes(&writer, 5, result->message,
                         strnlen(result->message, RELAY_WIRE_RESULT_MESSAGE_BYTES));
    if (result->has_timings) {
        relay_wire_put_timings(&writer, 6, &result->timings);
    }
    relay_wire_put_u64(&writer, 7, result->slot);
    return relay_wire_writer_finish(&writer, RELAY_WIRE_STREAM_RESULT, tensors,
                                    RELAY_WIRE_COUNT(tensors));
}
