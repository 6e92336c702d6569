/* A relayd_worker over libuv's thread pool. Submitting is lock-free and allocates nothing: work
 * goes on a stack that the loop thread takes whole, queues in order, and hands to idle runners, as
 * many as the pool has threads.
 *
 * init, fini, pending: loop thread. submit: any thread. */
#ifndef RELAYD_OPS_WORKER_H
#define RELAYD_OPS_WORKER_H

#include "service/base/work.h"
#include <relay/status.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct relayd_pool_worker;

struct relayd_runner {
    uv_work_t request;
    struct relayd_pool_worker *owner;
    /* Hands the item over to the pool thread and its end back: libuv's own locks are not seen by
     * the thread sanitizer. */
    _Atomic(struct relayd_work *) work;
    struct relayd_runner *next_idle;
};

struct relayd_pool_worker {
    struct relayd_worker face;
    uv_loop_t *loop;
    uv_async_t wake;
    _Atomic(struct relayd_work *) submitted; /* newest first */
    struct relayd_work *first, *last;        /* loop thread's queue, oldest first */
    struct relayd_runner *idle;
    struct relayd_runner *runners;
    uint32_t running;
    void (*on_idle)(void *user); /* loop thread: nothing is queued or running any more */
    void *user;
};

RELAY_MUST_CHECK enum relay_code relayd_pool_worker_init(struct relayd_pool_worker *worker,
                                                         uv_loop_t *loop, uint32_t threads,
                                                         void (*on_idle)(void *user), void *user,
                                                         struct relay_error *err);
/* Is anything submitted, queued or running? */
bool relayd_pool_worker_pending(struct relayd_pool_worker *worker);
/* After the loop has closed its handles: runs leftovers here, frees. */
void relayd_pool_worker_fini(struct relayd_pool_worker *worker);

#endif
