/* How uploads begin: checked, found to be needless, resumed, or admitted with all their pages. What
 * decides runs under the store's mutex; building the object does not. */
#include "service/store/upload_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

static enum relay_code text_check(const char *name, const char *text, size_t bytes_max,
                                  struct relay_error *err)
{
    if (strnlen(text, bytes_max + 1) > bytes_max) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%s has more than %zu bytes", name,
                          bytes_max);
    }
    return RELAY_OK;
}

static const char *variant_of(const struct relayd_upload_desc *desc)
{
    return desc->variant != NULL ? desc->variant : "";
}

static enum relay_code desc_check(const struct relayd_store *store,
                                  const struct relayd_upload_desc *desc, struct relay_error *err)
{
    uint32_t tokens_max = store->options.prompt_tokens_max;
    enum relay_code code = relayd_prompt_id_check(
        desc->prompt_id, strnlen(desc->prompt_id, RELAYD_PROMPT_ID_BYTES_MAX + 1), err);
    if (code != RELAY_OK) {
        return code;
    }
    if (desc->num_tokens == 0 || desc->num_tokens > tokens_max) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "num_tokens %u is not in 1..%u",
                          desc->num_tokens, tokens_max);
    }
    if (desc->content_key_bytes > RELAYD_CONTENT_KEY_BYTES_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "content_key has %u bytes, more than %u",
                          desc->content_key_bytes, RELAYD_CONTENT_KEY_BYTES_MAX);
    }
    if ((unsigned)desc->on_exists > RELAYD_ON_EXISTS_REPLACE) {
        return RELAY_FAIL(err, RELAY_UNIMPLEMENTED, "on_exists %u is not known",
                          (unsigned)desc->on_exists);
    }
    if (desc->num_labels > RELAYD_LABELS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%u labels are more than %u",
                          desc->num_labels, RELAYD_LABELS_MAX);
    }
    for (uint32_t i = 0; i < desc->num_labels && code == RELAY_OK; i++) {
        code = text_check("a label's key", desc->labels[i].key, RELAYD_LABEL_BYTES_MAX, err);
        if (code == RELAY_OK) {
            code =
                text_check("a label's value", desc->labels[i].value, RELAYD_LABEL_BYTES_MAX, err);
        }
    }
    return code == RELAY_OK ? text_check("variant", variant_of(desc), RELAYD_VARIANT_BYTES_MAX, err)
                            : code;
}

static struct relayd_prompt *prompt_new(const struct relayd_upload_desc *desc,
                                        struct relayd_model *model)
{
    struct relayd_prompt *prompt = calloc(1, sizeof(*prompt));
    if (prompt == NULL) {
        return NULL;
    }
    prompt->num_pages = relayd_model_pages(model, desc->num_tokens);
    prompt->pages = calloc(prompt->num_pages, sizeof(*prompt->pages));
    prompt->labels = calloc(desc->num_labels + 1u, sizeof(*prompt->labels));
    if (prompt->pages == NULL || prompt->labels == NULL) {
        free(prompt->pages);
        free(prompt->labels);
        free(prompt);
        return NULL;
    }
    prompt->model = model;
    prompt->num_tokens = desc->num_tokens;
    memcpy(prompt->id, desc->prompt_id, strlen(desc->prompt_id));
    memcpy(prompt->variant, variant_of(desc), strlen(variant_of(desc)));
    prompt->content_key_bytes = desc->content_key_bytes;
    if (desc->content_key_bytes != 0) {
        memcpy(prompt->content_key, desc->content_key, desc->content_key_bytes);
    }
    prompt->idle_ttl_ms = desc->idle_ttl_ms;
    prompt->pinned = desc->pinned;
    prompt->num_labels = desc->num_labels;
    for (uint32_t i = 0; i < desc->num_labels; i++) { /* what follows the NULs stays zero */
        memcpy(prompt->labels[i].key, desc->labels[i].key, strlen(desc->labels[i].key));
        memcpy(prompt->labels[i].value, desc->labels[i].value, strlen(desc->labels[i].value));
    }
    return prompt;
}

/* Takes over the model reference, also on failure. */
static enum relay_code partial_new(struct relayd_store *store,
                                   const struct relayd_upload_desc *desc,
                                   struct relayd_model *model, struct relayd_partial **out,
                                   struct relay_error *err)
{
    struct relayd_partial *partial = calloc(1, sizeof(*partial));
    enum relay_code code = RELAY_RESOURCE_EXHAUSTED;
    if (partial == NULL) {
        relayd_model_release(model);
        goto no_memory;
    }
    partial->prompt = prompt_new(desc, model);
    if (partial->prompt == NULL) {
        relayd_model_release(model);
        goto no_memory;
    }
    partial->store = store;
    partial->on_exists = desc->on_exists;
    partial->held = calloc(model->spec->num_layers, sizeof(*partial->held));
    if (partial->held == NULL) {
        goto no_memory;
    }
    if (desc->upload_id != NULL) {
        size_t tenant_bytes = strlen(desc->tenant) + 1;
        partial->table_key_bytes = RELAYD_UPLOAD_ID_BYTES + tenant_bytes;
        partial->table_key = malloc(partial->table_key_bytes);
        if (partial->table_key == NULL) {
            goto no_memory;
        }
        memcpy(partial->table_key, desc->upload_id, RELAYD_UPLOAD_ID_BYTES);
        memcpy(partial->table_key + RELAYD_UPLOAD_ID_BYTES, desc->tenant, tenant_bytes);
    }
    code = relayd_digest_create(model->spec->num_layers, &partial->digest, err);
    if (code != RELAY_OK) {
        goto out;
    }
    *out = partial;
    return RELAY_OK;
no_memory:
    code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for an upload");
out:
    relayd_partial_free(partial);
    return code;
}

/* Why a begin cannot continue this upload; NULL when it can. */
static const char *resume_mismatch(const struct relayd_partial *a, const struct relayd_partial *b)
{
    const struct relayd_prompt *p = a->prompt;
    const struct relayd_prompt *q = b->prompt;
    if (strcmp(p->id, q->id) != 0) {
        return "prompt_id";
    }
    if (p->model != q->model) { /* interned */
        return "model";
    }
    if (p->num_tokens != q->num_tokens) {
        return "num_tokens";
    }
    if (strcmp(p->variant, q->variant) != 0) {
        return "variant";
    }
    if (!relayd_content_keys_equal(p, q)) {
        return "content_key";
    }
    if (a->on_exists != b->on_exists) {
        return "on_exists";
    }
    if (p->idle_ttl_ms != q->idle_ttl_ms || p->pinned != q->pinned) {
        return "idle_ttl_ms or pinned";
    }
    if (p->num_labels != q->num_labels ||
        memcmp(p->labels, q->labels, p->num_labels * sizeof(*p->labels)) != 0) {
        return "labels";
    }
    return NULL;
}

static enum relay_code resume_locked(struct relayd_partial *partial,
                                     const struct relayd_partial *wanted, struct relay_error *err)
{
    const char *mismatch = resume_mismatch(partial, wanted);
    if (partial->busy) { /* its driver is in the middle of a chunk */
        return RELAY_FAIL(err, RELAY_ABORTED, "an upload with this upload_id is in progress");
    }
    if (mismatch != NULL) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "the upload to resume (prompt %.64s, %u tokens) has another %s than this "
                          "one (prompt %.64s, %u tokens)",
                          partial->prompt->id, partial->prompt->num_tokens, mismatch,
                          wanted->prompt->id, wanted->prompt->num_tokens);
    }
    return RELAY_OK;
}

/* Admits a new upload: limits, budget, pages, tables. */
static enum relay_code admit_locked(struct relayd_partial *fresh, bool *unlocked,
                                    struct relay_error *err)
{
    struct relayd_store *store = fresh->store;
    struct relayd_prompt *prompt = fresh->prompt;
    const struct relayd_store_options *options = &store->options;
    enum relay_code code;
    if (store->num_uploads >= options->uploads_max) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "all %u uploads are in use",
                          options->uploads_max);
    }
    if ((uint64_t)store->num_prompts + store->num_doomed + store->num_uploads >=
        options->prompts_max) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "all %u prompts are in use",
                          options->prompts_max);
    }
    code =
        relayd_account_check(&store->prompt_bytes, prompt->model, prompt->num_pages, "prompt", err);
    if (code == RELAY_OK) {
        code = relayd_pool_ensure(prompt->model->pool, prompt->num_pages, unlocked, err);
    }
    if (code != RELAY_OK || *unlocked) {
        return code;
    }
    if (fresh->table_key != NULL) {
        HASH_ADD_KEYPTR(hh, store->resumable, fresh->table_key, fresh->table_key_bytes, fresh);
        if (fresh->hh.tbl == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for an upload");
        }
    }
    relayd_model_take_locked(prompt->model, &store->prompt_bytes, prompt->num_pages, prompt->pages);
    DL_APPEND(store->partials, fresh);
    store->num_uploads++;
    return RELAY_OK;
}

/* One try. *driven is what to go on with (fresh, or an older one), NULL when the prompt exists;
 * *dropped a partial that became useless. When *unlocked comes back set, nothing was decided. */
static enum relay_code begin_locked(struct relayd_partial *fresh, struct relayd_partial **driven,
                                    struct relayd_partial **dropped,
                                    struct relayd_prompt_info *exists, bool *unlocked,
                                    struct relay_error *err)
{
    struct relayd_store *store = fresh->store;
    const struct relayd_model *model = fresh->prompt->model;
    struct relayd_partial *partial = NULL;
    struct relayd_prompt *live =
        relayd_prompt_find_locked(store, model->tenant, model->spec->key, fresh->prompt->id, NULL);
    enum relayd_existing existing =
        live != NULL ? relayd_upload_judge(fresh, live, false) : RELAYD_EXISTING_UNKNOWN;
    if (fresh->table_key != NULL) {
        HASH_FIND(hh, store->resumable, fresh->table_key, fresh->table_key_bytes, partial);
    }
    *driven = NULL;
    if (existing == RELAYD_EXISTING_STAYS) {
        if (partial != NULL && partial->driver == NULL && resume_mismatch(partial, fresh) == NULL) {
            relayd_partial_unlink_locked(partial);
            *dropped = partial;
        }
        relayd_prompt_touch_locked(live);
        relayd_prompt_info_locked(live, exists);
        return RELAY_OK;
    }
    if (existing == RELAYD_EXISTING_DIFFERS) {
        return relayd_upload_differs(live, err);
    }
    if (partial != NULL) {
        enum relay_code code = resume_locked(partial, fresh, err);
        *driven = code == RELAY_OK ? partial : NULL;
        return code;
    }
    *driven = fresh;
    return admit_locked(fresh, unlocked, err);
}

enum relay_code relayd_upload_begin(struct relayd_store *store,
                                    const struct relayd_upload_desc *desc,
                                    struct relayd_upload **out, struct relayd_prompt_info *exists,
                                    struct relay_error *err)
{
    struct relayd_model *model = NULL;
    struct relayd_upload *upload = NULL;
    struct relayd_partial *fresh = NULL;
    struct relayd_partial *driven = NULL;
    struct relayd_partial *dropped = NULL;
    enum relay_code code = desc_check(store, desc, err);
    bool unlocked;
    if (code == RELAY_OK) {
        code = relayd_model_acquire(store, desc->tenant, desc->model, &model, err);
    }
    if (code == RELAY_OK) {
        code = partial_new(store, desc, model, &fresh, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    upload = calloc(1, sizeof(*upload));
    if (upload == NULL) {
        relayd_partial_free(fresh);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for an upload");
    }
    upload->store = store;
    relayd_store_lock(store);
    do {
        unlocked = false;
        code = begin_locked(fresh, &driven, &dropped, exists, &unlocked, err);
    } while (code == RELAY_OK && unlocked);
    if (driven != NULL && code == RELAY_OK) {
        relayd_partial_drive_locked(driven, upload);
    }
    relayd_store_unlock(store);
    (void)relayd_partials_free(dropped);
    if (code != RELAY_OK || driven != fresh) {
        relayd_partial_free(fresh);
    }
    if (code != RELAY_OK || driven == NULL) {
        free(upload);
        upload = NULL;
    }
    if (code == RELAY_OK) {
        *out = upload;
    }
    return code;
}
