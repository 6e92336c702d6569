/* The pool: every task once, stages in order and each seeing all of the one before, on any number
 * of threads, through thousands of tiny stages. Meant to be run under ThreadSanitizer too. */
#include "cpu/pool.h"

#include "testlib/check.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define TASKS_MAX   300u
#define TASKS_SMALL 20u /* the first that may be promised */

static const uint32_t thread_counts[] = {1, 2, 3, 8};
#define NUM_THREAD_COUNTS (sizeof(thread_counts) / sizeof(thread_counts[0]))

/* ---- every task once ---------------------------------------------------------------------------
 */

struct tally {
    _Atomic uint32_t runs[TASKS_MAX];
    _Atomic uint32_t busy[16]; /* tasks at work on a thread index */
    uint32_t promised[16];     /* to a thread as its next task */
    _Atomic uint32_t promises;
    _Atomic bool clash;
    uint32_t threads;
};

static void tally_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    struct tally *tally = context;
    if (thread >= tally->threads || atomic_fetch_add(&tally->busy[thread], 1) != 0) {
        atomic_store(&tally->clash, true);
    }
    if (tally->promised[thread] != RELAY_CPU_NO_TASK && tally->promised[thread] != task) {
        atomic_store(&tally->clash, true);
    }
    tally->promised[thread] = next;
    if (next < TASKS_SMALL) {
        atomic_store(&tally->clash, true); /* a long one must stay free for others */
    }
    if (next != RELAY_CPU_NO_TASK) {
        atomic_fetch_add(&tally->promises, 1);
    }
    atomic_fetch_add(&tally->runs[task], 1);
    atomic_fetch_sub(&tally->busy[thread], 1);
}

static void test_pool_runs_every_task_once(void)
{
    for (size_t n = 0; n < NUM_THREAD_COUNTS; n++) {
        struct relay_error err;
        struct relay_cpu_pool *pool;
        static struct tally tally;
        memset(&tally, 0, sizeof(tally));
        memset(tally.promised, 0xff, sizeof(tally.promised)); /* RELAY_CPU_NO_TASK */
        tally.threads = thread_counts[n];
        CHECK_OK(relay_cpu_pool_create(thread_counts[n], &pool, &err), err);
        for (uint32_t round = 1; round <= 50; round++) {
            relay_cpu_pool_wait(
                pool, relay_cpu_pool_submit(pool, tally_task, &tally, TASKS_MAX, TASKS_SMALL));
            for (uint32_t i = 0; i < TASKS_MAX; i++) {
                CHECK_EQ(atomic_load(&tally.runs[i]), round);
            }
        }
        relay_cpu_pool_destroy(pool);
        CHECK(!atomic_load(&tally.clash));
        CHECK(atomic_load(&tally.promises) > 0);
    }
}

/* ---- stages ------------------------------------------------------------------------------------
 */

/* Plain memory on purpose: the pool's ordering is all that makes this free of races. */
struct chain {
    uint32_t values[2][TASKS_MAX];
    uint32_t count;
    uint32_t stage;
};

struct stage_of {
    struct chain *chain;
    uint32_t number;
};

static void stage_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    const struct stage_of *stage = context;
    struct chain *chain = stage->chain;
    const uint32_t *from = chain->values[stage->number % 2];
    uint32_t *to = chain->values[(stage->number + 1) % 2];
    (void)next;
    (void)thread;
    /* Reads what two tasks of the stage before have written. */
    to[task] = (from[task] + from[(task + 1) % chain->count]) / 2u + 1u;
}

static void test_pool_orders_stages(void)
{
    enum { STAGES = 2000 };
    static struct stage_of stages[STAGES];
    for (size_t n = 0; n < NUM_THREAD_COUNTS; n++) {
        struct relay_error err;
        struct relay_cpu_pool *pool;
        struct chain chain = {.count = 7};
        uint64_t last = 0;
        CHECK_OK(relay_cpu_pool_create(thread_counts[n], &pool, &err), err);
        /* More stages than fit: submit has to work some of them off. */
        for (uint32_t s = 0; s < STAGES; s++) {
            stages[s] = (struct stage_of){&chain, s};
            last = relay_cpu_pool_submit(pool, stage_task, &stages[s], chain.count, 0);
        }
        relay_cpu_pool_wait(pool, last);
        for (uint32_t i = 0; i < chain.count; i++) {
            CHECK_EQ(chain.values[STAGES % 2][i], STAGES);
        }
        relay_cpu_pool_destroy(pool);
    }
}

/* ---- tiny runs with pauses ---------------------------------------------------------------------
 */

static void count_task(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    uint32_t *counts = context; /* one per task: nobody else's */
    (void)next;
    (void)thread;
    counts[task]++;
}

/* Workers are put to sleep and woken again and again. */
static void test_pool_wakes_after_sleep(void)
{
    struct relay_error err;
    struct relay_cpu_pool *pool;
    uint32_t counts[3] = {0, 0, 0};
    CHECK_OK(relay_cpu_pool_create(3, &pool, &err), err);
    for (uint32_t i = 0; i < 60; i++) {
        struct timespec pause = {.tv_nsec = (i % 3) * 100000};
        uint64_t stage = relay_cpu_pool_submit(pool, count_task, counts, 3, 0);
        if (i % 2 == 0) {
            (void)relay_cpu_pool_submit(pool, count_task, counts, 3, 0);
            stage = relay_cpu_pool_submit(pool, count_task, counts, 0, 0); /* the one before */
        }
        nanosleep(&pause, NULL);
        relay_cpu_pool_wait(pool, stage);
        nanosleep(&pause, NULL);
    }
    relay_cpu_pool_destroy(pool);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(counts[i], 90);
    }
}

static void test_pool_many_tiny_runs(void)
{
    for (size_t n = 0; n < NUM_THREAD_COUNTS; n++) {
        struct relay_error err;
        struct relay_cpu_pool *pool;
        uint32_t counts[2] = {0, 0};
        CHECK_OK(relay_cpu_pool_create(thread_counts[n], &pool, &err), err);
        for (uint32_t i = 0; i < 3000; i++) {
            uint64_t stage = relay_cpu_pool_submit(pool, count_task, counts, 1 + i % 2, 0);
            relay_cpu_pool_wait(pool, stage);
            CHECK_EQ(counts[0], i + 1);
        }
        relay_cpu_pool_destroy(pool);
        CHECK_EQ(counts[1], 1500);
    }
}

/* ---- edges -------------------------------------------------------------------------------------
 */

static void test_pool_destroy_finishes_what_was_submitted(void)
{
    struct relay_error err;
    struct relay_cpu_pool *pool;
    uint32_t counts[5] = {0, 0, 0, 0, 0};
    CHECK_OK(relay_cpu_pool_create(2, &pool, &err), err);
    for (int i = 0; i < 20; i++) {
        (void)relay_cpu_pool_submit(pool, count_task, counts, 5, 0);
    }
    relay_cpu_pool_destroy(pool);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(counts[i], 20);
    }
}

static void test_pool_empty(void)
{
    struct relay_error err;
    struct relay_cpu_pool *pool;
    CHECK_OK(relay_cpu_pool_create(2, &pool, &err), err);
    relay_cpu_pool_wait(pool, relay_cpu_pool_submit(pool, count_task, NULL, 0, 0));
    relay_cpu_pool_destroy(pool);
    relay_cpu_pool_destroy(NULL);
    CHECK_CODE(relay_cpu_pool_create(0, &pool, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_cpu_pool_create(RELAY_CPU_THREADS_MAX + 1, &pool, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK(relay_cpu_pool_cpus() >= 1);
}

int main(void)
{
    CHECK_RUN(test_pool_runs_every_task_once);
    CHECK_RUN(test_pool_orders_stages);
    CHECK_RUN(test_pool_wakes_after_sleep);
    CHECK_RUN(test_pool_many_tiny_runs);
    CHECK_RUN(test_pool_destroy_finishes_what_was_submitted);
    CHECK_RUN(test_pool_empty);
    return check_done();
}
