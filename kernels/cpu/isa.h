/* The seam between the cpu backend and its kernels: one table per instruction set, one file per
 * table. A new one is a new attend_<isa>.c with its own compile flags, a line in CMakeLists.txt and
 * a line in relay_cpu_isa_choose(). */
#ifndef RELAY_CPU_ISA_H
#define RELAY_CPU_ISA_H

#include <relay/backend.h>

/* Unmerged results: row r, query head h has its output, normalised, at
 * out + r * out_stride + h * dv, and its LSE, base 2, at lse[r * lse_stride + h]. */
struct relay_cpu_partials {
    float *out;
    float *lse;
    size_t out_stride;
    size_t lse_stride;
};

/* One item for one KV head. */
struct relay_cpu_attend {
    const struct relay_problem *problem;
    const struct relay_item *item;
    uint32_t kv_head;
    struct relay_cpu_partials to; /* row 0 = the item's first, head 0 = the KV head's first */
    void *scratch;                /* scratch_bytes(), 64-byte aligned, nobody else's meanwhile */
};

struct relay_cpu_isa {
    const char *name;
    uint32_t block_tokens;    /* what plans should use */
    uint32_t packed_rows_max; /* rows x heads of a group that still fit the caches well */
    size_t (*scratch_bytes)(const struct relay_shape *shape, uint32_t packed_rows,
                            uint32_t block_tokens);
    void (*attend)(const struct relay_cpu_attend *work);
};

extern const struct relay_cpu_isa relay_cpu_isa_portable;

/* The best table this machine can run. */
const struct relay_cpu_isa *relay_cpu_isa_choose(void);

#endif
