/* Plans by what they were made from: the layers of a step, and the steps of a cohort that only
 * differ in tensors, use one plan. A small ring; the plan least recently used is built anew, so
 * with a running launch and a next one in hand neither's plan is touched. Executor's thread only.
 */
#ifndef RELAYD_BATCH_PLANS_H
#define RELAYD_BATCH_PLANS_H

#include <relay/backend.h>

struct relayd_plans;

RELAY_MUST_CHECK enum relay_code relayd_plans_create(struct relayd_plans **out,
                                                     struct relay_error *err);
void relayd_plans_destroy(struct relayd_plans *plans);

/* The plan of this key, or one built from `in`, to be kept by it. The key must say everything that
 * `in` depends on. The plan stays as it is for the next two calls at least. */
RELAY_MUST_CHECK enum relay_code relayd_plans_get(struct relayd_plans *plans, const uint64_t *key,
                                                  size_t key_words,
                                                  const struct relay_plan_input *in,
                                                  const struct relay_plan **out,
                                                  struct relay_error *err);
/* How many were built so far. */
uint64_t relayd_plans_built(const struct relayd_plans *plans);

#endif
