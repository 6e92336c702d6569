/* What the files of librelay share: the client's insides, clock, one unary call.
 *
 * Threads: the client may be used from any thread; each function here says who owns what it takes.
 */
#ifndef RELAY_CLIENT_INTERNAL_H
#define RELAY_CLIENT_INTERNAL_H

#include <relay/client.h>

#include <grpc/grpc.h>
#include <proto/wire/unpack.h>
#include <pthread.h>
#include <stdatomic.h>

#include "buffers.h"

/* Every method of the service this library calls. */
#define RELAY_METHODS(X)                                                                           \
    X(SERVER_INFO, "/relay.v1.RelayAttention/GetServerInfo")                                       \
    X(HEALTH, "/grpc.health.v1.Health/Check")                                                      \
    X(SESSION_OPEN, "/relay.v1.RelayAttention/OpenSession")                                        \
    X(SESSION_CLOSE, "/relay.v1.RelayAttention/CloseSession")                                      \
    X(PROMPT_REGISTER, "/relay.v1.RelayAttention/RegisterPrompt")                                  \
    X(PROMPT_GET, "/relay.v1.RelayAttention/GetPrompt")                                            \
    X(PROMPT_LIST, "/relay.v1.RelayAttention/ListPrompts")                                         \
    X(PROMPT_UPDATE, "/relay.v1.RelayAttention/UpdatePrompt")                                      \
    X(PROMPT_UNREGISTER, "/relay.v1.RelayAttention/UnregisterPrompt")                              \
    X(REQUESTS_OPEN, "/relay.v1.RelayAttention/OpenRequests")                                      \
    X(REQUESTS_GET, "/relay.v1.RelayAttention/GetRequests")                                        \
    X(REQUEST_APPEND, "/relay.v1.RelayAttention/AppendKv")                                         \
    X(REQUESTS_TRUNCATE, "/relay.v1.RelayAttention/TruncateRequests")                              \
    X(REQUESTS_CLOSE, "/relay.v1.RelayAttention/CloseRequests")                                    \
    X(ATTEND, "/relay.v1.RelayAttention/BatchedRelayAttention")

enum relay_method {
#define RELAY_METHOD_ENUM(name, path) RELAY_METHOD_##name,
    RELAY_METHODS(RELAY_METHOD_ENUM)
#undef RELAY_METHOD_ENUM
        RELAY_NUM_METHODS
};

/* Completion queues kept for the next call; more threads than that make their own and drop them. */
#define RELAY_QUEUES_KEPT 16u

struct relay_keepalive;
struct relay_link;

struct relay_client {
    struct relay_client_options options;
    char *target; /* as gRPC wants it */
    grpc_channel *channel;
    void *methods[RELAY_NUM_METHODS]; /* registered with channel */
    struct relay_buffers *buffers;
    struct relay_keepalive *keepalive;
    pthread_mutex_t queues_mutex; /* guards the two below */
    grpc_completion_queue *queues[RELAY_QUEUES_KEPT];
    uint32_t num_queues;
};

/* lib/target.c: the target as gRPC wants it, malloc'd. INVALID_ARGUMENT. */
RELAY_MUST_CHECK enum relay_code relay_target_parse(const char *target, char **out,
                                                    struct relay_error *err);
/* "host:port" as the server is called; part of the target. */
const char *relay_target_authority(const char *target);
/* lib/connect.c: a connected socket, the caller's. Blocks until deadline_us. UNAVAILABLE. */
RELAY_MUST_CHECK enum relay_code relay_connect(const char *target, uint64_t deadline_us, int *fd,
                                               struct relay_error *err);
/* A channel over a connected socket, which it takes over, also on failure; it never connects again.
 */
RELAY_MUST_CHECK enum relay_code relay_client_channel_of(const struct relay_client *client, int fd,
                                                         grpc_channel **out,
                                                         struct relay_error *err);
/* A connection of its own; the caller destroys it. */
RELAY_MUST_CHECK enum relay_code relay_client_channel(const struct relay_client *client,
                                                      grpc_channel **out, struct relay_error *err);

/* ---- call.c ------------------------------------------------------------------------------------
 */

/* What a call may do when the server cannot be reached. */
enum relay_repeat {
    RELAY_REPEAT_NEVER,
    RELAY_REPEAT_SAFE, /* on UNAVAILABLE, until options.retries_max or the deadline */
};

/* One unary call. request stays the caller's and is sent as often as needed; *response is the
 * caller's. timeout_ms 0 = the client's. Blocks. The error is the server's, with its details. */
RELAY_MUST_CHECK enum relay_code relay_call(struct relay_client *client, enum relay_method method,
                                            const grpc_byte_buffer *request, uint32_t timeout_ms,
                                            enum relay_repeat repeat, grpc_byte_buffer **response,
                                            struct relay_error *err);
/* The same with messages: the response is unpacked into the arena. */
RELAY_MUST_CHECK enum relay_code relay_call_message(
    struct relay_client *client, enum relay_method method, const ProtobufCMessage *request,
    enum relay_repeat repeat, const ProtobufCMessageDescriptor *descriptor,
    struct relay_wire_arena *arena, ProtobufCMessage **response, struct relay_error *err);
/* A channel that is down connects now, however long it had decided to wait by itself. Returns when
 * it has, at until_us at the latest. */
void relay_call_reconnect(struct relay_client *client, uint64_t until_us);
/* The code and text of a finished call, trailers included, as an error. RELAY_OK for OK. */
enum relay_code relay_call_status(const struct relay_client *client, grpc_status_code status,
                                  const grpc_slice *message, const grpc_metadata_array *trailers,
                                  struct relay_error *err);

/* ---- retry.c -----------------------------------------------------------------------------------
 */

/* Monotonic. */
uint64_t relay_now_us(void);
/* n random bytes, for ids and tags. */
void relay_random(void *out, size_t n);
/* Jittered wait before repeat number `attempt` (0 = first). */
uint64_t relay_backoff_us(const struct relay_client_options *options, uint32_t attempt);
void relay_sleep_us(uint64_t us);
/* Waits before repeat number `attempt` (0 = first) unless that would pass deadline_us; false then.
 * A channel that is down connects meanwhile. */
bool relay_backoff(struct relay_client *client, uint32_t attempt, uint64_t deadline_us);

/* ---- sessions.c and keepalive.c ----------------------------------------------------------------
 */

struct relay_session {
    struct relay_client *client;
    struct relay_model *model; /* own copy */
    uint8_t token[16];         /* secret: never in an error text */
    enum relay_dtype io_dtype;
    enum relay_dtype out_dtype;
    uint32_t lease_ms;
    uint64_t chunk_bytes_max;
    uint64_t server_epoch;
    struct relay_link *link;    /* of its steps; NULL = they go over unary calls */
    _Atomic uint64_t step_id;   /* last one given out */
    _Atomic uint64_t used_us;   /* when the server last heard of it */
    struct relay_session *next; /* keepalive's list, under its mutex */
    uint64_t look_us;           /* when its link is to be looked at, likewise */
};

/* The server has heard of it just now. */
static inline void relay_session_used(struct relay_session *session)
{
    atomic_store_explicit(&session->used_us, relay_now_us(), memory_order_relaxed);
}

/* Bytes of one token's K and V in a layer, as dtype. */
void relay_layer_token_bytes(const struct relay_model *model, uint32_t layer,
                             enum relay_dtype dtype, size_t *k_bytes, size_t *v_bytes);

/* The thread that keeps leases. Starts with the first session that wants it. */
RELAY_MUST_CHECK enum relay_code relay_keepalive_create(struct relay_client *client,
                                                        struct relay_keepalive **out,
                                                        struct relay_error *err);
void relay_keepalive_destroy(struct relay_keepalive *keepalive);
RELAY_MUST_CHECK enum relay_code relay_keepalive_add(struct relay_keepalive *keepalive,
                                                     struct relay_session *session,
                                                     struct relay_error *err);
/* After it the thread does not touch the session any more. Fine for one that was never added. */
void relay_keepalive_remove(struct relay_keepalive *keepalive, struct relay_session *session);

#endif
