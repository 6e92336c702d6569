/* Attention problems for tests: random tensors, pools with permuted page tables, plans, runs, and
 * the comparison with the dense oracle.
 *
 * Everything a kernel must not look at is NaN: unused pages and page slots, rows between the
 * entries, outputs and workspace before the run. The same seed gives the same tensors on every
 * backend. Functions return codes, so that any test may use them. One thread per problem. */
#ifndef RELAY_TESTLIB_PROBLEM_H
#define RELAY_TESTLIB_PROBLEM_H

#include <relay/backend.h>

#include "testlib/compare.h"

#define PROBLEM_NONE UINT32_MAX

/* A prompt or a level of a prompt tree. */
struct problem_segment {
    uint32_t tokens;
    uint32_t parent; /* an earlier segment or PROBLEM_NONE */
    uint32_t gap;    /* positions left out before its first token */
};

struct problem_entry {
    uint32_t segment; /* or PROBLEM_NONE */
    uint32_t context; /* own tokens, new ones included */
    uint32_t q_len;
    bool append;          /* the last q_len context tokens come with the call */
    uint32_t context_gap; /* positions left out before its first own token */
    bool placed;          /* row 0 is at `position`, else row q_len - 1 is at the last token */
    uint32_t position;
};

/* Float tensors of a segment's or entry's tokens. */
struct problem_strip {
    uint32_t tokens;
    uint32_t new_tokens; /* the last ones come with the call */
    uint32_t position;
    float *k; /* [tokens,Hkv,dqk]; after problem_init the stored values */
    float *v; /* [tokens,Hkv,dv] */
    uint32_t *pages;
    uint32_t num_pages;
};

struct problem;
/* Changes strips and queries after they were drawn and before they are rounded and stored. */
typedef void (*problem_edit_fn)(struct problem *problem);

struct problem_config {
    struct relay_shape shape; /* scale 0 = 1 / sqrt(head_dim_qk) */
    const struct problem_segment *segments;
    uint32_t num_segments;
    const struct problem_entry *entries;
    uint32_t num_entries;
    uint32_t page_tokens; /* 0 = what the backend likes */
    uint32_t num_ios;     /* 0 = 1; entries take turns */
    bool sinks;
    bool alibi;
    bool no_lse;
    float q_scale; /* 0 = 1 */
    problem_edit_fn edit;
    uint64_t seed;
};

/* How to plan: zeros are the backend's choice, all entries, everything shared. */
struct problem_plan {
    enum relay_part part;
    enum relay_sharing sharing;
    const uint32_t *entries; /* which, in which order; NULL = all */
    uint32_t num_entries;
    uint32_t item_rows_max;
    uint32_t split_tokens_min; /* a multiple of 64 */
    uint32_t splits_max;
};

struct problem_io {
    struct relay_io io;
    uint32_t rows;
};

struct problem {
    struct problem_config config;
    struct relay_shape shape;
    struct relay_backend *backend;
    struct problem_strip *segments; /* [num_segments] */
    struct problem_strip *contexts; /* [num_entries] */
    struct relay_entry *entries;    /* [num_entries] as the plan gets them */
    float **q;                      /* [num_entries] of [q_len,Hq,dqk]: values */
    float *slopes, *sinks, *k_scale, *v_scale;
    uint32_t page_tokens;
    uint32_t num_pages;
    void *pool;
    size_t pool_bytes;
    struct relay_kv_layer kv;
    struct problem_io *ios;
    uint32_t num_ios;
    struct relay_segment *plan_segments;
    struct relay_entry *chosen; /* the entries of the plan */
    uint32_t *chosen_index;
    uint32_t num_chosen;
    enum relay_part part;
    struct relay_plan *plan;
    void *workspace;
    size_t workspace_bytes;
    struct compare_stats stats; /* of all problem_check calls */
};

/* Draws, edits, stores. On failure the problem is empty; fini is safe either way. */
enum relay_code problem_init(struct problem *problem, struct relay_backend *backend,
                             const struct problem_config *config, struct relay_error *err);
void problem_fini(struct problem *problem);

/* Builds the plan (NULL = all zeros) and its workspace. */
enum relay_code problem_plan(struct problem *problem, const struct problem_plan *how,
                             struct relay_error *err);
/* Poisons outputs and workspace, runs, waits. */
enum relay_code problem_run(struct problem *problem, struct relay_error *err);

/* What this backend may be off by for the problem's shape. */
struct tolerance problem_tolerance(const struct problem *problem);

/* Compares all planned rows with the dense oracle, and that nothing else was written. */
bool problem_check(struct problem *problem, char *why, size_t why_bytes);

/* Output and LSE of row i of an entry (by its index in the config), as written. */
const void *problem_out(const struct problem *problem, uint32_t entry, uint32_t row);
const float *problem_lse(const struct problem *problem, uint32_t entry, uint32_t row);
size_t problem_out_bytes(const struct problem *problem); /* of one row */
uint32_t problem_rows(const struct problem *problem);    /* of all entries */

/* All rows' output and LSE, entry after entry, into one malloc'd block; NULL when out of memory. */
unsigned char *problem_snapshot(const struct problem *problem, size_t *bytes);

/* The tensors' values at [token,head]. */
float *problem_k(struct problem *problem, struct problem_strip *strip, uint32_t token,
                 uint32_t head);
float *problem_v(struct problem *problem, struct problem_strip *strip, uint32_t token,
                 uint32_t head);

/* A shape with all dtypes given and nothing special; scale 0. */
struct relay_shape problem_shape(uint32_t num_q_heads, uint32_t num_kv_heads, uint32_t head_dim,
                                 enum relay_dtype kv, enum relay_dtype io, enum relay_dtype out);

#endif
