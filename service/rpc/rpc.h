/* The gRPC face of the service: the only room that knows gRPC calls and generated protobuf.
 *
 * Owns the server, its completion queues and their threads (one thread a queue). Decodes, asks
 * session and store, encodes; bytes of uploads are handled on the worker. Health, reflection and
 * the catch-all that answers UNIMPLEMENTED live here too. */
#ifndef RELAYD_RPC_RPC_H
#define RELAYD_RPC_RPC_H

#include "service/base/work.h"
#include "service/session/session.h"

struct relayd_rpc;

struct relayd_rpc_options {
    struct relayd_store *store;
    struct relayd_sessions *sessions;
    struct relayd_executor *executor;
    struct relay_backend *backend;
    const struct relayd_clock *clock;
    const struct relayd_worker *worker;
    const char *const *listen; /* "127.0.0.1:7070", "unix:/run/relayd/relayd.sock" */
    uint32_t num_listen;
    uint32_t threads;           /* completion queues, one thread each */
    uint32_t spin_us;           /* busy-poll this long after an event before blocking; 0 = off */
    uint32_t message_bytes_max; /* of one received message */
    uint32_t streams_max;       /* concurrent calls per connection */
    uint32_t metadata_bytes_max;
    uint32_t keepalive_time_ms, keepalive_timeout_ms;
    uint32_t list_page_max; /* prompts in one ListPrompts answer */
    bool reflection;
    const char *version; /* of relayd, for GetServerInfo */
};

/* Binds all addresses and serves. UNAVAILABLE naming the address that could not be bound. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_start(const struct relayd_rpc_options *options,
                                                  struct relayd_rpc **out, struct relay_error *err);
/* The TCP port of listen[i] (the chosen one for port 0); 0 for unix sockets. */
uint32_t relayd_rpc_port(const struct relayd_rpc *rpc, uint32_t i);
/* Changes what Health says for "" and relay.v1.RelayAttention, and tells watchers. Any thread. */
void relayd_rpc_set_serving(struct relayd_rpc *rpc, bool serving);
/* NOT_SERVING for good, whatever is set later. Any thread. */
void relayd_rpc_stop_serving(struct relayd_rpc *rpc);
/* Ends connections whose peer has stopped reading: after keepalive_time and keepalive_timeout. To
 * be called now and then, also while it drains. Any thread. */
void relayd_rpc_sweep(struct relayd_rpc *rpc);
/* Stops accepting, lets calls in flight finish until the deadline, then cancels the rest. Blocks
 * until no call is left. Not on a completion queue's thread. */
void relayd_rpc_drain(struct relayd_rpc *rpc, uint32_t timeout_ms);
/* After drain. */
void relayd_rpc_destroy(struct relayd_rpc *rpc);

struct relayd_rpc_stats {
    uint64_t calls_started, calls_finished, calls_failed;
    uint64_t bytes_received, bytes_sent; /* message bytes */
    uint64_t connections_refused;        /* file descriptors had run out */
    uint32_t open_calls;
};
void relayd_rpc_stats(const struct relayd_rpc *rpc, struct relayd_rpc_stats *out);

#endif
