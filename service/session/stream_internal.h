/* Streams and steps as the files of this room know them. Everything is under the session's mutex,
 * except the events (their own mutex, held while one is told) and what a call in flight shows to
 * the executor. */
#ifndef RELAYD_SESSION_STREAM_INTERNAL_H
#define RELAYD_SESSION_STREAM_INTERNAL_H

#include "service/session/internal.h"
#include "service/session/stream.h"

struct relayd_step {
    struct relayd_stream *stream;
    struct relayd_step *next; /* among the stream's steps, or its spare ones */
    uint64_t step_id;
    struct relay_error refused; /* code RELAY_OK when it was admitted */
    enum relay_part part;
    enum relay_sharing sharing;
    bool want_lse, want_timings;
    bool ended; /* out of the stream's steps; its calls in flight keep it */
    uint64_t deadline_ns, align_ns;
    uint32_t calls; /* in flight */
    uint32_t rows;
    uint32_t num_entries;
    struct relayd_call_entry *entries; /* [room]; requests lent until the step is over */
    uint64_t *handles;                 /* [room] */
    uint32_t room;
    struct relayd_walk walk;
};

struct relayd_stream {
    struct relayd_session *session; /* a reference */
    uint32_t refs;                  /* its owner, calls in flight, events about to be told */
    struct relayd_step *steps;      /* open or refused, newest first */
    struct relayd_step *spare;
    uint32_t num_open, num_refused; /* in steps */
    uint32_t calls;                 /* in flight */
    bool ready;                     /* nothing of an older stream is in flight any more */
    bool lost;                      /* no longer the session's stream */

    pthread_mutex_t events_mutex; /* held while an event is told, so that detach can wait for it */
    bool muted;                   /* no more events */
    struct relayd_stream_events events;
};

/* ---- stream.c ---- */

/* Under the session's mutex: the session has no stream any more. The one it had, with a reference
 * for relayd_stream_tell_lost, or NULL. */
struct relayd_stream *relayd_stream_lose_locked(struct relayd_session *session);
/* Without locks; takes the reference. NULL is fine. */
void relayd_stream_tell_lost(struct relayd_stream *stream, enum relay_code code, const char *why);

/* ---- steps.c, all under the session's mutex ---- */

/* Takes a step out of its stream; gives its requests back now, or with its last call. */
void relayd_step_end_locked(struct relayd_step *step);
void relayd_steps_end_all_locked(struct relayd_stream *stream);
/* One call of a step less. */
void relayd_step_call_done_locked(struct relayd_step *step);
/* Frees the memory of a stream's steps, none of which has a call in flight. */
void relayd_steps_free(struct relayd_stream *stream);

#endif
