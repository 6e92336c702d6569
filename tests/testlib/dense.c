/* See dense.h. Two passes over the scores of each head: maximum, then weights. */
#include "testlib/dense.h"

#include <math.h>

#define LANES 8u /* head dims are multiples of it; separate sums let the compiler use vectors */

static bool visible(const struct relay_layer_kind *kind, uint64_t p, uint64_t j)
{
    return j <= p && (kind->window == 0 || j + kind->window > p) &&
           (kind->chunk == 0 || j / kind->chunk == p / kind->chunk);
}

/* sum q k, and sum |q k| to *magnitude. */
static double dot(const float *q, const float *k, uint32_t n, double *magnitude)
{
    double sum[LANES] = {0};
    double abs_sum[LANES] = {0};
    double s = 0.0;
    double a = 0.0;
    for (uint32_t d = 0; d < n; d += LANES) {
        for (uint32_t i = 0; i < LANES; i++) {
            double x = (double)q[d + i] * (double)k[d + i];
            sum[i] += x;
            abs_sum[i] += fabs(x);
        }
    }
    for (uint32_t i = 0; i < LANES; i++) {
        s += sum[i];
        a += abs_sum[i];
    }
    *magnitude = a;
    return s;
}

/* Fills scores [tokens] of head h; invisible keys get -inf. Returns the maximum; NaN if any is. */
static double score_keys(const struct relay_layer_kind *kind, const struct dense_keys *keys,
                         uint32_t position, const float *q, uint32_t h, double *scores,
                         double *magnitude)
{
    uint32_t kv_head = h / (kind->num_q_heads / kind->num_kv_heads);
    double max = -INFINITY;
    *magnitude = 0.0;
    for (uint32_t j = 0; j < keys->tokens; j++) {
        const float *k = keys->k + ((size_t)j * kind->num_kv_heads + kv_head) * kind->head_dim_qk;
        double size;
        double s;
        scores[j] = -INFINITY;
        if (!visible(kind, position, keys->positions[j])) {
            continue;
        }
        s = dot(q + (size_t)h * kind->head_dim_qk, k, kind->head_dim_qk, &size) *
            (double)kind->scale;
        size *= fabs((double)kind->scale);
        if (kind->softcap != 0.0f) {
            s = (double)kind->softcap * tanh(s / (double)kind->softcap);
        }
        if (kind->alibi_slopes != NULL) {
            double bias =
                (double)kind->alibi_slopes[h] * ((double)keys->positions[j] - (double)position);
            s += bias;
            size += fabs(bias);
        }
        scores[j] = s;
        max = isnan(s) || s > max ? s : max; /* a NaN stays: no later s is greater */
        *magnitude = size > *magnitude ? size : *magnitude;
    }
    return max;
}

static void weigh_values(const struct relay_layer_kind *kind, const struct dense_keys *keys,
                         uint32_t position, uint32_t h, const double *weights, double total,
                         double *out, double *magnitude)
{
    uint32_t kv_head = h / (kind->num_q_heads / kind->num_kv_heads);
    size_t stride = kind->v_from_k ? kind->head_dim_qk : kind->head_dim_v;
    const float *values = kind->v_from_k ? keys->k : keys->v;
    for (uint32_t d = 0; d < kind->head_dim_v; d++) {
        out[d] = 0.0;
        magnitude[d] = 0.0;
    }
    if (total == 0.0) {
        return;
    }
    for (uint32_t j = 0; j < keys->tokens; j++) {
        const float *v = values + ((size_t)j * kind->num_kv_heads + kv_head) * stride;
        if (!visible(kind, position, keys->positions[j])) {
            continue; /* not a weight of 0: 0 times NaN is NaN */
        }
        for (uint32_t d = 0; d < kind->head_dim_v; d++) {
            double x = weights[j] * (double)v[d];
            out[d] += x;
            magnitude[d] += fabs(x);
        }
    }
    for (uint32_t d = 0; d < kind->head_dim_v; d++) {
        out[d] /= total;
        magnitude[d] /= total;
    }
}

void dense_attention(const struct relay_layer_kind *kind, const struct dense_keys *keys,
                     uint32_t position, const float *q, const float *sinks, double *scratch,
                     struct dense_result *result)
{
    for (uint32_t h = 0; h < kind->num_q_heads; h++) {
        double max = score_keys(kind, keys, position, q, h, scratch, &result->score[h]);
        double total = 0.0;
        if (sinks != NULL && (double)sinks[h] > max) {
            max = (double)sinks[h];
        }
        if (max == -INFINITY) {
            total = 0.0; /* sees nothing that weighs anything */
        } else {
            for (uint32_t j = 0; j < keys->tokens; j++) {
                if (visible(kind, position, keys->positions[j])) {
                    scratch[j] = exp(scratch[j] - max);
                    total += scratch[j];
                }
            }
            total += sinks != NULL ? exp((double)sinks[h] - max) : 0.0;
        }
        result->lse[h] = max == -INFINITY ? -INFINITY : max + log(total);
        weigh_values(kind, keys, position, h, scratch, total,
                     result->out + (size_t)h * kind->head_dim_v,
                     result->magnitude + (size_t)h * kind->head_dim_v);
    }
}
