/* Requests: life, lending, and what their layers hold. Counts, page arrays and lends are under the
 * store's mutex; held and step ids are atomics, written by the executor while the request is lent
 * and by append and truncate while it is not. */
#include "service/store/request_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- pages ---- */

enum relay_code relayd_request_room_locked(struct relayd_request *request, uint32_t pages,
                                           struct relay_error *err)
{
    struct relayd_page_array *array = request->array;
    struct relayd_page_array *grown;
    uint64_t capacity = array != NULL ? (uint64_t)array->capacity * 2 : 8;
    if (array != NULL && array->capacity >= pages) {
        return RELAY_OK;
    }
    capacity = capacity < pages ? pages : capacity;
    capacity = capacity > UINT32_MAX ? UINT32_MAX : capacity;
    grown = malloc(sizeof(*grown) + (size_t)capacity * sizeof(grown->ids[0]));
    if (grown == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for %u pages' ids", pages);
    }
    grown->capacity = (uint32_t)capacity;
    grown->older = array; /* whoever it is lent to may read it still */
    if (array != NULL) {
        memcpy(grown->ids, array->ids, request->reserved * sizeof(grown->ids[0]));
    }
    request->array = grown;
    atomic_store_explicit(&request->pages, grown->ids, memory_order_release);
    return RELAY_OK;
}

void relayd_request_reserve_locked(struct relayd_request *request, uint32_t pages)
{
    struct relayd_model *model = request->model;
    uint32_t reserved = atomic_load_explicit(&request->reserved, memory_order_relaxed);
    if (pages > reserved) {
        relayd_model_take_locked(model, &model->store->request_bytes, pages - reserved,
                                 request->array->ids + reserved);
        atomic_store_explicit(&request->reserved, pages, memory_order_relaxed);
        request->grown = true;
    }
}

/* Stamps are unique over all requests of the process, so that a plan is never taken for another's.
 */
static void restamp(struct relayd_request *request)
{
    static atomic_uint_least64_t stamps;
    uint64_t stamp = atomic_fetch_add_explicit(&stamps, 1, memory_order_relaxed) + 1;
    atomic_store_explicit(&request->pages_stamp, stamp, memory_order_relaxed);
}

static void arrays_free(struct relayd_page_array *array)
{
    while (array != NULL) {
        struct relayd_page_array *older = array->older;
        free(array);
        array = older;
    }
}

void relayd_request_settle_locked(struct relayd_request *request)
{
    struct relayd_model *model = request->model;
    uint32_t reserved = atomic_load_explicit(&request->reserved, memory_order_relaxed);
    uint32_t keep;
    if (request->lends != 0 || request->busy || request->array == NULL) {
        return;
    }
    arrays_free(request->array->older);
    request->array->older = NULL;
    if (!request->grown) {
        return;
    }
    request->grown = false;
    keep = relayd_model_pages(model, relayd_request_held_max(request));
    keep = keep > request->pages_floor ? keep : request->pages_floor;
    if (keep < reserved) {
        relayd_model_give_locked(model, &model->store->request_bytes, request->array->ids + keep,
                                 reserved - keep);
        atomic_store_explicit(&request->reserved, keep, memory_order_relaxed);
        restamp(request);
    }
}

/* ---- life ---- */

static void request_free(struct relayd_request *request)
{
    if (request != NULL) {
        relayd_prompt_release(request->prompt);
        relayd_model_release(request->model);
        arrays_free(request->array);
        free(request->held);
        free(request->layer_step);
        free(request);
    }
}

struct relayd_request *relayd_request_drop_locked(struct relayd_request *request)
{
    struct relayd_store *store = request->model->store;
    if (--request->holds != 0) {
        return NULL;
    }
    if (request->array != NULL) {
        relayd_model_give_locked(request->model, &store->request_bytes, request->array->ids,
                                 atomic_load_explicit(&request->reserved, memory_order_relaxed));
    }
    store->num_requests--;
    return request;
}

void relayd_request_unref(struct relayd_request *request)
{
    struct relayd_request *dead;
    struct relayd_store *store;
    if (request == NULL) {
        return;
    }
    store = request->model->store;
    relayd_store_lock(store);
    dead = relayd_request_drop_locked(request);
    relayd_store_unlock(store);
    request_free(dead);
}

void relayd_request_ref(struct relayd_request *request)
{
    relayd_store_lock(request->model->store);
    request->holds++;
    relayd_store_unlock(request->model->store);
}

void relayd_request_close(struct relayd_request *request)
{
    if (request != NULL) {
        relayd_store_lock(request->model->store);
        request->closed = true;
        relayd_store_unlock(request->model->store);
        relayd_request_unref(request);
    }
}

static enum relay_code admit_locked(struct relayd_request *request, uint32_t pages, bool *unlocked,
                                    struct relay_error *err)
{
    struct relayd_model *model = request->model;
    struct relayd_store *store = model->store;
    enum relay_code code;
    if (store->num_requests >= store->options.requests_max) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "all %u requests are open",
                          store->options.requests_max);
    }
    code = relayd_account_check(&store->request_bytes, model, pages, "request", err);
    if (code == RELAY_OK) {
        code = relayd_request_room_locked(request, pages, err);
    }
    if (code == RELAY_OK) {
        code = relayd_pool_ensure(model->pool, pages, unlocked, err);
    }
    if (code == RELAY_OK && !*unlocked) {
        relayd_request_reserve_locked(request, pages);
        request->grown = false;
        store->num_requests++;
    }
    return code;
}

enum relay_code relayd_request_create(struct relayd_model *model, struct relayd_prompt *prompt,
                                      uint64_t tag, uint32_t tokens_reserved,
                                      struct relayd_request **out, struct relay_error *err)
{
    struct relayd_store *store = model->store;
    struct relayd_request *request = calloc(1, sizeof(*request));
    enum relay_code code = RELAY_OK;
    bool unlocked;
    if (request == NULL) {
        relayd_prompt_release(prompt);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a request");
    }
    relayd_model_ref(model);
    request->model = model;
    request->prompt = prompt;
    request->tag = tag;
    request->holds = 1;
    restamp(request);
    request->held = calloc(model->spec->num_layers, sizeof(*request->held));
    request->layer_step = calloc(model->spec->num_layers, sizeof(*request->layer_step));
    if (request->held == NULL || request->layer_step == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a request");
    } else if (tokens_reserved > store->options.context_tokens_max) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%u tokens are more than a request's %u",
                          tokens_reserved, store->options.context_tokens_max);
    }
    if (code == RELAY_OK) {
        request->pages_floor = relayd_model_pages(model, tokens_reserved);
        relayd_store_lock(store);
        do {
            unlocked = false;
            code = admit_locked(request, request->pages_floor, &unlocked, err);
        } while (code == RELAY_OK && unlocked);
        relayd_store_unlock(store);
    }
    if (code != RELAY_OK) {
        request_free(request);
        return code;
    }
    *out = request;
    return RELAY_OK;
}

/* ---- observers ---- */

uint64_t relayd_request_tag(const struct relayd_request *request)
{
    return request->tag;
}

struct relayd_model *relayd_request_model(const struct relayd_request *request)
{
    return request->model;
}

const struct relayd_prompt *relayd_request_prompt(const struct relayd_request *request)
{
    return request->prompt;
}

uint32_t relayd_request_prompt_tokens(const struct relayd_request *request)
{
    return request->prompt != NULL ? request->prompt->num_tokens : 0;
}

uint32_t relayd_request_held(const struct relayd_request *request, uint32_t layer)
{
    return atomic_load_explicit(&request->held[request->model->layers[layer].kv_layer],
                                memory_order_relaxed);
}

uint32_t relayd_request_length(const struct relayd_request *request)
{
    const struct relayd_model *model = request->model;
    uint32_t length = UINT32_MAX;
    for (uint32_t l = 0; l < model->spec->num_layers; l++) {
        uint32_t held = relayd_request_held(request, l);
        length = held < length ? held : length;
    }
    return length;
}

uint32_t relayd_request_held_max(const struct relayd_request *request)
{
    const struct relayd_model *model = request->model;
    uint32_t most = 0;
    for (uint32_t l = 0; l < model->spec->num_layers; l++) {
        uint32_t held = relayd_request_held(request, l);
        most = held > most ? held : most;
    }
    return most;
}

uint64_t relayd_request_last_step(const struct relayd_request *request)
{
    return atomic_load_explicit(&request->last_step, memory_order_relaxed);
}

const uint32_t *relayd_request_pages(const struct relayd_request *request)
{
    return atomic_load_explicit(&request->pages, memory_order_acquire);
}

uint64_t relayd_request_pages_stamp(const struct relayd_request *request)
{
    return atomic_load_explicit(&request->pages_stamp, memory_order_relaxed);
}

/* ---- lending ---- */

#define REFUSE(lend, why, ...)                                                                     \
    do {                                                                                           \
        (lend)->code = (why);                                                                      \
        (void)snprintf((lend)->msg, sizeof((lend)->msg), __VA_ARGS__);                             \
        return;                                                                                    \
    } while (0)

static uint32_t pages_missing(const struct relayd_lend *lend)
{
    uint32_t needed = relayd_model_pages(lend->request->model, lend->tokens_needed);
    uint32_t reserved = atomic_load_explicit(&lend->request->reserved, memory_order_relaxed);
    return needed > reserved ? needed - reserved : 0;
}

/* Adds to *pages what an accepted lend needs of the pages that are left. */
static void lend_check_locked(struct relayd_lend *lend, const struct relayd_model *model,
                              uint64_t step_id, uint64_t left, uint64_t *pages)
{
    const struct relayd_request *request = lend->request;
    uint32_t tokens_max = model->store->options.context_tokens_max;
    uint64_t last_step = relayd_request_last_step(request);
    uint32_t missing = pages_missing(lend);
    lend->code = RELAY_OK;
    lend->msg[0] = '\0';
    if (request->model != model) {
        REFUSE(lend, RELAY_INVALID_ARGUMENT, "the request is of another model");
    }
    if (request->closed) {
        REFUSE(lend, RELAY_NOT_FOUND, "the request is closed");
    }
    if (request->busy) {
        REFUSE(lend, RELAY_FAILED_PRECONDITION, "an append to the request is running");
    }
    if (step_id != 0 && step_id < last_step) {
        REFUSE(lend, RELAY_ABORTED, "step %llu is older than step %llu",
               (unsigned long long)step_id, (unsigned long long)last_step);
    }
    if (lend->tokens_needed > tokens_max) {
        REFUSE(lend, RELAY_RESOURCE_EXHAUSTED, "%u tokens are more than a request's %u",
               lend->tokens_needed, tokens_max);
    }
    if (missing > left - *pages) {
        REFUSE(lend, RELAY_RESOURCE_EXHAUSTED, "request K/V: %u pages needed, %llu left", missing,
               (unsigned long long)(left - *pages));
    }
    *pages += missing;
}
#undef REFUSE

/* Memory could not be had: says so in every lend that wanted some. */
static enum relay_code refuse_growing(struct relayd_lend *lends, uint32_t n,
                                      const struct relay_error *why, struct relay_error *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (pages_missing(&lends[i]) != 0) {
            lends[i].code = why->code;
            (void)snprintf(lends[i].msg, sizeof(lends[i].msg), "%.90s", why->msg);
        }
    }
    return RELAY_FAIL(err, why->code, "%s", why->msg);
}

/* All checks first, then what can fail, then what cannot. */
static enum relay_code lend_locked(struct relayd_lend *lends, uint32_t n, uint64_t step_id,
                                   bool *unlocked, struct relay_error *err)
{
    struct relayd_model *model = lends[0].request->model;
    const struct relayd_account *account = &model->store->request_bytes;
    uint64_t left = (account->max - account->used) / model->page_bytes;
    const struct relayd_lend *refused = NULL;
    struct relay_error why;
    uint64_t pages = 0;
    enum relay_code code = RELAY_OK;
    for (uint32_t i = 0; i < n; i++) {
        lend_check_locked(&lends[i], model, step_id, left, &pages);
        refused = refused == NULL && lends[i].code != RELAY_OK ? &lends[i] : refused;
    }
    if (refused != NULL) {
        return RELAY_FAIL(err, refused->code, "%s", refused->msg);
    }
    for (uint32_t i = 0; i < n && code == RELAY_OK && pages != 0; i++) {
        code = relayd_request_room_locked(lends[i].request,
                                          relayd_model_pages(model, lends[i].tokens_needed), &why);
    }
    if (code == RELAY_OK && pages != 0) {
        code = relayd_pool_ensure(model->pool, pages, unlocked, &why);
    }
    if (code != RELAY_OK) {
        return refuse_growing(lends, n, &why, err);
    }
    for (uint32_t i = 0; i < n && !*unlocked; i++) {
        struct relayd_request *request = lends[i].request;
        relayd_request_reserve_locked(request, relayd_model_pages(model, lends[i].tokens_needed));
        request->lends++;
        request->holds++;
        if (step_id != 0) {
            atomic_store_explicit(&request->last_step, step_id, memory_order_relaxed);
        }
    }
    return RELAY_OK;
}

enum relay_code relayd_request_lend_all(struct relayd_lend *lends, uint32_t n, uint64_t step_id,
                                        uint64_t *kv_tokens_free, struct relay_error *err)
{
    const struct relayd_model *model;
    struct relayd_store *store;
    enum relay_code code;
    bool unlocked;
    if (n == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "no requests");
    }
    model = lends[0].request->model;
    store = model->store;
    relayd_store_lock(store);
    do {
        unlocked = false;
        code = lend_locked(lends, n, step_id, &unlocked, err);
    } while (code == RELAY_OK && unlocked);
    if (code == RELAY_OK && kv_tokens_free != NULL) {
        *kv_tokens_free = (store->request_bytes.max - store->request_bytes.used) /
                          model->page_bytes * model->page_tokens;
    }
    relayd_store_unlock(store);
    return code;
}

void relayd_request_unlend(struct relayd_request *request)
{
    struct relayd_store *store = request->model->store;
    struct relayd_request *dead;
    relayd_store_lock(store);
    request->lends--;
    relayd_request_settle_locked(request);
    dead = relayd_request_drop_locked(request);
    relayd_store_unlock(store);
    request_free(dead);
}

/* ---- what layers hold, while lent ---- */

enum relay_code relayd_request_layer_check(const struct relayd_request *request, uint32_t layer,
                                           uint32_t position, uint32_t q_len, bool write,
                                           struct relay_error *err)
{
    const struct relayd_model *model = request->model;
    uint64_t end = (uint64_t)position + q_len;
    uint32_t held = relayd_request_held(request, layer);
    if (write && !model->layers[layer].own) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "layer %u has the K/V of layer %u", layer,
                          model->layers[layer].kv_layer);
    }
    if (write && position > held) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "a gap: position %u, layer %u holds %u tokens", position, layer, held);
    }
    if (!write && end > held) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "positions [%u, +%u) without k and v, layer %u holds %u tokens", position,
                          q_len, layer, held);
    }
    if (end > (uint64_t)atomic_load_explicit(&request->reserved, memory_order_relaxed) *
                  model->page_tokens) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "positions [%u, +%u) were not reserved", position,
                          q_len);
    }
    return RELAY_OK;
}

void relayd_request_layer_write(struct relayd_request *request, uint32_t layer, uint64_t step_id,
                                uint32_t position, uint32_t q_len)
{
    uint32_t held = relayd_request_held(request, layer);
    uint64_t last = atomic_load_explicit(&request->layer_step[layer], memory_order_relaxed);
    uint32_t end = position + q_len;
    if (step_id == 0 || step_id > last || end > held) {
        atomic_store_explicit(&request->held[layer], end, memory_order_relaxed);
    }
    if (step_id > last) {
        atomic_store_explicit(&request->layer_step[layer], step_id, memory_order_relaxed);
    }
}
