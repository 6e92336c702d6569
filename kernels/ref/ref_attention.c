/* Attention in fp64 over a plan's items, then the merge. One thread.
 *
 * Per item and KV head every K/V row is loaded once, through load_row, the only place that reads
 * pages and counts their bytes; all rows of the item and all query heads of the group use it, by an
 * online softmax in token order. A row's result over an item is (out, LSE); results are merged in
 * the order of the row's list, a single one and a DIRECT one by the same code. */
#include "ref/ref_internal.h"

#include "core/host_memory.h"

#include <math.h>
#include <string.h>

/* Online softmax of one (row, query head): max m, sum l of exp(s - m), acc [dv] of exp(s - m) v.
 * Laid out in doubles: m, l, acc[dv]. */
#define STATE_HEAD 2u

struct pass {
    struct ref_backend *ref;
    const struct relay_problem *problem;
    const struct relay_layer_kind *kind;
    uint32_t group; /* query heads per KV head */
    size_t state_doubles;
    double *lse; /* [num_partials,Hq] */
    double *out; /* [num_partials,Hq,dv] */
    double *q;   /* [rows of an item,group,dqk] */
    double *states;
};

static uint32_t item_rows_most(const struct relay_plan *plan)
{
    uint32_t most = 1; /* the merge uses one state */
    for (uint32_t i = 0; i < plan->num_items; i++) {
        most = plan->items[i].row_count > most ? plan->items[i].row_count : most;
    }
    return most;
}

size_t ref_workspace_bytes(const struct relay_backend *backend, const struct relay_shape *shape,
                           const struct relay_plan *plan)
{
    const struct relay_layer_kind *kind = &shape->kind;
    size_t group = kind->num_q_heads / kind->num_kv_heads;
    size_t partials = (size_t)plan->num_partials * kind->num_q_heads * (1u + kind->head_dim_v);
    size_t item =
        item_rows_most(plan) * group * (kind->head_dim_qk + STATE_HEAD + kind->head_dim_v);
    (void)backend;
    return (partials + item) * sizeof(double);
}

static void pass_init(struct pass *pass, struct ref_backend *ref,
                      const struct relay_problem *problem)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    size_t partials = (size_t)problem->plan->num_partials * kind->num_q_heads;
    pass->ref = ref;
    pass->problem = problem;
    pass->kind = kind;
    pass->group = kind->num_q_heads / kind->num_kv_heads;
    pass->state_doubles = STATE_HEAD + (size_t)kind->head_dim_v;
    pass->lse = problem->workspace;
    pass->out = pass->lse + partials;
    pass->q = pass->out + partials * kind->head_dim_v;
    pass->states =
        pass->q + (size_t)item_rows_most(problem->plan) * pass->group * kind->head_dim_qk;
}

static void to_double(double *dst, enum relay_dtype dtype, const void *src, size_t n, double scale)
{
    float buffer[RELAY_HEAD_DIM_MAX];
    relay_dtype_convert(RELAY_DTYPE_F32, buffer, dtype, src, n);
    for (size_t i = 0; i < n; i++) {
        dst[i] = (double)buffer[i] * scale;
    }
}

/* The counting accessor: one token's stored row of one KV head, [dim], with its scale applied. */
static void load_row(struct pass *pass, const struct relay_plan_segment *segment, const void *pages,
                     const float *scales, size_t dim, uint32_t head, uint32_t token, double *dst)
{
    const struct relay_plan *plan = pass->problem->plan;
    enum relay_dtype dtype = pass->problem->shape->kv_dtype;
    size_t elem = relay_dtype_size(dtype);
    uint32_t page = plan->pages[segment->page_begin + token / plan->page_tokens];
    const unsigned char *row =
        (const unsigned char *)pages + (size_t)page * pass->problem->kv.page_stride +
        relay_page_offset(plan->page_tokens, dim, elem, head, token % plan->page_tokens);
    to_double(dst, dtype, row, dim, (double)relay_kv_scale(scales, head));
    if (segment->shared) {
        pass->ref->shared_bytes += dim * elem;
    } else {
        pass->ref->own_bytes += dim * elem;
    }
}

static double score(const struct relay_layer_kind *kind, uint32_t q_head, const double *q,
                    const double *k, uint64_t key_position, uint64_t row_position)
{
    double s = 0.0;
    for (uint32_t d = 0; d < kind->head_dim_qk; d++) {
        s += q[d] * k[d];
    }
    s *= (double)kind->scale;
    if (kind->softcap > 0.0f) {
        s = (double)kind->softcap * tanh(s / (double)kind->softcap);
    }
    if (kind->alibi_slopes != NULL) {
        s += (double)kind->alibi_slopes[q_head] * ((double)key_position - (double)row_position);
    }
    return s;
}

static void state_reset(double *state, size_t dv)
{
    state[0] = -INFINITY;
    state[1] = 0.0;
    for (size_t d = 0; d < dv; d++) {
        state[STATE_HEAD + d] = 0.0;
    }
}

/* Adds one term of weight exp(s) and value v [dv]; NULL is a value of 0 (a sink). */
static void state_add(double *state, size_t dv, double s, const double *v)
{
    double m = state[0];
    double grown = s > m || isnan(s) ? s : m;
    double keep;
    double p;
    if (grown == -INFINITY) {
        return; /* a weight of 0: -inf - -inf must not be formed */
    }
    keep = exp(m - grown);
    p = exp(s - grown);
    state[0] = grown;
    state[1] = state[1] * keep + p;
    for (size_t d = 0; d < dv; d++) {
        state[STATE_HEAD + d] = state[STATE_HEAD + d] * keep + (v != NULL ? p * v[d] : 0.0);
    }
}

static double state_lse(const double *state)
{
    return state[0] == -INFINITY ? -INFINITY : state[0] + log(state[1]);
}

/* The item's queries of one KV head's group, and empty states for them. */
static void item_begin(struct pass *pass, const struct relay_item *item, uint32_t kv_head)
{
    const struct relay_problem *problem = pass->problem;
    const struct relay_plan *plan = problem->plan;
    const struct relay_layer_kind *kind = pass->kind;
    size_t q_elem = relay_dtype_size(problem->shape->io_dtype);
    for (uint32_t r = 0; r < item->row_count; r++) {
        const struct relay_plan_row *row = &plan->rows[item->row_begin + r];
        for (uint32_t g = 0; g < pass->group; g++) {
            size_t src = ((size_t)row->row * kind->num_q_heads + kv_head * pass->group + g) *
                         kind->head_dim_qk;
            size_t at = (size_t)r * pass->group + g;
            to_double(pass->q + at * kind->head_dim_qk, problem->shape->io_dtype,
                      (const unsigned char *)problem->ios[row->io].q + src * q_elem,
                      kind->head_dim_qk, 1.0);
            state_reset(pass->states + at * pass->state_doubles, kind->head_dim_v);
        }
    }
}

static void item_tokens(struct pass *pass, const struct relay_item *item, uint32_t kv_head)
{
    const struct relay_problem *problem = pass->problem;
    const struct relay_plan *plan = problem->plan;
    const struct relay_layer_kind *kind = pass->kind;
    const struct relay_plan_segment *segment = &plan->segments[item->segment];
    double k[RELAY_HEAD_DIM_MAX];
    double v[RELAY_HEAD_DIM_MAX];
    for (uint32_t t = item->token_begin; t < item->token_end; t++) {
        load_row(pass, segment, problem->kv.k, problem->kv.k_scale, kind->head_dim_qk, kv_head, t,
                 k);
        if (kind->v_from_k) {
            memcpy(v, k, kind->head_dim_v * sizeof(double));
        } else {
            load_row(pass, segment, problem->kv.v, problem->kv.v_scale, kind->head_dim_v, kv_head,
                     t, v);
        }
        for (uint32_t r = 0; r < item->row_count; r++) {
            uint32_t position = plan->rows[item->row_begin + r].position;
            uint32_t lo;
            uint32_t hi;
            relay_plan_interval(kind, position, segment->position, segment->tokens, &lo, &hi);
            for (uint32_t g = 0; g < pass->group && t >= lo && t < hi; g++) {
                size_t at = (size_t)r * pass->group + g;
                double s = score(kind, kv_head * pass->group + g, pass->q + at * kind->head_dim_qk,
                                 k, (uint64_t)segment->position + t, position);
                state_add(pass->states + at * pass->state_doubles, kind->head_dim_v, s, v);
            }
        }
    }
}

/* Adds the sink to a row's merged state and writes the row's output and LSE. */
static void row_finish(struct pass *pass, uint32_t r, uint32_t q_head, double *merged)
{
    const struct relay_problem *problem = pass->problem;
    const struct relay_plan_row *row = &problem->plan->rows[r];
    const struct relay_io *io = &problem->ios[row->io];
    const float *sinks = relay_problem_sinks(problem);
    enum relay_dtype dtype = problem->shape->out_dtype;
    size_t dv = pass->kind->head_dim_v;
    size_t at = (size_t)row->row * pass->kind->num_q_heads + q_head;
    float out[RELAY_HEAD_DIM_MAX];
    if (sinks != NULL) {
        state_add(merged, dv, (double)sinks[q_head], NULL);
    }
    for (size_t d = 0; d < dv; d++) {
        out[d] = merged[1] == 0.0 ? 0.0f : (float)(merged[STATE_HEAD + d] / merged[1]);
    }
    relay_dtype_convert(dtype, (unsigned char *)io->out + at * dv * relay_dtype_size(dtype),
                        RELAY_DTYPE_F32, out, dv);
    if (io->lse != NULL) {
        io->lse[at] = (float)state_lse(merged);
    }
}

/* An item's result of one (row, query head): kept as a partial, or written when it is DIRECT. */
static void item_result(struct pass *pass, const struct relay_item *item, uint32_t r,
                        uint32_t q_head, double *state)
{
    size_t dv = pass->kind->head_dim_v;
    double lse = state_lse(state);
    double out[RELAY_HEAD_DIM_MAX];
    for (size_t d = 0; d < dv; d++) {
        out[d] = state[1] == 0.0 ? 0.0 : state[STATE_HEAD + d] / state[1];
    }
    if (item->partial == RELAY_DIRECT) {
        state_reset(state, dv);
        state_add(state, dv, lse, out);
        row_finish(pass, item->row_begin + r, q_head, state);
    } else {
        size_t at = ((size_t)item->partial + r) * pass->kind->num_q_heads + q_head;
        pass->lse[at] = lse;
        memcpy(pass->out + at * dv, out, dv * sizeof(double));
    }
}

static void item_run(struct pass *pass, const struct relay_item *item)
{
    for (uint32_t kv_head = 0; kv_head < pass->kind->num_kv_heads; kv_head++) {
        item_begin(pass, item, kv_head);
        item_tokens(pass, item, kv_head);
        for (uint32_t r = 0; r < item->row_count; r++) {
            for (uint32_t g = 0; g < pass->group; g++) {
                size_t at = (size_t)r * pass->group + g;
                item_result(pass, item, r, kv_head * pass->group + g,
                            pass->states + at * pass->state_doubles);
            }
        }
    }
}

static void row_merge(struct pass *pass, uint32_t r)
{
    const struct relay_plan *plan = pass->problem->plan;
    const struct relay_plan_row *row = &plan->rows[r];
    size_t heads = pass->kind->num_q_heads;
    size_t dv = pass->kind->head_dim_v;
    for (uint32_t h = 0; h < heads; h++) {
        double *merged = pass->states;
        state_reset(merged, dv);
        for (uint32_t i = 0; i < row->merge_count; i++) {
            size_t at = (size_t)plan->merge_index[row->merge_begin + i] * heads + h;
            state_add(merged, dv, pass->lse[at], pass->out + at * dv);
        }
        row_finish(pass, r, h, merged);
    }
}

void ref_attention(struct ref_backend *ref, const struct relay_problem *problem)
{
    const struct relay_plan *plan = problem->plan;
    struct pass pass;
    pass_init(&pass, ref, problem);
    for (uint32_t i = 0; i < plan->num_items; i++) {
        item_run(&pass, &plan->items[i]);
    }
    for (uint32_t r = 0; r < plan->num_rows; r++) {
        if (!plan->rows[r].direct) {
            row_merge(&pass, r);
        }
    }
}
