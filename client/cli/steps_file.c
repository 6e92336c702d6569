#include "steps_file.h"

#include "model.h"
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A tensor with exactly this shape, given as num_dims sizes. *out is NULL when it is absent and
 * that is allowed. */
static enum relay_code find(const struct relay_safetensors *file, const char *name,
                            const uint64_t *shape, uint32_t num_dims, bool optional,
                            const struct relay_safetensors_tensor **out, struct relay_error *err)
{
    const struct relay_safetensors_tensor *t = relay_safetensors_find(file, name);
    *out = t;
    if (t == NULL) {
        return optional
                   ? RELAY_OK
                   : RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "the file has no tensor %s", name);
    }
    if (t->num_dims != num_dims || memcmp(t->shape, shape, num_dims * sizeof(shape[0])) != 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "tensor %s: its shape does not fit the model and the other tensors",
                          name);
    }
    return RELAY_OK;
}

/* layers.N.<what>; *dtype must be the tensor's, or UNSPECIFIED and is then set to it. */
static enum relay_code find_layer(const struct relay_safetensors *file, uint32_t layer,
                                  const char *what, const uint64_t *shape, uint32_t num_dims,
                                  bool optional, enum relay_dtype *dtype, const uint8_t **out,
                                  struct relay_error *err)
{
    char name[64];
    const struct relay_safetensors_tensor *t;
    snprintf(name, sizeof(name), "layers.%u.%s", layer, what);
    const enum relay_code code = find(file, name, shape, num_dims, optional, &t, err);
    if (code != RELAY_OK || t == NULL) {
        return code;
    }
    const enum relay_dtype got = relay_safetensors_relay_dtype(t->dtype);
    if (got == RELAY_DTYPE_UNSPECIFIED || (*dtype != RELAY_DTYPE_UNSPECIFIED && *dtype != got)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "tensor %s: its dtype does not fit", name);
    }
    *dtype = got;
    *out = t->data;
    return RELAY_OK;
}

static enum relay_code load_lens(struct relay_cli_steps *s, uint64_t *sum, struct relay_error *err)
{
    const struct relay_safetensors_tensor *t = relay_safetensors_find(s->file, "user_lens");
    if (t == NULL || t->dtype != RELAY_SAFETENSORS_I32 || t->num_dims != 1 || t->shape[0] == 0 ||
        t->shape[0] > 65536) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "tensor user_lens [request] int32 expected");
    }
    s->num_requests = (uint32_t)t->shape[0];
    s->user_lens = malloc(t->bytes);
    if (s->user_lens == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    memcpy(s->user_lens, t->data, t->bytes);
    *sum = 0;
    for (uint32_t r = 0; r < s->num_requests; r++) {
        if (s->user_lens[r] > INT32_MAX) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "user_lens[%u] is negative", r);
        }
        *sum += s->user_lens[r];
    }
    return RELAY_OK;
}

/* The number of steps is the first size of layer 0's q; all others must agree. */
static enum relay_code load_positions(struct relay_cli_steps *s, struct relay_error *err)
{
    const struct relay_safetensors_tensor *t = relay_safetensors_find(s->file, "layers.0.q");
    if (t == NULL || t->num_dims != 4 || t->shape[0] == 0 || t->shape[0] > 1000000) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "tensor layers.0.q [step,request,Hq,dqk] expected");
    }
    s->num_steps = (uint32_t)t->shape[0];
    const uint64_t shape[2] = {s->num_steps, s->num_requests};
    const enum relay_code code = find(s->file, "q_positions", shape, 2, true, &t, err);
    if (code != RELAY_OK || t == NULL) {
        return code;
    }
    if (t->dtype != RELAY_SAFETENSORS_I32) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "tensor q_positions: int32 expected");
    }
    s->q_positions = malloc(t->bytes);
    if (s->q_positions == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    memcpy(s->q_positions, t->data, t->bytes);
    return RELAY_OK;
}

static enum relay_code load_layer(struct relay_cli_steps *s, uint32_t l, uint64_t user_tokens,
                                  struct relay_error *err)
{
    const struct relay_layer_kind *kind = relay_model_kind(s->model, l);
    struct relay_cli_layer_steps *layer = &s->layers[l];
    const uint64_t n = s->num_steps, r = s->num_requests;
    enum relay_dtype f32 = RELAY_DTYPE_F32;
    const struct {
        const char *name;
        uint64_t shape[4];
        uint32_t num_dims;
        bool optional, skip;
        enum relay_dtype *dtype;
        const uint8_t **out;
    } tensors[] = {
        {"q",
         {n, r, kind->num_q_heads, kind->head_dim_qk},
         4,
         false,
         false,
         &s->io_dtype,
         &layer->q},
        {"k_new",
         {n, r, kind->num_kv_heads, kind->head_dim_qk},
         4,
         false,
         false,
         &s->io_dtype,
         &layer->k_new},
        {"v_new",
         {n, r, kind->num_kv_heads, kind->head_dim_v},
         4,
         false,
         kind->v_from_k,
         &s->io_dtype,
         &layer->v_new},
        {"user_k",
         {user_tokens, kind->num_kv_heads, kind->head_dim_qk},
         3,
         user_tokens == 0,
         false,
         &layer->user_dtype,
         &layer->user_k},
        {"user_v",
         {user_tokens, kind->num_kv_heads, kind->head_dim_v},
         3,
         user_tokens == 0,
         kind->v_from_k,
         &layer->user_dtype,
         &layer->user_v},
        {"out", {n, r, kind->num_q_heads, kind->head_dim_v}, 4, true, false, &f32, &layer->out},
        {"lse", {n, r, kind->num_q_heads}, 3, true, false, &f32, &layer->lse},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        if (tensors[i].skip) {
            continue;
        }
        const enum relay_code code =
            find_layer(s->file, l, tensors[i].name, tensors[i].shape, tensors[i].num_dims,
                       tensors[i].optional, tensors[i].dtype, tensors[i].out, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

enum relay_code relay_cli_steps_load(const char *path, const char *model_key,
                                     struct relay_cli_steps *out, struct relay_error *err)
{
    struct relay_cli_steps s = {.file = NULL};
    enum relay_dtype named;
    uint64_t user_tokens = 0;
    enum relay_code code = relay_safetensors_open(path, &s.file, err);
    if (code == RELAY_OK) {
        code = relay_cli_model_parse(relay_safetensors_metadata(s.file, "model"), model_key,
                                     &s.model, &named, err);
    }
    if (code == RELAY_OK) {
        code = load_lens(&s, &user_tokens, err);
    }
    if (code == RELAY_OK) {
        code = load_positions(&s, err);
    }
    if (code == RELAY_OK) {
        s.layers = calloc(s.model->num_layers, sizeof(s.layers[0]));
        if (s.layers == NULL) {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        }
    }
    for (uint32_t l = 0; code == RELAY_OK && l < s.model->num_layers; l++) {
        code = load_layer(&s, l, user_tokens, err);
    }
    if (code != RELAY_OK) {
        relay_cli_steps_free(&s);
        return code;
    }
    *out = s;
    return RELAY_OK;
}

void relay_cli_steps_free(struct relay_cli_steps *steps)
{
    relay_safetensors_close(steps->file);
    relay_model_destroy(steps->model);
    free(steps->user_lens);
    free(steps->q_positions);
    free(steps->layers);
    *steps = (struct relay_cli_steps){.file = NULL};
}
