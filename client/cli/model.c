#include "model.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum relay_code parse_u32(const cJSON *item, uint32_t *out, struct relay_error *err)
{
    const double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(value >= 0) || value > UINT32_MAX || floor(value) != value) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: \"%.32s\" is no count",
                          item->string);
    }
    *out = (uint32_t)value;
    return RELAY_OK;
}

static enum relay_code parse_float(const cJSON *item, float *out, struct relay_error *err)
{
    if (!cJSON_IsNumber(item)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: \"%.32s\" is no number",
                          item->string);
    }
    *out = (float)item->valuedouble;
    return RELAY_OK;
}

static enum relay_code parse_dtype(const cJSON *item, enum relay_dtype *out,
                                   struct relay_error *err)
{
    const char *name = cJSON_GetStringValue(item);
    for (int d = RELAY_DTYPE_F32; name != NULL && d <= RELAY_DTYPE_F8_E4M3; d++) {
        if (strcmp(name, relay_dtype_name((enum relay_dtype)d)) == 0) {
            *out = (enum relay_dtype)d;
            return RELAY_OK;
        }
    }
    return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: \"%.32s\" is no dtype", item->string);
}

/* *known is false for a field that no kind has. */
static enum relay_code parse_kind_field(const cJSON *item, struct relay_layer_kind *kind,
                                        bool *known, struct relay_error *err)
{
    const struct {
        const char *name;
        uint32_t *count;
        float *number;
    } fields[] = {
        {"num_q_heads", &kind->num_q_heads, NULL},
        {"num_kv_heads", &kind->num_kv_heads, NULL},
        {"head_dim_qk", &kind->head_dim_qk, NULL},
        {"head_dim_v", &kind->head_dim_v, NULL},
        {"window", &kind->window, NULL},
        {"chunk", &kind->chunk, NULL},
        {"scale", NULL, &kind->scale},
        {"softcap", NULL, &kind->softcap},
    };
    *known = true;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (strcmp(item->string, fields[i].name) == 0) {
            return fields[i].count != NULL ? parse_u32(item, fields[i].count, err)
                                           : parse_float(item, fields[i].number, err);
        }
    }
    if (strcmp(item->string, "v_from_k") == 0 && cJSON_IsBool(item)) {
        kind->v_from_k = cJSON_IsTrue(item);
        return RELAY_OK;
    }
    *known = false;
    return RELAY_OK;
}

static enum relay_code unknown_field(const cJSON *item, struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: field \"%.32s\" is not known",
                      item->string);
}

struct parsed {
    struct relay_layer_kind base;
    uint32_t num_layers;
    enum relay_dtype kv_dtype, io_dtype;
    const cJSON *layers;
};

static enum relay_code parse_top(const cJSON *root, struct parsed *p, struct relay_error *err)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, root)
    {
        bool known = true;
        enum relay_code code = RELAY_OK;
        if (strcmp(item->string, "num_layers") == 0) {
            code = parse_u32(item, &p->num_layers, err);
        } else if (strcmp(item->string, "kv_dtype") == 0) {
            code = parse_dtype(item, &p->kv_dtype, err);
        } else if (strcmp(item->string, "dtype") == 0) {
            code = parse_dtype(item, &p->io_dtype, err);
        } else if (strcmp(item->string, "layers") == 0 && cJSON_IsArray(item)) {
            p->layers = item;
        } else {
            code = parse_kind_field(item, &p->base, &known, err);
        }
        if (code == RELAY_OK && !known) {
            code = unknown_field(item, err);
        }
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

static enum relay_code parse_layer(const cJSON *layer, struct relay_layer_kind *kind,
                                   struct relay_error *err)
{
    if (!cJSON_IsObject(layer)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "model: a layer is no object");
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, layer)
    {
        bool known;
        enum relay_code code = parse_kind_field(item, kind, &known, err);
        if (code == RELAY_OK && !known) {
            code = unknown_field(item, err);
        }
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

static bool same_kind(const struct relay_layer_kind *a, const struct relay_layer_kind *b)
{
    return a->num_q_heads == b->num_q_heads && a->num_kv_heads == b->num_kv_heads &&
           a->head_dim_qk == b->head_dim_qk && a->head_dim_v == b->head_dim_v &&
           a->window == b->window && a->chunk == b->chunk &&
           memcmp(&a->scale, &b->scale, sizeof(a->scale)) == 0 &&
           memcmp(&a->softcap, &b->softcap, sizeof(a->softcap)) == 0 && a->v_from_k == b->v_from_k;
}

/* One kind for layers that are alike: what is alike is launched alike. */
static enum relay_code make_kinds(const struct parsed *p, struct relay_layer_kind *kinds,
                                  uint32_t *layer_kind, uint32_t *num_kinds,
                                  struct relay_error *err)
{
    const cJSON *layer = p->layers != NULL ? p->layers->child : NULL;
    *num_kinds = 0;
    for (uint32_t l = 0; l < p->num_layers; l++) {
        struct relay_layer_kind kind = p->base;
        if (layer != NULL) {
            const enum relay_code code = parse_layer(layer, &kind, err);
            if (code != RELAY_OK) {
                return code;
            }
            layer = layer->next;
        }
        uint32_t k = 0;
        while (k < *num_kinds && !same_kind(&kinds[k], &kind)) {
            k++;
        }
        if (k == *num_kinds) {
            kinds[(*num_kinds)++] = kind;
        }
        layer_kind[l] = k;
    }
    return RELAY_OK;
}

enum relay_code relay_cli_model_parse(const char *json, const char *model_key,
                                      struct relay_model **model, enum relay_dtype *io_dtype,
                                      struct relay_error *err)
{
    cJSON *root = json != NULL ? cJSON_Parse(json) : NULL;
    struct relay_layer_kind *kinds = NULL;
    uint32_t *layer_kind = NULL;
    struct parsed p = {.kv_dtype = RELAY_DTYPE_BF16, .io_dtype = RELAY_DTYPE_F32};
    enum relay_code code = RELAY_OK;
    if (!cJSON_IsObject(root)) {
        code = RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "no model in the file's metadata");
        goto out;
    }
    code = parse_top(root, &p, err);
    if (code != RELAY_OK) {
        goto out;
    }
    if (p.num_layers == 0 || p.num_layers > RELAY_LAYERS_MAX ||
        (p.layers != NULL && (uint32_t)cJSON_GetArraySize(p.layers) != p.num_layers)) {
        code = RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "model: num_layers is %u, 1..%u and as many as layers expected",
                          p.num_layers, RELAY_LAYERS_MAX);
        goto out;
    }
    kinds = calloc(p.num_layers, sizeof(*kinds));
    layer_kind = calloc(p.num_layers, sizeof(*layer_kind));
    if (kinds == NULL || layer_kind == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
        goto out;
    }
    struct relay_model made = {.key = model_key,
                               .num_layers = p.num_layers,
                               .kinds = kinds,
                               .layer_kind = layer_kind,
                               .kv_dtype = p.kv_dtype};
    code = make_kinds(&p, kinds, layer_kind, &made.num_kinds, err);
    if (code == RELAY_OK) {
        code = relay_model_validate(&made, err);
    }
    if (code == RELAY_OK) {
        code = relay_model_copy(&made, model, err);
    }
    if (code == RELAY_OK) {
        *io_dtype = p.io_dtype;
    }
out:
    free(kinds);
    free(layer_kind);
    cJSON_Delete(root);
    return code;
}
