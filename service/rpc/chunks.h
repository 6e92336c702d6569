/* What RegisterPrompt and AppendKv share: streams of one header and many chunks of K/V.
 *
 * Messages are handled on the worker, one at a time, so every function here belongs to whoever has
 * the stream. */
#ifndef RELAYD_RPC_CHUNKS_H
#define RELAYD_RPC_CHUNKS_H

#include "service/rpc/stream.h"

#include <proto/wire/unpack.h>
#include <proto/wire/upload.h>

/* Aligned memory that K and V of a chunk are gathered into; grows to the largest chunk. */
struct relayd_rpc_chunks {
    unsigned char *memory;
    size_t bytes;
};

/* Decodes the stream's message; *view borrows from it. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_chunks_decode(struct relayd_rpc_stream *stream,
                                                          struct relay_wire_view *view,
                                                          struct relay_wire_upload *out,
                                                          struct relay_error *err);
/* Copies a chunk's tensors together; out borrows until the next call. INVALID_ARGUMENT past
 * chunk_bytes_max, RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_chunks_gather(struct relayd_rpc_stream *stream,
                                                          struct relayd_rpc_chunks *chunks,
                                                          const struct relay_wire_view *view,
                                                          const struct relay_wire_chunk *chunk,
                                                          struct relayd_kv_chunk *out,
                                                          struct relay_error *err);
void relayd_rpc_chunks_fini(struct relayd_rpc_chunks *chunks);

#endif
