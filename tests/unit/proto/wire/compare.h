/* Hand-parsed messages against what protobuf-c made of the same bytes. Each function returns NULL,
 * or the name of the first field that differs. */
#ifndef TESTS_WIRE_COMPARE_H
#define TESTS_WIRE_COMPARE_H

#include "kit.h"

#include <proto/wire/stream.h>
#include <proto/wire/upload.h>
#include <relay/v1/relay.pb-c.h>

#define COMPARE(condition, name)                                                                   \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            return name;                                                                           \
        }                                                                                          \
    } while (0)

static inline bool compare_bytes(const struct relay_wire_view *view, struct relay_wire_span span,
                                 ProtobufCBinaryData data)
{
    return kit_span_is(view, span, data.data, data.len);
}

static inline bool compare_session(const uint8_t *session, uint32_t length,
                                   ProtobufCBinaryData data)
{
    return length == data.len && (length == 0 || memcmp(session, data.data, length) == 0);
}

static inline bool compare_u32s(const uint32_t *a, size_t n, const uint32_t *b, size_t m)
{
    return n == m && (n == 0 || memcmp(a, b, n * sizeof(*a)) == 0);
}

static inline bool compare_u64s(const uint64_t *a, size_t n, const uint64_t *b, size_t m)
{
    return n == m && (n == 0 || memcmp(a, b, n * sizeof(*a)) == 0);
}

static inline const char *compare_request(const struct relay_wire_view *view,
                                          const struct relay_wire_attend_request *a,
                                          const Relay__V1__BatchedRelayAttentionRequest *b)
{
    COMPARE(compare_session(a->session, a->session_bytes, b->session), "session");
    COMPARE(a->step_id == b->step_id, "step_id");
    COMPARE(a->layer == b->layer, "layer");
    COMPARE((int)a->part == (int)b->part, "part");
    COMPARE(a->want_lse == (b->want_lse != 0), "want_lse");
    COMPARE(a->want_timings == (b->want_timings != 0), "want_timings");
    COMPARE(compare_u64s(a->entries.handles, a->entries.num_handles, b->handles, b->n_handles),
            "handles");
    COMPARE(compare_u32s(a->entries.q_lens, a->entries.num_q_lens, b->q_lens, b->n_q_lens),
            "q_lens");
    COMPARE(
        compare_u32s(a->entries.positions, a->entries.num_positions, b->positions, b->n_positions),
        "positions");
    COMPARE((int)a->sharing == (int)b->sharing, "sharing");
    COMPARE(compare_bytes(view, a->k, b->k), "k");
    COMPARE(compare_bytes(view, a->v, b->v), "v");
    COMPARE(compare_bytes(view, a->q, b->q), "q");
    return NULL;
}

static inline const char *compare_timings(bool has, const struct relay_wire_timings *a,
                                          const Relay__V1__Timings *b)
{
    COMPARE(has == (b != NULL), "timings");
    if (b != NULL) {
        COMPARE(a->queue_us == b->queue_us, "queue_us");
        COMPARE(a->plan_us == b->plan_us, "plan_us");
        COMPARE(a->compute_us == b->compute_us, "compute_us");
        COMPARE(a->prompt_bytes == b->prompt_bytes, "prompt_bytes");
        COMPARE(a->kv_bytes == b->kv_bytes, "kv_bytes");
        COMPARE(a->batch_rows == b->batch_rows, "batch_rows");
        COMPARE(a->batch_sessions == b->batch_sessions, "batch_sessions");
    }
    return NULL;
}

static inline const char *compare_response(const struct relay_wire_view *view,
                                           const struct relay_wire_attend_response *a,
                                           const Relay__V1__BatchedRelayAttentionResponse *b)
{
    COMPARE(a->step_id == b->step_id, "step_id");
    COMPARE(a->layer == b->layer, "layer");
    COMPARE(compare_bytes(view, a->lse, b->lse), "lse");
    COMPARE(compare_bytes(view, a->out, b->out), "out");
    return compare_timings(a->has_timings, &a->timings, b->timings);
}

static inline const char *compare_attach(const struct relay_wire_attach *a,
                                         const Relay__V1__Attach *b)
{
    COMPARE(compare_session(a->session, a->session_bytes, b->session), "session");
    COMPARE(a->num_planes == b->n_planes, "planes");
    for (size_t i = 0; i < b->n_planes; i++) {
        COMPARE(a->planes[i] == (uint32_t)b->planes[i], "planes");
    }
    return NULL;
}

static inline const char *compare_begin(const struct relay_wire_begin *a,
                                        const Relay__V1__BeginStep *b)
{
    COMPARE(a->step_id == b->step_id, "step_id");
    COMPARE((int)a->part == (int)b->part, "part");
    COMPARE(a->want_lse == (b->want_lse != 0), "want_lse");
    COMPARE(a->want_timings == (b->want_timings != 0), "want_timings");
    COMPARE(compare_u64s(a->entries.handles, a->entries.num_handles, b->handles, b->n_handles),
            "handles");
    COMPARE(compare_u32s(a->entries.q_lens, a->entries.num_q_lens, b->q_lens, b->n_q_lens),
            "q_lens");
    COMPARE(
        compare_u32s(a->entries.positions, a->entries.num_positions, b->positions, b->n_positions),
        "positions");
    COMPARE((int)a->sharing == (int)b->sharing, "sharing");
    COMPARE(a->timeout_us == b->timeout_us, "timeout_us");
    COMPARE(a->align_us == b->align_us, "align_us");
    return NULL;
}

static inline const char *compare_stream_request(const struct relay_wire_view *view,
                                                 const struct relay_wire_stream_request *a,
                                                 const Relay__V1__StreamRequest *b)
{
    COMPARE((int)a->kind == (int)b->message_case, "message");
    switch (a->kind) {
    case RELAY_WIRE_STREAM_ATTACH:
        return compare_attach(&a->attach, b->attach);
    case RELAY_WIRE_STREAM_BEGIN:
        return compare_begin(&a->begin, b->begin);
    case RELAY_WIRE_STREAM_END:
        COMPARE(a->end.step_id == b->end->step_id, "step_id");
        return NULL;
    case RELAY_WIRE_STREAM_CALL:
        COMPARE(a->call.step_id == b->call->step_id, "step_id");
        COMPARE(a->call.layer == b->call->layer, "layer");
        COMPARE(a->call.row_begin == b->call->row_begin, "row_begin");
        COMPARE(a->call.row_count == b->call->row_count, "row_count");
        COMPARE(a->call.slot == b->call->slot, "slot");
        COMPARE(compare_bytes(view, a->call.k, b->call->k), "k");
        COMPARE(compare_bytes(view, a->call.v, b->call->v), "v");
        COMPARE(compare_bytes(view, a->call.q, b->call->q), "q");
        return NULL;
    }
    return "kind";
}

static inline const char *compare_stream_response(const struct relay_wire_view *view,
                                                  const struct relay_wire_stream_response *a,
                                                  const Relay__V1__StreamResponse *b)
{
    const struct relay_wire_layer_result *r = &a->result;
    size_t text;

    COMPARE((int)a->kind == (int)b->message_case, "message");
    if (a->kind != RELAY_WIRE_STREAM_RESULT) {
        return NULL;
    }
    text = strlen(b->result->message);
    if (text >= sizeof(r->message)) {
        text = sizeof(r->message) - 1;
    }
    COMPARE(r->step_id == b->result->step_id, "step_id");
    COMPARE(r->layer == b->result->layer, "layer");
    COMPARE(r->row_begin == b->result->row_begin, "row_begin");
    COMPARE(b->result->code <= 16 ? (uint32_t)r->code == b->result->code : r->code == RELAY_UNKNOWN,
            "code");
    COMPARE(strncmp(r->message, b->result->message, text) == 0 && r->message[text] == '\0',
            "message");
    COMPARE(r->slot == b->result->slot, "slot");
    COMPARE(compare_bytes(view, r->lse, b->result->lse), "lse");
    COMPARE(compare_bytes(view, r->out, b->result->out), "out");
    return compare_timings(r->has_timings, &r->timings, b->result->timings);
}

/* b holds the chunk of a RegisterPromptRequest or AppendKvRequest. */
static inline const char *compare_chunk(const struct relay_wire_view *view,
                                        const struct relay_wire_chunk *a,
                                        const Relay__V1__KvChunk *b)
{
    COMPARE(a->layer == b->layer, "layer");
    COMPARE(a->token_begin == b->token_begin, "token_begin");
    COMPARE(a->token_count == b->token_count, "token_count");
    COMPARE((int)a->dtype == (int)b->dtype, "dtype");
    COMPARE(a->xxh64 == b->xxh64, "xxh64");
    COMPARE(compare_bytes(view, a->k, b->k), "k");
    COMPARE(compare_bytes(view, a->v, b->v), "v");
    return NULL;
}

#undef COMPARE
#endif
