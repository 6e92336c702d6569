/* A session's stream: attach, steps, layer calls. One stream per session: attaching takes over.
 *
 * A step is admitted once for all layers: its requests are lent and their pages reserved until it
 * ends - by EndStep, by a newer step on one of its requests, with the stream, or with the session.
 * Calls in flight finish first. A refused step is remembered, so that the calls sent ahead of its
 * answer get its code.
 *
 * begin, end_step, call_begin and call_submit of one stream come from one thread at a time, in the
 * order of its messages. Knows no gRPC: what must be told comes by callbacks. */
#ifndef RELAYD_SESSION_STREAM_H
#define RELAYD_SESSION_STREAM_H

#include "service/session/session.h"

#define RELAYD_STREAM_STEPS_MAX 16u /* open, and as many refused and not yet ended */

struct relayd_stream;

/* Called from any thread, never while the stream's owner is inside detach or after it; must not
 * block or call back into the session. */
struct relayd_stream_events {
    /* No call of a stream taken over is in flight any more: answer Attach. Once, maybe inside
     * attach. */
    void (*on_ready)(void *user);
    /* Taken over (ABORTED) or its session ended (NOT_FOUND). Once. Its steps have ended. */
    void (*on_lost)(void *user, enum relay_code code, const char *why);
    void *user;
};

struct relayd_stream_info {
    uint32_t calls_in_flight_max;
    uint64_t last_step_id; /* newest step that a stream of the session began */
};

/* Keeps a reference to the session. While a stream is attached the session's lease does not end. */
RELAY_MUST_CHECK enum relay_code relayd_stream_attach(struct relayd_session *session,
                                                      const struct relayd_stream_events *events,
                                                      struct relayd_stream_info *info,
                                                      struct relayd_stream **out,
                                                      struct relay_error *err);
/* Ends its steps; no event comes after it returns. Calls in flight still call their on_done. */
void relayd_stream_detach(struct relayd_stream *stream);

struct relayd_step_desc {
    uint64_t step_id; /* > 0 */
    enum relay_part part;
    enum relay_sharing sharing;
    bool want_lse, want_timings;
    uint64_t
        deadline_ns; /* monotonic; a layer launched later is DEADLINE_EXCEEDED; UINT64_MAX = none */
    uint64_t align_ns; /* how long a call may wait for company; 0 = not at all */
    const uint64_t *handles;
    const uint32_t *q_lens; /* [num_entries], or NULL = all 1 */
    const uint32_t *positions;
    uint32_t num_entries;
};

/* Admits the step or says why not; refused or not, the stream lives on and remembers it. A step of
 * this id or older ones on its requests end. *kv_tokens_free = context tokens that can still be
 * reserved. Codes as relayd_session_call_submit, and RESOURCE_EXHAUSTED past
 * RELAYD_STREAM_STEPS_MAX. */
RELAY_MUST_CHECK enum relay_code relayd_stream_begin(struct relayd_stream *stream,
                                                     const struct relayd_step_desc *desc,
                                                     uint64_t *kv_tokens_free,
                                                     struct relayd_entry_errors *errors,
                                                     struct relay_error *err);
/* Remembers a step that was refused before it came here: its calls get the code of `why`. A step of
 * this id ends. */
void relayd_stream_refuse(struct relayd_stream *stream, uint64_t step_id,
                          const struct relay_error *why);
/* Unknown steps are ignored. */
void relayd_stream_end_step(struct relayd_stream *stream, uint64_t step_id);

struct relayd_layer_call {
    uint64_t step_id;
    uint32_t layer;
    uint32_t row_begin, row_count; /* 0, 0 = all rows of the step */
    size_t q_bytes, k_bytes, v_bytes;
    uint64_t received_ns;
};
/* As relayd_session_call_begin. FAILED_PRECONDITION when no such step is open; a refused step's own
 * code. */
RELAY_MUST_CHECK enum relay_code relayd_stream_call_begin(struct relayd_stream *stream,
                                                          const struct relayd_layer_call *desc,
                                                          struct relayd_call **out,
                                                          struct relay_error *err);
/* Hands over to the executor; on_done comes exactly once when this returns RELAY_OK, else the call
 * is still the caller's. */
RELAY_MUST_CHECK enum relay_code relayd_stream_call_submit(struct relayd_stream *stream,
                                                           struct relayd_call *call,
                                                           relayd_call_done_fn on_done, void *user,
                                                           struct relay_error *err);

#endif
