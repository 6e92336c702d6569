/* See ops.h. Everything here is the loop thread's, but for the two atomics that other threads use
 * to ask for a drain and to say that it is over. */
#include "service/ops/ops.h"

#include "service/base/log.h"
#include "service/ops/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

static const int signal_numbers[] = {SIGTERM, SIGINT, SIGHUP};
#define NUM_SIGNALS (sizeof(signal_numbers) / sizeof(signal_numbers[0]))

struct relayd_ops {
    struct relayd_ops_options options;
    uv_loop_t loop;
    uv_signal_t signals[NUM_SIGNALS];
    uv_timer_t sweep, watchdog;
    uv_async_t news; /* one of the atomics below changed */
    struct relayd_pool_worker worker;
    pthread_t drainer;
    bool draining;
    atomic_bool drain_asked;
    atomic_bool drain_done;
};

static void stop_if_done(void *user)
{
    struct relayd_ops *ops = user;
    if (ops->draining && atomic_load_explicit(&ops->drain_done, memory_order_acquire) &&
        !relayd_pool_worker_pending(&ops->worker)) {
        uv_stop(&ops->loop);
    }
}

static void *drain_thread(void *arg)
{
    struct relayd_ops *ops = arg;
    ops->options.hooks.drain(ops->options.hooks.user);
    atomic_store_explicit(&ops->drain_done, true, memory_order_release);
    uv_async_send(&ops->news);
    return NULL;
}

static void drain(struct relayd_ops *ops)
{
    if (ops->draining) {
        return;
    }
    int rc = pthread_create(&ops->drainer, NULL, drain_thread, ops);
    if (rc != 0) { /* asked for again by the next tick of the watchdog */
        RELAYD_LOG(ERROR, "drain.thread", "error=\"%s\"", strerror(rc));
        atomic_store_explicit(&ops->drain_asked, true, memory_order_release);
        return;
    }
    ops->draining = true;
}

static void drain_if_asked(struct relayd_ops *ops)
{
    if (atomic_load_explicit(&ops->drain_asked, memory_order_acquire)) {
        drain(ops);
    }
}

static void on_news(uv_async_t *news)
{
    struct relayd_ops *ops = news->data;
    drain_if_asked(ops);
    stop_if_done(ops);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct relayd_ops *ops = handle->data;
    if (number == SIGHUP) {
        RELAYD_LOG(INFO, "signal", "name=SIGHUP does=nothing logs=stderr");
    } else if (ops->draining) {
        RELAYD_LOG(WARN, "signal", "number=%d does=end_at_once", number);
        ops->options.hooks.hurry(ops->options.hooks.user, number);
    } else {
        RELAYD_LOG(INFO, "signal", "number=%d does=drain", number);
        drain(ops);
    }
}

static void on_sweep(uv_timer_t *timer)
{
    struct relayd_ops *ops = timer->data;
    ops->options.hooks.sweep(ops->options.hooks.user);
}

static void on_watchdog(uv_timer_t *timer)
{
    struct relayd_ops *ops = timer->data;
    ops->options.hooks.watchdog(ops->options.hooks.user);
    drain_if_asked(ops);
}

static int start_handles(struct relayd_ops *ops)
{
    int rc = uv_async_init(&ops->loop, &ops->news, on_news);
    ops->news.data = ops;
    for (size_t i = 0; rc == 0 && i < NUM_SIGNALS; i++) {
        rc = uv_signal_init(&ops->loop, &ops->signals[i]);
        ops->signals[i].data = ops;
        if (rc == 0) {
            rc = uv_signal_start(&ops->signals[i], on_signal, signal_numbers[i]);
        }
    }
    uv_timer_t *const timers[] = {&ops->sweep, &ops->watchdog};
    const uint64_t intervals[] = {ops->options.sweep_interval_ms,
                                  ops->options.watchdog_interval_ms};
    const uv_timer_cb callbacks[] = {on_sweep, on_watchdog};
    for (size_t i = 0; rc == 0 && i < 2; i++) {
        rc = uv_timer_init(&ops->loop, timers[i]);
        timers[i]->data = ops;
        if (rc == 0) {
            rc = uv_timer_start(timers[i], callbacks[i], intervals[i], intervals[i]);
        }
    }
    return rc;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

/* libuv reads it at the first use of its pool, and never again. */
static void size_the_pool(uint32_t threads)
{
    char text[16];
    snprintf(text, sizeof(text), "%u", (unsigned)threads);
    setenv("UV_THREADPOOL_SIZE", text, 1);
}

enum relay_code relayd_ops_create(const struct relayd_ops_options *options, struct relayd_ops **out,
                                  struct relay_error *err)
{
    if (options->worker_threads == 0 || options->worker_threads > RELAYD_OPS_WORKERS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "worker_threads is %u, 1 to %u are allowed",
                          (unsigned)options->worker_threads, RELAYD_OPS_WORKERS_MAX);
    }
    struct relayd_ops *ops = calloc(1, sizeof(*ops));
    if (ops == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    ops->options = *options;
    size_the_pool(options->worker_threads);
    int rc = uv_loop_init(&ops->loop);
    if (rc != 0) {
        free(ops);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "loop: %s", uv_strerror(rc));
    }
    enum relay_code code = relayd_pool_worker_init(&ops->worker, &ops->loop,
                                                   options->worker_threads, stop_if_done, ops, err);
    if (code == RELAY_OK) {
        rc = start_handles(ops);
        if (rc != 0) {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "loop: %s", uv_strerror(rc));
        }
    }
    if (code != RELAY_OK) {
        relayd_ops_destroy(ops);
        return code;
    }
    *out = ops;
    return RELAY_OK;
}

void relayd_ops_destroy(struct relayd_ops *ops)
{
    if (ops == NULL) {
        return;
    }
    uv_walk(&ops->loop, close_handle, NULL);
    (void)uv_run(&ops->loop, UV_RUN_DEFAULT);
    relayd_pool_worker_fini(&ops->worker);
    (void)uv_loop_close(&ops->loop);
    free(ops);
}

const struct relayd_worker *relayd_ops_worker(const struct relayd_ops *ops)
{
    return &ops->worker.face;
}

void relayd_ops_run(struct relayd_ops *ops)
{
    /* uv_stop is for one run; anything else that ends a run is no reason to stop serving. */
    while (!ops->draining || !atomic_load_explicit(&ops->drain_done, memory_order_acquire) ||
           relayd_pool_worker_pending(&ops->worker)) {
        (void)uv_run(&ops->loop, UV_RUN_DEFAULT);
    }
    pthread_join(ops->drainer, NULL);
}

void relayd_ops_drain(struct relayd_ops *ops)
{
    atomic_store_explicit(&ops->drain_asked, true, memory_order_release);
    uv_async_send(&ops->news);
}
