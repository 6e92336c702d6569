/* See compare.h. */
#include "testlib/compare.h"

#include <math.h>
#include <stdio.h>

/* 1: both are the same non-finite value; 0: both finite; -1: they differ in kind. */
static int same_kind(double got, double want)
{
    if (isnan(want)) {
        return isnan(got) ? 1 : -1;
    }
    if (isinf(want)) {
        return isinf(got) && (got > 0) == (want > 0) ? 1 : -1;
    }
    return isfinite(got) ? 0 : -1;
}

static bool check_one(const char *name, uint32_t head, uint32_t d, double got, double want,
                      double allowed, double *worst, char *why, size_t why_bytes)
{
    int kind = same_kind(got, want);
    double error = fabs(got - want);
    if (kind == 1) {
        return true;
    }
    if (kind < 0 || error > allowed) {
        (void)snprintf(why, why_bytes, "%s[head %u, %u] is %.9g, not %.9g (error %.3g of %.3g)",
                       name, head, d, got, want, error, allowed);
        return false;
    }
    if (allowed > 0.0 && error / allowed > *worst) {
        *worst = error / allowed;
    }
    return true;
}

bool compare_row(const struct relay_layer_kind *kind, const struct tolerance *tolerance,
                 const float *out, const float *lse, const struct dense_result *want,
                 struct compare_stats *stats, char *why, size_t why_bytes)
{
    for (uint32_t h = 0; h < kind->num_q_heads; h++) {
        double score = tolerance->score * want->score[h];
        for (uint32_t d = 0; d < kind->head_dim_v; d++) {
            size_t at = (size_t)h * kind->head_dim_v + d;
            double allowed = tolerance->out * fabs(want->out[at]) +
                             (tolerance->sum + 2.0 * score) * want->magnitude[at] +
                             tolerance->least;
            if (!check_one("out", h, d, (double)out[at], want->out[at], allowed, &stats->out, why,
                           why_bytes)) {
                return false;
            }
            if (isfinite(want->out[at])) {
                double error = (double)out[at] - want->out[at];
                stats->error2 += error * error;
                stats->want2 += want->out[at] * want->out[at];
                stats->score2 += 4.0 * score * score * want->magnitude[at] * want->magnitude[at];
                stats->elements++;
            }
        }
        if (lse != NULL) {
            double allowed = tolerance->lse_abs + tolerance->lse_rel * fabs(want->lse[h]) + score;
            if (!check_one("lse", h, 0, (double)lse[h], want->lse[h], allowed, &stats->lse, why,
                           why_bytes)) {
                return false;
            }
        }
    }
    return true;
}

bool compare_total(const struct tolerance *tolerance, const struct compare_stats *stats, char *why,
                   size_t why_bytes)
{
    double allowed = tolerance->rel_l2 * sqrt(stats->want2) + sqrt(stats->score2) +
                     tolerance->least * sqrt((double)stats->elements);
    if (sqrt(stats->error2) > allowed) {
        (void)snprintf(why, why_bytes, "L2 error %.3g over %llu elements, %.3g allowed",
                       sqrt(stats->error2), (unsigned long long)stats->elements, allowed);
        return false;
    }
    return true;
}

bool compare_tensor(const struct tolerance *tolerance, const float *got, const float *want,
                    size_t n, double *rel_l2, double *max_abs, char *why, size_t why_bytes)
{
    double error2 = 0.0;
    double want2 = 0.0;
    double error_max = 0.0;
    double want_max = 0.0;
    for (size_t i = 0; i < n; i++) {
        double w = (double)want[i];
        double error = (double)got[i] - w;
        int kind = same_kind((double)got[i], w);
        if (kind < 0) {
            (void)snprintf(why, why_bytes, "[%zu] is %.9g, not %.9g", i, (double)got[i], w);
            return false;
        }
        if (kind == 0) {
            error2 += error * error;
            want2 += w * w;
            error_max = fabs(error) > error_max ? fabs(error) : error_max;
            want_max = fabs(w) > want_max ? fabs(w) : want_max;
        }
    }
    if (rel_l2 != NULL) {
        *rel_l2 = want2 > 0.0 ? sqrt(error2 / want2) : 0.0;
    }
    if (max_abs != NULL) {
        *max_abs = error_max;
    }
    if (sqrt(error2) > tolerance->rel_l2 * sqrt(want2) + tolerance->least * sqrt((double)n) ||
        error_max > tolerance->max_abs * want_max + tolerance->least) {
        (void)snprintf(why, why_bytes, "relative L2 error %.3g of %.3g, largest error %.3g of %.3g",
                       want2 > 0.0 ? sqrt(error2 / want2) : 0.0, tolerance->rel_l2, error_max,
                       tolerance->max_abs * want_max);
        return false;
    }
    return true;
}
