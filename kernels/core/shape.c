/* Layer kinds and shapes: what they must satisfy and what follows from them. Pure; any thread. */
#include "core/shape.h"

#include <math.h>

static enum relay_code dims_validate(const struct relay_layer_kind *kind, const char *what,
                                     struct relay_error *err)
{
    if (kind->num_q_heads == 0 || kind->num_q_heads > RELAY_HEADS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.num_q_heads %u is not in 1..%u", what,
                          kind->num_q_heads, RELAY_HEADS_MAX);
    }
    if (kind->num_kv_heads == 0 || kind->num_q_heads % kind->num_kv_heads != 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s.num_kv_heads %u does not divide num_q_heads %u", what,
                          kind->num_kv_heads, kind->num_q_heads);
    }
    if (kind->head_dim_qk == 0 || kind->head_dim_qk % 8 != 0 ||
        kind->head_dim_qk > RELAY_HEAD_DIM_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s.head_dim_qk %u is not a multiple of 8 in 8..%u", what,
                          kind->head_dim_qk, RELAY_HEAD_DIM_MAX);
    }
    if (kind->head_dim_v == 0 || kind->head_dim_v % 8 != 0 ||
        kind->head_dim_v > RELAY_HEAD_DIM_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s.head_dim_v %u is not a multiple of 8 in 8..%u", what,
                          kind->head_dim_v, RELAY_HEAD_DIM_MAX);
    }
    if (kind->v_from_k && kind->head_dim_v > kind->head_dim_qk) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "%s.head_dim_v %u is more than head_dim_qk %u with v_from_k", what,
                          kind->head_dim_v, kind->head_dim_qk);
    }
    return RELAY_OK;
}

enum relay_code relay_kind_validate(const struct relay_layer_kind *kind, bool zero_scale,
                                    const char *what, struct relay_error *err)
{
    enum relay_code code = dims_validate(kind, what, err);
    if (code != RELAY_OK) {
        return code;
    }
    /* A negative or infinite scale is a client's mistake; it would only show up as bad text. */
    if (!isfinite(kind->scale) || kind->scale < 0.0f || (kind->scale == 0.0f && !zero_scale)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.scale %g is not a positive number", what,
                          (double)kind->scale);
    }
    if (!isfinite(kind->softcap) || kind->softcap < 0.0f) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.softcap %g is not 0 or positive", what,
                          (double)kind->softcap);
    }
    if (kind->alibi_slopes != NULL) {
        for (uint32_t h = 0; h < kind->num_q_heads; h++) {
            if (!isfinite(kind->alibi_slopes[h])) {
                return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s.alibi_slopes[%u] is not finite",
                                  what, h);
            }
        }
    }
    return RELAY_OK;
}

enum relay_code relay_shape_validate(const struct relay_shape *shape, struct relay_error *err)
{
    enum relay_code code = relay_kind_validate(&shape->kind, false, "shape", err);
    if (code != RELAY_OK) {
        return code;
    }
    if (relay_dtype_size(shape->kv_dtype) == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "shape.kv_dtype %d is no dtype",
                          (int)shape->kv_dtype);
    }
    if (relay_dtype_size(shape->io_dtype) == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "shape.io_dtype %d is no dtype",
                          (int)shape->io_dtype);
    }
    if (relay_dtype_size(shape->out_dtype) == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "shape.out_dtype %d is no dtype",
                          (int)shape->out_dtype);
    }
    return RELAY_OK;
}

size_t relay_shape_kv_bytes(const struct relay_shape *shape)
{
    size_t dims =
        (size_t)shape->kind.head_dim_qk + (shape->kind.v_from_k ? 0u : shape->kind.head_dim_v);
    return shape->kind.num_kv_heads * dims * relay_dtype_size(shape->kv_dtype);
}

struct relay_shape relay_shape_of(const struct relay_model *model, uint32_t layer,
                                  enum relay_dtype io_dtype, enum relay_dtype out_dtype)
{
    struct relay_shape shape;
    shape.kind = *relay_model_kind(model, layer);
    shape.kv_dtype = model->kv_dtype;
    shape.io_dtype = io_dtype;
    shape.out_dtype = out_dtype;
    if (shape.kind.scale == 0.0f) {
        shape.kind.scale = (float)(1.0 / sqrt((double)shape.kind.head_dim_qk));
    }
    return shape;
}
