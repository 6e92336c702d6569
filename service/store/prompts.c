/* Live and doomed prompts. Any thread; the table and what changes in a prompt are under the store's
 * mutex, its pages and description never change. A prompt is freed after the mutex was let go. */
#include "service/base/log.h"
#include "service/store/store_internal.h"

#include <stdlib.h>
#include <string.h>

/* Infos copied per hold of the mutex by list. */
#define LIST_BATCH 8u
/* Sorts after every id with the characters ids may have. */
#define AFTER_ALL_IDS "\x7f"

static bool id_char(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("._:/@#+-", c) != NULL);
}

enum relay_code relayd_prompt_id_check(const char *id, size_t bytes, struct relay_error *err)
{
    if (bytes == 0 || bytes > RELAYD_PROMPT_ID_BYTES_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "a prompt id has 1..%u bytes, got %zu",
                          RELAYD_PROMPT_ID_BYTES_MAX, bytes);
    }
    for (size_t i = 0; i < bytes; i++) {
        if (!id_char(id[i])) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "byte %zu of the prompt id is not in [A-Za-z0-9._:/@#+-]", i);
        }
    }
    return RELAY_OK;
}

/* ---- the table ---- */

static int compare(const struct relayd_prompt *prompt, const char *tenant, const char *model_key,
                   const char *id)
{
    int order = strcmp(prompt->model->tenant, tenant);
    if (order == 0) {
        order = strcmp(prompt->model->spec->key, model_key);
    }
    return order != 0 ? order : strcmp(prompt->id, id);
}

/* Index of the first live prompt at or after the name. */
static uint32_t lower_bound(const struct relayd_store *store, const char *tenant,
                            const char *model_key, const char *id)
{
    uint32_t lo = 0;
    uint32_t hi = store->num_prompts;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (compare(store->prompts[mid], tenant, model_key, id) < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

struct relayd_prompt *relayd_prompt_find_locked(struct relayd_store *store, const char *tenant,
                                                const char *model_key, const char *id,
                                                uint32_t *index)
{
    uint32_t at = lower_bound(store, tenant, model_key, id);
    if (index != NULL) {
        *index = at;
    }
    return at < store->num_prompts && compare(store->prompts[at], tenant, model_key, id) == 0
               ? store->prompts[at]
               : NULL;
}

static void pages_give_locked(struct relayd_prompt *prompt, struct relayd_prompt **garbage)
{
    struct relayd_model *model = prompt->model;
    relayd_model_give_locked(model, &model->store->prompt_bytes, prompt->pages, prompt->num_pages);
    prompt->next = *garbage;
    *garbage = prompt;
}

/* For a prompt that has left the table. */
static void doom_locked(struct relayd_prompt *prompt, struct relayd_prompt **garbage)
{
    if (prompt->uses == 0) {
        pages_give_locked(prompt, garbage);
        return;
    }
    prompt->doomed = true;
    prompt->model->store->num_doomed++;
}

void relayd_prompts_free(struct relayd_prompt *list)
{
    while (list != NULL) {
        struct relayd_prompt *prompt = list;
        list = prompt->next;
        relayd_model_release(prompt->model);
        free(prompt->pages);
        free(prompt->labels);
        free(prompt);
    }
}

/* A bijection of 64-bit numbers (the end of splitmix64): a counter from a random start gives
 * generations that never come twice, tell nothing, and do not come again after a restart. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t generation_new_locked(struct relayd_store *store)
{
    uint64_t generation;
    do { /* 0 means "newest" in queries */
        generation = mix(store->generation_start + store->generations++);
    } while (generation == 0);
    return generation;
}

void relayd_prompt_touch_locked(struct relayd_prompt *prompt)
{
    const struct relayd_clock *clock = prompt->model->store->options.clock;
    prompt->last_used_ns = relayd_clock_now_ns(clock);
    prompt->last_used_unix_ms = relayd_clock_unix_ms(clock);
}

void relayd_prompt_publish_locked(struct relayd_prompt *prompt, uint32_t index, bool replace,
                                  struct relayd_prompt **garbage)
{
    struct relayd_store *store = prompt->model->store;
    struct relayd_prompt **at = &store->prompts[index];
    prompt->generation = generation_new_locked(store);
    relayd_prompt_touch_locked(prompt);
    prompt->created_unix_ms = prompt->last_used_unix_ms;
    if (replace) {
        doom_locked(*at, garbage);
    } else {
        memmove(at + 1, at, (store->num_prompts - index) * sizeof(*at));
        store->num_prompts++;
    }
    *at = prompt;
}

static void remove_locked(struct relayd_store *store, uint32_t index)
{
    struct relayd_prompt **at = &store->prompts[index];
    store->num_prompts--;
    memmove(at, at + 1, (store->num_prompts - index) * sizeof(*at));
}

uint32_t relayd_prompts_sweep_locked(struct relayd_store *store, uint64_t now_ns,
                                     struct relayd_prompt **garbage)
{
    uint32_t kept = 0;
    uint32_t n = store->num_prompts;
    for (uint32_t i = 0; i < n; i++) {
        struct relayd_prompt *prompt = store->prompts[i];
        bool idle = prompt->uses == 0 && !prompt->pinned && prompt->idle_ttl_ms != 0 &&
                    now_ns >= prompt->last_used_ns &&
                    (now_ns - prompt->last_used_ns) / 1000000u >= prompt->idle_ttl_ms;
        if (idle) {
            doom_locked(prompt, garbage);
        } else {
            store->prompts[kept++] = prompt;
        }
    }
    store->num_prompts = kept;
    return n - kept;
}

void relayd_prompts_clear_locked(struct relayd_store *store, struct relayd_prompt **garbage)
{
    while (store->num_prompts > 0) {
        store->num_prompts--;
        doom_locked(store->prompts[store->num_prompts], garbage);
    }
}

void relayd_prompt_info_locked(const struct relayd_prompt *prompt, struct relayd_prompt_info *out)
{
    memset(out, 0, offsetof(struct relayd_prompt_info, labels));
    memcpy(out->prompt_id, prompt->id, sizeof(out->prompt_id));
    memcpy(out->model_key, prompt->model->spec->key, strlen(prompt->model->spec->key));
    memcpy(out->variant, prompt->variant, sizeof(out->variant));
    memcpy(out->content_key, prompt->content_key, sizeof(out->content_key));
    out->content_key_bytes = prompt->content_key_bytes;
    memcpy(out->digest, prompt->digest, sizeof(out->digest));
    out->generation = prompt->generation;
    out->num_tokens = prompt->num_tokens;
    out->bytes = prompt->num_pages * prompt->model->page_bytes;
    out->references = prompt->uses;
    out->hits = prompt->hits;
    out->idle_ttl_ms = prompt->idle_ttl_ms;
    out->created_unix_ms = prompt->created_unix_ms;
    out->last_used_unix_ms = prompt->last_used_unix_ms;
    out->pinned = prompt->pinned;
    out->doomed = prompt->doomed;
    out->num_labels = prompt->num_labels;
    if (prompt->num_labels != 0) {
        memcpy(out->labels, prompt->labels, prompt->num_labels * sizeof(*out->labels));
    }
}

/* ---- use ---- */

static enum relay_code query_check_locked(const struct relayd_prompt *prompt,
                                          const struct relayd_prompt_query *query,
                                          struct relay_error *err)
{
    if (query->generation != 0 && query->generation != prompt->generation) {
        return RELAY_FAIL(err, RELAY_ABORTED,
                          "prompt %s has generation %016llx, %016llx was asked for", prompt->id,
                          (unsigned long long)prompt->generation,
                          (unsigned long long)query->generation);
    }
    if (strcmp(prompt->variant, query->variant != NULL ? query->variant : "") != 0) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "prompt %.64s has variant \"%.64s\", \"%.64s\" was asked for", prompt->id,
                          prompt->variant, query->variant != NULL ? query->variant : "");
    }
    if (query->content_key_bytes != 0 && prompt->content_key_bytes != 0 &&
        (query->content_key_bytes != prompt->content_key_bytes ||
         memcmp(query->content_key, prompt->content_key, prompt->content_key_bytes) != 0)) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION,
                          "prompt %s was registered with another content key", prompt->id);
    }
    return RELAY_OK;
}

static enum relay_code not_found(const char *id, struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_NOT_FOUND, "no prompt \"%.128s\"", id);
}

enum relay_code relayd_prompt_acquire(struct relayd_model *model,
                                      const struct relayd_prompt_query *query,
                                      struct relayd_prompt **out, struct relay_error *err)
{
    struct relayd_store *store = model->store;
    struct relayd_prompt *prompt;
    enum relay_code code;
    relayd_store_lock(store);
    prompt =
        relayd_prompt_find_locked(store, model->tenant, model->spec->key, query->prompt_id, NULL);
    code =
        prompt != NULL ? query_check_locked(prompt, query, err) : not_found(query->prompt_id, err);
    if (code == RELAY_OK) {
        prompt->uses++;
        prompt->hits++;
        relayd_prompt_touch_locked(prompt);
        *out = prompt;
    }
    relayd_store_unlock(store);
    return code;
}

void relayd_prompt_release(struct relayd_prompt *prompt)
{
    struct relayd_prompt *garbage = NULL;
    struct relayd_store *store;
    if (prompt == NULL) {
        return;
    }
    store = prompt->model->store;
    relayd_store_lock(store);
    prompt->uses--;
    relayd_prompt_touch_locked(prompt);
    if (prompt->doomed && prompt->uses == 0) {
        store->num_doomed--;
        pages_give_locked(prompt, &garbage);
    }
    relayd_store_unlock(store);
    relayd_prompts_free(garbage);
}

uint32_t relayd_prompt_tokens(const struct relayd_prompt *prompt)
{
    return prompt->num_tokens;
}

uint64_t relayd_prompt_generation(const struct relayd_prompt *prompt)
{
    return prompt->generation;
}

const uint32_t *relayd_prompt_pages(const struct relayd_prompt *prompt)
{
    return prompt->pages;
}

/* ---- by name ---- */

enum relay_code relayd_prompt_get(struct relayd_store *store, const struct relayd_prompt_name *name,
                                  struct relayd_prompt_info *out, struct relay_error *err)
{
    static const struct relayd_prompt_update nothing;
    return relayd_prompt_update(store, name, &nothing, out, err);
}

enum relay_code relayd_prompt_update(struct relayd_store *store,
                                     const struct relayd_prompt_name *name,
                                     const struct relayd_prompt_update *update,
                                     struct relayd_prompt_info *out, struct relay_error *err)
{
    struct relayd_prompt *prompt;
    bool other;
    relayd_store_lock(store);
    prompt = relayd_prompt_find_locked(store, name->tenant, name->model_key, name->prompt_id, NULL);
    other = prompt != NULL && update->generation != 0 && update->generation != prompt->generation;
    if (prompt != NULL && !other) {
        prompt->pinned = update->set_pinned ? update->pinned : prompt->pinned;
        prompt->idle_ttl_ms = update->set_idle_ttl ? update->idle_ttl_ms : prompt->idle_ttl_ms;
        if (update->touch) {
            relayd_prompt_touch_locked(prompt);
        }
        relayd_prompt_info_locked(prompt, out);
    }
    relayd_store_unlock(store);
    if (other) {
        return RELAY_FAIL(err, RELAY_ABORTED, "prompt %s has another generation by now",
                          name->prompt_id);
    }
    return prompt != NULL ? RELAY_OK : not_found(name->prompt_id, err);
}

enum relay_code relayd_prompt_unregister(struct relayd_store *store,
                                         const struct relayd_prompt_name *name, uint64_t generation,
                                         struct relayd_prompt_info *out, struct relay_error *err)
{
    struct relayd_prompt *garbage = NULL;
    struct relayd_prompt *prompt;
    enum relay_code code = RELAY_OK;
    uint32_t index;
    relayd_store_lock(store);
    prompt =
        relayd_prompt_find_locked(store, name->tenant, name->model_key, name->prompt_id, &index);
    if (prompt == NULL) {
        code = not_found(name->prompt_id, err);
    } else if (generation != 0 && generation != prompt->generation) {
        code = RELAY_FAIL(err, RELAY_ABORTED, "prompt %s has generation %016llx, not %016llx",
                          prompt->id, (unsigned long long)prompt->generation,
                          (unsigned long long)generation);
    } else {
        remove_locked(store, index);
        doom_locked(prompt, &garbage);
        relayd_prompt_info_locked(prompt, out);
    }
    relayd_store_unlock(store);
    relayd_prompts_free(garbage);
    if (code == RELAY_OK) {
        RELAYD_LOG(INFO, "prompt.unregistered", "id=%s generation=%016llx in_use=%d",
                   out->prompt_id, (unsigned long long)out->generation, out->doomed);
    }
    return code;
}

/* ---- list ---- */

/* From index on, the first prompt that the query wants, jumping over what cannot match; num_prompts
 * when there is none. */
static uint32_t list_next_locked(const struct relayd_store *store,
                                 const struct relayd_prompt_list *query, uint32_t index)
{
    size_t prefix_bytes = strlen(query->id_prefix);
    while (index < store->num_prompts) {
        const struct relayd_prompt *prompt = store->prompts[index];
        const char *key = prompt->model->spec->key;
        int order;
        if (strcmp(prompt->model->tenant, query->tenant) != 0 ||
            (query->model_key[0] != '\0' && strcmp(key, query->model_key) != 0)) {
            return store->num_prompts;
        }
        order = strncmp(prompt->id, query->id_prefix, prefix_bytes);
        if (order == 0) {
            return index;
        }
        index =
            lower_bound(store, query->tenant, key, order < 0 ? query->id_prefix : AFTER_ALL_IDS);
    }
    return index;
}

/* Where a list begins: after its cursor, and not before the one model it wants. */
static uint32_t list_begin_locked(const struct relayd_store *store,
                                  const struct relayd_prompt_list *query, const char *after_model,
                                  const char *after_id)
{
    uint32_t index;
    if (after_model[0] == '\0' ||
        (query->model_key[0] != '\0' && strcmp(after_model, query->model_key) < 0)) {
        return lower_bound(store, query->tenant, query->model_key, "");
    }
    index = lower_bound(store, query->tenant, after_model, after_id);
    if (index < store->num_prompts &&
        compare(store->prompts[index], query->tenant, after_model, after_id) == 0) {
        index++;
    }
    return index;
}

uint32_t relayd_prompt_list(struct relayd_store *store, const struct relayd_prompt_list *query,
                            struct relayd_prompt_info *out, uint32_t max, bool *more)
{
    const char *after_model = query->after_model_key;
    const char *after_id = query->after_prompt_id;
    uint32_t n = 0;
    bool follows = true;
    while (follows && n <= max) {
        uint32_t batch = 0;
        uint32_t index;
        relayd_store_lock(store);
        index = list_begin_locked(store, query, after_model, after_id);
        index = list_next_locked(store, query, index);
        for (; index < store->num_prompts && batch < LIST_BATCH && n < max; batch++) {
            relayd_prompt_info_locked(store->prompts[index], &out[n++]);
            index = list_next_locked(store, query, index + 1);
        }
        follows = index < store->num_prompts;
        relayd_store_unlock(store);
        if (n == max) {
            break;
        }
        if (n > 0) {
            after_model = out[n - 1].model_key;
            after_id = out[n - 1].prompt_id;
        }
    }
    *more = follows;
    return n;
}
