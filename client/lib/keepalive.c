/* The thread that keeps leases of idle sessions, one a client, started when the first session wants
 * it; and that looks at idle links now and then, for a server that goes away. Messages are sent
 * without the mutex, for one session at a time: only that one's removal waits for them. */
#include "link.h"

#include <relay/v1/relay.pb-c.h>
#include <stdlib.h>
#include <time.h>

/* How often an idle link is looked at. */
#define LINK_PERIOD_US 1000000u
/* How long it sleeps when nobody is there. */
#define IDLE_US (3600u * (uint64_t)1000000u)

struct relay_keepalive {
    struct relay_client *client;
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t wake;
    pthread_cond_t tended; /* tending has changed */
    pthread_t thread;
    bool started;
    bool stop;
    struct relay_session *sessions;
    struct relay_session *tending; /* the one the thread is busy with, or NULL */
};

/* A third of the lease: two messages may be lost. */
static uint64_t period_us(const struct relay_session *session)
{
    const uint64_t us = (uint64_t)session->lease_ms * 1000u / 3u;
    return us > 1000u ? us : 1000u;
}

/* Closing no requests changes nothing and counts as use. What it says is the next call's business:
 * a session that is gone says so there too. */
static void renew(struct relay_session *session)
{
    Relay__V1__CloseRequestsRequest request = RELAY__V1__CLOSE_REQUESTS_REQUEST__INIT;
    request.session.data = session->token;
    request.session.len = sizeof(session->token);
    grpc_byte_buffer *sending = relay_wire_pack(&request.base);
    grpc_byte_buffer *received = NULL;
    const uint64_t timeout_ms = period_us(session) / 1000u;
    if (relay_call(session->client, RELAY_METHOD_REQUESTS_CLOSE, sending,
                   timeout_ms < 5000u ? (uint32_t)timeout_ms : 5000u, RELAY_REPEAT_NEVER, &received,
                   NULL) == RELAY_OK) {
        grpc_byte_buffer_destroy(received);
    }
    grpc_byte_buffer_destroy(sending);
    /* Also after a failure: the next try comes a period later, not at once. */
    atomic_store(&session->used_us, relay_now_us());
}

static uint64_t due_us(const struct relay_session *s)
{
    const uint64_t lease_us = atomic_load(&s->used_us) + period_us(s);
    return s->link != NULL && s->look_us < lease_us ? s->look_us : lease_us;
}

/* The session that is due first, or NULL when there is none. */
static struct relay_session *first_due(const struct relay_keepalive *keepalive)
{
    struct relay_session *first = keepalive->sessions;
    for (struct relay_session *s = first; s != NULL; s = s->next) {
        first = due_us(s) < due_us(first) ? s : first;
    }
    return first;
}

static void tend(struct relay_session *session)
{
    if (relay_now_us() >= atomic_load(&session->used_us) + period_us(session)) {
        renew(session);
    }
    if (session->link != NULL) {
        relay_link_poll(session->link);
    }
}

static void *run(void *user)
{
    struct relay_keepalive *keepalive = user;
    pthread_mutex_lock(&keepalive->mutex);
    while (!keepalive->stop) {
        struct relay_session *session = first_due(keepalive);
        const uint64_t now_us = relay_now_us();
        const uint64_t next_us = session != NULL ? due_us(session) : now_us + IDLE_US;
        if (next_us > now_us) {
            const struct timespec until = {(time_t)(next_us / 1000000u),
                                           (long)(next_us % 1000000u) * 1000};
            pthread_cond_timedwait(&keepalive->wake, &keepalive->mutex, &until);
            continue;
        }
        keepalive->tending = session;
        pthread_mutex_unlock(&keepalive->mutex);
        tend(session);
        pthread_mutex_lock(&keepalive->mutex);
        session->look_us = relay_now_us() + LINK_PERIOD_US;
        keepalive->tending = NULL;
        pthread_cond_broadcast(&keepalive->tended);
    }
    pthread_mutex_unlock(&keepalive->mutex);
    return NULL;
}

enum relay_code relay_keepalive_create(struct relay_client *client, struct relay_keepalive **out,
                                       struct relay_error *err)
{
    struct relay_keepalive *keepalive = calloc(1, sizeof(*keepalive));
    if (keepalive == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&keepalive->wake, &attr);
    pthread_cond_init(&keepalive->tended, NULL);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&keepalive->mutex, NULL);
    keepalive->client = client;
    *out = keepalive;
    return RELAY_OK;
}

void relay_keepalive_destroy(struct relay_keepalive *keepalive)
{
    if (keepalive == NULL) {
        return;
    }
    pthread_mutex_lock(&keepalive->mutex);
    keepalive->stop = true;
    pthread_cond_signal(&keepalive->wake);
    const bool started = keepalive->started;
    pthread_mutex_unlock(&keepalive->mutex);
    if (started) {
        pthread_join(keepalive->thread, NULL);
    }
    pthread_cond_destroy(&keepalive->tended);
    pthread_cond_destroy(&keepalive->wake);
    pthread_mutex_destroy(&keepalive->mutex);
    free(keepalive);
}

enum relay_code relay_keepalive_add(struct relay_keepalive *keepalive,
                                    struct relay_session *session, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    pthread_mutex_lock(&keepalive->mutex);
    if (!keepalive->started) {
        if (pthread_create(&keepalive->thread, NULL, run, keepalive) != 0) {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no thread for keeping leases");
            goto out;
        }
        keepalive->started = true;
    }
    session->look_us = relay_now_us() + LINK_PERIOD_US;
    session->next = keepalive->sessions;
    keepalive->sessions = session;
    pthread_cond_signal(&keepalive->wake);
out:
    pthread_mutex_unlock(&keepalive->mutex);
    return code;
}

void relay_keepalive_remove(struct relay_keepalive *keepalive, struct relay_session *session)
{
    pthread_mutex_lock(&keepalive->mutex);
    for (struct relay_session **at = &keepalive->sessions; *at != NULL; at = &(*at)->next) {
        if (*at == session) {
            *at = session->next;
            break;
        }
    }
    while (keepalive->tending == session) {
        pthread_cond_wait(&keepalive->tended, &keepalive->mutex);
    }
    pthread_mutex_unlock(&keepalive->mutex);
}
