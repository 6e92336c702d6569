/* K/V chunks on the way out, shared by uploads and appends. Any thread. */
#ifndef RELAY_CLIENT_CHUNKS_H
#define RELAY_CLIENT_CHUNKS_H

#include "client_internal.h"

#include <proto/wire/upload.h>

/* First token of a layer's K/V that a row at position >= num_tokens can see, through this layer or
 * one that shares its K/V; num_tokens when none can. */
uint32_t relay_chunk_first(const struct relay_model *model, uint32_t layer, uint32_t num_tokens);

/* A message with the chunk; k and v are copied (v_bytes 0 with v_from_k), and checksummed over if
 * asked. NULL when memory is out. */
grpc_byte_buffer *relay_chunk_message(struct relay_client *client, struct relay_wire_chunk chunk,
                                      const void *k, size_t k_bytes, const void *v, size_t v_bytes,
                                      bool checksum);

#endif
