/* The store: models and their page pools, prompts, requests; budgets and expiry.
 *
 * One mutex guards tables, counters and page allocation, and nothing slow happens under it: bytes
 * are written to pages that nobody reads yet, outside of it. Objects are reference counted; a
 * pointer from an acquire stays good until its release. All functions may be called from any thread
 * unless they say otherwise. Knows no RPC, session, stream, launch or libuv.
 *
 * Rooms inside: models.h (interned models, one pool each), pool.h (pages), prompts.h, uploads.h,
 * requests.h. */
#ifndef RELAYD_STORE_STORE_H
#define RELAYD_STORE_STORE_H

#include "service/base/clock.h"
#include <relay/backend.h>

struct relayd_store;

struct relayd_store_options {
    struct relay_backend *backend;    /* borrowed; outlives the store */
    const struct relayd_clock *clock; /* borrowed */
    uint64_t prompt_bytes_max;        /* K/V of live and doomed prompts and partial uploads */
    uint64_t request_bytes_max;       /* K/V of requests */
    uint64_t upload_expiry_ms;        /* how long a broken upload with an upload_id waits */
    uint32_t page_tokens;             /* 0 = the backend's choice */
    uint32_t models_max;
    uint32_t prompts_max;        /* live, doomed and uploading */
    uint32_t uploads_max;        /* in progress or waiting to be resumed */
    uint32_t requests_max;       /* over all sessions */
    uint32_t prompt_tokens_max;  /* of one prompt */
    uint32_t context_tokens_max; /* of one request */
    uint32_t chunk_bytes_max;    /* k plus v of one KvChunk */
    uint32_t unacked_bytes_max;  /* told to uploaders: how far to run ahead */
};

RELAY_MUST_CHECK enum relay_code relayd_store_create(const struct relayd_store_options *options,
                                                     struct relayd_store **out,
                                                     struct relay_error *err);
/* Everything must have been released before. */
void relayd_store_destroy(struct relayd_store *store);

struct relayd_store_stats {
    uint64_t prompt_bytes_used, prompt_bytes_max;
    uint64_t request_bytes_used, request_bytes_max;
    uint64_t pages_used; /* over all pools */
    uint32_t models, prompts, prompts_doomed, uploads, requests;
};
void relayd_store_stats(struct relayd_store *store, struct relayd_store_stats *out);

const struct relayd_store_options *relayd_store_limits(const struct relayd_store *store);

/* Dooms prompts whose idle TTL passed, drops uploads past their expiry. Called about once a second
 * by a timer. Returns how many objects went. */
uint32_t relayd_store_sweep(struct relayd_store *store);

#endif
