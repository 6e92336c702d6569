/* The task pool. Lock-free while there is work; mutex and condition variable only to sleep.
 *
 * `claim` holds the running stage's number (upper half) and its next task (lower half), so a ticket
 * is taken by one compare-and-swap and a thread that was away for a whole stage cannot take a task
 * of another one: its swap fails. Stage numbers are compared in 32 bits; a thread would have to
 * sleep through 2^32 stages between load and swap to be fooled.
 * Owner: caller-side functions are for the one caller; worker_main is each worker's. */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS_MAX    50000
#define SPINS_PER_LOOK 32 /* pauses between two looks at the clock */

struct stage {
    /* Atomic because a late thread may read a slot that is being refilled; it then fails to claim.
     */
    _Atomic(relay_cpu_task_fn) fn;
    _Atomic(void *) context;
    _Atomic uint32_t count;
    _Atomic uint32_t small;
};

/* A thread's claim on the task after the one it runs. Its stage cannot end before it. */
struct hand {
    uint32_t number; /* of the stage */
    uint32_t task;   /* or RELAY_CPU_NO_TASK */
};

struct worker {
    pthread_t thread;
    struct relay_cpu_pool *pool;
    uint32_t index;
};

struct relay_cpu_pool {
    /* Stage number n lives in stages[n % MAX]; numbers start at 0. */
    struct stage stages[RELAY_CPU_POOL_STAGES_MAX];
    _Alignas(64) _Atomic uint64_t claim;
    _Alignas(64) _Atomic uint32_t done; /* tasks of the running stage that returned */
    _Alignas(64) _Atomic uint64_t tail; /* stages submitted */
    _Atomic uint64_t completed;         /* stages done */
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct hand caller;
    uint32_t num_workers;
    struct worker *workers;
};

/* What a thread saw when it found nothing to claim. */
struct sight {
    uint64_t claim;
    uint64_t tail;
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wake_all(struct relay_cpu_pool *pool)
{
    /* Sequentially consistent with the store before it and with the sleeper's increment and look:
     * either we see the sleeper or the sleeper sees the store. */
    if (atomic_load(&pool->sleepers) != 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void stage_finish(struct relay_cpu_pool *pool, uint32_t number)
{
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_fetch_add(&pool->completed, 1);
    atomic_store(&pool->claim, (uint64_t)(number + 1u) << 32);
    wake_all(pool);
}

/* Takes a ticket of the running stage, early only if it is of a small task and leaves as many as
 * keep the others busy; else says what it saw. */
static bool claim_one(struct relay_cpu_pool *pool, bool early, struct hand *hand,
                      struct sight *seen)
{
    const uint32_t spare = early ? 2 * (pool->num_workers + 1) : 0;
    uint64_t claim = atomic_load(&pool->claim);
    for (;;) {
        uint32_t number = (uint32_t)(claim >> 32);
        uint64_t tail = atomic_load(&pool->tail);
        seen->claim = claim;
        seen->tail = tail;
        if ((uint32_t)tail == number) {
            return false;
        }
        struct stage *stage = &pool->stages[number % RELAY_CPU_POOL_STAGES_MAX];
        uint32_t count = atomic_load_explicit(&stage->count, memory_order_relaxed);
        uint32_t task = (uint32_t)claim;
        if (task >= count || count - task <= spare) {
            return false; /* all claimed; or a refilled slot, then idle sees claim has moved on */
        }
        if (early && task < atomic_load_explicit(&stage->small, memory_order_relaxed)) {
            return false;
        }
        if (atomic_compare_exchange_weak(&pool->claim, &claim, claim + 1u)) {
            *hand = (struct hand){number, task};
            return true;
        }
    }
}

/* Runs one task if there is one to claim; else says what it saw. The ticket after it is taken
 * beforehand where that cannot make others wait for a task that lies in a busy thread's hand. */
static bool run_one(struct relay_cpu_pool *pool, uint32_t thread, struct hand *hand,
                    struct sight *seen)
{
    struct hand now = *hand;
    struct sight unused;
    hand->task = RELAY_CPU_NO_TASK;
    if (now.task == RELAY_CPU_NO_TASK && !claim_one(pool, false, &now, seen)) {
        return false;
    }
    struct stage *stage = &pool->stages[now.number % RELAY_CPU_POOL_STAGES_MAX];
    uint32_t count = atomic_load_explicit(&stage->count, memory_order_relaxed);
    relay_cpu_task_fn fn = atomic_load_explicit(&stage->fn, memory_order_relaxed);
    void *context = atomic_load_explicit(&stage->context, memory_order_relaxed);
    (void)claim_one(pool, true, hand, &unused);
    fn(context, now.task, hand->task, thread);
    if (atomic_fetch_add_explicit(&pool->done, 1, memory_order_acq_rel) + 1u == count) {
        stage_finish(pool, now.number);
    }
    return true;
}

static bool changed(struct relay_cpu_pool *pool, const struct sight *seen)
{
    return atomic_load(&pool->claim) != seen->claim || atomic_load(&pool->tail) != seen->tail ||
           atomic_load(&pool->stop);
}

static void idle(struct relay_cpu_pool *pool, const struct sight *seen)
{
    int64_t until = now_ns() + SPIN_NS_MAX;
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (changed(pool, seen)) {
                return;
            }
            pause_briefly();
        }
    } while (now_ns() < until);

    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!changed(pool, seen)) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct relay_cpu_pool *pool = worker->pool;
    struct hand hand = {0, RELAY_CPU_NO_TASK};
    while (!atomic_load(&pool->stop)) {
        struct sight seen;
        if (!run_one(pool, worker->index, &hand, &seen)) {
            idle(pool, &seen);
        }
    }
    return NULL;
}

enum relay_code relay_cpu_pool_create(uint32_t threads, struct relay_cpu_pool **out,
                                      struct relay_error *err)
{
    if (threads == 0 || threads > RELAY_CPU_THREADS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "threads %u is not in 1..%u", threads,
                          RELAY_CPU_THREADS_MAX);
    }
    struct relay_cpu_pool *pool = aligned_alloc(64, (sizeof(*pool) + 63) / 64 * 64);
    if (pool == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory for the thread pool");
    }
    memset(pool, 0, sizeof(*pool));
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->caller.task = RELAY_CPU_NO_TASK;
    pool->workers = calloc(threads, sizeof(*pool->workers));
    if (pool->workers == NULL) {
        relay_cpu_pool_destroy(pool);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory for the thread pool");
    }
    for (uint32_t i = 1; i < threads; i++) {
        struct worker *worker = &pool->workers[pool->num_workers];
        worker->pool = pool;
        worker->index = i;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            relay_cpu_pool_destroy(pool);
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot start compute thread %u of %u",
                              i, threads);
        }
        pool->num_workers++;
    }
    *out = pool;
    return RELAY_OK;
}

void relay_cpu_pool_destroy(struct relay_cpu_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    uint64_t tail = atomic_load(&pool->tail);
    if (tail != 0) {
        relay_cpu_pool_wait(pool, tail - 1u);
    }
    atomic_store(&pool->stop, true);
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->num_workers; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

uint64_t relay_cpu_pool_submit(struct relay_cpu_pool *pool, relay_cpu_task_fn fn, void *context,
                               uint32_t count, uint32_t small)
{
    uint64_t number = atomic_load(&pool->tail); /* only the caller writes it */
    if (count == 0) {
        return number == 0 ? 0 : number - 1u;
    }
    if (number >= RELAY_CPU_POOL_STAGES_MAX) {
        relay_cpu_pool_wait(pool, number - RELAY_CPU_POOL_STAGES_MAX);
    }
    struct stage *stage = &pool->stages[number % RELAY_CPU_POOL_STAGES_MAX];
    atomic_store_explicit(&stage->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&stage->context, context, memory_order_relaxed);
    atomic_store_explicit(&stage->count, count, memory_order_relaxed);
    atomic_store_explicit(&stage->small, small, memory_order_relaxed);
    atomic_store(&pool->tail, number + 1u);
    wake_all(pool);
    return number;
}

void relay_cpu_pool_wait(struct relay_cpu_pool *pool, uint64_t stage)
{
    /* A stage that was never submitted (count 0 before any other) needs no wait. */
    if (stage >= atomic_load(&pool->tail)) {
        return;
    }
    while (atomic_load(&pool->completed) <= stage || pool->caller.task != RELAY_CPU_NO_TASK) {
        struct sight seen;
        if (!run_one(pool, 0, &pool->caller, &seen) && atomic_load(&pool->completed) <= stage) {
            idle(pool, &seen);
        }
    }
}

uint32_t relay_cpu_pool_cpus(void)
{
    cpu_set_t set;
    long online;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return (uint32_t)CPU_COUNT(&set);
    }
    online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than cpu_set_t holds */
    return online > 0 ? (uint32_t)online : 1u;
}
