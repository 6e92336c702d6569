/* The comparison of a problem's outputs with the dense oracle. See problem.h. */
#include "testlib/problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One entry's concatenated sequence and the oracle's results. */
struct oracle {
    float *k;
    float *v;
    uint32_t *positions;
    uint32_t tokens;
    double *scratch;
    float *out;
    struct dense_result want;
};

static void oracle_free(struct oracle *o)
{
    free(o->k);
    free(o->v);
    free(o->positions);
    free(o->scratch);
    free(o->out);
    free(o->want.out);
    free(o->want.magnitude);
    free(o->want.lse);
    free(o->want.score);
}

static void append_strip(const struct problem *p, struct oracle *o,
                         const struct problem_strip *strip)
{
    const struct relay_layer_kind *kind = &p->shape.kind;
    size_t k_row = (size_t)kind->num_kv_heads * kind->head_dim_qk;
    size_t v_row = (size_t)kind->num_kv_heads * kind->head_dim_v;
    memcpy(o->k + o->tokens * k_row, strip->k, strip->tokens * k_row * sizeof(float));
    if (!kind->v_from_k) {
        memcpy(o->v + o->tokens * v_row, strip->v, strip->tokens * v_row * sizeof(float));
    }
    for (uint32_t t = 0; t < strip->tokens; t++) {
        o->positions[o->tokens + t] = strip->position + t;
    }
    o->tokens += strip->tokens;
}

/* The levels from the root down to a segment. */
static void append_path(const struct problem *p, struct oracle *o, uint32_t segment)
{
    if (segment == PROBLEM_NONE) {
        return;
    }
    append_path(p, o, p->config.segments[segment].parent);
    append_strip(p, o, &p->segments[segment]);
}

static size_t path_tokens(const struct problem *p, uint32_t segment)
{
    size_t tokens = 0;
    while (segment != PROBLEM_NONE) {
        tokens += p->segments[segment].tokens;
        segment = p->config.segments[segment].parent;
    }
    return tokens;
}

static bool oracle_init(const struct problem *p, struct oracle *o, uint32_t entry)
{
    const struct relay_layer_kind *kind = &p->shape.kind;
    uint32_t segment = p->config.entries[entry].segment;
    size_t tokens = path_tokens(p, segment) + p->contexts[entry].tokens + 1;
    size_t heads = kind->num_q_heads;
    size_t out = heads * kind->head_dim_v;
    memset(o, 0, sizeof(*o));
    o->k = malloc(tokens * kind->num_kv_heads * kind->head_dim_qk * sizeof(float));
    o->v = malloc(tokens * kind->num_kv_heads * kind->head_dim_v * sizeof(float));
    o->positions = malloc(tokens * sizeof(uint32_t));
    o->scratch = malloc(tokens * sizeof(double));
    o->out = malloc(out * sizeof(float));
    o->want.out = malloc(out * sizeof(double));
    o->want.magnitude = malloc(out * sizeof(double));
    o->want.lse = malloc(heads * sizeof(double));
    o->want.score = malloc(heads * sizeof(double));
    if (o->k == NULL || o->v == NULL || o->positions == NULL || o->scratch == NULL ||
        o->out == NULL || o->want.out == NULL || o->want.magnitude == NULL || o->want.lse == NULL ||
        o->want.score == NULL) {
        return false;
    }
    if (p->part != RELAY_PART_CONTEXT_ONLY) {
        append_path(p, o, segment);
    }
    if (p->part != RELAY_PART_PROMPT_ONLY) {
        append_strip(p, o, &p->contexts[entry]);
    }
    return true;
}

static bool check_entry(struct problem *p, uint32_t entry, const struct tolerance *tolerance,
                        char *why, size_t why_bytes)
{
    const struct relay_layer_kind *kind = &p->shape.kind;
    const float *sinks = p->part == RELAY_PART_FULL ? p->sinks : NULL;
    size_t q_row = (size_t)kind->num_q_heads * kind->head_dim_qk;
    size_t out = (size_t)kind->num_q_heads * kind->head_dim_v;
    struct oracle o;
    bool ok = oracle_init(p, &o, entry);
    if (!ok) {
        (void)snprintf(why, why_bytes, "no memory for the oracle");
    }
    for (uint32_t r = 0; ok && r < p->entries[entry].q_len; r++) {
        struct dense_keys keys = {o.k, o.v, o.positions, o.tokens};
        char what[160];
        dense_attention(kind, &keys, p->entries[entry].position + r, p->q[entry] + r * q_row, sinks,
                        o.scratch, &o.want);
        relay_dtype_convert(RELAY_DTYPE_F32, o.out, p->shape.out_dtype, problem_out(p, entry, r),
                            out);
        ok = compare_row(kind, tolerance, o.out, problem_lse(p, entry, r), &o.want, &p->stats, what,
                         sizeof(what));
        if (!ok) {
            (void)snprintf(why, why_bytes, "entry %u row %u: %s", entry, r, what);
        }
    }
    oracle_free(&o);
    return ok;
}

static bool all_poison(const void *memory, size_t bytes)
{
    const unsigned char *at = memory;
    for (size_t i = 0; i < bytes; i++) {
        if (at[i] != 0xff) {
            return false;
        }
    }
    return true;
}

/* Rows of no planned entry keep the poison. */
static bool check_strangers(const struct problem *p, char *why, size_t why_bytes)
{
    size_t out = problem_out_bytes(p);
    size_t heads = p->shape.kind.num_q_heads;
    for (uint32_t i = 0; i < p->num_ios; i++) {
        for (uint32_t r = 0; r < p->ios[i].rows; r++) {
            const struct relay_io *io = &p->ios[i].io;
            bool owned = false;
            for (uint32_t c = 0; c < p->num_chosen; c++) {
                const struct relay_entry *e = &p->chosen[c];
                owned = owned || (e->io == i && r >= e->row_begin && r < e->row_begin + e->q_len);
            }
            if (!owned &&
                (!all_poison((const unsigned char *)io->out + r * out, out) ||
                 (io->lse != NULL && !all_poison(io->lse + r * heads, heads * sizeof(float))))) {
                (void)snprintf(why, why_bytes, "row %u of io %u was written, nobody asked for it",
                               r, i);
                return false;
            }
        }
    }
    return true;
}

/* Kernels that round weights to BF16, or F16, which is finer, before the product with V; all others
 * keep float32 or more. */
struct rounding {
    const char *backend;
    const char *isa; /* NULL = any */
    enum relay_dtype kv_dtype;
    enum relay_dtype io_dtype;
    double unit; /* of what P is rounded to */
};

static const struct rounding roundings[] = {
    {"cpu", "avx512bf16", RELAY_DTYPE_BF16, RELAY_DTYPE_BF16, TOLERANCE_P_BF16},
    {"cpu", "amx", RELAY_DTYPE_BF16, RELAY_DTYPE_BF16, TOLERANCE_P_BF16},
    {"cpu", "avx512bf16", RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16, TOLERANCE_P_BF16},
    {"cpu", "amx", RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16, TOLERANCE_P_BF16},
    {"cuda", NULL, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16, TOLERANCE_P_BF16},
    {"cuda", NULL, RELAY_DTYPE_F16, RELAY_DTYPE_F16, TOLERANCE_P_F16},
    {"cuda", NULL, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_BF16, TOLERANCE_P_F16},
    {"cuda", NULL, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_F16, TOLERANCE_P_F16},
};

struct tolerance problem_tolerance(const struct problem *p)
{
    const struct relay_backend_info *info = relay_backend_info(p->backend);
    double unit = 0.0;
    for (size_t i = 0; i < sizeof(roundings) / sizeof(roundings[0]); i++) {
        const struct rounding *r = &roundings[i];
        if (strcmp(r->backend, info->name) == 0 &&
            (r->isa == NULL || strcmp(r->isa, info->isa) == 0) &&
            r->kv_dtype == p->shape.kv_dtype && r->io_dtype == p->shape.io_dtype) {
            unit = r->unit;
        }
    }
    return tolerance_of(p->shape.out_dtype, unit);
}

bool problem_check(struct problem *p, char *why, size_t why_bytes)
{
    struct tolerance tolerance = problem_tolerance(p);
    for (uint32_t c = 0; c < p->num_chosen; c++) {
        if (!check_entry(p, p->chosen_index[c], &tolerance, why, why_bytes)) {
            return false;
        }
    }
    return check_strangers(p, why, why_bytes) &&
           compare_total(&tolerance, &p->stats, why, why_bytes);
}
