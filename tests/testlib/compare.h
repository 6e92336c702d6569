/* Comparing results with what they should be; says where and by how much. Pure; any thread. */
#ifndef RELAY_TESTLIB_COMPARE_H
#define RELAY_TESTLIB_COMPARE_H

#include "testlib/dense.h"
#include "testlib/tolerance.h"

/* The largest errors seen so far, as fractions of what is allowed; start with zeros. */
struct compare_stats {
    double out;
    double lse;
    double error2; /* sums of squares, for the tensor's relative L2 */
    double want2;
    double score2; /* what extreme scores may move elements by */
    uint64_t elements;
};

/* One row's out [Hq,dv] (decoded) and lse [Hq] (or NULL) against the oracle's. Infinities and NaN
 * must be where the oracle has them. False: `why` says which element. */
bool compare_row(const struct relay_layer_kind *kind, const struct tolerance *tolerance,
                 const float *out, const float *lse, const struct dense_result *want,
                 struct compare_stats *stats, char *why, size_t why_bytes);

/* The relative L2 error of all rows so far. */
bool compare_total(const struct tolerance *tolerance, const struct compare_stats *stats, char *why,
                   size_t why_bytes);

/* Plain tensors without magnitudes (golden data): n elements within rel_l2 and max_abs. The
 * relative L2 error goes to *rel_l2 and the largest error to *max_abs, where not NULL. */
bool compare_tensor(const struct tolerance *tolerance, const float *got, const float *want,
                    size_t n, double *rel_l2, double *max_abs, char *why, size_t why_bytes);

#endif
