/* The executor: the one thread that owns a backend's run and wait.
 *
 * It takes all waiting calls of one (model, layer, dtypes, part), from any session, as one problem,
 * as long as no request is in it twice; plans it, runs it, and answers each call. Calls on one
 * (request, layer) run in arrival order. It waits for company only where a step asked for it, and
 * no longer than align.h says. Knows no session, RPC or wire.
 */
#ifndef RELAYD_BATCH_EXECUTOR_H
#define RELAYD_BATCH_EXECUTOR_H

#include "service/batch/call.h"

struct relayd_executor;

struct relayd_executor_options {
    struct relay_backend *backend;
    const struct relayd_clock *clock;
    uint32_t calls_max; /* waiting and running, over all sessions */
    uint32_t rows_max;  /* rows of one launch */
};

RELAY_MUST_CHECK enum relay_code relayd_executor_create(
    const struct relayd_executor_options *options, struct relayd_executor **out,
    struct relay_error *err);
/* Computes what is waiting, then stops the thread. */
void relayd_executor_destroy(struct relayd_executor *executor);

/* Hands over an admitted call (its requests lent). Any thread; never blocks. RESOURCE_EXHAUSTED
 * past calls_max, UNAVAILABLE when the backend is poisoned: then the call is still the caller's. */
RELAY_MUST_CHECK enum relay_code relayd_executor_submit(struct relayd_executor *executor,
                                                        struct relayd_call *call,
                                                        struct relay_error *err);

struct relayd_executor_stats {
    uint64_t calls, launches, rows, errors;
    uint64_t prompt_bytes, kv_bytes; /* read by all launches */
    uint64_t compute_us;
    uint32_t waiting;
    bool poisoned;
    uint64_t last_done_ns; /* when a launch last completed; 0 = never */
};
void relayd_executor_stats(struct relayd_executor *executor, struct relayd_executor_stats *out);

#endif
