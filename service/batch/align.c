#include "service/batch/align.h"

static bool others_are_active(const struct relayd_align *align, const struct relayd_call *call,
                              uint64_t now_ns)
{
    for (uint32_t i = 0; i < RELAYD_ALIGN_RECENT; i++) {
        if (align->recent[i].model == call->model && align->recent[i].session != call->session &&
            now_ns - align->recent[i].at_ns < call->align_ns) {
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
static bool has_mates(const struct relayd_call *call, const struct relayd_call_list *waiting)
{
    uint32_t mates = 0;
    for (const struct relayd_call *o = waiting->head; o != NULL; o = o->next) {
        if (o->walk == NULL || o->walk->launch != call->walk->launch ||
            !relayd_call_same_launch(o, call)) {
            continue;
        }
        const struct relayd_call *earlier = waiting->head;
        while (earlier != o && earlier->walk != o->walk) {
            earlier = earlier->next;
        }
        mates += earlier == o;
    }
    return mates >= call->walk->mates;
}

uint64_t relayd_align_until(const struct relayd_align *align, const struct relayd_call *call,
                            const struct relayd_call_list *waiting, uint64_t now_ns)
{
    uint64_t until = call->received_ns + call->align_ns;
    if (call->align_ns == 0 || call->walk == NULL || now_ns >= until) {
        return 0;
    }
    if (call->walk->launch != 0) {
        return has_mates(call, waiting) ? 0 : until;
    }
    return others_are_active(align, call, now_ns) && !has_company(call, waiting) ? until : 0;
}

uint64_t relayd_align_next(const struct relayd_align *align, const struct relayd_call_list *waiting,
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
