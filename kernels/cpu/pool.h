/* Threads that work through stages of tasks, one stage after the other.
 *
 * A stage is `count` calls of one function. Tasks are claimed by an atomic ticket in index order;
 * a stage starts when every task of the stage before it has returned, and sees all it wrote. Who
 * runs a task is left to chance, so a task's result must not depend on it.
 *
 * One thread (the caller) creates, submits, waits and destroys. It is also a worker: in wait and in
 * destroy it takes tasks instead of sleeping, so a pool of n threads starts n - 1 of its own.
 * Nothing allocates after create. */
#ifndef RELAY_CPU_POOL_H
#define RELAY_CPU_POOL_H

#include <relay/status.h>

#include <stdint.h>

#define RELAY_CPU_THREADS_MAX     1024u
#define RELAY_CPU_POOL_STAGES_MAX 64u /* submitted and not done */

struct relay_cpu_pool;

/* thread: 0 is the caller, 1..n-1 the pool's own; two tasks at the same time never have the same.
 * next: the task of this stage that this thread runs next, or RELAY_CPU_NO_TASK when that is open:
 * something to fetch data for. */
typedef void (*relay_cpu_task_fn)(void *context, uint32_t task, uint32_t next, uint32_t thread);
#define RELAY_CPU_NO_TASK UINT32_MAX

/* threads in 1..RELAY_CPU_THREADS_MAX. RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relay_cpu_pool_create(uint32_t threads,
                                                       struct relay_cpu_pool **out,
                                                       struct relay_error *err);
/* Finishes what was submitted. NULL is fine. */
void relay_cpu_pool_destroy(struct relay_cpu_pool *pool);

/* Enqueues a stage and returns its number; context lives until wait returned for it. Tasks from
 * `small` on are so short that a thread may take one more while it works on one. count 0 enqueues
 * nothing and returns the number of the stage before. Does not block unless
 * RELAY_CPU_POOL_STAGES_MAX stages are waiting; then it works until one is done. */
uint64_t relay_cpu_pool_submit(struct relay_cpu_pool *pool, relay_cpu_task_fn fn, void *context,
                               uint32_t count, uint32_t small);
/* Works, then blocks, until the stage of this number and all before it are done. */
void relay_cpu_pool_wait(struct relay_cpu_pool *pool, uint64_t stage);

/* CPUs this process may run on. */
uint32_t relay_cpu_pool_cpus(void);

#endif
