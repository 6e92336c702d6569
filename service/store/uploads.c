/* Uploads between their begin and their end: what is in, chunks, publishing. */
#include "service/base/log.h"
#include "service/store/upload_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- the prompt that is there already ---- */

bool relayd_content_keys_equal(const struct relayd_prompt *a, const struct relayd_prompt *b)
{
    return a->content_key_bytes == b->content_key_bytes &&
           memcmp(a->content_key, b->content_key, a->content_key_bytes) == 0;
}

enum relayd_existing relayd_upload_judge(const struct relayd_partial *partial,
                                         const struct relayd_prompt *live, bool digests)
{
    const struct relayd_prompt *mine = partial->prompt;
    bool same;
    if (partial->on_exists == RELAYD_ON_EXISTS_KEEP) {
        return RELAYD_EXISTING_STAYS;
    }
    if (partial->on_exists == RELAYD_ON_EXISTS_REPLACE) {
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

enum relay_code relayd_upload_held(struct relayd_upload *upload, uint32_t *held,
                                   uint32_t *num_layers, struct relay_error *err)
{
    struct relayd_partial *partial;
    enum relay_code code = relayd_upload_enter(upload, &partial, err);
    if (code != RELAY_OK) {
        return code;
    }
    const struct relayd_model *model = partial->prompt->model;
    *num_layers = model->spec->num_layers;
    for (uint32_t l = 0; l < *num_layers; l++) {
        held[l] = partial->held[model->layers[l].kv_layer];
    }
    relayd_upload_leave(upload);
    return RELAY_OK;
}

static uint32_t first_token(const struct relayd_partial *partial, uint32_t layer)
{
    return relayd_model_first_token(partial->prompt->model, layer, partial->prompt->num_tokens);
}

static enum relay_code store_chunk(struct relayd_partial *partial,
                                   const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    const struct relayd_prompt *prompt = partial->prompt;
    enum relay_code code;
    uint32_t held;
    if (partial->broken) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the upload is broken: start again");
    }
    code = relayd_chunk_check(prompt->model, chunk, prompt->num_tokens, err);
    if (code != RELAY_OK) {
        return code;
    }
    held = partial->held[chunk->layer];
    if (held == 0 && chunk->token_begin > first_token(partial, chunk->layer)) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "layer %u must begin at token %u at the latest, got %u", chunk->layer,
                          first_token(partial, chunk->layer), chunk->token_begin);
    }
    if (held != 0 && chunk->token_begin != held) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "layer %u goes on at token %u, got %u: ascending, without gaps",
                          chunk->layer, held, chunk->token_begin);
    }
    code = relayd_chunk_store(prompt->model, chunk, prompt->pages, partial->digest, err);
    if (code == RELAY_INTERNAL) {
        partial->broken = true; /* half a digest */
    }
    if (code == RELAY_OK) {
        partial->held[chunk->layer] = chunk->token_begin + chunk->token_count;
    }
    return code;
}

enum relay_code relayd_upload_chunk(struct relayd_upload *upload,
                                    const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    struct relayd_partial *partial;
    enum relay_code code = relayd_upload_enter(upload, &partial, err);
    if (code == RELAY_OK) {
        code = store_chunk(partial, chunk, err);
        relayd_upload_leave(upload);
    }
    return code;
}

/* ---- ends ---- */

static enum relay_code complete_check(const struct relayd_partial *partial, struct relay_error *err)
{
    const struct relayd_prompt *prompt = partial->prompt;
    if (partial->broken) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "the upload is broken: start again");
    }
    for (uint32_t l = 0; l < prompt->model->spec->num_layers; l++) {
        uint32_t first = first_token(partial, l);
        if (prompt->model->layers[l].own && first < prompt->num_tokens &&
            partial->held[l] < prompt->num_tokens) {
            return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "layer %u misses tokens [%u, %u)", l,
                              partial->held[l] > first ? partial->held[l] : first,
                              prompt->num_tokens);
        }
    }
    return RELAY_OK;
}

static enum relay_code publish_locked(struct relayd_partial *partial,
                                      struct relayd_prompt_info *out, bool *published,
                                      struct relayd_prompt **garbage, struct relay_error *err)
{
    struct relayd_store *store = partial->store;
    struct relayd_prompt *prompt = partial->prompt;
    const struct relayd_model *model = prompt->model;
    uint32_t index;
    struct relayd_prompt *live =
        relayd_prompt_find_locked(store, model->tenant, model->spec->key, prompt->id, &index);
    enum relayd_existing existing =
        live != NULL ? relayd_upload_judge(partial, live, true) : RELAYD_EXISTING_REPLACED;
    if (existing == RELAYD_EXISTING_DIFFERS) {
        return relayd_upload_differs(live, err);
    }
    if (existing ==
        RELAYD_EXISTING_STAYS) { /* somebody else was faster, or it is the same once more */
        relayd_prompt_touch_locked(live);
        relayd_prompt_info_locked(live, out);
        return RELAY_OK;
    }
    partial->prompt = NULL;
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
    struct relayd_partial *partial;
    bool published = false;
    enum relay_code code = relayd_upload_enter(upload, &partial, err);
    if (code == RELAY_OK) {
        code = complete_check(partial, err);
    }
    if (code != RELAY_OK) {
        relayd_upload_detach(upload);
        return code;
    }
    code =
        relayd_digest_final(partial->digest, partial->prompt->model, partial->prompt->digest, err);
    relayd_store_lock(store);
    if (code == RELAY_OK) {
        code = publish_locked(partial, out, &published, &garbage, err);
    }
    relayd_partial_unlink_locked(partial);
    relayd_store_unlock(store);
    relayd_partial_free(partial);
    free(upload);
    relayd_prompts_free(garbage);
    if (published) {
        RELAYD_LOG(INFO, "prompt.live", "id=%s tokens=%u bytes=%llu generation=%016llx",
                   out->prompt_id, out->num_tokens, (unsigned long long)out->bytes,
                   (unsigned long long)out->generation);
    }
    return code;
}

uint32_t relayd_upload_first(struct relayd_upload *upload, uint32_t layer)
{
    struct relayd_partial *partial;
    struct relay_error err;
    uint32_t first = 0;
    if (relayd_upload_enter(upload, &partial, &err) == RELAY_OK) {
        first = first_token(partial, layer);
        relayd_upload_leave(upload);
    }
    return first;
}

void relayd_upload_abort(struct relayd_upload *upload)
{
    if (upload != NULL) {
        relayd_upload_detach(upload);
    }
}
