/* service/ops: signals lead to one drain, timers and the worker go on through it, a second signal
 * hurries, and no submitted work is lost. */
#include "service/ops/ops.h"

#include "service/base/log.h"
#include "testlib/check.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#define MANY 2000

struct seen {
    struct relayd_ops *ops;
    atomic_int drains, sweeps, watchdogs, hurries, hurry_signal, ran;
    int sweeps_wanted; /* ask for a drain after so many, 0 = never */
    void (*in_drain)(struct seen *seen);
    sem_t released;
};

static struct relay_error err;

static void on_drain(void *user)
{
    struct seen *seen = user;
    atomic_fetch_add(&seen->drains, 1);
    if (seen->in_drain != NULL) {
        seen->in_drain(seen);
    }
}

static void on_hurry(void *user, int number)
{
    struct seen *seen = user;
    atomic_store(&seen->hurry_signal, number);
    atomic_fetch_add(&seen->hurries, 1);
    sem_post(&seen->released);
}

static void on_sweep(void *user)
{
    struct seen *seen = user;
    if (atomic_fetch_add(&seen->sweeps, 1) + 1 == seen->sweeps_wanted) {
        relayd_ops_drain(seen->ops);
    }
}

static void on_watchdog(void *user)
{
    struct seen *seen = user;
    atomic_fetch_add(&seen->watchdogs, 1);
}

static void begin(struct seen *seen, uint32_t threads)
{
    const struct relayd_ops_options options = {
        .hooks = {on_drain, on_hurry, on_sweep, on_watchdog, seen},
        .sweep_interval_ms = 1,
        .watchdog_interval_ms = 1,
        .worker_threads = threads,
    };
    *seen = (struct seen){0};
    sem_init(&seen->released, 0, 0);
    CHECK_OK(relayd_ops_create(&options, &seen->ops, &err), err);
}

static void end(struct seen *seen)
{
    relayd_ops_destroy(seen->ops);
    sem_destroy(&seen->released);
}

static void test_timers_run_and_a_call_drains(void)
{
    struct seen seen;
    begin(&seen, 1);
    CHECK_STILL();
    seen.sweeps_wanted = 3;
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.drains, 1);
    CHECK(seen.sweeps >= 3);
    CHECK(seen.watchdogs >= 1);
    CHECK_EQ(seen.hurries, 0);
    end(&seen);
}

static void test_a_signal_before_run_is_not_lost(void)
{
    static const int numbers[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < 2; i++) {
        struct seen seen;
        begin(&seen, 1);
        CHECK_STILL();
        raise(numbers[i]);
        relayd_ops_run(seen.ops);
        CHECK_EQ(seen.drains, 1);
        CHECK_EQ(seen.hurries, 0);
        end(&seen);
    }
}

static void test_hang_up_is_survived(void)
{
    struct seen seen;
    begin(&seen, 1);
    CHECK_STILL();
    raise(SIGHUP);
    seen.sweeps_wanted = 2;
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.drains, 1);
    CHECK(seen.sweeps >= 2);
    end(&seen);
}

static void second_signal(struct seen *seen)
{
    kill(getpid(), SIGINT);
    sem_wait(&seen->released); /* posted by hurry: the loop is alive while this thread waits */
}

static void test_a_second_signal_hurries(void)
{
    struct seen seen;
    begin(&seen, 1);
    CHECK_STILL();
    seen.in_drain = second_signal;
    raise(SIGTERM);
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.drains, 1);
    CHECK_EQ(seen.hurries, 1);
    CHECK_EQ(seen.hurry_signal, SIGINT);
    end(&seen);
}

static void test_asking_twice_drains_once(void)
{
    struct seen seen;
    begin(&seen, 1);
    CHECK_STILL();
    relayd_ops_drain(seen.ops);
    relayd_ops_drain(seen.ops);
    raise(SIGHUP);
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.drains, 1);
    end(&seen);
}

/* ---- the worker ---- */

struct item {
    struct relayd_work work; /* first: the worker gives it back */
    struct seen *seen;
    const struct relayd_worker *worker;
    int rounds; /* submits itself again so often */
    int value;  /* plain: published by the hand-over alone */
};

static void run_item(struct relayd_work *work)
{
    struct item *item = (struct item *)work;
    item->value++;
    struct seen *seen = item->seen;
    if (item->rounds > 0) {
        item->rounds--;
        relayd_worker_submit(item->worker, work);
        return;
    }
    atomic_fetch_add(&seen->ran, 1);
}

struct submitter {
    struct seen *seen;
    struct item *items;
    int n;
};

static void *submit_items(void *arg)
{
    struct submitter *s = arg;
    const struct relayd_worker *worker = relayd_ops_worker(s->seen->ops);
    for (int i = 0; i < s->n; i++) {
        s->items[i] = (struct item){.work = {.run = run_item},
                                    .seen = s->seen,
                                    .worker = worker,
                                    .rounds = i % 3,
                                    .value = 0};
        relayd_worker_submit(worker, &s->items[i].work);
    }
    return NULL;
}

static void submit_from_threads(struct seen *seen)
{
    static struct item items[4][MANY];
    struct submitter submitters[4];
    pthread_t threads[4];
    int started = 0;
    for (; started < 4; started++) {
        submitters[started] = (struct submitter){seen, items[started], MANY};
        if (pthread_create(&threads[started], NULL, submit_items, &submitters[started]) != 0) {
            break;
        }
    }
    for (int t = 0; t < started; t++) {
        pthread_join(threads[t], NULL);
    }
    /* Returns with most of it still queued: run must not return before it is done. */
}

static void test_all_work_submitted_in_a_drain_runs(void)
{
    static const uint32_t counts[] = {1, 3};
    for (size_t i = 0; i < 2; i++) {
        struct seen seen;
        begin(&seen, counts[i]);
        CHECK_STILL();
        seen.in_drain = submit_from_threads;
        relayd_ops_drain(seen.ops);
        relayd_ops_run(seen.ops);
        CHECK_EQ(seen.ran, 4 * MANY);
        end(&seen);
    }
}

static void wait_for_item(struct relayd_work *work)
{
    struct item *item = (struct item *)work;
    atomic_fetch_add(&item->seen->ran, 1);
    sem_post(&item->seen->released);
}

/* As a call that is drained waits for its upload's chunk. */
static void submit_and_wait(struct seen *seen)
{
    static struct item item;
    for (int i = 0; i < 50; i++) {
        item = (struct item){.work = {.run = wait_for_item}, .seen = seen};
        relayd_worker_submit(relayd_ops_worker(seen->ops), &item.work);
        sem_wait(&seen->released);
    }
}

static void test_a_drain_may_wait_for_work(void)
{
    struct seen seen;
    begin(&seen, 1);
    CHECK_STILL();
    seen.in_drain = submit_and_wait;
    raise(SIGTERM);
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.ran, 50);
    end(&seen);
}

static void test_work_before_run_and_after_it_runs(void)
{
    static struct item before[10], after[10];
    struct seen seen;
    begin(&seen, 2);
    CHECK_STILL();
    submit_items(&(struct submitter){&seen, before, 10});
    relayd_ops_drain(seen.ops);
    relayd_ops_run(seen.ops);
    CHECK_EQ(seen.ran, 10);
    submit_items(&(struct submitter){&seen, after, 10});
    end(&seen);
    CHECK_EQ(seen.ran, 20);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(before[i].value, i % 3 + 1);
        CHECK_EQ(after[i].value, i % 3 + 1);
    }
}

static void test_bad_thread_counts_are_refused(void)
{
    struct relayd_ops *ops = NULL;
    struct relayd_ops_options options = {
        .hooks = {on_drain, on_hurry, on_sweep, on_watchdog, NULL},
        .sweep_interval_ms = 1,
        .watchdog_interval_ms = 1,
    };
    CHECK_CODE(relayd_ops_create(&options, &ops, &err), RELAY_INVALID_ARGUMENT);
    options.worker_threads = RELAYD_OPS_WORKERS_MAX + 1;
    CHECK_CODE(relayd_ops_create(&options, &ops, &err), RELAY_INVALID_ARGUMENT);
    CHECK(ops == NULL);
    relayd_ops_destroy(NULL);
}

int main(void)
{
    relayd_log_init(RELAYD_LOG_ERROR, false);
    CHECK_RUN(test_timers_run_and_a_call_drains);
    CHECK_RUN(test_a_signal_before_run_is_not_lost);
    CHECK_RUN(test_hang_up_is_survived);
    CHECK_RUN(test_a_second_signal_hurries);
    CHECK_RUN(test_asking_twice_drains_once);
    CHECK_RUN(test_all_work_submitted_in_a_drain_runs);
    CHECK_RUN(test_a_drain_may_wait_for_work);
    CHECK_RUN(test_work_before_run_and_after_it_runs);
    CHECK_RUN(test_bad_thread_counts_are_refused);
    return check_done();
}
