/* Chunks of K/V on their way into pages, for uploads and appends: checked, converted to the stored
 * type, written. On the caller's thread and without any lock; the pages are the caller's alone. */
#include "service/store/store_internal.h"

/* The state of a running XXH64 on the stack. */
#define XXH_STATIC_LINKING_ONLY
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* Elements of one token's K (or V) over all KV heads. */
static size_t k_elems(const struct relay_shape *shape)
{
    return (size_t)shape->kind.num_kv_heads * shape->kind.head_dim_qk;
}

static size_t v_elems(const struct relay_shape *shape)
{
    return shape->kind.v_from_k ? 0 : (size_t)shape->kind.num_kv_heads * shape->kind.head_dim_v;
}

static enum relay_code bytes_check(const struct relayd_kv_chunk *chunk, const char *name,
                                   const void *data, size_t got, size_t expected,
                                   struct relay_error *err)
{
    if (got != expected || (expected != 0 && data == NULL)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s of %u tokens of layer %u: expected %zu bytes, got %zu", name,
                          chunk->token_count, chunk->layer, expected, got);
    }
    return RELAY_OK;
}

static enum relay_code checksum_check(const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    XXH64_state_t state;
    uint64_t got;
    if (chunk->xxh64 == 0) {
        return RELAY_OK;
    }
    (void)XXH64_reset(&state, 0);
    (void)XXH64_update(&state, chunk->k, chunk->k_bytes);
    if (chunk->v_bytes != 0) {
        (void)XXH64_update(&state, chunk->v, chunk->v_bytes);
    }
    got = XXH64_digest(&state);
    if (got != chunk->xxh64) {
        return RELAY_FAIL(err, RELAY_DATA_LOSS,
                          "tokens [%u, +%u) of layer %u: xxh64 says %016llx, the bytes %016llx",
                          chunk->token_begin, chunk->token_count, chunk->layer,
                          (unsigned long long)chunk->xxh64, (unsigned long long)got);
    }
    return RELAY_OK;
}

static enum relay_dtype chunk_dtype(const struct relayd_model *model,
                                    const struct relayd_kv_chunk *chunk)
{
    return chunk->dtype == RELAY_DTYPE_UNSPECIFIED ? model->spec->kv_dtype : chunk->dtype;
}

enum relay_code relayd_chunk_check(const struct relayd_model *model,
                                   const struct relayd_kv_chunk *chunk, uint32_t tokens_max,
                                   struct relay_error *err)
{
    size_t elem = relay_dtype_size(chunk_dtype(model, chunk));
    uint32_t bytes_max = model->store->options.chunk_bytes_max;
    const struct relayd_layer *layer;
    enum relay_code code;
    if (chunk->layer >= model->spec->num_layers) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u is not below %u", chunk->layer,
                          model->spec->num_layers);
    }
    layer = &model->layers[chunk->layer];
    if (!layer->own) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer %u has the K/V of layer %u",
                          chunk->layer, layer->kv_layer);
    }
    if (chunk->token_count == 0 || chunk->token_count > tokens_max ||
        chunk->token_begin > tokens_max - chunk->token_count) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "tokens [%u, +%u) of layer %u are not in [0, %u)", chunk->token_begin,
                          chunk->token_count, chunk->layer, tokens_max);
    }
    if (elem == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "dtype %d is no dtype", (int)chunk->dtype);
    }
    if (chunk->k_bytes > bytes_max || chunk->v_bytes > bytes_max - chunk->k_bytes) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "a chunk has at most %u bytes of k and v, got %zu + %zu", bytes_max,
                          chunk->k_bytes, chunk->v_bytes);
    }
    code = bytes_check(chunk, "k", chunk->k, chunk->k_bytes,
                       chunk->token_count * k_elems(&layer->shape) * elem, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = bytes_check(chunk, "v", chunk->v, chunk->v_bytes,
                       chunk->token_count * v_elems(&layer->shape) * elem, err);
    return code == RELAY_OK ? checksum_check(chunk, err) : code;
}

/* [tokens,Hkv,dim] to the stored type. FP8 holds value / scale of its head. */
static void convert(const struct relay_shape *shape, const float *scales, uint32_t dim,
                    uint32_t tokens, enum relay_dtype from, const void *src, void *dst)
{
    uint32_t heads = shape->kind.num_kv_heads;
    const unsigned char *in = src;
    unsigned char *out = dst;
    if (scales == NULL) {
        relay_dtype_convert(shape->kv_dtype, dst, from, src, (size_t)tokens * heads * dim);
        return;
    }
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t h = 0; h < heads; h++) {
            float row[RELAY_HEAD_DIM_MAX];
            relay_dtype_convert(RELAY_DTYPE_F32, row, from, in, dim);
            for (uint32_t d = 0; d < dim; d++) {
                row[d] /= scales[h];
            }
            relay_dtype_convert(shape->kv_dtype, out, RELAY_DTYPE_F32, row, dim);
            in += dim * relay_dtype_size(from);
            out += dim * relay_dtype_size(shape->kv_dtype);
        }
    }
}

enum relay_code relayd_chunk_store(const struct relayd_model *model,
                                   const struct relayd_kv_chunk *chunk, const uint32_t *pages,
                                   struct relayd_digest *digest, struct relay_error *err)
{
    const struct relayd_layer *layer = &model->layers[chunk->layer];
    const struct relay_shape *shape = &layer->shape;
    struct relay_pages_span span = {shape, layer->kv,          model->page_tokens,
                                    pages, chunk->token_begin, chunk->token_count};
    enum relay_dtype from = chunk_dtype(model, chunk);
    size_t elem = relay_dtype_size(shape->kv_dtype);
    size_t k_bytes = chunk->token_count * k_elems(shape) * elem;
    size_t v_bytes = chunk->token_count * v_elems(shape) * elem;
    const void *k = chunk->k;
    const void *v = chunk->v;
    unsigned char *scratch = NULL;
    enum relay_code code;
    if (from != shape->kv_dtype) { /* bounded: at most 4 bytes for each of a chunk's */
        scratch = malloc(k_bytes + v_bytes);
        if (scratch == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory to convert a chunk");
        }
        convert(shape, layer->kv.k_scale, shape->kind.head_dim_qk, chunk->token_count, from, k,
                scratch);
        k = scratch;
        if (v_bytes != 0) {
            convert(shape, layer->kv.v_scale, shape->kind.head_dim_v, chunk->token_count, from, v,
                    scratch + k_bytes);
            v = scratch + k_bytes;
        }
    }
    code = relay_backend_pages_write(model->store->options.backend, &span, k, v, err);
    if (code == RELAY_OK && digest != NULL) {
        code = relayd_digest_update(digest, chunk->layer, k, k_bytes, v, v_bytes, err);
    }
    free(scratch);
    return code;
}
