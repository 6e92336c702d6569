/* Decodes and gathers chunks. Worker threads, one at a time per stream. */
#include "service/rpc/chunks.h"

#include <stdio.h>
#include <stdlib.h>

#define CHUNK_ALIGN ((size_t)64)

enum relay_code relayd_rpc_chunks_decode(struct relayd_rpc_stream *stream,
                                         struct relay_wire_view *view,
                                         struct relay_wire_upload *out, struct relay_error *err)
{
    enum relay_code code = relay_wire_view_init(view, stream->base.message, err);
    return code == RELAY_OK ? relay_wire_upload_decode(view, out, err) : code;
}

static size_t aligned(size_t bytes)
{
    return (bytes + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
}

enum relay_code relayd_rpc_chunks_gather(struct relayd_rpc_stream *stream,
                                         struct relayd_rpc_chunks *chunks,
                                         const struct relay_wire_view *view,
                                         const struct relay_wire_chunk *chunk,
                                         struct relayd_kv_chunk *out, struct relay_error *err)
{
    size_t max = relayd_store_limits(stream->base.rpc->opt.store)->chunk_bytes_max;
    size_t got = chunk->k.length + chunk->v.length;
    if (got > max) {
        stream->detail.field = "chunk";
        snprintf(stream->detail.expected, sizeof(stream->detail.expected), "at most %zu", max);
        snprintf(stream->detail.got, sizeof(stream->detail.got), "%zu", got);
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "chunk: k and v have %zu bytes, the limit is %zu", got, max);
    }
    size_t v_at = aligned(chunk->k.length);
    size_t bytes = v_at + aligned(chunk->v.length);
    if (bytes > chunks->bytes) {
        free(chunks->memory);
        chunks->bytes = 0;
        chunks->memory = aligned_alloc(CHUNK_ALIGN, bytes);
        if (chunks->memory == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a chunk");
        }
        chunks->bytes = bytes;
    }
    relay_wire_gather(view, chunk->k, chunks->memory);
    relay_wire_gather(view, chunk->v, chunks->memory + v_at);
    *out = (struct relayd_kv_chunk){
        .layer = chunk->layer,
        .token_begin = chunk->token_begin,
        .token_count = chunk->token_count,
        .dtype = chunk->dtype,
        .xxh64 = chunk->xxh64,
        .k = chunks->memory,
        .k_bytes = chunk->k.length,
        .v = chunks->memory + v_at,
        .v_bytes = chunk->v.length,
    };
    return RELAY_OK;
}

void relayd_rpc_chunks_fini(struct relayd_rpc_chunks *chunks)
{
    free(chunks->memory);
    chunks->memory = NULL;
    chunks->bytes = 0;
}
