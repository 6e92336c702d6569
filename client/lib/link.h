/* A session's link: the one stream that its steps travel on, and what is under way on it.
 *
 * Connects when the first step begins; when the stream breaks, whoever waits connects again, begins
 * the open steps and sends unanswered calls once more. Nobody runs behind the callers: one of the
 * waiting threads blocks in the completion queue, the others on a condition, and they take turns.
 *
 * Any thread, with these rules: a link_step and its calls belong to one thread at a time; structs
 * are the caller's until given over, and not to be moved. */
#ifndef RELAY_CLIENT_LINK_H
#define RELAY_CLIENT_LINK_H

#include "client_internal.h"

#include <proto/wire/stream.h>

struct relay_link;

/* A message that waits for its turn. */
struct relay_link_item {
    enum { RELAY_LINK_BEGIN, RELAY_LINK_CALL, RELAY_LINK_END } kind;
    struct relay_link_item *next;
    bool queued;
};

enum relay_link_step_state {
    RELAY_LINK_STEP_ASKED, /* the server's answer to BeginStep is to come */
    RELAY_LINK_STEP_ADMITTED,
    RELAY_LINK_STEP_REFUSED, /* error says why */
};

struct relay_link_step {
    struct relay_wire_begin begin; /* entries are the owner's memory, as long as the struct */
    void (*free)(struct relay_link_step *step);
    /* the link's */
    struct relay_link_item begin_item, end_item;
    struct relay_link_step *next;
    enum relay_link_step_state state;
    struct relay_error error;
    uint64_t kv_tokens_free;
    bool ended;
};

enum relay_link_call_state {
    RELAY_LINK_CALL_WAITING, /* for its turn, or for a connection */
    RELAY_LINK_CALL_SENT,
    RELAY_LINK_CALL_DONE, /* error and timings are there */
};

/* One layer, or rows of it. Zeroed before use, then filled in by the owner. */
struct relay_step_call {
    struct relay_step_call *next_of_step; /* the owner's */
    uint64_t ticket;                      /* the owner's */

    struct relay_link_step *step;
    uint32_t layer;
    uint32_t row_begin, row_count; /* 0, 0 = all rows */
    const void *q, *k, *v;         /* k and v may be NULL */
    size_t q_bytes, k_bytes, v_bytes;
    void *out;
    float *lse; /* NULL = not wanted */
    size_t out_bytes, lse_bytes;
    uint64_t submitted_us;

    struct relay_error error; /* how it ended */
    struct relay_timings timings;

    /* the link's */
    struct relay_link_item item;
    struct relay_link *link;
    struct relay_step_call *next, *prev; /* unanswered ones, oldest first */
    enum relay_link_call_state state;
    uint64_t step_id;
    uint64_t ends_before; /* EndSteps sent before it */
    bool given_up;        /* nobody waits: freed when the answer is here */
    atomic_uint slices;   /* of the caller's memory that gRPC may still read */
};

RELAY_MUST_CHECK enum relay_code relay_link_create(struct relay_session *session, uint32_t spin_us,
                                                   struct relay_link **out,
                                                   struct relay_error *err);
/* Steps must have ended. NULL is fine. */
void relay_link_destroy(struct relay_link *link);

/* Sends BeginStep as soon as it can; does not block. The session-is-lost codes. */
RELAY_MUST_CHECK enum relay_code relay_link_begin(struct relay_link *link,
                                                  struct relay_link_step *step,
                                                  struct relay_error *err);
/* Until the step is admitted, or why not. */
RELAY_MUST_CHECK enum relay_code relay_link_wait_begun(struct relay_link *link,
                                                       struct relay_link_step *step,
                                                       uint64_t deadline_us,
                                                       struct relay_error *err);
/* Sends EndStep; the link frees the step. Its calls must be done or given up. */
void relay_link_end(struct relay_link *link, struct relay_link_step *step);

/* Sends the call as soon as it can; does not block. Codes of a refused step or lost session: then
 * the call is still the caller's. */
RELAY_MUST_CHECK enum relay_code relay_link_submit(struct relay_link *link,
                                                   struct relay_step_call *call,
                                                   struct relay_error *err);
/* Until the call is done and its tensors are the caller's alone. On DEADLINE_EXCEEDED (here, not
 * the server's) the call has been given up and the link frees it: *given_up. */
RELAY_MUST_CHECK enum relay_code relay_link_wait_call(struct relay_link *link,
                                                      struct relay_step_call *call,
                                                      uint64_t deadline_us, bool *given_up,
                                                      struct relay_error *err);
/* Nobody waits for the call any more; frees it, now or when its answer is here. Blocks only until
 * its tensors are the caller's alone, cutting the connection if need be. */
void relay_link_give_up(struct relay_link *link, struct relay_step_call *call);

/* Waits until the server has seen all EndSteps: then unary calls may change the requests. What goes
 * wrong is the unary call's to tell. */
void relay_link_settle(struct relay_link *link);
/* Takes note of what has come without anybody waiting, e.g. Drain. Does not block. */
void relay_link_poll(struct relay_link *link);
bool relay_link_draining(struct relay_link *link);
/* As the server last said of the step. */
uint64_t relay_link_kv_tokens_free(struct relay_link *link, const struct relay_link_step *step);

/* Copies an answer's tensors and timings to where the call wants them. INTERNAL when sizes differ.
 */
RELAY_MUST_CHECK enum relay_code relay_step_call_take(
    struct relay_step_call *call, const struct relay_wire_view *view, struct relay_wire_span out,
    struct relay_wire_span lse, const struct relay_wire_timings *timings, struct relay_error *err);

#endif
