/* One RPC from its arrival to its last tag: what unary calls, streams and the hot path share.
 *
 * A call object belongs to one completion queue and one method and is used again. Two counts:
 *   ops   tags that have not come back, and work elsewhere that may still start a batch; the last
 *         one unrefs the grpc_call
 *   refs  one for all ops together, and one per slice of ours that gRPC still reads; the last one
 *         gives the object back
 * Slices may die only when their stream does, and a stream only when its call is unreffed: that is
 * why the two are not one.
 *
 * A tag is published with a release store before gRPC gets it and read with an acquire load when it
 * comes back, so that the hand-over through the queue is visible to ThreadSanitizer and to the
 * memory model. */
#ifndef RELAYD_RPC_CALL_H
#define RELAYD_RPC_CALL_H

#include "service/session/session.h"

#include <grpc/grpc.h>
#include <stdatomic.h>

struct relayd_rpc;
struct relayd_rpc_queue;
struct relayd_rpc_call;
struct relayd_rpc_tag;

typedef void (*relayd_rpc_event_fn)(struct relayd_rpc_tag *tag, bool ok);
typedef void (*relayd_rpc_call_fn)(struct relayd_rpc_call *call);

/* A pointer to one of these is what goes through a completion queue. */
struct relayd_rpc_tag {
    relayd_rpc_event_fn on_event; /* on the queue's thread */
    struct relayd_rpc_call *call; /* NULL for the server's own */
    atomic_uint published;
};

/* What a method is. Constant tables, one per topic. */
struct relayd_rpc_method {
    const char *path; /* NULL: the catch-all */
    bool reads_first; /* the first message comes with the arrival */
    uint32_t posted;  /* how many arrivals a queue waits for at once */
    size_t call_bytes;
    relayd_rpc_call_fn start;     /* it arrived; queue's thread */
    relayd_rpc_call_fn cancelled; /* the client is gone; queue's thread; may be NULL */
    relayd_rpc_call_fn fini;      /* end of one use; any thread; may be NULL */
    relayd_rpc_call_fn destroy;   /* end of the object; may be NULL */
    const void *spec;             /* of the kind of method: see unary.h, stream.h */
};

struct relayd_rpc_call {
    struct relayd_rpc *rpc;
    struct relayd_rpc_queue *queue;
    const struct relayd_rpc_method *method;
    uint32_t method_index;
    struct relayd_rpc_call *next; /* of the free list */

    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details; /* catch-all only */
    grpc_byte_buffer *message; /* the last one received, or NULL */
    uint64_t received_ns;

    struct relayd_rpc_tag arrived, closed;
    atomic_uint ops;
    atomic_uint refs;
    int closed_cancelled;  /* gRPC's */
    atomic_bool cancelled; /* the client is gone, or its deadline */
    bool open;             /* it arrived, and is counted */
    bool started;          /* the method's start ran: its fini will */
    bool failed;           /* ended with a status other than OK */

    /* gRPC reads these until the tag of the batch with the status is back. */
    grpc_metadata trailer;
    grpc_slice status_text;
    bool has_status, has_trailer;
};

/* Why a call was refused, beyond code and text: becomes the ErrorDetail trailer. */
struct relayd_rpc_detail {
    const char *field; /* static, or in memory that outlives the answer; NULL = none */
    char expected[64];
    char got[64];
    struct relayd_entry_errors entries;
};
/* All but the 2 KiB of entries, which hot calls cannot afford to clear. */
static inline void relayd_rpc_detail_clear(struct relayd_rpc_detail *detail)
{
    detail->field = NULL;
    detail->expected[0] = '\0';
    detail->got[0] = '\0';
    detail->entries.n = 0;
    detail->entries.total = 0;
}

/* ---- counts ---------------------------------------------------------------------------------- */

void relayd_rpc_call_hold(struct relayd_rpc_call *call);
void relayd_rpc_call_drop(struct relayd_rpc_call *call);
void relayd_rpc_call_ref(struct relayd_rpc_call *call);
void relayd_rpc_call_unref(struct relayd_rpc_call *call);

/* ---- batches --------------------------------------------------------------------------------- */

/* Starts a batch whose end comes to tag (which holds the call). False when gRPC refused it: then
 * the call has been cancelled and the tag does not come. */
bool relayd_rpc_call_batch(struct relayd_rpc_call *call, const grpc_op *ops, size_t num_ops,
                           struct relayd_rpc_tag *tag);
void relayd_rpc_tag_init(struct relayd_rpc_tag *tag, struct relayd_rpc_call *call,
                         relayd_rpc_event_fn on_event);
void relayd_rpc_tag_publish(struct relayd_rpc_tag *tag);

/* An op that sends the status; error RELAY_OK (or NULL) is OK, detail may be NULL. At most once a
 * call. */
grpc_op relayd_rpc_op_status(struct relayd_rpc_call *call, const struct relay_error *error,
                             const struct relayd_rpc_detail *detail);
static inline grpc_op relayd_rpc_op_headers(void)
{
    return (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
}
/* Counts the bytes; the caller still destroys the buffer after the batch was started. */
grpc_op relayd_rpc_op_message(struct relayd_rpc_call *call, grpc_byte_buffer *message);

/* Headers, message (or NULL; taken over) and status in one batch: the whole answer of a unary call.
 * With an error the message is left out. */
void relayd_rpc_call_answer(struct relayd_rpc_call *call, grpc_byte_buffer *message,
                            const struct relay_error *error, const struct relayd_rpc_detail *detail,
                            struct relayd_rpc_tag *tag);

/* ---- what the call brought --------------------------------------------------------------------
 */

/* Whose prompts and sessions this call may see. The one place that decides it. */
const char *relayd_rpc_tenant(const struct relayd_rpc_call *call);
/* On the service's clock; UINT64_MAX = none. */
uint64_t relayd_rpc_deadline_ns(const struct relayd_rpc_call *call);
static inline bool relayd_rpc_call_cancelled(const struct relayd_rpc_call *call)
{
    return atomic_load_explicit(&call->cancelled, memory_order_relaxed);
}

#endif
