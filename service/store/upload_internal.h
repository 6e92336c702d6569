/* What uploads.c, upload_begin.c and partials.c share. */
#ifndef RELAYD_STORE_UPLOAD_INTERNAL_H
#define RELAYD_STORE_UPLOAD_INTERNAL_H

#include "service/store/store_internal.h"

/* A prompt in the making. At most one upload drives it; another may take it over between two of the
 * driver's calls. */
struct relayd_partial {
    struct relayd_store *store;
    struct relayd_prompt *prompt; /* to be; owns the pages and the model reference */
    enum relayd_on_exists on_exists;
    uint8_t *table_key; /* upload id, tenant NUL; NULL without an upload id */
    size_t table_key_bytes;
    /* Below: its driver's while busy, else under the mutex. */
    uint32_t *held; /* [L] 0 = nothing */
    struct relayd_digest *digest;
    bool broken; /* digest failed: can only be dropped */
    /* Below: under the mutex. */
    struct relayd_upload *driver; /* NULL: waits to be resumed */
    bool busy;                    /* the driver is in a call */
    uint64_t expires_ns;          /* when nothing has come until then */
    struct relayd_partial *prev, *next;
    UT_hash_handle hh;
};

/* What a stream holds. */
struct relayd_upload {
    struct relayd_store *store;
    struct relayd_partial *partial; /* under the mutex; NULL: taken over, or expired */
};

/* What on_exists makes of a live prompt of the same id. */
enum relayd_existing {
    RELAYD_EXISTING_STAYS,    /* and is the answer */
    RELAYD_EXISTING_REPLACED, /* by this upload, when it is complete */
    RELAYD_EXISTING_DIFFERS,
    RELAYD_EXISTING_UNKNOWN, /* to be decided by the digests */
};

/* digests: those of both are known. */
enum relayd_existing relayd_upload_judge(const struct relayd_partial *mine,
                                         const struct relayd_prompt *live, bool digests);
/* ALREADY_EXISTS, saying what does. */
RELAY_MUST_CHECK enum relay_code relayd_upload_differs(const struct relayd_prompt *live,
                                                       struct relay_error *err);
bool relayd_content_keys_equal(const struct relayd_prompt *a, const struct relayd_prompt *b);
/* Begins a driver's call; each is ended by leave or detach. ABORTED: it drives no more. */
RELAY_MUST_CHECK enum relay_code relayd_upload_enter(struct relayd_upload *upload,
                                                     struct relayd_partial **out,
                                                     struct relay_error *err);
void relayd_upload_leave(struct relayd_upload *upload);
/* Ends a stream's upload that did not publish; frees it. */
void relayd_upload_detach(struct relayd_upload *upload);
/* Gives it to a driver, whoever had it before; not while busy. */
void relayd_partial_drive_locked(struct relayd_partial *partial, struct relayd_upload *driver);
/* Out of the tables, with its pages unless they live on in a published prompt. */
void relayd_partial_unlink_locked(struct relayd_partial *partial);
/* Its pages have been given back, or were never taken, or live on in a published prompt. */
void relayd_partial_free(struct relayd_partial *partial);

#endif
