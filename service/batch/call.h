/* One call: one layer of a step for a batch of requests, from arrival to the sent answer.
 *
 * rpc fills it, session admits it, the executor computes it and calls on_done, rpc sends straight
 * out of its slot; it is reused when the send has released the bytes. One owner at a time: the
 * hand-overs are relayd_executor_submit, on_done and relayd_slots_give. */
#ifndef RELAYD_BATCH_CALL_H
#define RELAYD_BATCH_CALL_H

#include "service/batch/blocks.h"
#include "service/store/requests.h"

#include <stdatomic.h>

struct relayd_call;
struct relayd_slots;

/* On the executor's thread; must not block. call->error says how it ended. */
typedef void (*relayd_call_done_fn)(struct relayd_call *call);

/* What the calls of one step share with the executor, so that steps which walked a layer together
 * can wait for one another at the next. In the step's owner; written by the executor alone. */
struct relayd_walk {
    uint64_t launch;  /* the last launch one of its calls was in; 0 = none yet */
    uint32_t mates;   /* walks in that launch, itself included */
    uint64_t counted; /* align's: the last count of mates it was in */
};

struct relayd_call_entry {
    struct relayd_request *request;
    uint32_t row_begin;
    uint32_t q_len;
    uint32_t position; /* context index of its first new token */
};

struct relayd_call_timings {
    uint32_t queue_us;     /* from receipt to launch */
    uint32_t plan_us;      /* 0 when a plan was reused */
    uint32_t compute_us;   /* of the launch */
    uint64_t prompt_bytes; /* shared K/V read by the launch */
    uint64_t kv_bytes;     /* requests' own K/V read by the launch */
    uint32_t batch_rows;   /* rows of the launch that belong to this tenant */
    uint32_t batch_sessions;
};

struct relayd_call {
    struct relayd_slots *slots; /* where it returns to */
    struct relayd_call *next;   /* of whichever queue it is in */

    const void *session; /* identity, for batch_sessions; never followed */
    const char *tenant;
    struct relayd_model *model;
    uint64_t step_id;
    uint32_t layer;
    enum relay_part part;
    enum relay_sharing sharing;
    enum relay_dtype io_dtype;
    enum relay_dtype out_dtype;
    bool want_lse;
    bool want_timings;
    bool has_kv; /* io.k, io.v hold new tokens to store */
    uint32_t num_entries;
    uint32_t rows;
    uint32_t row_begin;                /* of a step's rows, for a piece */
    struct relayd_call_entry *entries; /* [num_entries], memory of the slot */
    struct relay_io io;                /* tensors, memory of the slot */
    uint64_t received_ns;
    uint64_t deadline_ns;     /* monotonic; UINT64_MAX = none; passed before launch: not computed */
    uint64_t align_ns;        /* how long it may wait for company; 0 = not at all */
    struct relayd_walk *walk; /* of its step; NULL for a unary call */
    atomic_bool cancelled;    /* set by any thread; seen before launch: not computed */

    relayd_call_done_fn give_back; /* session's: its requests are no longer used; before on_done */
    relayd_call_done_fn on_done;   /* rpc's: send the answer */
    void *user;
    void *step; /* session's, for give_back */

    struct relay_error error; /* code RELAY_OK when it was computed */
    struct relayd_call_timings timings;

    void *reader;        /* rpc's: whose answer is read out of the slot, */
    atomic_uint readers; /* and how many pieces of it still are */
};

/* ---- lists and what may go together ---- */

/* Calls in arrival order, linked by next. */
struct relayd_call_list {
    struct relayd_call *head;
    struct relayd_call *tail;
    uint32_t count;
};

void relayd_call_list_push(struct relayd_call_list *list, struct relayd_call *call);
struct relayd_call *relayd_call_list_pop(struct relayd_call_list *list);
/* Appends all of src and empties it. */
void relayd_call_list_append(struct relayd_call_list *list, struct relayd_call_list *src);

/* Whether two calls agree in all that a launch fixes: model, layer, dtypes, part, sharing. */
static inline bool relayd_call_same_launch(const struct relayd_call *a, const struct relayd_call *b)
{
    return a->model == b->model && a->layer == b->layer && a->part == b->part &&
           a->sharing == b->sharing && a->io_dtype == b->io_dtype && a->out_dtype == b->out_dtype;
}

/* ---- slots: the memory of a session's calls ---- */

struct relayd_slots_options {
    struct relayd_blocks *blocks; /* referenced as long as the slots are there */
    uint32_t calls_max;           /* 1..64 */
    size_t tensor_bytes; /* q + k + v + out + lse of the largest call, 64-byte aligned parts */
};

/* The creator holds one reference, each taken call another. */
RELAY_MUST_CHECK enum relay_code relayd_slots_create(const struct relayd_slots_options *options,
                                                     struct relayd_slots **out,
                                                     struct relay_error *err);
void relayd_slots_release(struct relayd_slots *slots);
/* A zeroed call with slots and room for `entries` set. RESOURCE_EXHAUSTED when all are in flight.
 * Lock-free. */
RELAY_MUST_CHECK enum relay_code relayd_slots_take(struct relayd_slots *slots, uint32_t entries,
                                                   struct relayd_call **out,
                                                   struct relay_error *err);
/* Any thread; lock-free. */
void relayd_slots_give(struct relayd_call *call);
/* Memory for q, k, v, out and lse until the call is given; contents unknown. Byte counts may be 0
 * (pointer is NULL). INVALID_ARGUMENT when they exceed tensor_bytes, RESOURCE_EXHAUSTED. */
struct relayd_slot_bytes {
    size_t q, k, v, out, lse;
};
RELAY_MUST_CHECK enum relay_code relayd_slots_place(struct relayd_call *call,
                                                    const struct relayd_slot_bytes *bytes,
                                                    struct relay_error *err);

#endif
