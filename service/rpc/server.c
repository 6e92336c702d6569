/* The server's life: gRPC up, methods registered, addresses bound, queues running; drained; down.
 * start, drain and destroy belong to main's thread; stats and set_serving to any. */
#include "service/rpc/server.h"
#include "service/base/log.h"
#include "service/rpc/connections.h"

#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define ARGS_MAX             24
#define LOOKAHEAD_BYTES      (4 << 20)
#define READ_CHUNK_BYTES     (64 << 10) /* at first: connections with large messages get more */
#define READ_CHUNK_BYTES_MIN (8 << 10)
#define READ_CHUNK_BYTES_MAX (512 << 10)
#define HANDSHAKE_TIMEOUT_MS 5000
#define PING_INTERVAL_MIN_MS 10000
#define CANCEL_WAIT_MS       500
#define IDENTITY_COMPRESSION 1 /* bit set of algorithms: none but identity */

/* gRPC's own complaints, in our log's form. */
static void log_grpc(gpr_log_func_args *args)
{
    const bool is_error = args->severity == GPR_LOG_SEVERITY_ERROR;
    char text[512]; /* may quote what a peer sent */
    if (relayd_log_enabled(is_error ? RELAYD_LOG_WARN : RELAYD_LOG_DEBUG)) {
        relayd_log_write(is_error ? RELAYD_LOG_WARN : RELAYD_LOG_DEBUG, "grpc", "msg=%s",
                         relayd_log_quote(args->message, text, sizeof(text)));
    }
}

static int capped(uint32_t value)
{
    return value > INT32_MAX ? INT32_MAX : (int)value;
}

static grpc_server *server_create(const struct relayd_rpc_options *opt)
{
    const struct {
        const char *key;
        int value;
    } table[] = {
        {GRPC_ARG_ALLOW_REUSEPORT, 0}, /* else a second server on the port starts silently */
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, capped(opt->message_bytes_max)},
        {GRPC_ARG_MAX_CONCURRENT_STREAMS, capped(opt->streams_max)},
        {GRPC_ARG_MAX_METADATA_SIZE, capped(opt->metadata_bytes_max)},
        {GRPC_ARG_KEEPALIVE_TIME_MS, capped(opt->keepalive_time_ms)},
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, capped(opt->keepalive_timeout_ms)},
        {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, PING_INTERVAL_MIN_MS},
        {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0},
        {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_TIMEOUT_MS},
        {GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, LOOKAHEAD_BYTES},
        {GRPC_ARG_TCP_READ_CHUNK_SIZE, READ_CHUNK_BYTES},
        {GRPC_ARG_TCP_MIN_READ_CHUNK_SIZE, READ_CHUNK_BYTES_MIN},
        {GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, READ_CHUNK_BYTES_MAX},
        /* A message must not grow after its size was checked. */
        {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, IDENTITY_COMPRESSION},
        {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
        {GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0},
    };
    grpc_arg args[ARGS_MAX];
    size_t n = sizeof(table) / sizeof(table[0]);
    _Static_assert(sizeof(table) / sizeof(table[0]) <= ARGS_MAX, "more arguments than room");
    for (size_t i = 0; i < n; i++) {
        args[i].type = GRPC_ARG_INTEGER;
        args[i].key = (char *)table[i].key;
        args[i].value.integer = table[i].value;
    }
    grpc_channel_args all = {.num_args = n, .args = args};
    return grpc_server_create(&all, NULL);
}

/* ---- methods ----------------------------------------------------------------------------------
 */

static enum relay_code register_methods(struct relayd_rpc *rpc, struct relay_error *err)
{
    const struct relayd_rpc_method *const topics[] = {
        relayd_rpc_attend_methods,
        relayd_rpc_attend_stream_methods,
        relayd_rpc_info_methods,
        relayd_rpc_session_methods,
        relayd_rpc_request_methods,
        relayd_rpc_append_methods,
        relayd_rpc_prompt_methods,
        relayd_rpc_register_methods,
        relayd_rpc_health_methods,
        relayd_rpc_unknown_methods,
        rpc->opt.reflection ? relayd_rpc_reflection_methods : NULL,
    };
    for (size_t t = 0; t < sizeof(topics) / sizeof(topics[0]); t++) {
        for (const struct relayd_rpc_method *m = topics[t]; m != NULL && m->start != NULL; m++) {
            uint32_t i = rpc->num_methods;
            if (i == RELAYD_RPC_METHODS_MAX) {
                return RELAY_FAIL(err, RELAY_INTERNAL, "more than %u methods",
                                  RELAYD_RPC_METHODS_MAX);
            }
            if (m->path != NULL) {
                rpc->registered[i] = grpc_server_register_method(
                    rpc->server, m->path, NULL,
                    m->reads_first ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER
                                   : GRPC_SRM_PAYLOAD_NONE,
                    0);
                if (rpc->registered[i] == NULL) {
                    return RELAY_FAIL(err, RELAY_INTERNAL, "method %s is there twice", m->path);
                }
            }
            rpc->methods[i] = m;
            rpc->num_methods++;
        }
    }
    return RELAY_OK;
}

/* ---- addresses --------------------------------------------------------------------------------
 */

/* Plaintext: TLS comes with credentials. *port is 0 for a unix socket, whose path main.c has
 * claimed. */
static enum relay_code listen_on(grpc_server *server, const char *address, uint32_t *port,
                                 struct relay_error *err)
{
    grpc_server_credentials *insecure = grpc_insecure_server_credentials_create();
    int bound = grpc_server_add_http2_port(server, address, insecure);
    grpc_server_credentials_release(insecure);
    if (bound == 0) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "cannot listen on %s", address);
    }
    *port = strncmp(address, "unix", 4) == 0 ? 0 : (uint32_t)bound;
    return RELAY_OK;
}

/* ---- life -------------------------------------------------------------------------------------
 */

static void shutdown_done(struct relayd_rpc_tag *tag, bool ok)
{
    struct relayd_rpc *rpc =
        (struct relayd_rpc *)((char *)tag - offsetof(struct relayd_rpc, shutdown_tag));
    (void)ok;
    pthread_mutex_lock(&rpc->mutex);
    rpc->shutdown_done = true;
    pthread_cond_broadcast(&rpc->changed);
    pthread_mutex_unlock(&rpc->mutex);
}

/* True when it is done; UINT32_MAX waits for ever. */
static bool wait_shutdown(struct relayd_rpc *rpc, uint32_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    int waited = 0;
    pthread_mutex_lock(&rpc->mutex);
    while (!rpc->shutdown_done && waited == 0) {
        waited = timeout_ms == UINT32_MAX
                     ? pthread_cond_wait(&rpc->changed, &rpc->mutex)
                     : pthread_cond_timedwait(&rpc->changed, &rpc->mutex, &until);
    }
    bool done = rpc->shutdown_done;
    pthread_mutex_unlock(&rpc->mutex);
    return done;
}

void relayd_rpc_drain(struct relayd_rpc *rpc, uint32_t timeout_ms)
{
    if (atomic_exchange(&rpc->draining, true)) {
        return;
    }
    relayd_rpc_health_drain(&rpc->health);
    relayd_rpc_attend_streams_drain(&rpc->attend_streams, timeout_ms);
    relayd_rpc_tag_publish(&rpc->shutdown_tag);
    grpc_server_shutdown_and_notify(rpc->server, rpc->queues[0].cq, &rpc->shutdown_tag);
    if (!wait_shutdown(rpc, timeout_ms)) {
        struct relayd_rpc_stats stats;
        relayd_rpc_stats(rpc, &stats);
        RELAYD_LOG(WARN, "rpc.drain_deadline", "open_calls=%u", stats.open_calls);
        grpc_server_cancel_all_calls(rpc->server);
        if (!wait_shutdown(rpc, CANCEL_WAIT_MS)) { /* peers that do not even read that */
            RELAYD_LOG(WARN, "rpc.peers_cut", "count=%u", relayd_rpc_connections_end());
            (void)wait_shutdown(rpc, UINT32_MAX);
        }
    }
    /* The connections are gone; work that had begun, and memory gRPC still read, come back. */
    for (uint32_t i = 0; i < rpc->num_queues; i++) {
        relayd_rpc_queue_wait_empty(&rpc->queues[i]);
    }
}

/* Without threads nobody would take the shutdown's tag: takes it here. */
static void shutdown_unstarted(struct relayd_rpc *rpc)
{
    relayd_rpc_tag_publish(&rpc->shutdown_tag);
    grpc_server_shutdown_and_notify(rpc->server, rpc->queues[0].cq, &rpc->shutdown_tag);
    while (!rpc->shutdown_done) {
        grpc_event event = grpc_completion_queue_next(rpc->queues[0].cq,
                                                      gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_OP_COMPLETE) {
            relayd_rpc_queue_dispatch(&event);
        }
    }
}

void relayd_rpc_destroy(struct relayd_rpc *rpc)
{
    if (rpc == NULL) {
        return;
    }
    if (rpc->server != NULL && rpc->num_queues > 0) {
        if (rpc->queues[0].started) {
            relayd_rpc_drain(rpc, 0);
        } else {
            shutdown_unstarted(rpc);
        }
    }
    for (uint32_t i = 0; i < rpc->num_queues; i++) {
        relayd_rpc_queue_fini(&rpc->queues[i]);
    }
    if (rpc->server != NULL) {
        grpc_server_destroy(rpc->server);
    }
    grpc_shutdown();
    relayd_rpc_attend_streams_fini(&rpc->attend_streams);
    relayd_rpc_health_fini(&rpc->health);
    pthread_cond_destroy(&rpc->changed);
    pthread_mutex_destroy(&rpc->mutex);
    free(rpc->queues);
    free(rpc->ports);
    free(rpc);
}

static enum relay_code setup(struct relayd_rpc *rpc, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    rpc->ports = calloc(rpc->opt.num_listen + 1, sizeof(*rpc->ports));
    rpc->queues = calloc(rpc->opt.threads, sizeof(*rpc->queues));
    if (rpc->ports == NULL || rpc->queues == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the gRPC server");
    }
    if (getrandom(&rpc->epoch, sizeof(rpc->epoch), 0) != (ssize_t)sizeof(rpc->epoch)) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "no random bytes for the server's epoch");
    }
    while (rpc->num_queues < rpc->opt.threads && code == RELAY_OK) {
        code = relayd_rpc_queue_init(&rpc->queues[rpc->num_queues], rpc, err);
        rpc->num_queues += code == RELAY_OK;
    }
    if (code != RELAY_OK) {
        return code;
    }
    rpc->server = server_create(&rpc->opt);
    if (rpc->server == NULL) {
        return RELAY_FAIL(err, RELAY_INTERNAL, "gRPC made no server");
    }
    for (uint32_t i = 0; i < rpc->num_queues; i++) {
        grpc_server_register_completion_queue(rpc->server, rpc->queues[i].cq, NULL);
    }
    code = register_methods(rpc, err);
    for (uint32_t i = 0; i < rpc->opt.num_listen && code == RELAY_OK; i++) {
        code = listen_on(rpc->server, rpc->opt.listen[i], &rpc->ports[i], err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    grpc_server_start(rpc->server);
    for (uint32_t i = 0; i < rpc->num_queues && code == RELAY_OK; i++) {
        code = relayd_rpc_queue_start(&rpc->queues[i], err);
    }
    return code;
}

enum relay_code relayd_rpc_start(const struct relayd_rpc_options *options, struct relayd_rpc **out,
                                 struct relay_error *err)
{
    if (options->threads == 0 || options->num_listen == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "the gRPC server needs a thread and an address");
    }
    struct relayd_rpc *rpc = calloc(1, sizeof(*rpc));
    if (rpc == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for the gRPC server");
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    rpc->opt = *options;
    rpc->started_ns = relayd_clock_now_ns(options->clock);
    pthread_mutex_init(&rpc->mutex, NULL);
    pthread_cond_init(&rpc->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    relayd_rpc_health_init(&rpc->health);
    relayd_rpc_attend_streams_init(&rpc->attend_streams);
    relayd_rpc_tag_init(&rpc->shutdown_tag, NULL, shutdown_done);
    gpr_set_log_function(log_grpc);
    grpc_init();
    enum relay_code code = setup(rpc, err);
    if (code != RELAY_OK) {
        relayd_rpc_destroy(rpc);
        return code;
    }
    *out = rpc;
    return RELAY_OK;
}

void relayd_rpc_sweep(struct relayd_rpc *rpc)
{
    const uint64_t stall_ms = (uint64_t)rpc->opt.keepalive_time_ms + rpc->opt.keepalive_timeout_ms;
    (void)relayd_rpc_connections_sweep(relayd_clock_now_ns(rpc->opt.clock), stall_ms * 1000000);
}

/* ---- observers --------------------------------------------------------------------------------
 */

uint32_t relayd_rpc_port(const struct relayd_rpc *rpc, uint32_t i)
{
    return i < rpc->opt.num_listen ? rpc->ports[i] : 0;
}

void relayd_rpc_set_serving(struct relayd_rpc *rpc, bool serving)
{
    relayd_rpc_health_set(&rpc->health, serving);
}

void relayd_rpc_stop_serving(struct relayd_rpc *rpc)
{
    relayd_rpc_health_stop(&rpc->health);
}

void relayd_rpc_stats(const struct relayd_rpc *rpc, struct relayd_rpc_stats *out)
{
    /* Finished first: a call may finish in between, none may finish that had not started. */
    uint64_t finished = atomic_load_explicit(&rpc->calls_finished, memory_order_acquire);
    uint64_t started = atomic_load_explicit(&rpc->calls_started, memory_order_relaxed);
    *out = (struct relayd_rpc_stats){
        .calls_started = started,
        .calls_finished = finished,
        .calls_failed = atomic_load_explicit(&rpc->calls_failed, memory_order_relaxed),
        .bytes_received = atomic_load_explicit(&rpc->bytes_received, memory_order_relaxed),
        .bytes_sent = atomic_load_explicit(&rpc->bytes_sent, memory_order_relaxed),
        .connections_refused = relayd_rpc_connections_refused(),
        .open_calls = (uint32_t)(started - finished),
    };
}
