/* One decode step of a batch of requests on one prompt, per layer, as benches time it: relay
 * (prompt K/V read once for the batch) and plain (the same kernels, sharing NEVER). Several layers
 * are walked, so that K/V comes from memory as it does in a model: four times the last-level cache
 * in all, unless told otherwise. Ends the program when something fails. One thread, plus the
 * backend's.
 */
#ifndef BENCH_CELL_H
#define BENCH_CELL_H

#include <relay/backend.h>

#define CELL_STEPS_MAX 1000u

struct cell_config {
    uint32_t q_heads, kv_heads, head_dim;
    uint32_t batch, prompt, context;
    enum relay_dtype dtype;
    enum relay_dtype kv_dtype; /* of K/V as stored; UNSPECIFIED = dtype */
    uint32_t layers;           /* 0 = enough for the cache */
    struct {
        uint32_t block, split, rows;
    } tune; /* 0 = the backend's own */
};

enum cell_mode { CELL_RELAY, CELL_PLAIN, CELL_MODES };

struct cell {
    struct cell_config config;
    struct relay_backend *backend;
    struct relay_shape shape;
    uint32_t page_tokens, layers;
    uint32_t num_pages;
    size_t k_page, page_stride, layer_bytes;
    unsigned char *kv; /* [layers][num_pages] pages of K, then V */
    size_t kv_bytes;
    uint32_t *pages; /* [num_pages] the prompt's, then each request's */
    struct relay_entry *entries;
    struct relay_io io;
    unsigned char *out[CELL_MODES];
    size_t out_bytes;
    struct relay_plan *plan[CELL_MODES];
    void *workspace;
    size_t workspace_bytes;
    double plan_us; /* to build the relay's plan */
    double us[CELL_MODES][CELL_STEPS_MAX];
    uint32_t steps; /* walks timed */
};

void cell_init(struct cell *cell, struct relay_backend *backend, const struct cell_config *config);
void cell_fini(struct cell *cell);
/* Microseconds of one walk over the layers, per layer. */
double cell_run(struct cell *cell, enum cell_mode mode);
/* Runs both modes once and compares their bits. */
bool cell_same(struct cell *cell);
/* Walks both modes by turns, at least steps_min times and until ms have passed. May be called again
 * for more of them. */
void cell_time(struct cell *cell, uint32_t steps_min, double ms);
/* Medians of all walks. */
void cell_medians(struct cell *cell, double us[CELL_MODES]);
/* Writes q, the prompt's and the contexts' K/V and the relay's output, as they are in memory of a
 * model without pages: q.bin [B,Hq,d], k.bin and v.bin [S,Hkv,d], ck.bin and cv.bin [B,C,Hkv,d],
 * out.bin [B,Hq,d]. */
void cell_dump(struct cell *cell, const char *folder);

/* For all benches. */
double bench_now_us(void);
double bench_median(double *values, uint32_t n);
void bench_die(const char *what, const struct relay_error *err);
const char *bench_cpu_name(void);
size_t bench_llc_bytes(void);

#endif
