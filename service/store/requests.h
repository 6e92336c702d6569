/* Requests: a sequence being decoded. Its own K/V (context tokens) in pages of its model's pool,
 * behind a 64-bit handle that only its session can resolve.
 *
 * What a layer holds is tokens [0, held). Who may touch pages and held:
 *   - nobody lent: open, append, truncate, close (one at a time, under `busy`)
 *   - while calls are in flight: the executor alone, through relayd_request_layer_check and _write
 * held and step ids are atomics so that observers may read them at any time. */
#ifndef RELAYD_STORE_REQUESTS_H
#define RELAYD_STORE_REQUESTS_H

#include "service/store/prompts.h"
#include "service/store/uploads.h"

struct relayd_request;

/* prompt may be NULL and is owned by the request afterwards (also on failure it is released).
 * Reserves pages for tokens_reserved, kept until it is closed. RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_request_create(struct relayd_model *model,
                                                       struct relayd_prompt *prompt, uint64_t tag,
                                                       uint32_t tokens_reserved,
                                                       struct relayd_request **out,
                                                       struct relay_error *err);
/* Takes it from its session. Freed now, or when its last lend ends. NULL is fine. */
void relayd_request_close(struct relayd_request *request);

/* Keeps the object alive across a blocking call, while its session may close it. */
void relayd_request_ref(struct relayd_request *request);
void relayd_request_unref(struct relayd_request *request);

/* Observers. */
uint64_t relayd_request_tag(const struct relayd_request *request);
struct relayd_model *relayd_request_model(const struct relayd_request *request);
const struct relayd_prompt *relayd_request_prompt(
    const struct relayd_request *request); /* or NULL */
uint32_t relayd_request_prompt_tokens(const struct relayd_request *request);
uint32_t relayd_request_held(const struct relayd_request *request, uint32_t layer);
/* Least and most held over the layers with own K/V. */
uint32_t relayd_request_length(const struct relayd_request *request);
uint32_t relayd_request_held_max(const struct relayd_request *request);
uint64_t relayd_request_last_step(const struct relayd_request *request);
/* Page ids for [0, reserved) tokens; the array stays readable while the request is lent, also when
 * another lend makes it grow (grown arrays are published with a release store and old ones are kept
 * until the last lend ends). */
const uint32_t *relayd_request_pages(const struct relayd_request *request);

/* Says which page list that is: never reused in this process, another one whenever a page id of a
 * held token may have changed (a truncate that freed pages). Plans are kept by it. */
uint64_t relayd_request_pages_stamp(const struct relayd_request *request);

/* Admission of one call or step on a request: takes a lend, checks the step id (ABORTED when older
 * than one accepted; 0 = unfenced), and reserves pages for tokens_needed in all layers.
 * RESOURCE_EXHAUSTED, FAILED_PRECONDITION while an append or truncate runs. On failure nothing has
 * changed. Lends nest; each is given back by relayd_request_unlend, which frees a closed request at
 * the last one. Call with several requests through relayd_request_lend_all for all-or-nothing. */
struct relayd_lend {
    struct relayd_request *request;
    uint32_t tokens_needed; /* position + q_len when k, v come along, else 0 */
    enum relay_code code;   /* out: why this one was refused, RELAY_OK otherwise */
    char msg[96];
};
/* Returns the first refusal's code, every refusal in its own lend; *kv_tokens_free, if not NULL, is
 * how many more context tokens the budget allows for this model. duplicates in lends are the
 * caller's business. */
RELAY_MUST_CHECK enum relay_code relayd_request_lend_all(struct relayd_lend *lends, uint32_t n,
                                                         uint64_t step_id, uint64_t *kv_tokens_free,
                                                         struct relay_error *err);
/* The last one also gives back pages that lends reserved and nothing was written to. */
void relayd_request_unlend(struct relayd_request *request);

/* Executor only, while lent: may rows [position, +q_len) of a layer be computed and, with write,
 * stored? FAILED_PRECONDITION for a gap (position > held, or without write position + q_len >
 * held). Changes nothing, so that a call with one bad entry writes nothing. */
RELAY_MUST_CHECK enum relay_code relayd_request_layer_check(const struct relayd_request *request,
                                                            uint32_t layer, uint32_t position,
                                                            uint32_t q_len, bool write,
                                                            struct relay_error *err);
/* Executor only, after every entry's check: what the write of step_id does to held. A newer step
 * (or 0) drops tokens at or above position first; the same step never shortens. */
void relayd_request_layer_write(struct relayd_request *request, uint32_t layer, uint64_t step_id,
                                uint32_t position, uint32_t q_len);

/* Prefilled tokens: starts at <= held of the layer, never shortens. Not while lent
 * (FAILED_PRECONDITION). Errors as relayd_upload_chunk. Blocks while it stores. */
RELAY_MUST_CHECK enum relay_code relayd_request_append(struct relayd_request *request,
                                                       const struct relayd_kv_chunk *chunk,
                                                       struct relay_error *err);
/* Every layer keeps at most tokens_keep; pages past all layers' held are freed, but for those that
 * tokens_reserved of create asked for. FAILED_PRECONDITION while lent. */
RELAY_MUST_CHECK enum relay_code relayd_request_truncate(struct relayd_request *request,
                                                         uint32_t tokens_keep,
                                                         struct relay_error *err);

#endif
