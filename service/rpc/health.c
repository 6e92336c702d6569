/* Health: Check and Watch. Watches are in a list under the health's mutex, and hold their call as
 * long as they are in it; changes come from any thread. */
#include "service/rpc/health.h"
#include "service/rpc/stream.h"
#include "service/rpc/unary.h"

#include <grpc/health/v1/health.pb-c.h>
#include <string.h>

struct relayd_rpc_watch {
    struct relayd_rpc_stream stream;
    struct relayd_rpc_watch *prev, *next; /* in the list, under the health's mutex */
    bool listed;
    bool known; /* the service is one of ours */
};

static bool is_known(const char *service)
{
    return service[0] == '\0' || strcmp(service, "relay.v1.RelayAttention") == 0;
}

static Grpc__Health__V1__HealthCheckResponse__ServingStatus status_of(bool serving)
{
    return serving ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                   : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

/* ---- Check ------------------------------------------------------------------------------------
 */

static enum relay_code check(struct relayd_rpc_unary *unary, const ProtobufCMessage *request,
                             ProtobufCMessage *response, struct relay_error *err)
{
    struct relayd_rpc_health *health = &unary->base.rpc->health;
    const char *service = ((const Grpc__Health__V1__HealthCheckRequest *)request)->service;
    if (!is_known(service)) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "no service of that name");
    }
    pthread_mutex_lock(&health->mutex);
    bool serving = health->serving;
    pthread_mutex_unlock(&health->mutex);
    ((Grpc__Health__V1__HealthCheckResponse *)response)->status = status_of(serving);
    return RELAY_OK;
}

/* ---- Watch ------------------------------------------------------------------------------------
 */

/* Under the health's mutex. */
static void tell(const struct relayd_rpc_health *health, struct relayd_rpc_watch *watch)
{
    Grpc__Health__V1__HealthCheckResponse response;
    grpc__health__v1__health_check_response__init(&response);
    response.status =
        watch->known ? status_of(health->serving)
                     : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
    relayd_rpc_stream_send(&watch->stream, relay_wire_pack(&response.base));
}

static void finish_drained(struct relayd_rpc_watch *watch)
{
    struct relay_error err = {0};
    (void)RELAY_FAIL(&err, RELAY_UNAVAILABLE, "the server is shutting down");
    relayd_rpc_stream_finish(&watch->stream, NULL, &err);
}

/* Takes it out of the list; true when the caller must drop the list's hold. Under the mutex. */
static bool unlist(struct relayd_rpc_health *health, struct relayd_rpc_watch *watch)
{
    if (!watch->listed) {
        return false;
    }
    watch->listed = false;
    if (watch->prev != NULL) {
        watch->prev->next = watch->next;
    } else {
        health->watches = watch->next;
    }
    if (watch->next != NULL) {
        watch->next->prev = watch->prev;
    }
    return true;
}

static enum relay_code read_service(struct relayd_rpc_watch *watch, struct relay_error *err)
{
    struct relay_wire_view view;
    struct relay_wire_arena arena;
    ProtobufCMessage *request = NULL;
    relay_wire_arena_init(&arena);
    enum relay_code code = relay_wire_view_init(&view, watch->stream.base.message, err);
    if (code == RELAY_OK) {
        code = relay_wire_unpack_response(&view, relay_wire_whole(&view),
                                          &grpc__health__v1__health_check_request__descriptor,
                                          &arena, &request, err);
    }
    if (code == RELAY_OK) {
        watch->known = is_known(((Grpc__Health__V1__HealthCheckRequest *)request)->service);
    }
    relay_wire_arena_fini(&arena);
    return code;
}

static void watch_start(struct relayd_rpc_call *call)
{
    struct relayd_rpc_watch *watch = (struct relayd_rpc_watch *)call;
    struct relayd_rpc_health *health = &call->rpc->health;
    struct relay_error err = {0};
    relayd_rpc_stream_init(&watch->stream);
    watch->listed = false;
    if (read_service(watch, &err) != RELAY_OK) {
        relayd_rpc_stream_finish(&watch->stream, NULL, &err);
        return;
    }
    pthread_mutex_lock(&health->mutex);
    tell(health, watch);
    if (health->draining) {
        finish_drained(watch);
    } else {
        relayd_rpc_call_hold(call);
        watch->listed = true;
        watch->prev = NULL;
        watch->next = health->watches;
        if (watch->next != NULL) {
            watch->next->prev = watch;
        }
        health->watches = watch;
    }
    pthread_mutex_unlock(&health->mutex);
}

static void watch_cancelled(struct relayd_rpc_call *call)
{
    struct relayd_rpc_watch *watch = (struct relayd_rpc_watch *)call;
    struct relayd_rpc_health *health = &call->rpc->health;
    pthread_mutex_lock(&health->mutex);
    bool held = unlist(health, watch);
    pthread_mutex_unlock(&health->mutex);
    if (held) {
        relayd_rpc_call_drop(call);
    }
}

static void watch_fini(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_fini((struct relayd_rpc_stream *)call);
}

static void watch_destroy(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_destroy((struct relayd_rpc_stream *)call);
}

/* ---- the state --------------------------------------------------------------------------------
 */

void relayd_rpc_health_init(struct relayd_rpc_health *health)
{
    pthread_mutex_init(&health->mutex, NULL);
}

void relayd_rpc_health_fini(struct relayd_rpc_health *health)
{
    pthread_mutex_destroy(&health->mutex);
}

/* Under the mutex. */
static void change(struct relayd_rpc_health *health, bool serving)
{
    if (health->serving == serving) {
        return;
    }
    health->serving = serving;
    for (struct relayd_rpc_watch *watch = health->watches; watch != NULL; watch = watch->next) {
        if (watch->known) {
            tell(health, watch);
        }
    }
}

void relayd_rpc_health_set(struct relayd_rpc_health *health, bool serving)
{
    pthread_mutex_lock(&health->mutex);
    change(health, serving && !health->stopped);
    pthread_mutex_unlock(&health->mutex);
}

void relayd_rpc_health_stop(struct relayd_rpc_health *health)
{
    pthread_mutex_lock(&health->mutex);
    health->stopped = true;
    change(health, false);
    pthread_mutex_unlock(&health->mutex);
}

void relayd_rpc_health_drain(struct relayd_rpc_health *health)
{
    pthread_mutex_lock(&health->mutex);
    health->draining = true;
    while (health->watches != NULL) {
        struct relayd_rpc_watch *watch = health->watches;
        (void)unlist(health, watch);
        finish_drained(watch);
        relayd_rpc_call_drop(&watch->stream.base);
    }
    pthread_mutex_unlock(&health->mutex);
}

static const struct relayd_rpc_unary_spec check_spec = {
    .request = &grpc__health__v1__health_check_request__descriptor,
    .response = &grpc__health__v1__health_check_response__descriptor,
    .handle = check,
    .lenient = true,
};

static const struct relayd_rpc_stream_spec watch_spec = {.slow = false};

const struct relayd_rpc_method relayd_rpc_health_methods[] = {
    RELAYD_RPC_UNARY("/grpc.health.v1.Health/Check", &check_spec),
    {
        .path = "/grpc.health.v1.Health/Watch",
        .reads_first = true,
        .posted = 1,
        .call_bytes = sizeof(struct relayd_rpc_watch),
        .start = watch_start,
        .cancelled = watch_cancelled,
        .fini = watch_fini,
        .destroy = watch_destroy,
        .spec = &watch_spec,
    },
    {.start = NULL},
};
