/* A request as requests.c and request_fill.c know it. */
#ifndef RELAYD_STORE_REQUEST_INTERNAL_H
#define RELAYD_STORE_REQUEST_INTERNAL_H

#include "service/store/store_internal.h"

#include <stdatomic.h>

/* Grown by replacement; the older ones stay until nobody can be reading them. */
struct relayd_page_array {
    struct relayd_page_array *older;
    uint32_t capacity;
    uint32_t ids[];
};

struct relayd_request {
    struct relayd_model *model;   /* a reference */
    struct relayd_prompt *prompt; /* a reference, or NULL */
    uint64_t tag;
    atomic_uint_least32_t *held;       /* [L] */
    atomic_uint_least64_t *layer_step; /* [L] newest step that wrote */
    atomic_uint_least64_t last_step;   /* newest step that was admitted */
    _Atomic(uint32_t *) pages;         /* array->ids, for readers without the mutex */
    atomic_uint_least32_t reserved;    /* pages; written under the mutex */
    atomic_uint_least64_t pages_stamp; /* another one after pages were given back */
    /* Below: under the mutex. */
    struct relayd_page_array *array;
    uint32_t pages_floor; /* reserved at open, kept until close */
    uint32_t holds;       /* its session, refs, lends, a running append */
    uint32_t lends;
    bool grown; /* may have pages beyond what it holds */
    bool busy;  /* an append is storing */
    bool closed;
};

/* Makes the array long enough for so many ids. */
RELAY_MUST_CHECK enum relay_code relayd_request_room_locked(struct relayd_request *request,
                                                            uint32_t pages,
                                                            struct relay_error *err);
/* Takes pages until there are so many; they are ready, affordable, and there is room. */
void relayd_request_reserve_locked(struct relayd_request *request, uint32_t pages);
/* With nobody at work on it: gives back pages that a failed or refused write left unused. */
void relayd_request_settle_locked(struct relayd_request *request);
/* Drops a hold; returns the request when it was the last, to be freed by relayd_request_unref's
 * way. */
struct relayd_request *relayd_request_drop_locked(struct relayd_request *request);

#endif
