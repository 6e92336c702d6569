/* librelay: registering and managing prompts. Rules of client.h hold here too.
 *
 * A prompt is K/V of a token sequence under an id; its key is (tenant, model key, id). Prompts
 * belong to the tenant, not to a session. Ids match [A-Za-z0-9._:/@#+-]{1,128}. */
#ifndef RELAY_CLIENT_PROMPTS_H
#define RELAY_CLIENT_PROMPTS_H

#include <relay/client.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What to do when the id is registered already. Sameness: content keys where both have one, else
 * the stored bytes. */
enum relay_on_exists {
    RELAY_ON_EXISTS_SAME_OR_FAIL = 0, /* ALREADY_EXISTS when it differs */
    RELAY_ON_EXISTS_KEEP = 1,         /* the old one is the answer */
    RELAY_ON_EXISTS_REPLACE = 2,      /* new generation; requests on the old one finish on it */
};

struct relay_label {
    const char *key;
    const char *value;
};

/* Gives K/V of tokens [token_begin, +token_count) of a layer with K/V of its own: sets out->k
 * [token_count,Hkv,dqk] and out->v [token_count,Hkv,dv], of source_dtype. The memory must stay
 * readable until the next call of the source, or until relay_prompt_register returns. Called on the
 * registering thread; tokens ascend within a layer, but a resumed upload asks again from where the
 * server is. A code other than OK ends the upload. */
typedef enum relay_code (*relay_kv_source_fn)(void *user, uint32_t layer, uint32_t token_begin,
                                              uint32_t token_count, struct relay_kv *out,
                                              struct relay_error *err);
/* Told now and then on the registering thread; false stops the upload (CANCELLED). */
typedef bool (*relay_progress_fn)(void *user, uint64_t bytes_done, uint64_t bytes_total);

struct relay_prompt_desc {
    size_t size;
    const char *prompt_id;
    const struct relay_model *model;
    uint32_t num_tokens;           /* S */
    const struct relay_kv *layers; /* [L], each [S,...]; or NULL and source */
    relay_kv_source_fn source;
    enum relay_dtype source_dtype; /* of all it gives; UNSPECIFIED = the model's kv_dtype */
    void *source_user;
    const char *variant;        /* adapter, image hashes, RoPE mode; NULL = "" */
    const void *content_key;    /* hash of model, variant and token ids; NULL = none */
    uint32_t content_key_bytes; /* at most 64 */
    enum relay_on_exists on_exists;
    uint64_t idle_ttl_ms; /* without use until it goes; 0 = the server's choice */
    bool pinned;          /* never goes by idleness or eviction */
    const struct relay_label *labels;
    uint32_t num_labels;
    const uint32_t *token_ids; /* [S] or NULL */
    const void *upload_id;     /* 16 bytes; NULL = the library makes one */
    bool no_checksums;         /* do not send xxh64 of each chunk */
    relay_progress_fn progress;
    void *progress_user;
};
/* The rest is set by name: struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT; */
#define RELAY_PROMPT_DESC_INIT                                                                     \
    {                                                                                              \
        sizeof(struct relay_prompt_desc), NULL, NULL, 0, NULL, NULL, RELAY_DTYPE_UNSPECIFIED,      \
            NULL, NULL, NULL, 0, RELAY_ON_EXISTS_SAME_OR_FAIL, 0, false, NULL, 0, NULL, NULL,      \
            false, NULL, NULL                                                                      \
    }

enum relay_tier {
    RELAY_TIER_UNSPECIFIED = 0,
    RELAY_TIER_HOST = 1,
    RELAY_TIER_DEVICE = 2,
};

/* A registered prompt; made by the library in one block. */
struct relay_prompt {
    const char *prompt_id;
    const char *model_key;
    const char *variant;
    uint64_t generation;
    const uint8_t *content_key; /* [content_key_bytes] */
    uint32_t content_key_bytes;
    uint32_t digest_bytes;
    const uint8_t *digest; /* [digest_bytes] over the stored bytes */
    uint32_t num_tokens;
    uint32_t num_labels;
    const struct relay_label *labels; /* [num_labels] */
    uint64_t bytes;                   /* of K/V stored */
    uint64_t references;              /* open requests on it */
    uint64_t hits;                    /* requests opened on it so far */
    uint64_t idle_ttl_ms;
    uint64_t created_unix_ms;
    uint64_t last_used_unix_ms;
    enum relay_tier tier;
    bool pinned;
    bool doomed; /* unregistered or replaced, still in use */
};
/* NULL is fine. */
RELAY_EXPORT void relay_prompt_free(struct relay_prompt *prompt);

/* Uploads K/V and publishes the prompt; nothing is visible before all of it is there. Sends only
 * tokens that a later row can see (the last window - 1 of a window layer), in chunks and with as
 * many bytes on the way as the server allows, over a connection of its own. A broken upload is
 * taken up where the server was, retries_max times without progress. *out, if not NULL, is the
 * prompt, also when it was there already; free it with relay_prompt_free.
 * INVALID_ARGUMENT, UNIMPLEMENTED (no kernel for a shape), ALREADY_EXISTS, RESOURCE_EXHAUSTED
 * (budget), DATA_LOSS (bytes changed on the way), CANCELLED (progress), or the source's code. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_prompt_register(
    struct relay_client *client, const struct relay_prompt_desc *desc, struct relay_prompt **out,
    struct relay_error *err);

/* generation 0 = newest. NOT_FOUND; ABORTED when the generation is another. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_prompt_get(
    struct relay_client *client, const char *model_key, const char *prompt_id, uint64_t generation,
    struct relay_prompt **out, struct relay_error *err);

/* One prompt of a list, valid during the call; false stops. */
typedef bool (*relay_prompt_fn)(void *user, const struct relay_prompt *prompt);
/* Ascending by (model key, id); fetches page after page. model_key and id_prefix may be NULL = all.
 */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_prompts_list(struct relay_client *client,
                                                                 const char *model_key,
                                                                 const char *id_prefix,
                                                                 relay_prompt_fn fn, void *user,
                                                                 struct relay_error *err);

struct relay_prompt_update {
    size_t size;
    uint64_t generation; /* 0 = newest */
    bool set_pinned, pinned;
    bool set_idle_ttl;
    uint64_t idle_ttl_ms;
    bool touch; /* counts as a use: idleness starts anew */
};
#define RELAY_PROMPT_UPDATE_INIT                                                                   \
    {                                                                                              \
        sizeof(struct relay_prompt_update), 0, false, false, false, 0, false                       \
    }
/* *out (may be NULL) is the prompt afterwards. NOT_FOUND, ABORTED. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_prompt_update(
    struct relay_client *client, const char *model_key, const char *prompt_id,
    const struct relay_prompt_update *update, struct relay_prompt **out, struct relay_error *err);
/* A prompt in use is doomed: not found any more, freed when its last request closes. *out (may be
 * NULL) is as it was. NOT_FOUND, ABORTED. Not repeated on UNAVAILABLE. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_prompt_unregister(
    struct relay_client *client, const char *model_key, const char *prompt_id, uint64_t generation,
    struct relay_prompt **out, struct relay_error *err);

#ifdef __cplusplus
}
#endif
#endif
