/* StreamRelayAttention's messages: what comes every layer by hand, the rare rest through
 * protobuf-c.
 *
 * A StreamRequest or StreamResponse holds exactly one message; none or two is INVALID_ARGUMENT.
 * Rules of attend.h hold here too. Any thread. */
#ifndef RELAY_WIRE_STREAM_H
#define RELAY_WIRE_STREAM_H

#include <proto/wire/attend.h>

#define RELAY_WIRE_PLANES_MAX 32u

enum relay_wire_stream_kind {
    RELAY_WIRE_STREAM_ATTACH = 1,
    RELAY_WIRE_STREAM_BEGIN = 2,
    RELAY_WIRE_STREAM_CALL = 3,
    RELAY_WIRE_STREAM_END = 4,
};

struct relay_wire_attach {
    uint8_t session[RELAY_WIRE_SESSION_BYTES];
    uint32_t session_bytes; /* 0 or RELAY_WIRE_SESSION_BYTES */
    uint32_t num_planes;
    uint32_t planes[RELAY_WIRE_PLANES_MAX]; /* values of Plane that this server may not have */
};

struct relay_wire_begin {
    uint64_t step_id;
    enum relay_part part;
    enum relay_sharing sharing;
    bool want_lse;
    bool want_timings;
    uint32_t timeout_us;
    uint32_t align_us;
    struct relay_wire_entries entries;
};

struct relay_wire_layer_call {
    uint64_t step_id;
    uint32_t layer;
    uint32_t row_begin;
    uint32_t row_count;
    uint32_t slot;
    struct relay_wire_span k; /* as in relay_wire_attend_request; decoder only */
    struct relay_wire_span v;
    struct relay_wire_span q;
};

struct relay_wire_stream_request {
    enum relay_wire_stream_kind kind;
    union {
        struct relay_wire_attach attach;
        struct relay_wire_begin begin;
        struct relay_wire_layer_call call;
        struct {
            uint64_t step_id;
        } end;
    };
};

RELAY_MUST_CHECK enum relay_code relay_wire_stream_request_decode(
    const struct relay_wire_view *view, const struct relay_wire_entry_storage *storage,
    struct relay_wire_stream_request *out, struct relay_error *err);
/* The slices count for a call only; pass empty ones (grpc_empty_slice()) otherwise. */
grpc_byte_buffer *relay_wire_stream_request_encode(const struct relay_wire_stream_request *request,
                                                   grpc_slice k, grpc_slice v, grpc_slice q);

#define RELAY_WIRE_RESULT_MESSAGE_BYTES RELAY_ERROR_MSG_BYTES

struct relay_wire_layer_result {
    uint64_t step_id;
    uint32_t layer;
    uint32_t row_begin;
    uint32_t slot;
    enum relay_code code;
    char message[RELAY_WIRE_RESULT_MESSAGE_BYTES]; /* NUL-terminated; a longer one is cut */
    bool has_timings;
    struct relay_wire_timings timings;
    struct relay_wire_span lse; /* [row_count,Hq] float32, or empty; decoder only */
    struct relay_wire_span out; /* [row_count,Hq,dv] out_dtype; decoder only */
};

enum relay_wire_stream_answer {
    RELAY_WIRE_STREAM_ATTACHED = 1,
    RELAY_WIRE_STREAM_BEGUN = 2,
    RELAY_WIRE_STREAM_RESULT = 3,
    RELAY_WIRE_STREAM_DRAIN = 4,
};

struct relay_wire_stream_response {
    enum relay_wire_stream_answer kind;
    struct relay_wire_span body; /* the message inside, e.g. for relay_wire_unpack of StepBegun */
    struct relay_wire_layer_result result; /* RELAY_WIRE_STREAM_RESULT only */
};

RELAY_MUST_CHECK enum relay_code relay_wire_stream_response_decode(
    const struct relay_wire_view *view, struct relay_wire_stream_response *out,
    struct relay_error *err);
/* A StreamResponse with this result. The others go through relay_wire_pack. */
grpc_byte_buffer *relay_wire_layer_result_encode(const struct relay_wire_layer_result *result,
                                                 grpc_slice lse, grpc_slice out);

#endif
