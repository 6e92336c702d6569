/* Waiting for company: whether a call may be launched now, or stays a little so that steps on the
 * same prompts walk the layers together. Pure: the clock and the waiting calls are parameters.
 *
 * A call whose step asked for it (align_ns > 0) waits at most that long from its receipt:
 *   - at its step's first layer, while another session has launched on this model within that time:
 *     until some other session's call for the same launch is waiting too
 *   - later, until all steps that were in its last launch have a call for this one waiting
 * so a company forms once and then holds; a member that stays away costs the others one wait.
 * Nobody waits longer than RELAYD_ALIGN_NS_MAX, past its step's deadline, or when it was cancelled:
 * a call that is held keeps its pages, its stream's successor and a drain waiting. */
#ifndef RELAYD_BATCH_ALIGN_H
#define RELAYD_BATCH_ALIGN_H

#include "service/batch/call.h"

#define RELAYD_ALIGN_RECENT 16u
#define RELAYD_ALIGN_NS_MAX UINT64_C(100000000) /* longer than any layer takes */

struct relayd_align {
    struct {
        const struct relayd_model *model;
        const void *session;
        uint64_t at_ns;
    } recent[RELAYD_ALIGN_RECENT]; /* who launched last */
    uint32_t next;
    uint64_t launches;
    uint64_t counts; /* names a count of mates, so that a step is counted once */
    bool off;        /* nobody waits any more */
};

/* When the call may go: 0 = now, else the time at which it goes without company. */
uint64_t relayd_align_until(struct relayd_align *align, const struct relayd_call *call,
                            const struct relayd_call_list *waiting, uint64_t now_ns);
/* The earliest such time over all waiting calls: 0 = one may go now, UINT64_MAX = none is waiting.
 */
uint64_t relayd_align_next(struct relayd_align *align, const struct relayd_call_list *waiting,
                           uint64_t now_ns);
/* These calls were launched together. */
void relayd_align_launched(struct relayd_align *align, const struct relayd_call_list *calls,
                           uint64_t now_ns);

#endif
