/* The seam between the cpu backend and its kernels: one table per instruction set, one file per
 * table. A new one is a new attend_<isa>.c with its own compile flags, a line in CMakeLists.txt and
 * a line in relay_cpu_isa_choose(). */
#ifndef RELAY_CPU_ISA_H
#define RELAY_CPU_ISA_H

#include <relay/backend.h>

/* Unmerged results of (row r, query head h), relative to 2^m: the sum l of weights and the sum out
 * [dv] of weights times values, at m and l + r * head_stride + h and out + r * out_stride + h * dv.
 * A head that saw nothing has m = -inf, l = 0 and zeros. Readers may read up to 64 bytes past the
 * end of each array. */
struct relay_cpu_partials {
    float *out;
    float *m;
    float *l;
    size_t out_stride;
    size_t head_stride;
};

/* One item for one KV head. */
struct relay_cpu_attend {
    const struct relay_problem *problem;
    const struct relay_item *item;
    uint32_t kv_head;
    bool packed; /* K/V pages are as pages.h packs them */
    /* What the thread does after this, or NULL: its first K/V may be asked for. */
    const struct relay_item *next_item;
    uint32_t next_kv_head;
    bool second_cache;            /* K/V is asked for there, not in the first: see calibrate.h */
    struct relay_cpu_partials to; /* row 0 = the item's first, head 0 = the KV head's first */
    void *scratch;                /* scratch_bytes(), 64-byte aligned, nobody else's meanwhile */
};

/* One row: partials index[0, count) of `from`, merged with sinks to query heads [q_head, +heads),
 * which are heads [0, heads) of `from`. count may be 0. */
struct relay_cpu_merge {
    const struct relay_problem *problem;
    const struct relay_plan_row *row;
    struct relay_cpu_partials from;
    const uint32_t *index;
    uint32_t count;
    uint32_t q_head;
    uint32_t heads;
};

struct relay_cpu_isa {
    const char *name;
    bool (*available)(void); /* this machine and its system can run it; NULL = any can */
    bool (*supports)(const struct relay_shape *shape); /* NULL = every shape */
    bool packs_pages;                                  /* reads K/V as pages.h has it */
    uint32_t block_tokens;                             /* what plans should use */
    uint32_t packed_rows_max; /* rows x heads of a group that still fit the caches well */
    size_t (*scratch_bytes)(const struct relay_shape *shape, uint32_t packed_rows,
                            uint32_t block_tokens);
    void (*attend)(const struct relay_cpu_attend *work);
    /* Writes out and LSE; the same bits for any split of heads into calls. */
    void (*merge)(const struct relay_cpu_merge *work);
};

void relay_cpu_merge_portable(const struct relay_cpu_merge *work);
void relay_cpu_merge_avx2(const struct relay_cpu_merge *work);
void relay_cpu_merge_avx512(const struct relay_cpu_merge *work);

extern const struct relay_cpu_isa relay_cpu_isa_portable;
extern const struct relay_cpu_isa relay_cpu_isa_avx2;
extern const struct relay_cpu_isa relay_cpu_isa_avx512;
extern const struct relay_cpu_isa relay_cpu_isa_avx512bf16;
extern const struct relay_cpu_isa relay_cpu_isa_amx;

/* What items are to kernels: see calibrate.h. */
enum relay_cpu_items {
    RELAY_CPU_OWN,    /* a request's own tokens: as many packed rows as one request has */
    RELAY_CPU_PROMPT, /* a prompt's: the rows of all its readers */
    RELAY_CPU_ITEMS
};

/* The tables a backend chooses among, for each kind of item, best first; the last takes every
 * shape, and all of them want the same pages and blocks. */
#define RELAY_CPU_ISAS_MAX 8u
struct relay_cpu_isas {
    const struct relay_cpu_isa *list[RELAY_CPU_ITEMS][RELAY_CPU_ISAS_MAX];
    uint32_t count;
    struct {
        float block_ns; /* a block of 64 tokens of 128 + 128 dims of BF16, read by one packed row */
        float row_ns;   /* more for each packed row */
    } costs;            /* of the first kernel for prompts */
    bool second_cache;  /* as in struct relay_cpu_attend */
};

/* Those this machine can run, in the order in which they are built in. force: the name of one,
 * which then stands first, before the one that takes the shapes it does not (NULL or "" = all).
 * NOT_FOUND for a name that is not built in, UNAVAILABLE for one that this machine cannot run. */
RELAY_MUST_CHECK enum relay_code relay_cpu_isas_find(const char *force, struct relay_cpu_isas *out,
                                                     struct relay_error *err);
/* The first that takes the shape. Pure: the same answer for plan, workspace and run. */
const struct relay_cpu_isa *relay_cpu_isa_for(const struct relay_cpu_isas *isas,
                                              const struct relay_shape *shape,
                                              enum relay_cpu_items items);

#endif
