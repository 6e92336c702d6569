/* Streams: attaching, taking over, being lost, and the calls that keep one alive. Any thread. */
#include "service/session/stream_internal.h"

#include <stdlib.h>

/* ---- lifetime and events ---- */

static void stream_free(struct relayd_stream *stream)
{
    relayd_steps_free(stream);
    relayd_session_release(stream->session);
    pthread_mutex_destroy(&stream->events_mutex);
    free(stream);
}

static void stream_unref(struct relayd_stream *stream)
{
    struct relayd_session *session = stream->session;
    pthread_mutex_lock(&session->mutex);
    bool dead = --stream->refs == 0;
    pthread_mutex_unlock(&session->mutex);
    if (dead) {
        stream_free(stream);
    }
}

/* Without locks; takes a reference. */
static void tell_ready(struct relayd_stream *stream)
{
    pthread_mutex_lock(&stream->events_mutex);
    if (!stream->muted) {
        stream->events.on_ready(stream->events.user);
    }
    pthread_mutex_unlock(&stream->events_mutex);
    stream_unref(stream);
}

void relayd_stream_tell_lost(struct relayd_stream *stream, enum relay_code code, const char *why)
{
    if (stream == NULL) {
        return;
    }
    pthread_mutex_lock(&stream->events_mutex);
    if (!stream->muted) {
        stream->muted = true;
        stream->events.on_lost(stream->events.user, code, why);
    }
    pthread_mutex_unlock(&stream->events_mutex);
    stream_unref(stream);
}

/* ---- taking over ---- */

/* The stream's steps end and whoever comes next waits for its calls in flight. */
static void lose(struct relayd_stream *stream)
{
    relayd_steps_end_all_locked(stream);
    if (!stream->lost) {
        stream->lost = true;
        stream->session->lost_calls += stream->calls;
    }
    if (stream->session->stream == stream) {
        stream->session->stream = NULL;
    }
}

struct relayd_stream *relayd_stream_lose_locked(struct relayd_session *session)
{
    struct relayd_stream *stream = session->stream;
    if (stream != NULL) {
        lose(stream);
        stream->refs++;
    }
    return stream;
}

/* Is it time to answer the session's stream's Attach? With a reference for tell_ready, or NULL. */
static struct relayd_stream *newly_ready(struct relayd_session *session)
{
    struct relayd_stream *stream = session->stream;
    if (stream == NULL || stream->ready || session->lost_calls != 0) {
        return NULL;
    }
    stream->ready = true;
    stream->refs++;
    return stream;
}

enum relay_code relayd_stream_attach(struct relayd_session *session,
                                     const struct relayd_stream_events *events,
                                     struct relayd_stream_info *info, struct relayd_stream **out,
                                     struct relay_error *err)
{
    struct relayd_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a stream");
    }
    pthread_mutex_init(&stream->events_mutex, NULL);
    stream->session = session;
    stream->events = *events;
    stream->refs = 1;
    pthread_mutex_lock(&session->mutex);
    if (session->closed) {
        pthread_mutex_unlock(&session->mutex);
        pthread_mutex_destroy(&stream->events_mutex);
        free(stream);
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "the session has ended");
    }
    atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
    struct relayd_stream *older = relayd_stream_lose_locked(session);
    session->stream = stream;
    *info = (struct relayd_stream_info){
        .calls_in_flight_max = session->sessions->opt.calls_in_flight_max,
        .last_step_id = session->last_step_id,
    };
    *out = stream; /* before on_ready may come */
    struct relayd_stream *ready = newly_ready(session);
    pthread_mutex_unlock(&session->mutex);
    relayd_stream_tell_lost(older, RELAY_ABORTED, "another stream has attached to the session");
    if (ready != NULL) {
        tell_ready(ready);
    }
    return RELAY_OK;
}

void relayd_stream_detach(struct relayd_stream *stream)
{
    if (stream == NULL) {
        return;
    }
    struct relayd_session *session = stream->session;
    pthread_mutex_lock(&session->mutex);
    lose(stream);
    relayd_session_renew(session); /* from here on it has its lease to come back */
    pthread_mutex_unlock(&session->mutex);
    pthread_mutex_lock(&stream->events_mutex);
    stream->muted = true;
    pthread_mutex_unlock(&stream->events_mutex);
    stream_unref(stream);
}

/* ---- calls ---- */

/* On the executor's thread, when a call of a step has run or failed. */
static void give_back(struct relayd_call *call)
{
    struct relayd_step *step = call->step;
    struct relayd_stream *stream = step->stream;
    struct relayd_session *session = stream->session;
    pthread_mutex_lock(&session->mutex);
    relayd_step_call_done_locked(step);
    stream->calls--;
    session->lost_calls -= stream->lost;
    struct relayd_stream *ready = newly_ready(session);
    bool dead = --stream->refs == 0;
    pthread_mutex_unlock(&session->mutex);
    if (ready != NULL) {
        tell_ready(ready);
    }
    if (dead) {
        stream_free(stream);
    }
}

/* The open step of this id; its own code when it was refused. */
static enum relay_code find_step(const struct relayd_stream *stream, uint64_t step_id,
                                 struct relayd_step **out, struct relay_error *err)
{
    struct relayd_step *step = stream->steps;
    while (step != NULL && step->step_id != step_id) {
        step = step->next;
    }
    if (step == NULL) {
        return RELAY_FAIL(err, stream->lost ? RELAY_ABORTED : RELAY_FAILED_PRECONDITION,
                          "step %llu is not open on this stream", (unsigned long long)step_id);
    }
    if (step->refused.code != RELAY_OK) {
        return RELAY_FAIL(err, step->refused.code, "step refused: %.200s", step->refused.msg);
    }
    *out = step;
    return RELAY_OK;
}

enum relay_code relayd_stream_call_begin(struct relayd_stream *stream,
                                         const struct relayd_layer_call *desc,
                                         struct relayd_call **out, struct relay_error *err)
{
    struct relayd_session *session = stream->session;
    struct relayd_step *step = NULL;
    struct relayd_placement place = {
        .layer = desc->layer,
        .q_bytes = desc->q_bytes,
        .k_bytes = desc->k_bytes,
        .v_bytes = desc->v_bytes,
    };
    pthread_mutex_lock(&session->mutex);
    relayd_session_renew(session);
    enum relay_code code = find_step(stream, desc->step_id, &step, err);
    if (code == RELAY_OK) {
        bool all = desc->row_begin == 0 && desc->row_count == 0;
        place.part = step->part;
        place.want_lse = step->want_lse;
        place.rows = all ? step->rows : desc->row_count;
        if (place.rows == 0 || (uint64_t)desc->row_begin + place.rows > step->rows) {
            code = RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "rows [%u, +%u): step %llu has %u rows",
                              desc->row_begin, desc->row_count, (unsigned long long)desc->step_id,
                              step->rows);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    struct relayd_call *call = NULL;
    if (code == RELAY_OK) {
        code = relayd_session_place(session, &place, &call, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    call->step_id = desc->step_id;
    call->row_begin = desc->row_begin;
    call->received_ns = desc->received_ns;
    *out = call;
    return RELAY_OK;
}

/* The step's entries that have rows in the call, cut to them. */
static void fill_entries(const struct relayd_step *step, struct relayd_call *call)
{
    uint32_t begin = call->row_begin, end = begin + call->rows;
    call->num_entries = 0;
    for (uint32_t i = 0; i < step->num_entries; i++) {
        const struct relayd_call_entry *e = &step->entries[i];
        uint32_t from = e->row_begin > begin ? e->row_begin : begin;
        uint32_t to = e->row_begin + e->q_len < end ? e->row_begin + e->q_len : end;
        if (from < to) {
            call->entries[call->num_entries++] = (struct relayd_call_entry){
                .request = e->request,
                .row_begin = from - begin,
                .q_len = to - from,
                .position = e->position + (from - e->row_begin),
            };
        }
    }
}

enum relay_code relayd_stream_call_submit(struct relayd_stream *stream, struct relayd_call *call,
                                          relayd_call_done_fn on_done, void *user,
                                          struct relay_error *err)
{
    struct relayd_session *session = stream->session;
    struct relayd_step *step = NULL;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = find_step(stream, call->step_id, &step, err);
    if (code == RELAY_OK) {
        call->sharing = step->sharing;
        call->want_timings = step->want_timings;
        call->deadline_ns = step->deadline_ns;
        call->align_ns = step->align_ns;
        call->walk = &step->walk;
        call->step = step;
        call->give_back = give_back;
        call->on_done = on_done;
        call->user = user;
        fill_entries(step, call);
        code = relayd_executor_submit(session->sessions->opt.executor, call, err);
    }
    if (code == RELAY_OK) {
        step->calls++;
        stream->calls++;
        stream->refs++;
    }
    pthread_mutex_unlock(&session->mutex);
    return code;
}
