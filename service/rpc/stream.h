/* RPCs of which at least one side streams and that are not hot: uploads, appends, Watch,
 * reflection.
 *
 * One message is received at a time: the next is asked for by relayd_rpc_stream_recv. One is being
 * sent at a time: a newer one takes the place of one that waits, and the status waits for both. So
 * a stream holds at most two messages to send, however slow its reader is. */
#ifndef RELAYD_RPC_STREAM_H
#define RELAYD_RPC_STREAM_H

#include "service/base/work.h"
#include "service/rpc/server.h"

struct relayd_rpc_stream;

/* How the receiving side of a stream ended. */
enum relayd_rpc_end {
    RELAYD_RPC_END_HALF_CLOSE, /* the client has said all it wanted */
    RELAYD_RPC_END_BROKEN,     /* cancelled, deadline, connection lost */
};

struct relayd_rpc_stream_spec {
    /* A message came; it lies in stream->base.message until this returns. */
    void (*message)(struct relayd_rpc_stream *stream);
    /* No other will come. */
    void (*end)(struct relayd_rpc_stream *stream, enum relayd_rpc_end how);
    /* What was sent has left; NULL if nobody cares. Queue's thread, also when the client is gone.
     */
    void (*sent)(struct relayd_rpc_stream *stream);
    bool slow; /* message and end run on the worker, else on the queue's thread */
};

struct relayd_rpc_stream {
    struct relayd_rpc_call base;
    struct relayd_rpc_tag received, sent_tag;
    struct relayd_work work;
    bool asked_twice; /* the end of input was seen, and an empty batch is behind it */

    pthread_mutex_t mutex; /* guards what follows; sends are started under it */
    bool mutex_made;
    bool headers_sent;
    bool sending;
    bool finishing; /* finish was called: final holds how */
    bool finished;  /* the status has been started */
    grpc_byte_buffer *waiting;
    struct relay_error final;
    struct relayd_rpc_detail detail;
};

/* First thing in a method's start. */
void relayd_rpc_stream_init(struct relayd_rpc_stream *stream);
/* A part of a method's fini and destroy. */
void relayd_rpc_stream_fini(struct relayd_rpc_stream *stream);
void relayd_rpc_stream_destroy(struct relayd_rpc_stream *stream);

/* Asks for the next message. Not while one is asked for. */
void relayd_rpc_stream_recv(struct relayd_rpc_stream *stream);
/* Takes over message. Any thread. Nothing after finish is sent. */
void relayd_rpc_stream_send(struct relayd_rpc_stream *stream, grpc_byte_buffer *message);
/* Ends the call after what waits; last (taken over, may be NULL) replaces it. Any thread. The first
 * finish counts. */
void relayd_rpc_stream_finish(struct relayd_rpc_stream *stream, grpc_byte_buffer *last,
                              const struct relay_error *error);

#endif
