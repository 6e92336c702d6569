/* Prompts: immutable K/V by (tenant, model key, prompt id). LIVE ones are found by id; a replaced,
 * unregistered or expired one in use is DOOMED: found by nobody new, freed with its last reference.
 * Generations are opaque, never reused, also across restarts. */
#ifndef RELAYD_STORE_PROMPTS_H
#define RELAYD_STORE_PROMPTS_H

#include "service/store/models.h"

#define RELAYD_PROMPT_ID_BYTES_MAX   128u
#define RELAYD_VARIANT_BYTES_MAX     128u
#define RELAYD_CONTENT_KEY_BYTES_MAX 64u
#define RELAYD_DIGEST_BYTES          32u
#define RELAYD_LABELS_MAX            32u
#define RELAYD_LABEL_BYTES_MAX       128u /* of a key, of a value */

struct relayd_label {
    char key[RELAYD_LABEL_BYTES_MAX + 1];
    char value[RELAYD_LABEL_BYTES_MAX + 1];
};

/* A copy of what a prompt is, for answers. ~10 KiB: keep it off hot stacks. */
struct relayd_prompt_info {
    char prompt_id[RELAYD_PROMPT_ID_BYTES_MAX + 1];
    char model_key[RELAY_MODEL_KEY_BYTES_MAX + 1];
    char variant[RELAYD_VARIANT_BYTES_MAX + 1];
    uint8_t content_key[RELAYD_CONTENT_KEY_BYTES_MAX];
    uint32_t content_key_bytes;
    uint8_t digest[RELAYD_DIGEST_BYTES]; /* SHA-256 over the layers' SHA-256s, layer order */
    uint64_t generation;
    uint32_t num_tokens;
    uint64_t bytes;
    uint64_t references;  /* open requests and uses right now */
    uint64_t hits;        /* requests opened on it so far */
    uint64_t idle_ttl_ms; /* 0 = never */
    uint64_t created_unix_ms;
    uint64_t last_used_unix_ms;
    bool pinned; /* idle TTL does not apply */
    bool doomed;
    uint32_t num_labels;
    struct relayd_label labels[RELAYD_LABELS_MAX];
};

struct relayd_prompt;

/* INVALID_ARGUMENT unless id matches [A-Za-z0-9._:/@#+-]{1,128}. */
RELAY_MUST_CHECK enum relay_code relayd_prompt_id_check(const char *id, size_t bytes,
                                                        struct relay_error *err);

/* Finds a LIVE prompt and takes a reference, counting a hit. NOT_FOUND; FAILED_PRECONDITION when
 * the variant differs (both named) or content_key is given, known and different; ABORTED when
 * generation is not 0 and not the live one. */
struct relayd_prompt_query {
    const char *prompt_id;
    const char *variant; /* "" */
    uint64_t generation; /* 0 = newest */
    const uint8_t *content_key;
    uint32_t content_key_bytes; /* 0 = do not compare */
};
RELAY_MUST_CHECK enum relay_code relayd_prompt_acquire(struct relayd_model *model,
                                                       const struct relayd_prompt_query *query,
                                                       struct relayd_prompt **out,
                                                       struct relay_error *err);
void relayd_prompt_release(struct relayd_prompt *prompt);

/* Immutable once LIVE. */
uint32_t relayd_prompt_tokens(const struct relayd_prompt *prompt);
uint64_t relayd_prompt_generation(const struct relayd_prompt *prompt);
const uint32_t *relayd_prompt_pages(const struct relayd_prompt *prompt);

/* By name; tenant and model key say where to look. NOT_FOUND. */
struct relayd_prompt_name {
    const char *tenant;
    const char *model_key;
    const char *prompt_id;
};
RELAY_MUST_CHECK enum relay_code relayd_prompt_get(struct relayd_store *store,
                                                   const struct relayd_prompt_name *name,
                                                   struct relayd_prompt_info *out,
                                                   struct relay_error *err);

/* Live prompts of a tenant in (model key, id) order after the cursor, ids beginning with prefix,
 * model_key "" = all. Writes at most max infos, returns how many; *more says whether others follow.
 */
struct relayd_prompt_list {
    const char *tenant;
    const char *model_key;
    const char *id_prefix;
    const char *after_model_key; /* "" = from the start */
    const char *after_prompt_id;
};
uint32_t relayd_prompt_list(struct relayd_store *store, const struct relayd_prompt_list *query,
                            struct relayd_prompt_info *out, uint32_t max, bool *more);

struct relayd_prompt_update {
    uint64_t generation; /* 0 = whichever is live; another one is ABORTED */
    bool set_pinned, pinned;
    bool set_idle_ttl, touch; /* touch: counts as used now */
    uint64_t idle_ttl_ms;
};
RELAY_MUST_CHECK enum relay_code relayd_prompt_update(struct relayd_store *store,
                                                      const struct relayd_prompt_name *name,
                                                      const struct relayd_prompt_update *update,
                                                      struct relayd_prompt_info *out,
                                                      struct relay_error *err);
/* Dooms it (freed at once when nobody uses it). generation 0 = whichever is live; else ABORTED when
 * it is another. out says what was unregistered. */
RELAY_MUST_CHECK enum relay_code relayd_prompt_unregister(struct relayd_store *store,
                                                          const struct relayd_prompt_name *name,
                                                          uint64_t generation,
                                                          struct relayd_prompt_info *out,
                                                          struct relay_error *err);

#endif
