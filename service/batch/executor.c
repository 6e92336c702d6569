/* The executor's thread. Two problems: while one's answers are handed out, the other runs, because
 * sending costs the caller of on_done tens of microseconds.
 *
 * Owners: `inbox` and `stop` under the mutex; waiting, problems and the backend's run and wait
 * belong to the thread alone; counters are atomics. */
#include "service/batch/executor.h"
#include "service/base/log.h"
#include "service/batch/problem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One launch, from the enqueue to the last answer. */
struct launch {
    struct relayd_problem *problem;
    struct relay_problem args;
    struct relayd_call_list calls;
    uint64_t ticket;
    uint64_t begun_ns, run_ns, done_ns;
};

struct relayd_executor {
    struct relayd_executor_options opt;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct relayd_call_list inbox;
    bool stop;

    struct relayd_call_list waiting;
    struct relayd_align align;
    struct relayd_plans *plans;
    struct launch launches[2];

    atomic_uint pending; /* submitted and not answered */
    atomic_bool poisoned;
    _Atomic uint64_t calls, launches_run, rows, errors, prompt_bytes, kv_bytes, compute_us;
    _Atomic uint64_t last_done_ns;
};

static uint64_t now_ns(const struct relayd_executor *executor)
{
    return relayd_clock_now_ns(executor->opt.clock);
}

static uint32_t us_between(uint64_t from_ns, uint64_t to_ns)
{
    uint64_t us = to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
    return us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

/* ---- answers ---- */

/* Tells the call's owners, session first. */
static void answer(struct relayd_executor *executor, struct relayd_call *call)
{
    call->give_back(call);
    atomic_fetch_add_explicit(&executor->calls, 1, memory_order_relaxed);
    if (call->error.code != RELAY_OK) {
        atomic_fetch_add_explicit(&executor->errors, 1, memory_order_relaxed);
    }
    atomic_fetch_sub_explicit(&executor->pending, 1, memory_order_relaxed);
    call->on_done(call);
}

static void answer_all(struct relayd_executor *executor, struct relayd_call_list *calls)
{
    struct relayd_call *call;
    while ((call = relayd_call_list_pop(calls)) != NULL) {
        answer(executor, call);
    }
}

static void fail_all(struct relayd_call_list *calls, const struct relay_error *why)
{
    for (struct relayd_call *call = calls->head; call != NULL; call = call->next) {
        call->error = *why;
    }
}

/* A caller learns of its own tenant's rows and sessions only: what another call of the tenant was
 * told, or else counted. */
static void fill_company(const struct relayd_call_list *calls, struct relayd_call *call)
{
    struct relayd_call_timings *t = &call->timings;
    for (const struct relayd_call *o = calls->head; o != call; o = o->next) {
        if (strcmp(o->tenant, call->tenant) == 0) {
            t->batch_rows = o->timings.batch_rows;
            t->batch_sessions = o->timings.batch_sessions;
            return;
        }
    }
    for (const struct relayd_call *o = call; o != NULL; o = o->next) {
        if (strcmp(o->tenant, call->tenant) == 0) {
            const struct relayd_call *first = call;
            while (first->session != o->session) { /* sessions are of one tenant each */
                first = first->next;
            }
            t->batch_rows += o->rows;
            t->batch_sessions += first == o;
        }
    }
}

static void fill_timings(const struct launch *launch)
{
    const struct relay_plan *plan = launch->args.plan;
    size_t kv_bytes = relay_shape_kv_bytes(launch->args.shape);
    for (struct relayd_call *call = launch->calls.head; call != NULL; call = call->next) {
        struct relayd_call_timings *t = &call->timings;
        t->queue_us = us_between(call->received_ns, launch->begun_ns);
        t->plan_us = us_between(launch->begun_ns, launch->run_ns);
        t->compute_us = us_between(launch->run_ns, launch->done_ns);
        t->prompt_bytes = plan->prompt_tokens_read * kv_bytes;
        t->kv_bytes = plan->context_tokens_read * kv_bytes;
        fill_company(&launch->calls, call);
    }
}

/* ---- launches ---- */

static void poison(struct relayd_executor *executor, const struct relay_error *why)
{
    if (!atomic_exchange_explicit(&executor->poisoned, true, memory_order_relaxed)) {
        RELAYD_LOG(ERROR, "backend.poisoned", "code=%s msg=\"%s\"", relay_code_name(why->code),
                   why->msg);
    }
}

/* Takes what may run together out of waiting and enqueues it. Calls that cannot run go to failed.
 */
static bool launch_next(struct relayd_executor *executor, struct launch *launch,
                        struct relayd_call_list *failed)
{
    struct relay_error err = {0};
    launch->begun_ns = now_ns(executor);
    enum relay_code code =
        relayd_problem_pick(launch->problem, &executor->waiting, &executor->align, launch->begun_ns,
                            executor->opt.rows_max, &launch->calls, &err);
    if (code == RELAY_OK && launch->calls.head != NULL) {
        code = relayd_problem_build(launch->problem, &launch->calls, failed, launch->begun_ns,
                                    &launch->args, &err);
    }
    if (code == RELAY_OK && launch->calls.head == NULL) {
        return false;
    }
    relayd_align_launched(&executor->align, &launch->calls, launch->begun_ns);
    launch->run_ns = now_ns(executor);
    if (code == RELAY_OK) {
        code = relay_backend_run(executor->opt.backend, &launch->args, &launch->ticket, &err);
        if (code == RELAY_UNAVAILABLE) {
            poison(executor, &err);
        }
    }
    if (code != RELAY_OK) {
        fail_all(&launch->calls, &err);
        relayd_call_list_append(failed, &launch->calls);
        return false;
    }
    relayd_problem_written(&launch->calls);
    return true;
}

static void finish(struct relayd_executor *executor, struct launch *launch)
{
    struct relay_error err = {0};
    enum relay_code code = relay_backend_wait(executor->opt.backend, launch->ticket, &err);
    launch->done_ns = now_ns(executor);
    if (code != RELAY_OK) {
        poison(executor, &err);
        fail_all(&launch->calls, &err);
        return;
    }
    fill_timings(launch);
    const struct relay_plan *plan = launch->args.plan;
    size_t kv_bytes = relay_shape_kv_bytes(launch->args.shape);
    atomic_fetch_add_explicit(&executor->launches_run, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&executor->rows, plan->num_rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&executor->prompt_bytes, plan->prompt_tokens_read * kv_bytes,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&executor->kv_bytes, plan->context_tokens_read * kv_bytes,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&executor->compute_us, us_between(launch->run_ns, launch->done_ns),
                              memory_order_relaxed);
    atomic_store_explicit(&executor->last_done_ns, launch->done_ns, memory_order_relaxed);
}

/* Sleeps until something comes or the first waiting call's time for company is over. */
static void sleep_until(struct relayd_executor *executor, uint64_t until_ns)
{
    if (until_ns == UINT64_MAX) {
        pthread_cond_wait(&executor->wake, &executor->mutex);
        return;
    }
    /* The executor's clock may be a test's; only how long to sleep is taken from it. */
    uint64_t now = now_ns(executor);
    uint64_t left = until_ns > now ? until_ns - now : 0;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    uint64_t sum = (uint64_t)at.tv_nsec + left;
    at.tv_sec += (time_t)(sum / 1000000000);
    at.tv_nsec = (long)(sum % 1000000000);
    pthread_cond_timedwait(&executor->wake, &executor->mutex, &at);
}

/* Moves the inbox to waiting; with nothing that may run now, sleeps. False: stop. */
static bool collect(struct relayd_executor *executor, bool may_sleep)
{
    pthread_mutex_lock(&executor->mutex);
    relayd_call_list_append(&executor->waiting, &executor->inbox);
    while (may_sleep && !executor->stop) {
        uint64_t until = relayd_align_next(&executor->align, &executor->waiting, now_ns(executor));
        if (until == 0) {
            break;
        }
        sleep_until(executor, until);
        relayd_call_list_append(&executor->waiting, &executor->inbox);
    }
    executor->align.off = executor->stop;
    pthread_mutex_unlock(&executor->mutex);
    return !executor->align.off || executor->waiting.head != NULL;
}

static void *executor_thread(void *arg)
{
    struct relayd_executor *executor = arg;
    struct launch *unanswered = NULL; /* done, its answers not yet handed out */
    uint32_t next = 0;
    while (collect(executor, unanswered == NULL) || unanswered != NULL) {
        struct launch *launch = &executor->launches[next];
        struct relayd_call_list failed = {0};
        bool running = executor->waiting.head != NULL && launch_next(executor, launch, &failed);
        if (unanswered != NULL) {
            answer_all(executor, &unanswered->calls);
            unanswered = NULL;
        }
        answer_all(executor, &failed);
        if (running) {
            finish(executor, launch);
            unanswered = launch;
            next ^= 1;
        }
    }
    return NULL;
}

/* ---- lifecycle ---- */

enum relay_code relayd_executor_create(const struct relayd_executor_options *options,
                                       struct relayd_executor **out, struct relay_error *err)
{
    struct relayd_executor *executor = calloc(1, sizeof(*executor));
    if (executor == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the executor");
    }
    executor->opt = *options;
    enum relay_code code = relayd_plans_create(&executor->plans, err);
    for (size_t i = 0; i < 2 && code == RELAY_OK; i++) {
        code = relayd_problem_create(options->backend, executor->plans,
                                     &executor->launches[i].problem, err);
    }
    if (code != RELAY_OK) {
        goto out;
    }
    pthread_mutex_init(&executor->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&executor->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&executor->thread, NULL, executor_thread, executor) != 0) {
        pthread_cond_destroy(&executor->wake);
        pthread_mutex_destroy(&executor->mutex);
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no thread for the executor");
        goto out;
    }
    *out = executor;
    return RELAY_OK;
out:
    relayd_problem_destroy(executor->launches[0].problem);
    relayd_problem_destroy(executor->launches[1].problem);
    relayd_plans_destroy(executor->plans);
    free(executor);
    return code;
}

void relayd_executor_destroy(struct relayd_executor *executor)
{
    if (executor == NULL) {
        return;
    }
    pthread_mutex_lock(&executor->mutex);
    executor->stop = true;
    pthread_cond_signal(&executor->wake);
    pthread_mutex_unlock(&executor->mutex);
    pthread_join(executor->thread, NULL);
    pthread_cond_destroy(&executor->wake);
    pthread_mutex_destroy(&executor->mutex);
    relayd_problem_destroy(executor->launches[0].problem);
    relayd_problem_destroy(executor->launches[1].problem);
    relayd_plans_destroy(executor->plans);
    free(executor);
}

enum relay_code relayd_executor_submit(struct relayd_executor *executor, struct relayd_call *call,
                                       struct relay_error *err)
{
    if (atomic_load_explicit(&executor->poisoned, memory_order_relaxed)) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "the backend failed; the service restarts");
    }
    if (atomic_fetch_add_explicit(&executor->pending, 1, memory_order_relaxed) >=
        executor->opt.calls_max) {
        atomic_fetch_sub_explicit(&executor->pending, 1, memory_order_relaxed);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%u calls are waiting already",
                          executor->opt.calls_max);
    }
    call->error.code = RELAY_OK;
    pthread_mutex_lock(&executor->mutex);
    relayd_call_list_push(&executor->inbox, call);
    pthread_cond_signal(&executor->wake);
    pthread_mutex_unlock(&executor->mutex);
    return RELAY_OK;
}

void relayd_executor_stats(struct relayd_executor *executor, struct relayd_executor_stats *out)
{
    *out = (struct relayd_executor_stats){
        .calls = atomic_load_explicit(&executor->calls, memory_order_relaxed),
        .launches = atomic_load_explicit(&executor->launches_run, memory_order_relaxed),
        .rows = atomic_load_explicit(&executor->rows, memory_order_relaxed),
        .errors = atomic_load_explicit(&executor->errors, memory_order_relaxed),
        .prompt_bytes = atomic_load_explicit(&executor->prompt_bytes, memory_order_relaxed),
        .kv_bytes = atomic_load_explicit(&executor->kv_bytes, memory_order_relaxed),
        .compute_us = atomic_load_explicit(&executor->compute_us, memory_order_relaxed),
        .waiting = atomic_load_explicit(&executor->pending, memory_order_relaxed),
        .poisoned = atomic_load_explicit(&executor->poisoned, memory_order_relaxed),
        .last_done_ns = atomic_load_explicit(&executor->last_done_ns, memory_order_relaxed),
    };
}
