/* What a stream sends, in order: one message on its way, the others in a ring of fixed size, then
 * the status. Messages that are still to come (a call is being computed) can be announced: the
 * status waits for them.
 *
 * Any thread may push and finish; batches are started under the mutex. When the client is gone,
 * everything is thrown away, so that whoever waits for its memory gets it back. */
#ifndef RELAYD_RPC_OUTBOX_H
#define RELAYD_RPC_OUTBOX_H

#include "service/rpc/server.h"

/* At most 64 calls in flight and 16 steps; a client that lets more answers lie sends what it must
 * not. */
#define RELAYD_RPC_OUTBOX_MAX 160u

struct relayd_rpc_outbox {
    struct relayd_rpc_call *call;
    struct relayd_rpc_tag sent;

    pthread_mutex_t mutex; /* guards what follows */
    bool mutex_made;
    grpc_byte_buffer *ring[RELAYD_RPC_OUTBOX_MAX];
    uint32_t head, count;
    uint32_t announced;
    bool headers_sent, sending;
    bool finishing; /* final holds how */
    bool finished;  /* the status was started, or nobody reads any more */
    struct relay_error final;
};

void relayd_rpc_outbox_init(struct relayd_rpc_outbox *outbox, struct relayd_rpc_call *call);
/* Of one use, then of the object. */
void relayd_rpc_outbox_fini(struct relayd_rpc_outbox *outbox);
void relayd_rpc_outbox_destroy(struct relayd_rpc_outbox *outbox);

/* Takes over the message. When there is no room the call is cancelled, RESOURCE_EXHAUSTED. */
void relayd_rpc_outbox_push(struct relayd_rpc_outbox *outbox, grpc_byte_buffer *message);
/* One message will come by push_announced. */
void relayd_rpc_outbox_announce(struct relayd_rpc_outbox *outbox);
/* NULL: it does not come after all. */
void relayd_rpc_outbox_push_announced(struct relayd_rpc_outbox *outbox, grpc_byte_buffer *message);
/* Ends the call after all that was pushed and announced. The first finish counts; NULL = OK. */
void relayd_rpc_outbox_finish(struct relayd_rpc_outbox *outbox, const struct relay_error *error);
/* Nobody reads any more. */
void relayd_rpc_outbox_abandon(struct relayd_rpc_outbox *outbox);

#endif
