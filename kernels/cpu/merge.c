/* From partial results to a row's output: log-sum-exp weights in the order of the row's list, the
 * sink once, rounding to the output type once.
 *
 * A DIRECT item comes here too, as a list of one, so that its rows have the bits they would have if
 * another row of their item had more partials. Threads of the pool; no state. */
#include "cpu/cpu_internal.h"

#include <math.h>
#include <string.h>

#define LOG2E 1.44269504088896340736
#define LN2   0.69314718055994530942

struct merged {
    float out[RELAY_HEAD_DIM_MAX];
    float lse; /* natural */
};

/* The exponent that weights are taken from: the largest, NaN ones aside. False when no partial and
 * no sink has any weight; a NaN counts as weight, so that it is not lost. */
static bool merge_origin(const struct relay_cpu_partials *from, const uint32_t *index,
                         uint32_t count, uint32_t head, double sink2, double *origin)
{
    double most = sink2;
    bool any = sink2 != -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        double lse = (double)from->lse[index[i] * from->lse_stride + head];
        most = lse > most ? lse : most;
        any = any || lse != -INFINITY;
    }
    *origin = most == -INFINITY ? 0.0 : most;
    return any;
}

static void merge_head(const struct relay_cpu_partials *from, const uint32_t *index, uint32_t count,
                       uint32_t head, size_t dv, double sink2, struct merged *to)
{
    double origin;
    memset(to->out, 0, dv * sizeof(float));
    to->lse = -INFINITY;
    if (!merge_origin(from, index, count, head, sink2, &origin)) {
        return;
    }
    double sum = exp2(sink2 - origin);
    for (uint32_t i = 0; i < count; i++) {
        double weight = exp2((double)from->lse[index[i] * from->lse_stride + head] - origin);
        float w = (float)weight;
        const float *out = from->out + index[i] * from->out_stride + head * dv;
        sum += weight;
        if (w == 0.0f) { /* 0 * inf must not come through */
            continue;
        }
        for (size_t d = 0; d < dv; d++) {
            to->out[d] += w * out[d];
        }
    }
    if (sum != 1.0) {
        float inverse = (float)(1.0 / sum);
        for (size_t d = 0; d < dv; d++) {
            to->out[d] *= inverse;
        }
    }
    to->lse = (float)((origin + log2(sum)) * LN2);
}

void cpu_merge_row(const struct relay_problem *problem, const struct relay_plan_row *row,
                   const struct relay_cpu_partials *from, const uint32_t *index, uint32_t count,
                   uint32_t q_head, uint32_t heads)
{
    const struct relay_layer_kind *kind = &problem->shape->kind;
    const struct relay_io *io = &problem->ios[row->io];
    const float *sinks = relay_problem_sinks(problem);
    enum relay_dtype dtype = problem->shape->out_dtype;
    size_t dv = kind->head_dim_v;
    size_t elem = relay_dtype_size(dtype);
    for (uint32_t h = 0; h < heads; h++) {
        struct merged merged;
        size_t at = (size_t)row->row * kind->num_q_heads + q_head + h;
        double sink2 = sinks != NULL ? sinks[q_head + h] * LOG2E : -INFINITY;
        merge_head(from, index, count, h, dv, sink2, &merged);
        relay_dtype_convert(dtype, (unsigned char *)io->out + at * dv * elem, RELAY_DTYPE_F32,
                            merged.out, dv);
        if (io->lse != NULL) {
            io->lse[at] = merged.lse;
        }
    }
}
