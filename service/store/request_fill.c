/* Filling and cutting a request while no call is in flight on it: append and truncate. Any thread;
 * `busy`, set under the store's mutex, keeps everybody else off while bytes are stored. */
#include "service/store/request_internal.h"

static enum relay_code idle_check_locked(const struct relayd_request *request,
                                         struct relay_error *err)
{
    if (request->closed) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "the request is closed");
    }
    if (request->lends != 0) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "%u calls on the request are in flight",
                          request->lends);
    }
    if (request->busy) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "an append to the request is running");
    }
    return RELAY_OK;
}

/* Everything that can fail before bytes are stored; on success the request is busy. */
static enum relay_code append_begin_locked(struct relayd_request *request,
                                           const struct relayd_kv_chunk *chunk, bool *unlocked,
                                           struct relay_error *err)
{
    struct relayd_model *model = request->model;
    uint32_t held = relayd_request_held(request, chunk->layer);
    uint32_t reserved = atomic_load_explicit(&request->reserved, memory_order_relaxed);
    uint32_t pages = relayd_model_pages(model, chunk->token_begin + chunk->token_count);
    uint32_t missing = pages > reserved ? pages - reserved : 0;
    enum relay_code code = idle_check_locked(request, err);
    if (code == RELAY_OK && chunk->token_begin > held) {
        code =
            RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "a gap: token %u, layer %u holds %u tokens",
                       chunk->token_begin, chunk->layer, held);
    }
    if (code == RELAY_OK && missing != 0) {
        code = relayd_account_check(&model->store->request_bytes, model, missing, "request", err);
    }
    if (code == RELAY_OK) {
        code = relayd_request_room_locked(request, pages, err);
    }
    if (code == RELAY_OK && missing != 0) {
        code = relayd_pool_ensure(model->pool, missing, unlocked, err);
    }
    if (code == RELAY_OK && !*unlocked) {
        relayd_request_reserve_locked(request, pages);
        request->busy = true;
    }
    return code;
}

enum relay_code relayd_request_append(struct relayd_request *request,
                                      const struct relayd_kv_chunk *chunk, struct relay_error *err)
{
    struct relayd_model *model = request->model;
    struct relayd_store *store = model->store;
    enum relay_code code = relayd_chunk_check(model, chunk, store->options.context_tokens_max, err);
    bool unlocked;
    if (code != RELAY_OK) {
        return code;
    }
    relayd_request_ref(request); /* its session may close it meanwhile */
    relayd_store_lock(store);
    do {
        unlocked = false;
        code = append_begin_locked(request, chunk, &unlocked, err);
    } while (code == RELAY_OK && unlocked);
    relayd_store_unlock(store);
    if (code == RELAY_OK) {
        uint32_t end = chunk->token_begin + chunk->token_count;
        code = relayd_chunk_store(model, chunk, relayd_request_pages(request), NULL, err);
        if (code == RELAY_OK && end > relayd_request_held(request, chunk->layer)) {
            atomic_store_explicit(&request->held[chunk->layer], end, memory_order_relaxed);
        }
        relayd_store_lock(store);
        request->busy = false;
        relayd_request_settle_locked(request);
        relayd_store_unlock(store);
    }
    relayd_request_unref(request);
    return code;
}

enum relay_code relayd_request_truncate(struct relayd_request *request, uint32_t tokens_keep,
                                        struct relay_error *err)
{
    struct relayd_store *store = request->model->store;
    enum relay_code code;
    relayd_store_lock(store);
    code = idle_check_locked(request, err);
    for (uint32_t l = 0; code == RELAY_OK && l < request->model->spec->num_layers; l++) {
        if (atomic_load_explicit(&request->held[l], memory_order_relaxed) > tokens_keep) {
            atomic_store_explicit(&request->held[l], tokens_keep, memory_order_relaxed);
        }
    }
    if (code == RELAY_OK) {
        request->grown = true;
        relayd_request_settle_locked(request);
    }
    relayd_store_unlock(store);
    return code;
}
