/* Who waits on a link and who pumps it: its public face. The mutex guards all; the thread that
 * pumps lets go of it while it sleeps in the completion queue. */
#include "link_internal.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

/* How long to sleep at a time for what nobody announces: gRPC letting go of memory. */
#define SLICE_WAIT_US 1000u

/* ---- lifetime ---- */

enum relay_code relay_link_create(struct relay_session *session, uint32_t spin_us,
                                  struct relay_link **out, struct relay_error *err)
{
    struct relay_link *link = calloc(1, sizeof(*link));
    if (link == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&link->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&link->mutex, NULL);
    link->session = session;
    link->spin_us = spin_us;
    link->fd = -1;
    *out = link;
    return RELAY_OK;
}

void relay_link_destroy(struct relay_link *link)
{
    if (link == NULL) {
        return;
    }
    pthread_mutex_lock(&link->mutex);
    relay_link_take_down(link);
    pthread_mutex_unlock(&link->mutex);
    pthread_cond_destroy(&link->changed);
    pthread_mutex_destroy(&link->mutex);
    free(link);
}

/* ---- waiting and pumping ---- */

void relay_link_wake(struct relay_link *link)
{
    if (link->waiters > 0) {
        pthread_cond_broadcast(&link->changed);
    }
}

static void wait_changed(struct relay_link *link, uint64_t deadline_us)
{
    const struct timespec until = {(time_t)(deadline_us / 1000000u),
                                   (long)(deadline_us % 1000000u) * 1000};
    link->waiters++;
    pthread_cond_timedwait(&link->changed, &link->mutex, &until);
    link->waiters--;
}

/* Without the mutex. */
static bool next_event(struct relay_stream *stream, uint32_t spin_us, uint64_t deadline_us,
                       grpc_event *event)
{
    uint64_t now_us = relay_now_us();
    const uint64_t spin_until = now_us + spin_us < deadline_us ? now_us + spin_us : deadline_us;
    while (now_us < spin_until) {
        if (relay_stream_next(stream, gpr_inf_past(GPR_CLOCK_MONOTONIC), event)) {
            return true;
        }
        now_us = relay_now_us();
    }
    const uint64_t left_us = deadline_us > now_us ? deadline_us - now_us : 0;
    return relay_stream_next(stream,
                             gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                          gpr_time_from_micros((int64_t)left_us, GPR_TIMESPAN)),
                             event);
}

/* Moves the link on by one event, or sleeps until it is time to. Nobody else does. */
static void pump(struct relay_link *link, uint64_t deadline_us)
{
    grpc_event event;
    bool got = false;
    if (link->asking) {
        relay_link_ask_why(link);
        return;
    }
    if (relay_link_is_due(link)) {
        relay_link_connect(link, deadline_us);
        return;
    }
    if (link->stream != NULL && relay_stream_over(link->stream)) {
        relay_link_broken(link);
        return;
    }
    struct relay_stream *stream = link->stream;
    const uint64_t now_us = relay_now_us();
    uint64_t until_us = deadline_us;
    if (stream == NULL && link->retry_us > now_us && link->retry_us < until_us) {
        until_us = link->retry_us;
    }
    link->pumping = true;
    pthread_mutex_unlock(&link->mutex);
    if (stream != NULL) {
        got = next_event(stream, link->spin_us, until_us, &event);
    } else if (until_us > now_us) {
        relay_sleep_us(until_us - now_us);
    }
    pthread_mutex_lock(&link->mutex);
    link->pumping = false;
    if (got) {
        relay_link_handle(link, &event);
    }
}

/* Until done(what); false when the deadline comes first. */
static bool wait_until(struct relay_link *link, bool (*done)(const void *), const void *what,
                       uint64_t deadline_us)
{
    bool yes;
    while (!(yes = done(what)) && relay_now_us() < deadline_us) {
        if (link->pumping) {
            wait_changed(link, deadline_us);
        } else {
            pump(link, deadline_us);
        }
    }
    relay_link_wake(link); /* it is somebody else's turn to pump */
    return yes;
}

/* Until gRPC reads none of the call's tensors any more. */
static void wait_slices(struct relay_link *link, const struct relay_step_call *call)
{
    while (atomic_load_explicit(&call->slices, memory_order_acquire) > 0) {
        const uint64_t soon_us = relay_now_us() + SLICE_WAIT_US;
        if (link->pumping) {
            wait_changed(link, soon_us);
        } else {
            pump(link, soon_us);
        }
    }
}

static bool nothing_is_sent(struct relay_link *link)
{
    return link->stream != NULL && !relay_stream_can_send(link->stream);
}

/* Sends what may go, having looked whether the message before is out. */
static void push(struct relay_link *link)
{
    grpc_event event;
    while (link->stream != NULL && !link->pumping && nothing_is_sent(link) &&
           !relay_stream_over(link->stream) &&
           relay_stream_next(link->stream, gpr_inf_past(GPR_CLOCK_MONOTONIC), &event)) {
        relay_link_handle(link, &event);
    }
    if (link->stream != NULL) {
        relay_link_flush(link);
    }
}

/* ---- steps ---- */

enum relay_code relay_link_begin(struct relay_link *link, struct relay_link_step *step,
                                 struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    pthread_mutex_lock(&link->mutex);
    if (link->lost.code != RELAY_OK) {
        code = RELAY_FAIL(err, link->lost.code, "%s", link->lost.msg);
    } else {
        struct relay_link_step **last = &link->steps;
        while (*last != NULL) {
            last = &(*last)->next;
        }
        *last = step;
        step->next = NULL;
        step->state = RELAY_LINK_STEP_ASKED;
        step->begin_item.kind = RELAY_LINK_BEGIN;
        step->end_item.kind = RELAY_LINK_END;
        if (link->attached) {
            relay_link_enqueue(link, &step->begin_item);
        }
        push(link);
    }
    pthread_mutex_unlock(&link->mutex);
    return code;
}

static bool step_is_decided(const void *what)
{
    const struct relay_link_step *step = what;
    return step->state != RELAY_LINK_STEP_ASKED || step->error.code != RELAY_OK;
}

enum relay_code relay_link_wait_begun(struct relay_link *link, struct relay_link_step *step,
                                      uint64_t deadline_us, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    pthread_mutex_lock(&link->mutex);
    if (!wait_until(link, step_is_decided, step, deadline_us)) {
        code = RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "the step was not admitted in time");
    } else if (step->error.code != RELAY_OK) {
        code = RELAY_FAIL(err, step->error.code, "%s", step->error.msg);
    }
    pthread_mutex_unlock(&link->mutex);
    return code;
}

void relay_link_end(struct relay_link *link, struct relay_link_step *step)
{
    pthread_mutex_lock(&link->mutex);
    step->ended = true;
    if (!link->attached || step->begin_item.queued) { /* the server does not know it */
        relay_link_dequeue(link, &step->begin_item);
        struct relay_link_step **at = &link->steps;
        while (*at != step) {
            at = &(*at)->next;
        }
        *at = step->next;
        step->free(step);
    } else {
        relay_link_enqueue(link, &step->end_item);
    }
    push(link);
    pthread_mutex_unlock(&link->mutex);
}

/* ---- calls ---- */

static void add(struct relay_link *link, struct relay_step_call *call)
{
    call->link = link;
    call->state = RELAY_LINK_CALL_WAITING;
    call->item.kind = RELAY_LINK_CALL;
    call->next = NULL;
    call->prev = link->newest;
    *(call->prev != NULL ? &call->prev->next : &link->oldest) = call;
    link->newest = call;
    if (link->attached) {
        relay_link_enqueue(link, &call->item);
    }
    push(link);
}

enum relay_code relay_link_submit(struct relay_link *link, struct relay_step_call *call,
                                  struct relay_error *err)
{
    const struct relay_error *why = NULL;
    pthread_mutex_lock(&link->mutex);
    if (link->lost.code != RELAY_OK) {
        why = &link->lost;
    } else if (call->step->state == RELAY_LINK_STEP_REFUSED) {
        why = &call->step->error;
    }
    enum relay_code code = RELAY_OK;
    if (why != NULL) {
        code = RELAY_FAIL(err, why->code, "%s", why->msg);
    } else {
        call->step->error.code = RELAY_OK; /* of a connection that failed: this is another try */
        call->step_id = call->step->begin.step_id;
        add(link, call);
    }
    pthread_mutex_unlock(&link->mutex);
    return code;
}

static bool call_is_done(const void *what)
{
    return ((const struct relay_step_call *)what)->state == RELAY_LINK_CALL_DONE;
}

/* Frees the call, now or when its answer comes. */
static void give_up(struct relay_link *link, struct relay_step_call *call)
{
    call->out = NULL;
    call->lse = NULL;
    if (call->state == RELAY_LINK_CALL_SENT &&
        atomic_load_explicit(&call->slices, memory_order_acquire) > 0 && link->stream != NULL) {
        /* It lies in a buffer of the connection, and nobody knows for how long. */
        link->cut = true;
        relay_stream_cancel(link->stream);
        shutdown(link->fd, SHUT_RDWR);
    }
    wait_slices(link, call);
    if (call->state == RELAY_LINK_CALL_DONE) {
        free(call);
        return;
    }
    call->given_up = true;
    if (call->state == RELAY_LINK_CALL_WAITING) {
        relay_link_call_done(link, call, NULL);
    }
}

void relay_link_give_up(struct relay_link *link, struct relay_step_call *call)
{
    pthread_mutex_lock(&link->mutex);
    give_up(link, call);
    relay_link_wake(link);
    pthread_mutex_unlock(&link->mutex);
}

enum relay_code relay_link_wait_call(struct relay_link *link, struct relay_step_call *call,
                                     uint64_t deadline_us, bool *given_up, struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    pthread_mutex_lock(&link->mutex);
    *given_up = !wait_until(link, call_is_done, call, deadline_us);
    if (*given_up) {
        code = RELAY_FAIL(err, RELAY_DEADLINE_EXCEEDED, "no answer in time%s",
                          link->attached ? "" : ": there is no connection to the server");
        give_up(link, call);
    } else {
        wait_slices(link, call);
        if (call->error.code != RELAY_OK) {
            code = call->error.code;
            if (err != NULL) {
                *err = call->error;
            }
        }
    }
    relay_link_wake(link);
    pthread_mutex_unlock(&link->mutex);
    return code;
}

/* ---- the rest ---- */

void relay_link_settle(struct relay_link *link)
{
    if (link == NULL) {
        return;
    }
    pthread_mutex_lock(&link->mutex);
    struct relay_step_call *call = NULL;
    if ((link->ends_seen != link->ends_sent || link->first != NULL) &&
        link->lost.code == RELAY_OK) {
        call = calloc(1, sizeof(*call));
    }
    if (call != NULL) {
        /* A call of step 0, which never is: it is refused after all that was sent before. */
        add(link, call);
        const uint64_t deadline_us =
            relay_now_us() + (uint64_t)link->session->client->options.timeout_ms * 1000u;
        if (wait_until(link, call_is_done, call, deadline_us)) {
            free(call);
        } else {
            give_up(link, call);
        }
    }
    pthread_mutex_unlock(&link->mutex);
}

void relay_link_poll(struct relay_link *link)
{
    grpc_event event;
    if (pthread_mutex_trylock(&link->mutex) != 0) {
        return; /* somebody is at it */
    }
    while (link->stream != NULL && !link->pumping) {
        if (relay_stream_over(link->stream)) {
            relay_link_broken(link);
        } else if (relay_stream_next(link->stream, gpr_inf_past(GPR_CLOCK_MONOTONIC), &event)) {
            relay_link_handle(link, &event);
        } else {
            break;
        }
    }
    pthread_mutex_unlock(&link->mutex);
}

bool relay_link_draining(struct relay_link *link)
{
    pthread_mutex_lock(&link->mutex);
    const bool draining = link->draining;
    pthread_mutex_unlock(&link->mutex);
    return draining;
}

uint64_t relay_link_kv_tokens_free(struct relay_link *link, const struct relay_link_step *step)
{
    pthread_mutex_lock(&link->mutex);
    const uint64_t tokens = step->kv_tokens_free;
    pthread_mutex_unlock(&link->mutex);
    return tokens;
}
