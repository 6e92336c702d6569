/* Problems: calls of one (model, layer, dtypes, part, sharing) put together for one launch.
 *
 * Plain values in, plain values out: which waiting calls may go together is decided here without a
 * thread or a clock, so that it is tested without either. A problem keeps its memory; the executor
 * has two and fills one while the other runs. */
#ifndef RELAYD_BATCH_PROBLEM_H
#define RELAYD_BATCH_PROBLEM_H

#include "service/batch/call.h"

/* Waiting or picked calls, in arrival order, linked by call->next. */
struct relayd_call_list {
    struct relayd_call *head;
    struct relayd_call *tail;
    uint32_t count;
};

void relayd_call_list_push(struct relayd_call_list *list, struct relayd_call *call);
struct relayd_call *relayd_call_list_pop(struct relayd_call_list *list);
/* Appends all of src and empties it. */
void relayd_call_list_append(struct relayd_call_list *list, struct relayd_call_list *src);

struct relayd_problem; /* opaque: memory of one launch */

RELAY_MUST_CHECK enum relay_code relayd_problem_create(struct relay_backend *backend,
                                                       struct relayd_problem **out,
                                                       struct relay_error *err);
void relayd_problem_destroy(struct relayd_problem *problem);

/* Moves from waiting to `picked` the first call and every later one that may run in its launch:
 * same model, layer, dtypes, part and sharing; at most rows_max rows; no request that an earlier
 * call, picked or still waiting, also has (those on one request run in arrival order).
 * RESOURCE_EXHAUSTED when memory is out: then only the first call was picked. */
RELAY_MUST_CHECK enum relay_code relayd_problem_pick(struct relayd_problem *problem,
                                                     struct relayd_call_list *waiting,
                                                     uint32_t rows_max,
                                                     struct relayd_call_list *picked,
                                                     struct relay_error *err);

/* Checks each picked call's entries against what its layer holds; one that does not fit goes to
 * `failed` with its error set and nothing written. Applies the writes of the others, builds the
 * plan and fills *out, which stays valid until the next build. now_ns: calls cancelled or past
 * their deadline go to failed too. An empty picked list afterwards means there is nothing to run.
 * An error concerns all that is left in picked. */
RELAY_MUST_CHECK enum relay_code relayd_problem_build(struct relayd_problem *problem,
                                                      struct relayd_call_list *picked,
                                                      struct relayd_call_list *failed,
                                                      uint64_t now_ns, struct relay_problem *out,
                                                      struct relay_error *err);

#endif
