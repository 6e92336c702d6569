#include "service/batch/align.h"

static uint64_t wait_ns_of(const struct relayd_call *call)
{
    return call->align_ns < RELAYD_ALIGN_NS_MAX ? call->align_ns : RELAYD_ALIGN_NS_MAX;
}

static bool others_are_active(const struct relayd_align *align, const struct relayd_call *call,
                              uint64_t now_ns)
{
    for (uint32_t i = 0; i < RELAYD_ALIGN_RECENT; i++) {
        if (align->recent[i].model == call->model && align->recent[i].session != call->session &&
            now_ns - align->recent[i].at_ns < wait_ns_of(call)) {
            return true;
        }
    }
    return false;
}

/* Its step's first layer: has somebody come? */
static bool has_company(const struct relayd_call *call, const struct relayd_call_list *waiting)
{
    for (const struct relayd_call *o = waiting->head; o != NULL; o = o->next) {
        if (o->session != call->session && relayd_call_same_launch(o, call)) {
            return true;
        }
    }
    return false;
}

/* A later layer: are all here that walked the last one together? A step counts once. */
static bool has_mates(struct relayd_align *align, const struct relayd_call *call,
                      const struct relayd_call_list *waiting)
{
    uint64_t count = ++align->counts;
    uint32_t mates = 0;
    for (const struct relayd_call *o = waiting->head; o != NULL; o = o->next) {
        if (o->walk != NULL && o->walk->launch == call->walk->launch && o->walk->counted != count &&
            relayd_call_same_launch(o, call)) {
            o->walk->counted = count;
            mates++;
        }
    }
    return mates >= call->walk->mates;
}

/* When its patience ends: nobody waits past the step's own deadline, nor for a client that is gone.
 */
static uint64_t patience_end(const struct relayd_align *align, const struct relayd_call *call)
{
    uint64_t until = call->received_ns + wait_ns_of(call);
    if (align->off || call->align_ns == 0 || call->walk == NULL ||
        atomic_load_explicit(&call->cancelled, memory_order_relaxed)) {
        return 0;
    }
    return until < call->deadline_ns ? until : call->deadline_ns;
}

uint64_t relayd_align_until(struct relayd_align *align, const struct relayd_call *call,
                            const struct relayd_call_list *waiting, uint64_t now_ns)
{
    uint64_t until = patience_end(align, call);
    if (now_ns >= until) {
        return 0;
    }
    if (call->walk->launch != 0) {
        return has_mates(align, call, waiting) ? 0 : until;
    }
    return others_are_active(align, call, now_ns) && !has_company(call, waiting) ? until : 0;
}

uint64_t relayd_align_next(struct relayd_align *align, const struct relayd_call_list *waiting,
                           uint64_t now_ns)
{
    uint64_t next = UINT64_MAX;
    for (const struct relayd_call *call = waiting->head; call != NULL && next != 0;
         call = call->next) {
        uint64_t until = relayd_align_until(align, call, waiting, now_ns);
        next = until < next ? until : next;
    }
    return next;
}

void relayd_align_launched(struct relayd_align *align, const struct relayd_call_list *calls,
                           uint64_t now_ns)
{
    uint64_t launch = ++align->launches;
    uint32_t mates = 0;
    for (const struct relayd_call *call = calls->head; call != NULL; call = call->next) {
        if (call->walk != NULL && call->walk->launch != launch) {
            call->walk->launch = launch;
            mates++;
        }
        align->recent[align->next].model = call->model;
        align->recent[align->next].session = call->session;
        align->recent[align->next].at_ns = now_ns;
        align->next = (align->next + 1) % RELAYD_ALIGN_RECENT;
    }
    for (const struct relayd_call *call = calls->head; call != NULL; call = call->next) {
        if (call->walk != NULL) {
            call->walk->mates = mates;
        }
    }
}
