/* BatchedRelayAttention's messages by hand: request and response, both directions.
 *
 * Decoders take any valid protobuf of the message (any field order, packed or not, the last of a
 * repeated scalar wins) and refuse everything else: INVALID_ARGUMENT for what is malformed or too
 * long, UNIMPLEMENTED naming the field for unknown fields and enum values of a request. Unknown
 * fields of a response are skipped: a newer server may know more. Whether the arrays fit together
 * and byte counts fit the shape is the caller's to check. Outputs are written only on success.
 * Encoders take over the reference of every slice they are given and cannot fail. Any thread. */
#ifndef RELAY_WIRE_ATTEND_H
#define RELAY_WIRE_ATTEND_H

#include <proto/wire/wire.h>
#include <relay/types.h>

/* Where a decoder puts entries; each array has room for entries_max. */
struct relay_wire_entry_storage {
    uint64_t *handles;
    uint32_t *q_lens;
    uint32_t *positions;
    uint32_t entries_max;
};

/* Entries of a call: who, how many rows, from where. Arrays are borrowed: from the storage when
 * decoded, from the caller when encoded. A decoder does not make the three counts equal. */
struct relay_wire_entries {
    const uint64_t *handles;   /* [num_handles] */
    const uint32_t *q_lens;    /* [num_q_lens] */
    const uint32_t *positions; /* [num_positions] */
    uint32_t num_handles;
    uint32_t num_q_lens;
    uint32_t num_positions;
};

struct relay_wire_attend_request {
    uint8_t session[RELAY_WIRE_SESSION_BYTES];
    uint32_t session_bytes; /* 0 (none came) or RELAY_WIRE_SESSION_BYTES */
    uint32_t layer;
    uint64_t step_id;
    enum relay_part part;
    enum relay_sharing sharing;
    bool want_lse;
    bool want_timings;
    struct relay_wire_entries entries;
    struct relay_wire_span k; /* [R,Hkv,dqk] io_dtype, or empty; decoder only */
    struct relay_wire_span v; /* [R,Hkv,dv] io_dtype, or empty; decoder only */
    struct relay_wire_span q; /* [R,Hq,dqk] io_dtype; decoder only */
};

RELAY_MUST_CHECK enum relay_code relay_wire_attend_request_decode(
    const struct relay_wire_view *view, const struct relay_wire_entry_storage *storage,
    struct relay_wire_attend_request *out, struct relay_error *err);
/* Spans are ignored: the tensors are the slices. The caller destroys the buffer. */
grpc_byte_buffer *relay_wire_attend_request_encode(const struct relay_wire_attend_request *request,
                                                   grpc_slice k, grpc_slice v, grpc_slice q);

struct relay_wire_timings {
    uint32_t queue_us;
    uint32_t plan_us;
    uint32_t compute_us;
    uint32_t batch_rows;
    uint32_t batch_sessions;
    uint64_t prompt_bytes;
    uint64_t kv_bytes;
};

struct relay_wire_attend_response {
    uint64_t step_id;
    uint32_t layer;
    bool has_timings;
    struct relay_wire_timings timings;
    struct relay_wire_span lse; /* [R,Hq] float32, or empty; decoder only */
    struct relay_wire_span out; /* [R,Hq,dv] out_dtype; decoder only */
};

RELAY_MUST_CHECK enum relay_code relay_wire_attend_response_decode(
    const struct relay_wire_view *view, struct relay_wire_attend_response *out,
    struct relay_error *err);
grpc_byte_buffer *relay_wire_attend_response_encode(
    const struct relay_wire_attend_response *response, grpc_slice lse, grpc_slice out);
/* Bytes the encoded response will have with lse_bytes and out_bytes of tensors, at most: what a
 * response_bytes_max is checked against before anything is computed. */
size_t relay_wire_attend_response_bytes(size_t lse_bytes, size_t out_bytes);

#endif
