/* Upload messages, RegisterPromptRequest and AppendKvRequest: their chunks by hand.
 *
 * Both are oneof {header = 1, chunk = 2}, so one decoder reads both. The header goes through
 * relay_wire_unpack with the descriptor of RegisterHeader or AppendKvHeader. Rules of attend.h hold
 * here too. Any thread. */
#ifndef RELAY_WIRE_UPLOAD_H
#define RELAY_WIRE_UPLOAD_H

#include <proto/wire/wire.h>
#include <relay/types.h>

enum relay_wire_upload_kind {
    RELAY_WIRE_UPLOAD_HEADER = 1,
    RELAY_WIRE_UPLOAD_CHUNK = 2,
};

/* K/V of tokens [token_begin, +token_count) of one layer. */
struct relay_wire_chunk {
    uint32_t layer;
    uint32_t token_begin;
    uint32_t token_count;
    enum relay_dtype dtype;   /* of k and v; UNSPECIFIED = the model's kv_dtype */
    uint64_t xxh64;           /* of k then v; 0 = unchecked */
    struct relay_wire_span k; /* [token_count,Hkv,dqk]; decoder only */
    struct relay_wire_span v; /* [token_count,Hkv,dv], or empty; decoder only */
};

struct relay_wire_upload {
    enum relay_wire_upload_kind kind;
    struct relay_wire_span header; /* the header message's bytes; empty with a chunk */
    struct relay_wire_chunk chunk; /* RELAY_WIRE_UPLOAD_CHUNK only */
};

RELAY_MUST_CHECK enum relay_code relay_wire_upload_decode(const struct relay_wire_view *view,
                                                          struct relay_wire_upload *out,
                                                          struct relay_error *err);
/* A RegisterPromptRequest or AppendKvRequest with this chunk. Takes over both slices. */
grpc_byte_buffer *relay_wire_chunk_encode(const struct relay_wire_chunk *chunk, grpc_slice k,
                                          grpc_slice v);

#endif
