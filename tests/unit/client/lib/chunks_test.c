/* Which tokens an upload sends, and chunk messages with their checksums. */
#include "testlib/check.h"

#include "client/lib/chunks.h"

#include <grpc/byte_buffer.h>
#include <xxhash.h>

static uint32_t first(uint32_t window, uint32_t chunk, uint32_t tokens)
{
    const struct relay_layer_kind kind = {.num_q_heads = 1,
                                          .num_kv_heads = 1,
                                          .head_dim_qk = 8,
                                          .head_dim_v = 8,
                                          .window = window,
                                          .chunk = chunk};
    const uint32_t layer_kind[1] = {0};
    const struct relay_model model = {
        .key = "m", .num_layers = 1, .num_kinds = 1, .kinds = &kind, .layer_kind = layer_kind};
    return relay_chunk_first(&model, 0, tokens);
}

/* The first row to come is at position S: it sees j > S - W, and j / C == S / C. */
static void test_chunks_begin_at_the_first_token_that_is_seen(void)
{
    CHECK_EQ(first(0, 0, 656), 0);
    CHECK_EQ(first(512, 0, 656), 145);
    CHECK_EQ(first(657, 0, 656), 0);
    CHECK_EQ(first(656, 0, 656), 1);
    CHECK_EQ(first(2, 0, 656), 655);
    CHECK_EQ(first(1, 0, 656), 656);
    CHECK_EQ(first(4096, 0, 656), 0);
    CHECK_EQ(first(0, 100, 656), 600);
    CHECK_EQ(first(0, 656, 656), 656);
    CHECK_EQ(first(0, 1000, 656), 0);
    CHECK_EQ(first(30, 100, 656), 627);
    CHECK_EQ(first(512, 100, 656), 600);
}

/* A layer whose K/V a full layer shares is needed whole. */
static void test_chunks_of_a_shared_layer(void)
{
    const struct relay_layer_kind kinds[2] = {
        {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8, .window = 16},
        {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8}};
    const uint32_t layer_kind[3] = {0, 1, 0};
    const uint32_t kv_layer[3] = {0, 0, 2};
    const struct relay_model model = {.key = "m",
                                      .num_layers = 3,
                                      .num_kinds = 2,
                                      .kinds = kinds,
                                      .layer_kind = layer_kind,
                                      .kv_layer = kv_layer};
    CHECK_EQ(relay_chunk_first(&model, 0, 100), 0);
    CHECK_EQ(relay_chunk_first(&model, 2, 100), 85);
}

/* Encodes, decodes with proto/wire, and compares bytes and checksum. */
static void round_trip(size_t k_bytes, size_t v_bytes, bool checksum)
{
    struct relay_client client = {.buffers = relay_buffers_create()};
    uint8_t *data = malloc(k_bytes + v_bytes);
    uint8_t *back = malloc(k_bytes + v_bytes);
    struct relay_wire_view view;
    struct relay_wire_upload got;
    struct relay_error err;
    CHECK(client.buffers != NULL && data != NULL && back != NULL);
    for (size_t i = 0; i < k_bytes + v_bytes; i++) {
        data[i] = (uint8_t)(i * 31 + 7);
    }
    const struct relay_wire_chunk chunk = {
        .layer = 3, .token_begin = 5, .token_count = 2, .dtype = RELAY_DTYPE_F16};
    grpc_byte_buffer *message = relay_chunk_message(
        &client, chunk, data, k_bytes, v_bytes > 0 ? data + k_bytes : NULL, v_bytes, checksum);
    CHECK(message != NULL);
    CHECK_OK(relay_wire_view_init(&view, message, &err), err);
    CHECK_OK(relay_wire_upload_decode(&view, &got, &err), err);
    CHECK_EQ(got.kind, RELAY_WIRE_UPLOAD_CHUNK);
    CHECK_EQ(got.chunk.layer, 3);
    CHECK_EQ(got.chunk.token_begin, 5);
    CHECK_EQ(got.chunk.token_count, 2);
    CHECK_EQ(got.chunk.dtype, RELAY_DTYPE_F16);
    CHECK_EQ(got.chunk.k.length, k_bytes);
    CHECK_EQ(got.chunk.v.length, v_bytes);
    relay_wire_gather(&view, got.chunk.k, back);
    relay_wire_gather(&view, got.chunk.v, back + k_bytes);
    CHECK(memcmp(data, back, k_bytes + v_bytes) == 0);
    CHECK_EQ(got.chunk.xxh64, checksum ? XXH64(data, k_bytes + v_bytes, 0) : 0);
    grpc_byte_buffer_destroy(message);
    relay_buffers_destroy(client.buffers);
    free(data);
    free(back);
}

static void test_chunk_messages_carry_bytes_and_checksum(void)
{
    grpc_init();
    round_trip(64, 64, true);       /* copied behind the head */
    round_trip(100000, 5000, true); /* slices of a buffer */
    round_trip(4096, 0, true);      /* v_from_k */
    round_trip(4096, 4096, false);
    grpc_shutdown();
}

int main(void)
{
    CHECK_RUN(test_chunks_begin_at_the_first_token_that_is_seen);
    CHECK_RUN(test_chunks_of_a_shared_layer);
    CHECK_RUN(test_chunk_messages_carry_bytes_and_checksum);
    return check_done();
}
