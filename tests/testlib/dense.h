/* The oracle of the oracle: plain softmax attention in fp64 over one row's concatenated sequence.
 *
 * It knows no plan, page, split or merge, and has its own idea of what a row sees, so that a
 * mistake in those cannot hide. Pure; any thread. */
#ifndef RELAY_TESTLIB_DENSE_H
#define RELAY_TESTLIB_DENSE_H

#include <relay/types.h>

/* The keys of one row, visible or not, in any order. */
struct dense_keys {
    const float *k;            /* [tokens,Hkv,dqk] values, scales applied */
    const float *v;            /* [tokens,Hkv,dv]; unused with v_from_k */
    const uint32_t *positions; /* [tokens] absolute */
    uint32_t tokens;
};

/* Per query head; arrays are the caller's. */
struct dense_result {
    double *out;       /* [Hq,dv] */
    double *magnitude; /* [Hq,dv] sum of p |v|: what rounding errors of out are relative to */
    double *lse;       /* [Hq] */
    double *score;     /* [Hq] largest |scale| sum |q k| + |alibi|: the same for scores */
};

/* kind->scale must be resolved; sinks [Hq] or NULL; q [Hq,dqk]. scratch [tokens]. */
void dense_attention(const struct relay_layer_kind *kind, const struct dense_keys *keys,
                     uint32_t position, const float *q, const float *sinks, double *scratch,
                     struct dense_result *result);

#endif
