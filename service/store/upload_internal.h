/* An upload as uploads.c and upload_begin.c know it. */
#ifndef RELAYD_STORE_UPLOAD_INTERNAL_H
#define RELAYD_STORE_UPLOAD_INTERNAL_H

#include "service/store/store_internal.h"

struct relayd_upload {
    struct relayd_store *store;
    struct relayd_prompt *prompt; /* to be; owns the pages and the model reference */
    enum relayd_on_exists on_exists;
    uint8_t *table_key; /* upload id, tenant NUL; NULL without an upload id */
    size_t table_key_bytes;
    uint32_t *held; /* [L] 0 = nothing */
    struct relayd_digest *digest;
    bool broken; /* digest failed: can only be dropped */
    /* Below: under the mutex. */
    bool attached;
    uint64_t expires_ns;
    struct relayd_upload *next;
    UT_hash_handle hh;
};

/* What on_exists makes of a live prompt of the same id. */
enum relayd_existing {
    RELAYD_EXISTING_STAYS,    /* and is the answer */
    RELAYD_EXISTING_REPLACED, /* by this upload, when it is complete */
    RELAYD_EXISTING_DIFFERS,
    RELAYD_EXISTING_UNKNOWN, /* to be decided by the digests */
};

/* digests: those of both are known. */
enum relayd_existing relayd_upload_judge(const struct relayd_upload *upload,
                                         const struct relayd_prompt *live, bool digests);
/* ALREADY_EXISTS, saying what does. */
RELAY_MUST_CHECK enum relay_code relayd_upload_differs(const struct relayd_prompt *live,
                                                       struct relay_error *err);
bool relayd_content_keys_equal(const struct relayd_prompt *a, const struct relayd_prompt *b);
/* Out of the tables, with its pages unless they live on in a published prompt. */
void relayd_upload_unlink_locked(struct relayd_upload *upload);
/* Its pages have been given back, or were never taken, or live on in a published prompt. */
void relayd_upload_free(struct relayd_upload *upload);

#endif
