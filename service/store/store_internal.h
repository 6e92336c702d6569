/* What the files of the store share: its objects and the steps that run under its mutex.
 *
 * Functions with _locked in their name want the store's mutex held. Objects that end under the
 * mutex are unlinked there and freed after it was let go. */
#ifndef RELAYD_STORE_INTERNAL_H
#define RELAYD_STORE_INTERNAL_H

#include "service/store/pool.h"
#include "service/store/requests.h"

#include <pthread.h>

/* Out of memory in a table is an error, not the end of the process. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

struct relayd_account {
    uint64_t used, max; /* bytes, in whole pages */
};

struct relayd_store {
    struct relayd_store_options options;
    pthread_mutex_t mutex;
    /* Below: under the mutex. */
    struct relayd_pools pools;
    struct relayd_model *models;      /* uthash by tenant NUL model key */
    struct relayd_partial *partials;  /* all, a utlist */
    struct relayd_partial *resumable; /* those with an upload id: uthash by it and tenant */
    /* Live prompts in (tenant, model key, id) order: found by bisection, listed by walking. */
    struct relayd_prompt **prompts; /* [prompts_max] */
    uint32_t num_prompts;
    uint32_t num_doomed;
    uint32_t num_uploads;
    uint32_t num_requests;
    uint32_t num_models;
    struct relayd_account prompt_bytes;
    struct relayd_account request_bytes;
    uint64_t generation_start; /* random */
    uint64_t generations;      /* made so far */
};

static inline void relayd_store_lock(struct relayd_store *store)
{
    (void)pthread_mutex_lock(&store->mutex);
}

static inline void relayd_store_unlock(struct relayd_store *store)
{
    (void)pthread_mutex_unlock(&store->mutex);
}

/* ---- models ---- */

struct relayd_layer {
    struct relay_kv_layer kv;
    struct relay_shape shape; /* F32 in and out: what matters here is its K/V */
    uint32_t kv_layer;
    bool own; /* has K/V of its own */
};

struct relayd_model {
    struct relayd_store *store;
    char *table_key; /* tenant NUL key NUL */
    size_t table_key_bytes;
    const char *tenant; /* into table_key */
    struct relay_model *spec;
    struct relayd_pool *pool;
    struct relayd_layer *layers; /* [L] */
    uint32_t page_tokens;
    uint64_t page_bytes;
    uint32_t refs; /* under the mutex */
    UT_hash_handle hh;
};

/* Pages that hold so many tokens. */
static inline uint32_t relayd_model_pages(const struct relayd_model *model, uint32_t tokens)
{
    return tokens / model->page_tokens + (tokens % model->page_tokens != 0 ? 1u : 0u);
}

/* The first token of a layer's K/V that a row at position >= num_tokens can see, whichever layer
 * reads it; num_tokens when none can. */
uint32_t relayd_model_first_token(const struct relayd_model *model, uint32_t layer,
                                  uint32_t num_tokens);

/* Whether n more pages fit an account; RESOURCE_EXHAUSTED saying what is free. */
RELAY_MUST_CHECK enum relay_code relayd_account_check(const struct relayd_account *account,
                                                      const struct relayd_model *model,
                                                      uint64_t pages, const char *what,
                                                      struct relay_error *err);
/* Takes pages that were checked and made ready, and charges them. */
void relayd_model_take_locked(struct relayd_model *model, struct relayd_account *account,
                              uint32_t n, uint32_t *ids);
void relayd_model_give_locked(struct relayd_model *model, struct relayd_account *account,
                              const uint32_t *ids, uint32_t n);

/* ---- prompts ---- */

struct relayd_prompt {
    struct relayd_model *model; /* a reference */
    char id[RELAYD_PROMPT_ID_BYTES_MAX + 1];
    char variant[RELAYD_VARIANT_BYTES_MAX + 1];
    uint8_t content_key[RELAYD_CONTENT_KEY_BYTES_MAX];
    uint32_t content_key_bytes;
    uint8_t digest[RELAYD_DIGEST_BYTES];
    uint64_t generation;
    uint32_t num_tokens;
    uint32_t num_pages;
    uint32_t *pages;
    uint32_t num_labels;
    struct relayd_label *labels;
    uint64_t created_unix_ms;
    /* Below: under the mutex once it is live. */
    uint64_t uses; /* acquired and not released */
    uint64_t hits;
    uint64_t idle_ttl_ms;
    uint64_t last_used_unix_ms;
    uint64_t last_used_ns;
    bool pinned;
    bool doomed;
    struct relayd_prompt *next; /* among those to be freed */
};

/* Frees a list of prompts whose pages were given back, linked by next. Not locked. */
void relayd_prompts_free(struct relayd_prompt *list);
/* The live prompt, or NULL; *index, if not NULL, is where it is or would be. */
struct relayd_prompt *relayd_prompt_find_locked(struct relayd_store *store, const char *tenant,
                                                const char *model_key, const char *id,
                                                uint32_t *index);
/* Makes an uploaded prompt live, with a new generation, in place of the one at index if `replace`.
 */
void relayd_prompt_publish_locked(struct relayd_prompt *prompt, uint32_t index, bool replace,
                                  struct relayd_prompt **garbage);
void relayd_prompt_touch_locked(struct relayd_prompt *prompt);
void relayd_prompt_info_locked(const struct relayd_prompt *prompt, struct relayd_prompt_info *out);
/* Dooms what idled past its TTL. Returns how many. */
uint32_t relayd_prompts_sweep_locked(struct relayd_store *store, uint64_t now_ns,
                                     struct relayd_prompt **garbage);
/* Takes all live prompts out, for the store's end. */
void relayd_prompts_clear_locked(struct relayd_store *store, struct relayd_prompt **garbage);

/* ---- uploads ---- */

/* Takes out partials whose time has passed (now_ns UINT64_MAX: all that wait), linked by next. */
struct relayd_partial *relayd_partials_sweep_locked(struct relayd_store *store, uint64_t now_ns);
/* Frees such a list; returns how many. Not locked. */
uint32_t relayd_partials_free(struct relayd_partial *list);

/* ---- chunks: checked, converted and stored; no lock is held ---- */

struct relayd_digest;

/* Layer, range within [0, tokens_max), byte counts, checksum. */
RELAY_MUST_CHECK enum relay_code relayd_chunk_check(const struct relayd_model *model,
                                                    const struct relayd_kv_chunk *chunk,
                                                    uint32_t tokens_max, struct relay_error *err);
/* Writes a checked chunk to pages that hold its range, and adds the stored bytes to digest if that
 * is not NULL. */
RELAY_MUST_CHECK enum relay_code relayd_chunk_store(const struct relayd_model *model,
                                                    const struct relayd_kv_chunk *chunk,
                                                    const uint32_t *pages,
                                                    struct relayd_digest *digest,
                                                    struct relay_error *err);

/* ---- digests ---- */

/* Of a prompt's stored bytes, over the layers with own K/V in layer order. A layer's digest is
 * SHA-256(SHA-256(all its K) || SHA-256(all its V)), so that neither the order of layers nor the
 * way a layer was cut into chunks matters. */
RELAY_MUST_CHECK enum relay_code relayd_digest_create(uint32_t num_layers,
                                                      struct relayd_digest **out,
                                                      struct relay_error *err);
void relayd_digest_destroy(struct relayd_digest *digest);
/* The next bytes of a layer's K and V. After an error the digest is good for nothing. */
RELAY_MUST_CHECK enum relay_code relayd_digest_update(struct relayd_digest *digest, uint32_t layer,
                                                      const void *k, size_t k_bytes, const void *v,
                                                      size_t v_bytes, struct relay_error *err);
/* Once. */
RELAY_MUST_CHECK enum relay_code relayd_digest_final(struct relayd_digest *digest,
                                                     const struct relayd_model *model,
                                                     uint8_t out[RELAYD_DIGEST_BYTES],
                                                     struct relay_error *err);

#endif
