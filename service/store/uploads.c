/* Uploads: prompts in the making. begin and the ends run under the store's mutex for a moment; the
 * bytes in between are checked, stored and hashed by the one thread that drives the upload, on
 * pages nobody else knows. `attached` says that such a thread exists. */
#include "service/base/log.h"
#include "service/store/upload_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- the object ---- */

/* Its pages have been given back, or it was published and has none. */
void relayd_upload_free(struct relayd_upload *upload)
{
    if (upload == NULL) {
        return;
    }
    relayd_prompts_free(upload->prompt);
    relayd_digest_destroy(upload->digest);
    free(upload->table_key);
    free(upload->held);
    free(upload);
}

/* Out of the tables, with its pages unless they live on in a published prompt. */
void relayd_upload_unlink_locked(struct relayd_upload *upload)
{
    struct relayd_store *store = upload->store;
    if (upload->table_key != NULL) {
        HASH_DEL(store->resumable, upload);
    }
    store->num_uploads--;
    if (upload->prompt != NULL) {
        relayd_model_give_locked(upload->prompt->model, &store->prompt_bytes, upload->prompt->pages,
                                 upload->prompt->num_pages);
    }
}

static uint64_t expiry(const struct relayd_store *store)
{
    uint64_t now = relayd_clock_now_ns(store->options.clock);
    uint64_t ms = store->options.upload_expiry_ms;
    return ms > (UINT64_MAX - 1 - now) / 1000000u ? UINT64_MAX - 1 : now + ms * 1000000u;
}

/* The end of a stream that did not publish. */
static void detach(struct relayd_upload *upload)
{
    struct relayd_store *store = upload->store;
    bool wait;
    relayd_store_lock(store);
    wait = upload->table_key != NULL && !upload->broken && store->options.upload_expiry_ms != 0;
    if (wait) {
        upload->attached = false;
        upload->expires_ns = expiry(store);
    } else {
        relayd_upload_unlink_locked(upload);
    }
    relayd_store_unlock(store);
    if (!wait) {
        relayd_upload_free(upload);
    }
}

struct relayd_upload *relayd_uploads_sweep_locked(struct relayd_store *store, uint64_t now_ns)
{
    struct relayd_upload *list = NULL;
    struct relayd_upload *upload, *following;
    for (upload = store->resumable; upload != NULL; upload = following) {
        following = upload->hh.next;
        if (!upload->attached && now_ns >= upload->expires_ns) {
            relayd_upload_unlink_locked(upload);
            upload->next = list;
            list = upload;
        }
    }
    return list;
}

uint32_t relayd_uploads_free(struct relayd_upload *list)
{
    uint32_t n = 0;
    while (list != NULL) {
        struct relayd_upload *upload = list;
        list = upload->next;
        RELAYD_LOG(INFO, "upload.dropped", "id=%s tokens=%u", upload->prompt->id,
                   upload->prompt->num_tokens);
        relayd_upload_free(upload);
        n++;
    }
    return n;
}

/* ---- the prompt that is there already ---- */

bool relayd_content_keys_equal(const struct relayd_prompt *a, const struct relayd_prompt *b)
{
    return a->content_key_bytes == b->content_key_bytes &&
           memcmp(a->content_key, b->content_key, a->content_key_bytes) == 0;
}

enum relayd_existing relayd_upload_judge(const struct relayd_upload *upload,
                                         const struct relayd_prompt *live, bool digests)
{
    const struct relayd_prompt *mine = upload->prompt;
    bool same;
    if (upload->on_exists == RELAYD_ON_EXISTS_KEEP) {
        return RELAYD_EXISTING_STAYS;
    }
    if (upload->on_exists == RELAYD_ON_EXISTS_REPLACE) {
        return RELAYD_EXISTING_REPLACED;
    }
    if (mine->content_key_bytes != 0 && live->content_key_bytes != 0) {
        return relayd_content_keys_equal(mine, live) ? RELAYD_EXISTING_STAYS
                                                     : RELAYD_EXISTING_DIFFERS;
    }
    /* Layers with windows hold few of the tokens: equal bytes alone do not make equal prompts. */
    same = mine->num_tokens == live->num_tokens && strcmp(mine->variant, live->variant) == 0;
    if (!same) {
        return RELAYD_EXISTING_DIFFERS;
    }
    if (!digests) {
        return RELAYD_EXISTING_UNKNOWN;
    }
    return memcmp(mine->digest, live->digest, sizeof(mine->digest)) == 0 ? RELAYD_EXISTING_STAYS
                                                                         : RELAYD_EXISTING_DIFFERS;
}

enum relay_code relayd_upload_differs(const struct relayd_prompt *live, struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_ALREADY_EXISTS,
                      "prompt %s exists with other content (%u tokens, generation %016llx)",
                      live->id, live->num_tokens, (unsigned long long)live->generation);
}

/* ---- chunks ---- */

void relayd_upload_held(const struct relayd_upload *upload, uint32_t *held)
{
    const struct relayd_model *model = upload->prompt->model;
    for (uint32_t l = 0; l < model->spec->num_layers; l++) {
        held[l] = upload->held[model->layers[l].kv_layer];
    }
}

uint32_t relayd_upload_first(const struct relayd_upload *upload, uint32_t layer)
{
    return relayd_model_first_token(upload->prompt->model, layer, upload->prompt->num_tokens);
}

uint32_t relayd_upload_layers(const struct relayd_upload *upload)
{
    return upload->prompt->model->spec->num_layers;
}

enum relay_code relayd_upload_chunk(struct relayd_upload *upload,
                                    const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    const struct relayd_prompt *prompt = upload->prompt;
    enum relay_code code;
    uint32_t held;
    if (upload->broken) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the upload is broken: start again");
    }
    code = relayd_chunk_check(prompt->model, chunk, prompt->num_tokens, err);
    if (code != RELAY_OK) {
        return code;
    }
    held = upload->held[chunk->layer];
    if (held == 0 && chunk->token_begin > relayd_upload_first(upload, chunk->layer)) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "layer %u must begin at token %u at the latest, got %u", chunk->layer,
                          relayd_upload_first(upload, chunk->layer), chunk->token_begin);
    }
    if (held != 0 && chunk->token_begin != held) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "layer %u goes on at token %u, got %u: ascending, without gaps",
                          chunk->layer, held, chunk->token_begin);
    }
    code = relayd_chunk_store(prompt->model, chunk, prompt->pages, upload->digest, err);
    if (code == RELAY_INTERNAL) {
        upload->broken = true; /* half a digest */
    }
    if (code == RELAY_OK) {
        upload->held[chunk->layer] = chunk->token_begin + chunk->token_count;
    }
    return code;
}

/* ---- ends ---- */

static enum relay_code complete_check(const struct relayd_upload *upload, struct relay_error *err)
{
    const struct relayd_prompt *prompt = upload->prompt;
    if (upload->broken) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the upload is broken: start again");
    }
    for (uint32_t l = 0; l < prompt->model->spec->num_layers; l++) {
        uint32_t first = relayd_upload_first(upload, l);
        if (prompt->model->layers[l].own && first < prompt->num_tokens &&
            upload->held[l] < prompt->num_tokens) {
            return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "layer %u misses tokens [%u, %u)", l,
                              upload->held[l] > first ? upload->held[l] : first,
                              prompt->num_tokens);
        }
    }
    return RELAY_OK;
}

static enum relay_code publish_locked(struct relayd_upload *upload, struct relayd_prompt_info *out,
                                      bool *published, struct relayd_prompt **garbage,
                                      struct relay_error *err)
{
    struct relayd_store *store = upload->store;
    struct relayd_prompt *prompt = upload->prompt;
    const struct relayd_model *model = prompt->model;
    uint32_t index;
    struct relayd_prompt *live =
        relayd_prompt_find_locked(store, model->tenant, model->spec->key, prompt->id, &index);
    enum relayd_existing existing =
        live != NULL ? relayd_upload_judge(upload, live, true) : RELAYD_EXISTING_REPLACED;
    if (existing == RELAYD_EXISTING_DIFFERS) {
        return relayd_upload_differs(live, err);
    }
    if (existing ==
        RELAYD_EXISTING_STAYS) { /* somebody else was faster, or it is the same once more */
        relayd_prompt_touch_locked(live);
        relayd_prompt_info_locked(live, out);
        return RELAY_OK;
    }
    upload->prompt = NULL;
    relayd_prompt_publish_locked(prompt, index, live != NULL, garbage);
    relayd_prompt_info_locked(prompt, out);
    *published = true;
    return RELAY_OK;
}

enum relay_code relayd_upload_commit(struct relayd_upload *upload, struct relayd_prompt_info *out,
                                     struct relay_error *err)
{
    struct relayd_store *store = upload->store;
    struct relayd_prompt *garbage = NULL;
    bool published = false;
    enum relay_code code = complete_check(upload, err);
    if (code != RELAY_OK) {
        detach(upload);
        return code;
    }
    code = relayd_digest_final(upload->digest, upload->prompt->model, upload->prompt->digest, err);
    relayd_store_lock(store);
    if (code == RELAY_OK) {
        code = publish_locked(upload, out, &published, &garbage, err);
    }
    relayd_upload_unlink_locked(upload);
    relayd_store_unlock(store);
    relayd_upload_free(upload);
    relayd_prompts_free(garbage);
    if (published) {
        RELAYD_LOG(INFO, "prompt.live", "id=%s tokens=%u bytes=%llu generation=%016llx",
                   out->prompt_id, out->num_tokens, (unsigned long long)out->bytes,
                   (unsigned long long)out->generation);
    }
    return code;
}

void relayd_upload_abort(struct relayd_upload *upload)
{
    if (upload != NULL) {
        detach(upload);
    }
}
