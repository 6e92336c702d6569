#include "roofline.h"

#include "cell.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define THREADS_MAX 256u
#define RUNS        7
#define RUN_NS      2000000.0 /* about */

/* One measurement, done by several threads at once. */
struct race {
    pthread_barrier_t line;
    roofline_work_fn work; /* NULL: read */
    uint64_t rounds;
    const unsigned char *memory;
    size_t bytes; /* of each thread */
};

struct runner {
    pthread_t thread;
    struct race *race;
    uint32_t index;
    double done; /* in a run */
};

typedef uint64_t pair_of_words __attribute__((vector_size(16), may_alias));

/* Reads as the kernels do: in order, a kilobyte ahead. */
static double read_memory(const unsigned char *at, size_t bytes)
{
    pair_of_words a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 64 <= bytes; i += 64) {
        const pair_of_words *line = (const pair_of_words *)(const void *)(at + i);
        __builtin_prefetch(at + i + 1024);
        a |= line[0];
        b |= line[1];
        c |= line[2];
        d |= line[3];
    }
    a |= b | c | d;
    __asm__ volatile("" : : "r"(a[0] | a[1]));
    return (double)bytes;
}

static void run_once(struct runner *runner)
{
    struct race *race = runner->race;
    pthread_barrier_wait(&race->line);
    runner->done = race->work != NULL
                       ? race->work(race->rounds)
                       : read_memory(race->memory + runner->index * race->bytes, race->bytes);
    pthread_barrier_wait(&race->line);
}

static void *runner_main(void *argument)
{
    for (int run = 0; run < RUNS; run++) {
        run_once(argument);
    }
    return NULL;
}

/* The best of RUNS, all threads' work over the time of the slowest. */
static double race_rate(struct race *race, uint32_t threads)
{
    static struct runner runners[THREADS_MAX];
    double best = 0.0;
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    if (pthread_barrier_init(&race->line, NULL, threads) != 0) {
        bench_die("barrier", NULL);
    }
    for (uint32_t i = 0; i < threads; i++) {
        runners[i] = (struct runner){.race = race, .index = i};
        if (i != 0 && pthread_create(&runners[i].thread, NULL, runner_main, &runners[i]) != 0) {
            bench_die("thread", NULL);
        }
    }
    for (int run = 0; run < RUNS; run++) {
        double start = bench_now_us();
        run_once(&runners[0]);
        double us = bench_now_us() - start;
        double rate = runners[0].done * threads / us * 1e6;
        best = rate > best ? rate : best;
    }
    for (uint32_t i = 1; i < threads; i++) {
        (void)pthread_join(runners[i].thread, NULL);
    }
    (void)pthread_barrier_destroy(&race->line);
    return best;
}

double roofline_rate(roofline_work_fn work, uint32_t threads)
{
    struct race race = {.work = work, .rounds = 1000};
    double us = 0.0;
    while (us * 1e3 < RUN_NS) { /* how many rounds are long enough */
        double start = bench_now_us();
        (void)work(race.rounds);
        us = bench_now_us() - start;
        race.rounds *= us * 1e3 < RUN_NS ? 2 : 1;
    }
    return race_rate(&race, threads);
}

/* More than any cache holds, and a bit to read ahead; kept until the program ends. */
static const unsigned char *read_from(size_t *bytes)
{
    static unsigned char *at;
    const size_t huge = (size_t)2 << 20;
    *bytes = (4 * bench_llc_bytes() + huge) / huge * huge;
    if (at == NULL) {
        unsigned char *map = mmap(NULL, *bytes + 2 * huge, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            bench_die("memory", NULL);
        }
        at = map + huge - (uintptr_t)map % huge;
        (void)madvise(at, *bytes, MADV_HUGEPAGE);
        memset(at, 1, *bytes + huge / 2);
    }
    return at;
}

double roofline_read(uint32_t threads)
{
    size_t bytes;
    struct race race = {.memory = read_from(&bytes)};
    race.bytes = bytes / threads / 4096 * 4096;
    return race_rate(&race, threads);
}
