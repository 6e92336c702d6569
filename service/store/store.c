/* The store as a whole: its options, its end, its counters and its clockwork. Any thread. */
#include "service/store/store_internal.h"

#include "service/base/log.h"

#include <stdlib.h>
#include <sys/random.h>

/* Pages beyond this make no sense and would strain sizes. */
#define PAGE_TOKENS_MAX 65536u

static enum relay_code options_check(const struct relayd_store_options *options,
                                     struct relay_error *err)
{
    uint32_t page_tokens = options->page_tokens != 0
                               ? options->page_tokens
                               : relay_backend_info(options->backend)->page_tokens;
    if (page_tokens == 0 || page_tokens > PAGE_TOKENS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "page_tokens %u is not in 1..%u",
                          page_tokens, PAGE_TOKENS_MAX);
    }
    if ((uint64_t)options->prompt_tokens_max + options->context_tokens_max > UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "prompt_tokens_max %u and context_tokens_max %u exceed 32 bits together",
                          options->prompt_tokens_max, options->context_tokens_max);
    }
    if (options->prompt_bytes_max > UINT64_MAX / 2 || options->request_bytes_max > UINT64_MAX / 2) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "K/V budgets exceed 63 bits");
    }
    if (options->models_max == 0 || options->prompts_max == 0 || options->uploads_max == 0 ||
        options->requests_max == 0 || options->chunk_bytes_max == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "models_max, prompts_max, uploads_max, requests_max and chunk_bytes_max "
                          "must not be 0");
    }
    return RELAY_OK;
}

enum relay_code relayd_store_create(const struct relayd_store_options *options,
                                    struct relayd_store **out, struct relay_error *err)
{
    struct relayd_store *store;
    enum relay_code code = options_check(options, err);
    if (code != RELAY_OK) {
        return code;
    }
    store = calloc(1, sizeof(*store));
    if (store == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the store");
    }
    store->options = *options;
    store->prompt_bytes.max = options->prompt_bytes_max;
    store->request_bytes.max = options->request_bytes_max;
    store->prompts = calloc(options->prompts_max, sizeof(struct relayd_prompt *));
    if (store->prompts == NULL) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a table of %u prompts",
                          options->prompts_max);
        goto out;
    }
    if (getrandom(&store->generation_start, sizeof(store->generation_start), 0) !=
        (ssize_t)sizeof(store->generation_start)) {
        code = RELAY_FAIL(err, RELAY_INTERNAL, "no random numbers");
        goto out;
    }
    if (pthread_mutex_init(&store->mutex, NULL) != 0) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot make a mutex");
        goto out;
    }
    code = relayd_pools_init(&store->pools, options->backend, &store->mutex,
                             options->prompt_bytes_max + options->request_bytes_max, err);
    if (code != RELAY_OK) {
        (void)pthread_mutex_destroy(&store->mutex);
        goto out;
    }
    *out = store;
    return RELAY_OK;
out:
    free(store->prompts);
    free(store);
    return code;
}

void relayd_store_destroy(struct relayd_store *store)
{
    struct relayd_prompt *garbage = NULL;
    struct relayd_partial *partials;
    if (store == NULL) {
        return;
    }
    relayd_store_lock(store);
    partials = relayd_partials_sweep_locked(store, UINT64_MAX);
    relayd_prompts_clear_locked(store, &garbage);
    relayd_store_unlock(store);
    (void)relayd_partials_free(partials);
    relayd_prompts_free(garbage);
    relayd_pools_fini(&store->pools);
    (void)pthread_mutex_destroy(&store->mutex);
    free(store->prompts);
    free(store);
}

void relayd_store_stats(struct relayd_store *store, struct relayd_store_stats *out)
{
    relayd_store_lock(store);
    out->prompt_bytes_used = store->prompt_bytes.used;
    out->prompt_bytes_max = store->prompt_bytes.max;
    out->request_bytes_used = store->request_bytes.used;
    out->request_bytes_max = store->request_bytes.max;
    out->pages_used = store->pools.pages_used;
    out->models = store->num_models;
    out->prompts = store->num_prompts;
    out->prompts_doomed = store->num_doomed;
    out->uploads = store->num_uploads;
    out->requests = store->num_requests;
    relayd_store_unlock(store);
}

const struct relayd_store_options *relayd_store_limits(const struct relayd_store *store)
{
    return &store->options;
}

uint32_t relayd_store_sweep(struct relayd_store *store)
{
    uint64_t now_ns = relayd_clock_now_ns(store->options.clock);
    struct relayd_prompt *garbage = NULL;
    struct relayd_partial *partials;
    uint32_t n;
    relayd_store_lock(store);
    n = relayd_prompts_sweep_locked(store, now_ns, &garbage);
    partials = relayd_partials_sweep_locked(store, now_ns);
    (void)relayd_pools_trim(&store->pools);
    relayd_store_unlock(store);
    for (const struct relayd_prompt *prompt = garbage; prompt != NULL; prompt = prompt->next) {
        RELAYD_LOG(INFO, "prompt.expired", "id=%s generation=%016llx", prompt->id,
                   (unsigned long long)prompt->generation);
    }
    relayd_prompts_free(garbage);
    return n + relayd_partials_free(partials);
}
