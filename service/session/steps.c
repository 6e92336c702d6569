/* Steps of a stream: admission for all layers at once, and the giving back. Step objects are
 * reused, so that a running engine's steps allocate nothing. */
#include "service/base/room.h"
#include "service/session/stream_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- ending ---- */

/* Its requests go back and it may be used again. */
static void over(struct relayd_step *step)
{
    for (uint32_t i = 0; step->refused.code == RELAY_OK && i < step->num_entries; i++) {
        relayd_request_unlend(step->entries[i].request);
    }
    step->num_entries = 0;
    step->next = step->stream->spare;
    step->stream->spare = step;
}

void relayd_step_end_locked(struct relayd_step *step)
{
    struct relayd_stream *stream = step->stream;
    struct relayd_step **link = &stream->steps;
    while (*link != step) {
        link = &(*link)->next;
    }
    *link = step->next;
    *(step->refused.code == RELAY_OK ? &stream->num_open : &stream->num_refused) -= 1;
    step->ended = true;
    for (uint32_t i = 0; step->refused.code == RELAY_OK && i < step->num_entries; i++) {
        struct session_request *r = relayd_session_find(stream->session, step->handles[i]);
        if (r != NULL && r->step == step) {
            r->step = NULL;
        }
    }
    if (step->calls == 0) {
        over(step);
    }
}

void relayd_steps_end_all_locked(struct relayd_stream *stream)
{
    while (stream->steps != NULL) {
        relayd_step_end_locked(stream->steps);
    }
}

void relayd_step_call_done_locked(struct relayd_step *step)
{
    if (--step->calls == 0 && step->ended) {
        over(step);
    }
}

void relayd_stream_end_step(struct relayd_stream *stream, uint64_t step_id)
{
    pthread_mutex_lock(&stream->session->mutex);
    relayd_session_renew(stream->session);
    struct relayd_step *step = stream->steps;
    while (step != NULL && step->step_id != step_id) {
        step = step->next;
    }
    if (step != NULL) {
        relayd_step_end_locked(step);
    }
    pthread_mutex_unlock(&stream->session->mutex);
}

void relayd_steps_free(struct relayd_stream *stream)
{
    while (stream->spare != NULL) {
        struct relayd_step *step = stream->spare;
        stream->spare = step->next;
        free(step->entries);
        free(step->handles);
        free(step);
    }
}

/* ---- beginning ---- */

/* Forgets the oldest refused step when the stream remembers too many. */
static void make_room(struct relayd_stream *stream)
{
    struct relayd_step *oldest = NULL;
    for (struct relayd_step *step = stream->steps; step != NULL; step = step->next) {
        oldest = step->refused.code != RELAY_OK ? step : oldest;
    }
    if (oldest != NULL && stream->num_refused >= RELAYD_STREAM_STEPS_MAX) {
        relayd_step_end_locked(oldest);
    }
}

static enum relay_code take_step(struct relayd_stream *stream, struct relayd_step **out,
                                 struct relay_error *err)
{
    make_room(stream);
    struct relayd_step *step = stream->spare;
    if (step != NULL) {
        stream->spare = step->next;
    } else {
        step = calloc(1, sizeof(*step));
        if (step == NULL) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a step");
        }
        step->stream = stream;
    }
    *out = step;
    return RELAY_OK;
}

static void fill(struct relayd_step *step, const struct relayd_step_desc *desc)
{
    step->step_id = desc->step_id;
    step->refused.code = RELAY_OK;
    step->part = desc->part;
    step->sharing = desc->sharing;
    step->want_lse = desc->want_lse;
    step->want_timings = desc->want_timings;
    step->ended = false;
    step->deadline_ns = desc->deadline_ns;
    step->align_ns = desc->align_ns;
    step->rows = 0;
    step->num_entries = 0;
    step->walk = (struct relayd_walk){0};
}

static enum relay_code make_entries(struct relayd_step *step, uint32_t num_entries,
                                    struct relay_error *err)
{
    uint32_t room = step->room;
    uint64_t *handles = relayd_room(step->handles, &room, num_entries, sizeof(*handles));
    struct relayd_call_entry *entries = NULL;
    if (handles != NULL) {
        step->handles = handles;
        room = step->room;
        entries = relayd_room(step->entries, &room, num_entries, sizeof(*entries));
    }
    if (entries == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a step of %u entries",
                          num_entries);
    }
    step->entries = entries;
    step->room = room;
    return RELAY_OK;
}

/* Entries into the step and lent, or why not. */
static enum relay_code admit(struct relayd_step *step, const struct relayd_step_desc *desc,
                             uint64_t *kv_tokens_free, struct relayd_entry_errors *errors,
                             struct relay_error *err)
{
    const struct relayd_stream *stream = step->stream;
    struct relayd_session *session = stream->session;
    uint32_t rows = 0;
    if (stream->num_open >= RELAYD_STREAM_STEPS_MAX) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%u steps are open on the stream",
                          stream->num_open);
    }
    if (desc->step_id == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "step_id is 0: a stream's steps count up");
    }
    enum relay_code code = relayd_session_check_entries(session, desc->q_lens, desc->positions,
                                                        desc->num_entries, &rows, err);
    if (code == RELAY_OK) {
        code = make_entries(step, desc->num_entries, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    uint32_t row = 0;
    for (uint32_t i = 0; i < desc->num_entries; i++) {
        uint32_t q_len = desc->q_lens == NULL ? 1 : desc->q_lens[i];
        step->handles[i] = desc->handles[i];
        step->entries[i] = (struct relayd_call_entry){
            .row_begin = row, .q_len = q_len, .position = desc->positions[i]};
        row += q_len;
    }
    const struct relayd_admission admission = {
        .handles = desc->handles,
        .entries = step->entries,
        .num_entries = desc->num_entries,
        .step_id = desc->step_id,
        .repeats = desc->part == RELAY_PART_PROMPT_ONLY,
        .reserve = desc->part != RELAY_PART_PROMPT_ONLY,
        .step = step,
    };
    code = relayd_session_admit(session, &admission, kv_tokens_free, errors, err);
    if (code == RELAY_OK) {
        step->rows = rows;
        step->num_entries = desc->num_entries;
    }
    return code;
}

/* The step is its requests' open one now; older ones on them end. */
static void claim_requests(struct relayd_step *step)
{
    for (uint32_t i = 0; i < step->num_entries; i++) {
        struct session_request *r = relayd_session_find(step->stream->session, step->handles[i]);
        if (r->step != NULL && r->step != step) {
            relayd_step_end_locked(r->step);
        }
        r->step = step;
    }
}

/* Puts a step into the stream's list; what it answers to its calls follows from `why`. */
static void enlist(struct relayd_step *step, const struct relay_error *why)
{
    struct relayd_stream *stream = step->stream;
    step->refused = *why;
    step->next = stream->steps;
    stream->steps = step;
    *(why->code == RELAY_OK ? &stream->num_open : &stream->num_refused) += 1;
}

enum relay_code relayd_stream_begin(struct relayd_stream *stream,
                                    const struct relayd_step_desc *desc, uint64_t *kv_tokens_free,
                                    struct relayd_entry_errors *errors, struct relay_error *err)
{
    struct relayd_session *session = stream->session;
    struct relayd_step *step = NULL;
    struct relay_error why = {0};
    relayd_stream_end_step(stream, desc->step_id);
    pthread_mutex_lock(&session->mutex);
    why.code = stream->lost ? RELAY_FAIL(&why, RELAY_ABORTED, "the stream was taken over")
                            : take_step(stream, &step, &why);
    if (step != NULL) {
        fill(step, desc);
        why.code = admit(step, desc, kv_tokens_free, errors, &why);
        enlist(step, &why);
    }
    if (why.code == RELAY_OK) {
        claim_requests(step);
        if (desc->step_id > session->last_step_id) {
            session->last_step_id = desc->step_id;
        }
    }
    pthread_mutex_unlock(&session->mutex);
    return why.code == RELAY_OK ? RELAY_OK : RELAY_FAIL(err, why.code, "%.240s", why.msg);
}

void relayd_stream_refuse(struct relayd_stream *stream, uint64_t step_id,
                          const struct relay_error *why)
{
    const struct relayd_step_desc desc = {.step_id = step_id};
    struct relayd_step *step = NULL;
    relayd_stream_end_step(stream, step_id);
    pthread_mutex_lock(&stream->session->mutex);
    if (!stream->lost && take_step(stream, &step, NULL) == RELAY_OK) {
        fill(step, &desc);
        enlist(step, why);
    }
    pthread_mutex_unlock(&stream->session->mutex);
}
