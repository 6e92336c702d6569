/* The cpu backend's own parts: the object, a run in flight.
 *
 * A job is one relay_backend_run: the caller's thread fills it, the pool's threads read it until
 * its last stage is done. */
#ifndef RELAY_CPU_INTERNAL_H
#define RELAY_CPU_INTERNAL_H

#include "core/backend_internal.h"
#include "cpu/isa.h"
#include "cpu/pool.h"

#define CPU_JOBS_MAX      16u
#define CPU_STAGES_OF_JOB 3u /* appends, items, merge */

struct cpu_job {
    struct relay_problem problem;
    const struct relay_cpu_isa *isa[RELAY_CPU_ITEMS];
    bool packed; /* K/V pages */
    bool second_cache;
    struct relay_cpu_partials partials; /* row = partial row, head 0 = query head 0 */
    unsigned char *scratch;             /* [threads,scratch_stride] */
    size_t scratch_stride;              /* bytes */
    size_t attend_bytes;                /* of a thread's scratch; a DIRECT item's results follow */
    uint32_t append_rows;
    uint32_t prompts;   /* items of prompts, which come first and may be long */
    uint32_t own_heads; /* KV heads of a task of the items after them: a divisor of all */
};

struct cpu_backend {
    struct relay_backend base;
    struct relay_cpu_isas isas;
    bool packs_pages; /* K/V pages are as pages.h has them, where it can */
    char detail[256]; /* what calibrating said */
    struct relay_cpu_pool *pool;
    uint64_t runs;                     /* tickets given out: the n-th run's is n */
    uint64_t last_stage[CPU_JOBS_MAX]; /* of the job in this slot */
    struct cpu_job jobs[CPU_JOBS_MAX]; /* run n in slot n % CPU_JOBS_MAX */
};

/* cpu_run.c */
size_t cpu_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                           const struct relay_plan *plan);
enum relay_code cpu_run(struct relay_backend *backend, const struct relay_problem *problem,
                        uint64_t *ticket, struct relay_error *err);
enum relay_code cpu_wait(struct relay_backend *backend, uint64_t ticket, struct relay_error *err);

#endif
