/* Model descriptions: rules, deep copies and accessors. Pure but for the copy's memory; any
 * thread. */
#include "core/checked.h"
#include "core/shape.h"

#include <math.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Query heads (or KV heads) of all layers before `layer`: where its floats lie. */
static size_t q_heads_before(const struct relay_model *model, uint32_t layer)
{
    size_t sum = 0;
    for (uint32_t l = 0; l < layer; l++) {
        sum += relay_model_kind(model, l)->num_q_heads;
    }
    return sum;
}

static size_t kv_heads_before(const struct relay_model *model, uint32_t layer)
{
    size_t sum = 0;
    for (uint32_t l = 0; l < layer; l++) {
        sum += relay_model_kind(model, l)->num_kv_heads;
    }
    return sum;
}

static enum relay_code counts_validate(const struct relay_model *model, struct relay_error *err)
{
    size_t key_bytes = model->key != NULL ? strnlen(model->key, RELAY_MODEL_KEY_BYTES_MAX + 1) : 0;
    if (key_bytes == 0 || key_bytes > RELAY_MODEL_KEY_BYTES_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model key has not 1..%u bytes",
                          RELAY_MODEL_KEY_BYTES_MAX);
    }
    if (model->num_layers == 0 || model->num_layers > RELAY_LAYERS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "num_layers %u is not in 1..%u",
                          model->num_layers, RELAY_LAYERS_MAX);
    }
    if (model->num_kinds == 0 || model->num_kinds > model->num_layers || model->kinds == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "num_kinds %u is not in 1..num_layers %u",
                          model->num_kinds, model->num_layers);
    }
    if (model->layer_kind == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "layer_kind is missing");
    }
    if (relay_dtype_size(model->kv_dtype) == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "kv_dtype %d is no dtype",
                          (int)model->kv_dtype);
    }
    return RELAY_OK;
}

static enum relay_code kv_layers_validate(const struct relay_model *model, struct relay_error *err)
{
    if (model->kv_layer == NULL) {
        return RELAY_OK;
    }
    for (uint32_t l = 0; l < model->num_layers; l++) {
        uint32_t from = model->kv_layer[l];
        const struct relay_layer_kind *own = relay_model_kind(model, l);
        const struct relay_layer_kind *other;
        /* A layer's K/V exists only once that layer has run. */
        if (from > l || model->kv_layer[from] != from) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "kv_layer[%u] %u is not an earlier layer with its own K/V", l, from);
        }
        other = relay_model_kind(model, from);
        if (own->num_kv_heads != other->num_kv_heads || own->head_dim_qk != other->head_dim_qk ||
            own->head_dim_v != other->head_dim_v || own->v_from_k != other->v_from_k) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "kv_layer[%u] %u has K/V of another shape", l, from);
        }
    }
    return RELAY_OK;
}

static enum relay_code scales_validate(const char *name, const float *scales, size_t n,
                                       struct relay_error *err)
{
    for (size_t i = 0; scales != NULL && i < n; i++) {
        if (!isfinite(scales[i]) || scales[i] <= 0.0f) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s[%zu] is not a positive number", name,
                              i);
        }
    }
    return RELAY_OK;
}

static enum relay_code floats_validate(const struct relay_model *model, struct relay_error *err)
{
    size_t q_heads = q_heads_before(model, model->num_layers);
    size_t kv_heads = kv_heads_before(model, model->num_layers);
    enum relay_code code;
    for (size_t i = 0; model->sinks != NULL && i < q_heads; i++) {
        if (isnan(model->sinks[i]) || (isinf(model->sinks[i]) && model->sinks[i] > 0.0f)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "sinks[%zu] is neither finite nor -inf",
                              i);
        }
    }
    if (model->kv_dtype != RELAY_DTYPE_F8_E4M3 &&
        (model->k_scale != NULL || model->v_scale != NULL)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "k_scale and v_scale need kv_dtype F8_E4M3");
    }
    code = scales_validate("k_scale", model->k_scale, kv_heads, err);
    if (code != RELAY_OK) {
        return code;
    }
    return scales_validate("v_scale", model->v_scale, kv_heads, err);
}

enum relay_code relay_model_validate(const struct relay_model *model, struct relay_error *err)
{
    enum relay_code code = counts_validate(model, err);
    if (code != RELAY_OK) {
        return code;
    }
    for (uint32_t i = 0; i < model->num_kinds; i++) {
        char what[32];
        (void)snprintf(what, sizeof(what), "kinds[%u]", i);
        code = relay_kind_validate(&model->kinds[i], true, what, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    for (uint32_t l = 0; l < model->num_layers; l++) {
        if (model->layer_kind[l] >= model->num_kinds) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "layer_kind[%u] %u is not below num_kinds %u", l,
                              model->layer_kind[l], model->num_kinds);
        }
    }
    code = kv_layers_validate(model, err);
    if (code != RELAY_OK) {
        return code;
    }
    return floats_validate(model, err);
}

/* ---- copy: one block, laid out twice by the same code: first to count, then to fill ---- */

struct block {
    unsigned char *base; /* NULL while counting */
    size_t used;
};

/* Appends n bytes copied from src (n 0 or src NULL: nothing, returns NULL). */
static void *block_put(struct block *block, const void *src, size_t n)
{
    unsigned char *at;
    if (src == NULL || n == 0) {
        return NULL;
    }
    at = block->base != NULL ? block->base + block->used : NULL;
    if (at != NULL) {
        memcpy(at, src, n);
    }
    /* Sums of limited counts (512 layers x 1024 heads): no overflow. */
    block->used += (n + alignof(max_align_t) - 1) / alignof(max_align_t) * alignof(max_align_t);
    return at;
}

static struct relay_model *model_layout(const struct relay_model *model, struct block *block)
{
    size_t q_heads = q_heads_before(model, model->num_layers);
    size_t kv_heads = kv_heads_before(model, model->num_layers);
    size_t layer_bytes = model->num_layers * sizeof(uint32_t);
    struct relay_model *copy = block_put(block, model, sizeof(*model));
    struct relay_layer_kind *kinds =
        block_put(block, model->kinds, model->num_kinds * sizeof(*model->kinds));
    char *key = block_put(block, model->key, strlen(model->key) + 1);
    uint32_t *layer_kind = block_put(block, model->layer_kind, layer_bytes);
    uint32_t *kv_layer = block_put(block, model->kv_layer, layer_bytes);
    float *sinks = block_put(block, model->sinks, q_heads * sizeof(float));
    float *k_scale = block_put(block, model->k_scale, kv_heads * sizeof(float));
    float *v_scale = block_put(block, model->v_scale, kv_heads * sizeof(float));
    for (uint32_t i = 0; i < model->num_kinds; i++) {
        const struct relay_layer_kind *kind = &model->kinds[i];
        float *slopes = block_put(block, kind->alibi_slopes, kind->num_q_heads * sizeof(float));
        if (kinds != NULL) {
            kinds[i].alibi_slopes = slopes;
        }
    }
    if (copy != NULL) {
        copy->kinds = kinds;
        copy->key = key;
        copy->layer_kind = layer_kind;
        copy->kv_layer = kv_layer;
        copy->sinks = sinks;
        copy->k_scale = k_scale;
        copy->v_scale = v_scale;
    }
    return copy;
}

enum relay_code relay_model_copy(const struct relay_model *model, struct relay_model **out,
                                 struct relay_error *err)
{
    struct block block = {NULL, 0};
    enum relay_code code = relay_model_validate(model, err);
    if (code != RELAY_OK) {
        return code;
    }
    (void)model_layout(model, &block);
    block.base = malloc(block.used);
    if (block.base == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a model of %zu bytes",
                          block.used);
    }
    block.used = 0;
    *out = model_layout(model, &block);
    return RELAY_OK;
}

void relay_model_destroy(struct relay_model *model)
{
    free(model); /* the block starts with the struct */
}

/* ---- accessors ---- */

const struct relay_layer_kind *relay_model_kind(const struct relay_model *model, uint32_t layer)
{
    return &model->kinds[model->layer_kind[layer]];
}

uint32_t relay_model_kv_layer(const struct relay_model *model, uint32_t layer)
{
    return model->kv_layer != NULL ? model->kv_layer[layer] : layer;
}

const float *relay_model_sinks(const struct relay_model *model, uint32_t layer)
{
    return model->sinks != NULL ? model->sinks + q_heads_before(model, layer) : NULL;
}

/* K/V is stored with the scales of the layer it belongs to, so a layer that reads another's K/V
 * must use that one's. */
const float *relay_model_k_scale(const struct relay_model *model, uint32_t layer)
{
    return model->k_scale != NULL
               ? model->k_scale + kv_heads_before(model, relay_model_kv_layer(model, layer))
               : NULL;
}

const float *relay_model_v_scale(const struct relay_model *model, uint32_t layer)
{
    return model->v_scale != NULL
               ? model->v_scale + kv_heads_before(model, relay_model_kv_layer(model, layer))
               : NULL;
}
