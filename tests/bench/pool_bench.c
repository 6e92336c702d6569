/* What handing work over costs: the three stages of a small step (8/1 heads, 8 requests, a prompt
 * of 2048 tokens: appends, items, merges) with tasks that do nothing, right after the step before,
 * and after a pause in which the threads have gone to sleep. One JSON line a thread count, medians.
 *
 *     pool_bench [--threads N]
 *
 * One thread, plus the pool's. */
#include "cell.h"

#include "cpu/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS     401
#define PAUSE_NS 500000 /* ten times what a thread waits before it sleeps */
#define APPENDS  4u
#define ITEMS    16u
#define MERGES   2u

static void do_nothing(void *context, uint32_t task, uint32_t next, uint32_t thread)
{
    (void)context;
    (void)task;
    (void)next;
    (void)thread;
}

static double step_us(struct relay_cpu_pool *pool)
{
    const double start = bench_now_us();
    (void)relay_cpu_pool_submit(pool, do_nothing, NULL, APPENDS, 0);
    (void)relay_cpu_pool_submit(pool, do_nothing, NULL, ITEMS, 0);
    relay_cpu_pool_wait(pool, relay_cpu_pool_submit(pool, do_nothing, NULL, MERGES, 0));
    return bench_now_us() - start;
}

static double median_us(struct relay_cpu_pool *pool, long pause_ns)
{
    static double us[RUNS];
    for (int i = 0; i < RUNS; i++) {
        const struct timespec pause = {.tv_nsec = pause_ns};
        if (pause_ns != 0) {
            (void)nanosleep(&pause, NULL);
        }
        us[i] = step_us(pool);
    }
    return bench_median(us, RUNS);
}

static void bench_threads(uint32_t threads)
{
    struct relay_error err;
    struct relay_cpu_pool *pool;
    if (relay_cpu_pool_create(threads, &pool, &err) != RELAY_OK) {
        bench_die("pool", &err);
    }
    const double busy = median_us(pool, 0);
    const double asleep = median_us(pool, PAUSE_NS);
    printf("{\"name\": \"pool\", \"threads\": %u, \"stages\": 3, \"tasks\": %u, "
           "\"handover_us\": %.2f, \"after_sleep_us\": %.2f, \"cpu\": \"%s\"}\n",
           threads, APPENDS + ITEMS + MERGES, busy, asleep, bench_cpu_name());
    relay_cpu_pool_destroy(pool);
}

int main(int argc, char **argv)
{
    const uint32_t cpus = relay_cpu_pool_cpus();
    if (argc == 3 && strcmp(argv[1], "--threads") == 0) {
        bench_threads((uint32_t)strtoul(argv[2], NULL, 10));
        return 0;
    }
    if (argc != 1) {
        fprintf(stderr, "pool_bench [--threads N]\n");
        return 2;
    }
    bench_threads(1);
    if (cpus > 1) {
        bench_threads(cpus);
    }
    return 0;
}
