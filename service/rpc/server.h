/* The insides of struct relayd_rpc that the files of this room share: the server, its queues, the
 * method tables, counters. */
#ifndef RELAYD_RPC_SERVER_H
#define RELAYD_RPC_SERVER_H

#include "service/rpc/attend_stream.h"
#include "service/rpc/call.h"
#include "service/rpc/health.h"
#include "service/rpc/rpc.h"

#include <proto/wire/attend.h>
#include <pthread.h>

#define RELAYD_RPC_METHODS_MAX 32u

/* A completion queue, its thread, and the call objects that wait to be used again. */
struct relayd_rpc_queue {
    struct relayd_rpc *rpc;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool started;
    struct relay_wire_entry_storage entries; /* the thread's scratch: see slot.h */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t empty;  /* live fell to 0 */
    uint64_t live;         /* call objects in use: waiting for an arrival, open, or being sent */
    struct relayd_rpc_call *free[RELAYD_RPC_METHODS_MAX];
};

struct relayd_rpc {
    struct relayd_rpc_options opt;
    grpc_server *server;
    uint32_t *ports; /* [num_listen] */
    struct relayd_rpc_queue *queues;
    uint32_t num_queues; /* initialised ones */
    const struct relayd_rpc_method *methods[RELAYD_RPC_METHODS_MAX];
    void *registered[RELAYD_RPC_METHODS_MAX]; /* gRPC's; NULL for the catch-all */
    uint32_t num_methods;
    uint64_t epoch; /* random; changes with each start */
    uint64_t started_ns;
    struct relayd_rpc_health health;
    struct relayd_rpc_attend_streams attend_streams;

    struct relayd_rpc_tag shutdown_tag;
    pthread_mutex_t mutex; /* guards shutdown_done */
    pthread_cond_t changed;
    bool shutdown_done;
    atomic_bool draining;

    _Atomic uint64_t calls_started, calls_finished, calls_failed, bytes_received, bytes_sent;
};

/* The method tables, by topic; each ends with an entry whose start is NULL. */
extern const struct relayd_rpc_method relayd_rpc_info_methods[];
extern const struct relayd_rpc_method relayd_rpc_prompt_methods[];
extern const struct relayd_rpc_method relayd_rpc_register_methods[];
extern const struct relayd_rpc_method relayd_rpc_session_methods[];
extern const struct relayd_rpc_method relayd_rpc_request_methods[];
extern const struct relayd_rpc_method relayd_rpc_append_methods[];
extern const struct relayd_rpc_method relayd_rpc_attend_methods[];
extern const struct relayd_rpc_method relayd_rpc_attend_stream_methods[];
extern const struct relayd_rpc_method relayd_rpc_health_methods[];
extern const struct relayd_rpc_method relayd_rpc_reflection_methods[];
extern const struct relayd_rpc_method relayd_rpc_unknown_methods[];

/* ---- queue.c --------------------------------------------------------------------------------- */

RELAY_MUST_CHECK enum relay_code relayd_rpc_queue_init(struct relayd_rpc_queue *queue,
                                                       struct relayd_rpc *rpc,
                                                       struct relay_error *err);
RELAY_MUST_CHECK enum relay_code relayd_rpc_queue_start(struct relayd_rpc_queue *queue,
                                                        struct relay_error *err);
/* Waits until no call object is in use. */
void relayd_rpc_queue_wait_empty(struct relayd_rpc_queue *queue);
/* Shuts the completion queue down, joins the thread (or drains in its place), frees everything. */
void relayd_rpc_queue_fini(struct relayd_rpc_queue *queue);
/* Waits for one more arrival of a method on this queue. */
void relayd_rpc_queue_post(struct relayd_rpc_queue *queue, uint32_t method_index);
/* Takes back a call object that nobody uses any more. */
void relayd_rpc_queue_recycle(struct relayd_rpc_call *call);
/* One event: hands it to its tag. */
void relayd_rpc_queue_dispatch(const grpc_event *event);

#endif
