/* Shared by the files of the problem builder. */
#ifndef RELAY_TESTLIB_PROBLEM_INTERNAL_H
#define RELAY_TESTLIB_PROBLEM_INTERNAL_H

#include "testlib/problem.h"

/* Elements of one token's or row's tensors. */
static inline size_t k_row(const struct problem *p)
{
    return (size_t)p->shape.kind.num_kv_heads * p->shape.kind.head_dim_qk;
}

static inline size_t v_row(const struct problem *p)
{
    return p->shape.kind.v_from_k ? 0
                                  : (size_t)p->shape.kind.num_kv_heads * p->shape.kind.head_dim_v;
}

static inline size_t q_row(const struct problem *p)
{
    return (size_t)p->shape.kind.num_q_heads * p->shape.kind.head_dim_qk;
}

/* Draws all tensors into malloc'd arrays; false when out of memory. */
bool problem_draw(struct problem *p);
/* Rounds n values to dtype and back; encoded gets the elements. */
void problem_round(enum relay_dtype dtype, float *values, void *encoded, size_t n);
/* Makes the pool, deals pages, stores every strip but its new tokens. */
enum relay_code problem_store(struct problem *p, struct relay_error *err);

#endif
