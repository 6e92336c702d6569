#include "cpu/attend_rows.h"

#include <math.h>
#include <string.h>

void *relay_cpu_carve(unsigned char *base, size_t *used, size_t bytes)
{
    void *p = base == NULL ? NULL : base + *used;
    *used += (bytes + 63) / 64 * 64;
    return p;
}

void relay_cpu_rows_of(struct relay_cpu_rows *rows, const struct relay_cpu_attend *work)
{
    const struct relay_problem *problem = work->problem;
    const struct relay_layer_kind *kind = &problem->shape->kind;
    rows->work = work;
    rows->segment = &problem->plan->segments[work->item->segment];
    rows->group = kind->num_q_heads / kind->num_kv_heads;
    rows->n = work->item->row_count * rows->group;
    rows->packed = work->packed;
    rows->place = relay_cpu_pages_place(problem->shape, &problem->kv, problem->plan->page_tokens,
                                        work->packed);
}

void relay_cpu_rows_layout(struct relay_cpu_rows *rows, const struct relay_shape *shape,
                           unsigned char *base, size_t *used, uint32_t padded)
{
    rows->dqk = shape->kind.head_dim_qk;
    rows->dv = shape->kind.head_dim_v;
    rows->see = relay_cpu_carve(base, used, padded * sizeof(*rows->see));
    rows->slope = relay_cpu_carve(base, used, padded * sizeof(float));
    rows->origin = relay_cpu_carve(base, used, padded * sizeof(float));
}

void relay_cpu_rows_begin(struct relay_cpu_rows *rows, const struct relay_cpu_attend *work,
                          uint32_t padded)
{
    const struct relay_problem *problem = work->problem;
    const struct relay_item *item = work->item;
    const struct relay_layer_kind *kind = &problem->shape->kind;
    uint32_t head = work->kv_head * rows->group; /* the group's first query head */
    double scale = kind->scale * (double)relay_kv_scale(problem->kv.k_scale, work->kv_head);
    rows->softcap = (float)(kind->softcap * RELAY_CPU_LOG2E);
    rows->score_scale =
        (float)(kind->softcap > 0.0f ? scale / kind->softcap : scale * RELAY_CPU_LOG2E);
    for (uint32_t r = 0; r < item->row_count; r++) {
        const struct relay_plan_row *row = &problem->plan->rows[item->row_begin + r];
        struct relay_cpu_interval see;
        relay_plan_interval(kind, row->position, rows->segment->position, rows->segment->tokens,
                            &see.lo, &see.hi);
        see.lo = see.lo > item->token_begin ? see.lo : item->token_begin;
        see.hi = see.hi < item->token_end ? see.hi : item->token_end;
        if (see.lo >= see.hi) {
            see.lo = see.hi = item->token_begin;
        }
        for (uint32_t h = 0; h < rows->group; h++) {
            uint32_t i = r * rows->group + h;
            rows->see[i] = see;
            rows->origin[i] = (float)(see.hi == 0 ? 0 : see.hi - 1);
            rows->slope[i] = kind->alibi_slopes == NULL
                                 ? 0.0f
                                 : (float)(kind->alibi_slopes[head + h] * RELAY_CPU_LOG2E);
        }
    }
    for (uint32_t i = rows->n; i < padded; i++) {
        rows->see[i] = rows->see[rows->n - 1];
        rows->slope[i] = rows->slope[rows->n - 1];
        rows->origin[i] = rows->origin[rows->n - 1];
    }
}

const void *relay_cpu_rows_q(const struct relay_cpu_rows *rows, uint32_t i)
{
    const struct relay_problem *problem = rows->work->problem;
    const struct relay_plan_row *row =
        &problem->plan->rows[rows->work->item->row_begin + i / rows->group];
    size_t head = rows->work->kv_head * rows->group + i % rows->group;
    return (const unsigned char *)problem->ios[row->io].q +
           ((size_t)row->row * problem->shape->kind.num_q_heads + head) * rows->dqk *
               relay_dtype_size(problem->shape->io_dtype);
}

void relay_cpu_rows_end(const struct relay_cpu_rows *rows, uint32_t i, const float *o, float m,
                        float l)
{
    const struct relay_cpu_attend *work = rows->work;
    const struct relay_problem *problem = work->problem;
    const struct relay_kv_layer *kv = &problem->kv;
    const float *scales = problem->shape->kind.v_from_k ? kv->k_scale : kv->v_scale;
    const float scale = relay_kv_scale(scales, work->kv_head);
    uint32_t r = i / rows->group;
    uint32_t h = i % rows->group;
    float *out = work->to.out + r * work->to.out_stride + h * rows->dv;
    memcpy(out, o, rows->dv * sizeof(float));
    for (size_t d = 0; scale != 1.0f && d < rows->dv; d++) {
        out[d] *= scale;
    }
    if (l != 0.0f && rows->slope[i] != 0.0f) {
        const struct relay_plan_row *row = &problem->plan->rows[work->item->row_begin + r];
        double distance = (double)rows->origin[i] + rows->segment->position - row->position;
        m = (float)((double)m + (double)rows->slope[i] * distance);
    }
    size_t at = r * work->to.head_stride + h;
    work->to.m[at] = isnan(l) ? l : l == 0.0f ? -INFINITY : m; /* NaN weighs whatever m is */
    work->to.l[at] = l;
}
