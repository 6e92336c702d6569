/* Problems: calls of one (model, layer, dtypes, part, sharing) put together for one launch.
 *
 * Plain values in, plain values out: which waiting calls may go together is decided here without a
 * thread or a clock, so that it is tested without either. A problem keeps its memory; the executor
 * has two and fills one while the other runs. */
#ifndef RELAYD_BATCH_PROBLEM_H
#define RELAYD_BATCH_PROBLEM_H

#include "service/batch/align.h"
#include "service/batch/plans.h"

struct relayd_problem; /* opaque: memory of one launch */

RELAY_MUST_CHECK enum relay_code relayd_problem_create(struct relay_backend *backend,
                                                       struct relayd_plans *plans,
                                                       struct relayd_problem **out,
                                                       struct relay_error *err);
void relayd_problem_destroy(struct relayd_problem *problem);

/* Moves from waiting to `picked` the first call that may go (see align.h) and every one that may
 * run in its launch: same model, layer, dtypes, part and sharing; at most rows_max rows, the first
 * call's excepted; no request that an earlier call, picked or still waiting, also has (those on one
 * request run in arrival order). Nothing is picked when all wait for company. RESOURCE_EXHAUSTED
 * when memory is out: then the first call alone was picked. */
RELAY_MUST_CHECK enum relay_code relayd_problem_pick(
    struct relayd_problem *problem, struct relayd_call_list *waiting, struct relayd_align *align,
    uint64_t now_ns, uint32_t rows_max, struct relayd_call_list *picked, struct relay_error *err);

/* Checks each picked call's entries against what its layer holds; one that does not fit goes to
 * `failed` with its error set. Builds the plan of the others and fills *out, which stays valid
 * until the next build. now_ns: calls cancelled or past their deadline go to failed too. An empty
 * picked list afterwards means there is nothing to run. An error concerns all that is left in
 * picked. Requests hold what they held before until relayd_problem_written. */
RELAY_MUST_CHECK enum relay_code relayd_problem_build(struct relayd_problem *problem,
                                                      struct relayd_call_list *picked,
                                                      struct relayd_call_list *failed,
                                                      uint64_t now_ns, struct relay_problem *out,
                                                      struct relay_error *err);

/* The calls are launched: from here on their new tokens count as held. */
void relayd_problem_written(const struct relayd_call_list *calls);

#endif
