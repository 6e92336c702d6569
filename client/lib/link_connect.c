/* A link's connection: made, cut, broken, made again; and what becomes of what was under way. Under
 * the link's mutex, but for connecting and asking, which let go of it as pumping does. */
#include "link_internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAM_PATH "/relay.v1.RelayAttention/StreamRelayAttention"

void relay_link_take_down(struct relay_link *link)
{
    /* A write that the peer does not take would keep gRPC, and the caller's memory, for long. */
    if (link->fd >= 0) {
        shutdown(link->fd, SHUT_RDWR);
        close(link->fd);
        link->fd = -1;
    }
    relay_stream_close(link->stream);
    if (link->channel != NULL) {
        grpc_channel_destroy(link->channel);
    }
    link->stream = NULL;
    link->channel = NULL;
    link->attached = false;
    link->cut = false;
    link->half_closed = false;
    link->in_flight = 0;
    while (link->first != NULL) {
        relay_link_dequeue(link, link->first);
    }
    for (struct relay_step_call *call = link->oldest, *next; call != NULL; call = next) {
        next = call->next;
        call->state = RELAY_LINK_CALL_WAITING;
        if (call->given_up) {
            relay_link_call_done(link, call, NULL);
        } else if (call->step != NULL && call->step->state == RELAY_LINK_STEP_REFUSED) {
            relay_link_call_done(link, call, &call->step->error);
        }
    }
    for (struct relay_link_step **at = &link->steps; *at != NULL;) {
        struct relay_link_step *step = *at;
        if (step->ended) { /* it has, with the stream */
            *at = step->next;
            step->free(step);
        } else {
            at = &step->next;
        }
    }
}

/* Worth another try with the same bytes: the connection's fault, or another stream of the session
 * that was late (ABORTED: an attempt of ours that a proxy held up may take over after its heir). */
static bool may_pass(enum relay_code code)
{
    return code == RELAY_UNAVAILABLE || code == RELAY_ABORTED || code == RELAY_CANCELLED ||
           code == RELAY_UNKNOWN;
}

/* Another try later, or no more: then what waits fails. */
static void failed_once(struct relay_link *link, enum relay_code code,
                        const struct relay_error *why)
{
    const struct relay_client_options *options = &link->session->client->options;
    link->retry_us = relay_now_us() + relay_backoff_us(options, link->attempts);
    if (may_pass(code) && link->attempts < options->retries_max) {
        link->attempts++;
    } else {
        link->attempts = 0;
        relay_link_fail(link, why);
    }
    relay_link_wake(link);
}

bool relay_link_is_due(const struct relay_link *link)
{
    return link->stream == NULL && !link->asking && link->lost.code == RELAY_OK &&
           (link->steps != NULL || link->oldest != NULL) && relay_now_us() >= link->retry_us;
}

/* A stream over the connected socket, and Attach on its way. */
static enum relay_code attach(struct relay_link *link, int fd, struct relay_error *err)
{
    struct relay_session *session = link->session;
    struct relay_wire_stream_request request = {
        .kind = RELAY_WIRE_STREAM_ATTACH,
        .attach = {.session_bytes = sizeof(session->token)},
    };
    link->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (link->fd < 0) {
        close(fd);
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no file descriptor for a connection");
    }
    enum relay_code code = relay_client_channel_of(session->client, fd, &link->channel, err);
    if (code == RELAY_OK) {
        code = relay_stream_open(session->client, link->channel, STREAM_PATH, &link->stream, err);
    }
    if (code == RELAY_OK) {
        memcpy(request.attach.session, session->token, sizeof(session->token));
        code = relay_stream_send(link->stream,
                                 relay_wire_stream_request_encode(&request, grpc_empty_slice(),
                                                                  grpc_empty_slice(),
                                                                  grpc_empty_slice()),
                                 err);
    }
    return code;
}

void relay_link_connect(struct relay_link *link, uint64_t deadline_us)
{
    struct relay_error err;
    int fd = -1;
    link->pumping = true;
    pthread_mutex_unlock(&link->mutex);
    enum relay_code code = relay_connect(link->session->client->target, deadline_us, &fd, &err);
    pthread_mutex_lock(&link->mutex);
    link->pumping = false;
    if (code == RELAY_OK) {
        code = attach(link, fd, &err);
    }
    if (code != RELAY_OK) {
        relay_link_take_down(link);
        failed_once(link, code, &err);
    }
}

void relay_link_fail(struct relay_link *link, const struct relay_error *why)
{
    while (link->oldest != NULL) {
        relay_link_call_done(link, link->oldest, why);
    }
    for (struct relay_link_step *step = link->steps; step != NULL; step = step->next) {
        if (step->state == RELAY_LINK_STEP_ASKED) {
            step->error = *why;
        }
    }
    relay_link_wake(link);
}

void relay_link_lose(struct relay_link *link, const struct relay_error *why)
{
    link->lost = *why;
    if (link->stream != NULL) {
        link->attached = false;
        relay_stream_cancel(link->stream);
    }
    relay_link_fail(link, why);
}

void relay_link_broken(struct relay_link *link)
{
    struct relay_error err = {.code = RELAY_OK};
    enum relay_code code = relay_stream_status(link->stream, &err);
    const bool wanted =
        link->lost.code != RELAY_OK || link->cut || (link->half_closed && code == RELAY_OK);
    if (link->unreadable.code != RELAY_OK) {
        err = link->unreadable;
        code = err.code;
        link->unreadable.code = RELAY_OK;
    } else if (code == RELAY_OK) {
        code = RELAY_FAIL(&err, RELAY_UNAVAILABLE, "the server ended the stream");
    }
    relay_link_take_down(link);
    if (wanted) {
        link->retry_us = 0;
        relay_link_wake(link);
    } else if (code == RELAY_NOT_FOUND) {
        link->asking = true; /* pump finds out why */
        relay_link_wake(link);
    } else {
        failed_once(link, code, &err);
    }
}

void relay_link_ask_why(struct relay_link *link)
{
    struct relay_server_info *info = NULL;
    struct relay_error err;
    link->pumping = true;
    pthread_mutex_unlock(&link->mutex);
    const enum relay_code code = relay_client_server_info(link->session->client, &info, &err);
    pthread_mutex_lock(&link->mutex);
    link->pumping = false;
    link->asking = false;
    if (code == RELAY_OK && info->server_epoch != link->session->server_epoch) {
        (void)RELAY_FAIL(&err, RELAY_FAILED_PRECONDITION,
                         "the server has restarted: all handles are lost");
    } else {
        (void)RELAY_FAIL(&err, RELAY_NOT_FOUND, "the session has ended: all handles are lost");
    }
    relay_server_info_free(info);
    relay_link_lose(link, &err);
}
