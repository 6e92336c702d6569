/* A step's insides, shared by steps.c and steps_unary.c. */
#ifndef RELAY_CLIENT_STEPS_INTERNAL_H
#define RELAY_CLIENT_STEPS_INTERNAL_H

#include "link.h"

struct relay_step {
    struct relay_link_step link_step; /* first; its begin holds all that is sent of the step */
    struct relay_session *session;
    uint32_t rows;
    uint32_t timeout_ms; /* 0 = the client's */
    uint64_t last_ticket;
    struct relay_step_call *calls; /* not waited for yet */
    struct relay_timings timings;
    /* handles [n], then positions [n] and q_lens [n] */
    uint64_t arrays[];
};

/* steps_unary.c: makes the call and fills in how it ended. Blocks. */
void relay_step_call_unary(struct relay_step *step, struct relay_step_call *call);

#endif
