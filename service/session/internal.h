/* What the files of this room share: the layout of sessions and their requests. */
#ifndef RELAYD_SESSION_INTERNAL_H
#define RELAYD_SESSION_INTERNAL_H

#include "service/session/session.h"

#include <pthread.h>

/* Out of memory in a table is an error, not the end of the process. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

/* A handle of one session. */
struct session_request {
    uint64_t handle;
    uint64_t tag; /* 0 = none, then not in the tag table */
    struct relayd_request *request;
    char *prompt_name; /* "id\nvariant" it was opened with; "" without a prompt */
    uint64_t mark;     /* of the last submit that named it: finds duplicates without a table */
    struct relayd_step *step; /* the stream's open step on it, or NULL */
    UT_hash_handle by_handle;
    UT_hash_handle by_tag;
};

struct relayd_sessions {
    struct relayd_sessions_options opt;
    struct relayd_blocks *blocks; /* memory of all sessions' calls */
    _Atomic uint64_t
        next_handle;       /* unique over sessions: a mixed-up handle is NOT_FOUND, not wrong */
    pthread_mutex_t mutex; /* guards table */
    struct relayd_session *table;
};

struct relayd_session {
    uint8_t token[RELAYD_SESSION_TOKEN_BYTES];
    struct relayd_sessions *sessions;
    char *tenant;
    struct relayd_model *model;
    enum relay_dtype io_dtype;
    enum relay_dtype out_dtype;
    uint32_t lease_ms;
    uint32_t rows_max;
    uint32_t response_bytes_max;
    struct relayd_slots *slots;
    atomic_uint refs;
    _Atomic uint64_t lease_end_ns;

    pthread_mutex_t mutex; /* guards all below */
    bool closed;
    struct session_request *requests; /* by handle */
    struct session_request *tags;     /* by tag */
    uint64_t mark;
    struct relayd_lend *lends; /* [lends_room] scratch of admission */
    uint32_t lends_room;
    struct relayd_stream *stream; /* attached, or NULL */
    uint32_t lost_calls;          /* in flight of streams that were taken over */
    uint64_t last_step_id;        /* newest a stream began */

    struct relayd_session *next_gone; /* while a sweep takes it apart */
    UT_hash_handle hh;                /* in sessions->table, by token */
};

/* The session's request of a handle, or NULL. Under the session's mutex. */
struct session_request *relayd_session_find(const struct relayd_session *session, uint64_t handle);
/* Takes it out of the tables and closes it. Under the session's mutex. */
void relayd_session_drop(struct relayd_session *session, struct session_request *entry);

/* What one call's tensors need: rows and bytes as they came. */
struct relayd_placement {
    uint32_t layer;
    uint32_t rows;
    enum relay_part part;
    bool want_lse;
    size_t q_bytes, k_bytes, v_bytes;
};
/* Rows of all entries, q_lens NULL = one each; INVALID_ARGUMENT for lengths,
 * positions or sums out of bounds. */
RELAY_MUST_CHECK enum relay_code relayd_session_check_entries(const struct relayd_session *session,
                                                              const uint32_t *q_lens,
                                                              const uint32_t *positions,
                                                              uint32_t num_entries, uint32_t *rows,
                                                              struct relay_error *err);
/* Checks layer, byte counts and answer size, takes a slot and places the tensors; fills all of the
 * call that does not come from its step. */
RELAY_MUST_CHECK enum relay_code relayd_session_place(struct relayd_session *session,
                                                      const struct relayd_placement *place,
                                                      struct relayd_call **out,
                                                      struct relay_error *err);

/* Who is lent to whom: fills entries[i].request for handles[i]. */
struct relayd_admission {
    const uint64_t *handles;
    struct relayd_call_entry *entries;
    uint32_t num_entries;
    uint64_t step_id;
    bool repeats;                   /* a handle may come twice */
    bool reserve;                   /* pages for each entry's rows */
    const struct relayd_step *step; /* of a stream, or NULL: then no open step is on the requests */
};
/* Lends all or none, under the session's mutex; kv_tokens_free may be NULL. */
RELAY_MUST_CHECK enum relay_code relayd_session_admit(struct relayd_session *session,
                                                      const struct relayd_admission *admission,
                                                      uint64_t *kv_tokens_free,
                                                      struct relayd_entry_errors *errors,
                                                      struct relay_error *err);
/* The lease starts anew. */
void relayd_session_renew(struct relayd_session *session);

/* Counts an entry's refusal; errors may be NULL. */
void relayd_entry_errors_add(struct relayd_entry_errors *errors, uint32_t index,
                             enum relay_code code, const char *msg);

#endif
