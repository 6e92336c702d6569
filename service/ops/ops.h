/* The main thread's loop: signals, periodic work, the worker for slow work, the order of a drain.
 * Acts only through the hooks main.c gives it; knows no store, session or RPC.
 *
 *   first SIGTERM or SIGINT, or relayd_ops_drain
 *                      -> hooks.drain on a thread of its own, while the loop goes on serving timers
 *                         and the worker; when it returns, what is left of the work runs and
 *                         relayd_ops_run returns
 *   second signal      -> hooks.hurry on the loop thread: do not wait for anything
 *   SIGHUP             -> logged; logs go to stderr, so there is no file to open again
 */
#ifndef RELAYD_OPS_OPS_H
#define RELAYD_OPS_OPS_H

#include "service/base/work.h"
#include <relay/status.h>
#include <stdint.h>

struct relayd_ops;

struct relayd_ops_hooks {
    void (*drain)(void *user); /* its own thread, once; blocks until drained */
    void (*hurry)(void *user, int signal_number);
    void (*sweep)(void *user);
    void (*watchdog)(void *user);
    void *user;
};

struct relayd_ops_options {
    struct relayd_ops_hooks hooks; /* all set */
    uint64_t sweep_interval_ms;
    uint64_t watchdog_interval_ms;
    uint32_t worker_threads; /* 1..RELAYD_OPS_WORKERS_MAX */
};
#define RELAYD_OPS_WORKERS_MAX 64u

/* Catches signals from here on; they are acted upon by run. Call it before other threads exist: it
 * sets the size of libuv's thread pool through the environment. One at a time in a process. */
RELAY_MUST_CHECK enum relay_code relayd_ops_create(const struct relayd_ops_options *options,
                                                   struct relayd_ops **out,
                                                   struct relay_error *err);
/* Runs what was submitted since run returned, here. Nobody may submit any more. NULL is fine. */
void relayd_ops_destroy(struct relayd_ops *ops);

/* Valid until destroy; takes work from create on, runs it while run does. */
const struct relayd_worker *relayd_ops_worker(const struct relayd_ops *ops);

/* The thread that made it. Returns after a drain, with all submitted work done. */
void relayd_ops_run(struct relayd_ops *ops);
/* As the first signal does. Any thread, any number of times. */
void relayd_ops_drain(struct relayd_ops *ops);

#endif
