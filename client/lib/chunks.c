#include "chunks.h"

#include <string.h>
#include <xxhash.h>

static uint32_t first_seen(const struct relay_layer_kind *kind, uint32_t num_tokens)
{
    uint32_t first = 0;
    if (kind->window > 0 && num_tokens > kind->window - 1) {
        first = num_tokens - (kind->window - 1);
    }
    if (kind->chunk > 0) {
        const uint32_t begin = num_tokens / kind->chunk * kind->chunk;
        first = begin > first ? begin : first;
    }
    return first;
}

uint32_t relay_chunk_first(const struct relay_model *model, uint32_t layer, uint32_t num_tokens)
{
    uint32_t first = num_tokens;
    for (uint32_t l = 0; l < model->num_layers; l++) {
        if (relay_model_kv_layer(model, l) == layer) {
            const uint32_t seen = first_seen(relay_model_kind(model, l), num_tokens);
            first = seen < first ? seen : first;
        }
    }
    return first;
}

grpc_byte_buffer *relay_chunk_message(struct relay_client *client, struct relay_wire_chunk chunk,
                                      const void *k, size_t k_bytes, const void *v, size_t v_bytes,
                                      bool checksum)
{
    struct relay_buffer *buffer = relay_buffer_take(client->buffers, k_bytes + v_bytes);
    if (buffer == NULL) {
        return NULL;
    }
    uint8_t *data = relay_buffer_data(buffer);
    memcpy(data, k, k_bytes);
    if (v_bytes > 0) {
        memcpy(data + k_bytes, v, v_bytes);
    }
    if (checksum) {
        chunk.xxh64 = XXH64(data, k_bytes + v_bytes, 0);
    }
    grpc_byte_buffer *message =
        relay_wire_chunk_encode(&chunk, relay_buffer_slice(buffer, 0, k_bytes),
                                relay_buffer_slice(buffer, k_bytes, v_bytes));
    relay_buffer_release(buffer);
    return message;
}
