/* Interned models and the layout of their pages. Any thread; the table and the counts are under the
 * store's mutex, a model's description and layout never change. */
#include "service/store/store_internal.h"

#include <stdlib.h>
#include <string.h>

/* K and V of each layer start on a cache line. */
#define PART_ALIGN ((uint64_t)64)

static enum relay_code supports_all(const struct relay_backend *backend,
                                    const struct relay_model *spec, enum relay_dtype io_dtype,
                                    enum relay_dtype out_dtype, struct relay_error *err)
{
    for (uint32_t l = 0; l < spec->num_layers; l++) {
        struct relay_shape shape = relay_shape_of(spec, l, io_dtype, out_dtype);
        struct relay_error inner;
        enum relay_code code = relay_backend_supports(backend, &shape, &inner);
        if (code != RELAY_OK) {
            return RELAY_FAIL(err, code, "layer %u: %.200s", l, inner.msg);
        }
    }
    return RELAY_OK;
}

/* Bytes of one page's K (or V) of a layer, padded. */
static uint64_t part_bytes(const struct relay_shape *shape, uint32_t page_tokens, uint32_t dim)
{
    uint64_t bytes =
        (uint64_t)shape->kind.num_kv_heads * page_tokens * dim * relay_dtype_size(shape->kv_dtype);
    return (bytes + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN;
}

static void model_free(struct relayd_model *model)
{
    if (model == NULL) {
        return;
    }
    relayd_pool_destroy(model->pool);
    relay_model_destroy(model->spec);
    free(model->layers);
    free(model->table_key);
    free(model);
}

/* Layers' places relative to page 0; the page size follows from them. */
static void model_lay_out(struct relayd_model *model, unsigned char *base)
{
    uint64_t offset = 0;
    for (uint32_t l = 0; l < model->spec->num_layers; l++) {
        struct relayd_layer *layer = &model->layers[l];
        layer->shape = relay_shape_of(model->spec, l, RELAY_DTYPE_F32, RELAY_DTYPE_F32);
        layer->kv_layer = relay_model_kv_layer(model->spec, l);
        layer->own = layer->kv_layer == l;
        if (!layer->own) { /* an earlier layer, laid out already */
            layer->kv = model->layers[layer->kv_layer].kv;
            continue;
        }
        layer->kv.k = base != NULL ? base + offset : NULL;
        offset += part_bytes(&layer->shape, model->page_tokens, layer->shape.kind.head_dim_qk);
        if (!layer->shape.kind.v_from_k) {
            layer->kv.v = base != NULL ? base + offset : NULL;
            offset += part_bytes(&layer->shape, model->page_tokens, layer->shape.kind.head_dim_v);
        }
        layer->kv.page_stride = (size_t)model->page_bytes;
        layer->kv.k_scale = relay_model_k_scale(model->spec, l);
        layer->kv.v_scale = relay_model_v_scale(model->spec, l);
    }
    model->page_bytes = offset;
}

static enum relay_code model_new(struct relayd_store *store, const char *tenant,
                                 const struct relay_model *spec, struct relayd_model **out,
                                 struct relay_error *err)
{
    const struct relayd_store_options *options = &store->options;
    struct relayd_model *model = calloc(1, sizeof(*model));
    enum relay_code code = RELAY_RESOURCE_EXHAUSTED;
    size_t tenant_bytes = strlen(tenant) + 1;
    if (model == NULL) {
        goto no_memory;
    }
    code = relay_model_copy(spec, &model->spec, err);
    if (code != RELAY_OK) {
        goto out;
    }
    code = supports_all(options->backend, model->spec, RELAY_DTYPE_F32, RELAY_DTYPE_F32, err);
    if (code != RELAY_OK) {
        goto out;
    }
    model->store = store;
    model->refs = 1;
    model->page_tokens = options->page_tokens != 0
                             ? options->page_tokens
                             : relay_backend_info(options->backend)->page_tokens;
    model->layers = calloc(spec->num_layers, sizeof(*model->layers));
    model->table_key_bytes = tenant_bytes + strlen(spec->key) + 1;
    model->table_key = malloc(model->table_key_bytes);
    if (model->layers == NULL || model->table_key == NULL) {
        goto no_memory;
    }
    memcpy(model->table_key, tenant, tenant_bytes);
    memcpy(model->table_key + tenant_bytes, spec->key, model->table_key_bytes - tenant_bytes);
    model->tenant = model->table_key;
    model_lay_out(model, NULL); /* for page_bytes */
    code = relayd_pool_create(&store->pools, model->page_bytes,
                              options->prompt_bytes_max / model->page_bytes +
                                  options->request_bytes_max / model->page_bytes,
                              &model->pool, err);
    if (code != RELAY_OK) {
        goto out;
    }
    model_lay_out(model, relayd_pool_base(model->pool));
    *out = model;
    return RELAY_OK;
no_memory:
    code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a model");
out:
    model_free(model);
    return code;
}

static struct relayd_model *model_find_locked(struct relayd_store *store, const char *table_key,
                                              size_t table_key_bytes)
{
    struct relayd_model *model = NULL;
    HASH_FIND(hh, store->models, table_key, table_key_bytes, model);
    return model;
}

/* Of a model that was there already, referenced by the caller, who keeps it only on success. */
static enum relay_code same_or_release(struct relayd_model *model, const struct relay_model *spec,
                                       struct relayd_model **out, struct relay_error *err)
{
    char why[160];
    if (!relay_model_equal(model->spec, spec, why, sizeof(why))) {
        relayd_model_release(model);
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "model key \"%.64s\" is in use with another description: %s", spec->key,
                          why);
    }
    *out = model;
    return RELAY_OK;
}

/* Puts a new model into the table, or finds that somebody else was faster (*there). */
static enum relay_code model_insert(struct relayd_store *store, struct relayd_model *model,
                                    struct relayd_model **there, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    relayd_store_lock(store);
    *there = model_find_locked(store, model->table_key, model->table_key_bytes);
    if (*there != NULL) {
        (*there)->refs++;
    } else if (store->num_models >= store->options.models_max) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "all %u models are in use",
                          store->options.models_max);
    } else {
        HASH_ADD_KEYPTR(hh, store->models, model->table_key, model->table_key_bytes, model);
        if (model->hh.tbl == NULL) {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a model");
        } else {
            store->num_models++;
        }
    }
    relayd_store_unlock(store);
    return code;
}

enum relay_code relayd_model_acquire(struct relayd_store *store, const char *tenant,
                                     const struct relay_model *spec, struct relayd_model **out,
                                     struct relay_error *err)
{
    struct relayd_model *fresh = NULL;
    struct relayd_model *there = NULL;
    enum relay_code code = relay_model_validate(spec, err);
    size_t tenant_bytes = strlen(tenant) + 1;
    size_t key_bytes;
    char *key;
    if (code != RELAY_OK) {
        return code;
    }
    key_bytes = tenant_bytes + strlen(spec->key) + 1;
    key = malloc(key_bytes);
    if (key == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a model");
    }
    memcpy(key, tenant, tenant_bytes);
    memcpy(key + tenant_bytes, spec->key, key_bytes - tenant_bytes);
    relayd_store_lock(store);
    there = model_find_locked(store, key, key_bytes);
    if (there != NULL) {
        there->refs++;
    }
    relayd_store_unlock(store);
    free(key);
    if (there != NULL) {
        return same_or_release(there, spec, out, err);
    }
    code = model_new(store, tenant, spec, &fresh, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = model_insert(store, fresh, &there, err);
    if (code != RELAY_OK || there != NULL) {
        model_free(fresh);
        return code != RELAY_OK ? code : same_or_release(there, spec, out, err);
    }
    *out = fresh;
    return RELAY_OK;
}

void relayd_model_ref(struct relayd_model *model)
{
    relayd_store_lock(model->store);
    model->refs++;
    relayd_store_unlock(model->store);
}

void relayd_model_release(struct relayd_model *model)
{
    struct relayd_store *store;
    bool last;
    if (model == NULL) {
        return;
    }
    store = model->store;
    relayd_store_lock(store);
    last = --model->refs == 0;
    if (last) {
        HASH_DEL(store->models, model);
        store->num_models--;
    }
    relayd_store_unlock(store);
    if (last) {
        model_free(model);
    }
}

/* ---- observers ---- */

struct relayd_store *relayd_model_store(const struct relayd_model *model)
{
    return model->store;
}

const struct relay_model *relayd_model_spec(const struct relayd_model *model)
{
    return model->spec;
}

const char *relayd_model_tenant(const struct relayd_model *model)
{
    return model->tenant;
}

uint32_t relayd_model_page_tokens(const struct relayd_model *model)
{
    return model->page_tokens;
}

uint64_t relayd_model_page_bytes(const struct relayd_model *model)
{
    return model->page_bytes;
}

struct relay_kv_layer relayd_model_kv(const struct relayd_model *model, uint32_t layer)
{
    return model->layers[layer].kv;
}

enum relay_code relayd_model_supports(const struct relayd_model *model, enum relay_dtype io_dtype,
                                      enum relay_dtype out_dtype, struct relay_error *err)
{
    return supports_all(model->store->options.backend, model->spec, io_dtype, out_dtype, err);
}

static uint32_t kind_first_token(const struct relay_layer_kind *kind, uint32_t num_tokens)
{
    uint32_t first = 0;
    if (kind->window != 0 && num_tokens > kind->window - 1) {
        first = num_tokens - (kind->window - 1);
    }
    if (kind->chunk != 0 && num_tokens / kind->chunk * kind->chunk > first) {
        first = num_tokens / kind->chunk * kind->chunk;
    }
    return first;
}

uint32_t relayd_model_first_token(const struct relayd_model *model, uint32_t layer,
                                  uint32_t num_tokens)
{
    uint32_t kv_layer = model->layers[layer].kv_layer;
    uint32_t first = num_tokens;
    for (uint32_t l = 0; l < model->spec->num_layers; l++) {
        if (model->layers[l].kv_layer == kv_layer) {
            uint32_t own = kind_first_token(&model->layers[l].shape.kind, num_tokens);
            first = own < first ? own : first;
        }
    }
    return first;
}

/* ---- accounts ---- */

enum relay_code relayd_account_check(const struct relayd_account *account,
                                     const struct relayd_model *model, uint64_t pages,
                                     const char *what, struct relay_error *err)
{
    uint64_t left = account->max - account->used;
    if (pages > left / model->page_bytes) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED,
                          "%s K/V: %llu pages of %llu bytes needed, %llu of %llu bytes left", what,
                          (unsigned long long)pages, (unsigned long long)model->page_bytes,
                          (unsigned long long)left, (unsigned long long)account->max);
    }
    return RELAY_OK;
}

void relayd_model_take_locked(struct relayd_model *model, struct relayd_account *account,
                              uint32_t n, uint32_t *ids)
{
    relayd_pool_take(model->pool, n, ids);
    account->used += n * model->page_bytes;
}

void relayd_model_give_locked(struct relayd_model *model, struct relayd_account *account,
                              const uint32_t *ids, uint32_t n)
{
    account->used -= relayd_pool_unref(model->pool, ids, n) * model->page_bytes;
}
