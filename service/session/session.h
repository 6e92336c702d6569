/* Sessions: who owns request handles. Opened for one model and one pair of dtypes, found by a
 * secret 16-byte token, ended by close or by a lease that was not renewed. Every function here that
 * takes a session counts as use and renews its lease.
 *
 * Thread-safe. Knows no gRPC, protobuf or libuv; results of calls come back through on_done. */
#ifndef RELAYD_SESSION_SESSION_H
#define RELAYD_SESSION_SESSION_H

#include "service/batch/executor.h"

#define RELAYD_SESSION_TOKEN_BYTES 16u

struct relayd_sessions;
struct relayd_session;

struct relayd_sessions_options {
    struct relayd_store *store;
    struct relayd_executor *executor;
    struct relay_backend *backend;
    const struct relayd_clock *clock;
    uint32_t sessions_max;
    uint32_t requests_per_session_max;
    uint32_t lease_ms_default;
    uint32_t lease_ms_max;
    uint32_t rows_max;             /* rows of one call */
    uint32_t calls_in_flight_max;  /* per session, 1..64 */
    uint32_t response_bytes_max;   /* what a session gets when it asks for 0 */
    uint32_t response_bytes_limit; /* the most it may ask for */
};

RELAY_MUST_CHECK enum relay_code relayd_sessions_create(
    const struct relayd_sessions_options *options, struct relayd_sessions **out,
    struct relay_error *err);
/* Ends all sessions. No call may be in flight. */
void relayd_sessions_destroy(struct relayd_sessions *sessions);
/* Ends sessions whose lease is over; about once a second. Returns how many. */
uint32_t relayd_sessions_sweep(struct relayd_sessions *sessions);
uint32_t relayd_sessions_count(struct relayd_sessions *sessions);
const struct relayd_sessions_options *relayd_sessions_limits(
    const struct relayd_sessions *sessions);

struct relayd_session_desc {
    const char *tenant;
    const struct relay_model *model;
    enum relay_dtype io_dtype;
    enum relay_dtype out_dtype; /* UNSPECIFIED = io_dtype */
    uint32_t lease_ms;          /* 0 = default */
    uint32_t rows_max;          /* 0 = the server's */
    uint32_t response_bytes_max;
};
struct relayd_session_info {
    uint8_t token[RELAYD_SESSION_TOKEN_BYTES];
    uint32_t lease_ms;
    uint32_t rows_max;
    uint32_t response_bytes_max;
};

/* INVALID_ARGUMENT, UNIMPLEMENTED (shape or dtype), FAILED_PRECONDITION (model key known with
 * another description), RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_session_open(struct relayd_sessions *sessions,
                                                     const struct relayd_session_desc *desc,
                                                     struct relayd_session_info *out,
                                                     struct relay_error *err);
/* Finds by token, renews the lease, takes a reference. INVALID_ARGUMENT for a wrong length,
 * NOT_FOUND for an unknown or ended session (also another tenant's). */
RELAY_MUST_CHECK enum relay_code relayd_session_acquire(struct relayd_sessions *sessions,
                                                        const char *tenant, const uint8_t *token,
                                                        size_t token_bytes,
                                                        struct relayd_session **out,
                                                        struct relay_error *err);
void relayd_session_release(struct relayd_session *session);
/* Ends it: handles go, calls in flight finish first. The caller's reference stays to be released.
 */
void relayd_session_close(struct relayd_session *session);

const struct relay_model *relayd_session_model(const struct relayd_session *session);
uint32_t relayd_session_response_bytes_max(const struct relayd_session *session);
enum relay_dtype relayd_session_io_dtype(const struct relayd_session *session);
enum relay_dtype relayd_session_out_dtype(const struct relayd_session *session);

/* ---- requests ---- */

struct relayd_open_request {
    uint64_t tag;                      /* 0 = none; the same tag again gives the same handle */
    struct relayd_prompt_query prompt; /* prompt_id "" = no prompt */
    uint32_t tokens_reserved;
};
struct relayd_opened_request {
    uint64_t handle;     /* never 0 */
    uint64_t generation; /* 0 without a prompt */
    uint32_t prompt_tokens;
};
struct relayd_request_info {
    uint64_t handle, tag, generation;
    uint32_t prompt_tokens;
    uint32_t length, held_max;
    uint64_t last_step_id;
    char prompt_id[RELAYD_PROMPT_ID_BYTES_MAX + 1]; /* "" without a prompt */
};

/* Why one entry of a batch was refused. */
struct relayd_entry_error {
    uint32_t index;
    enum relay_code code;
    char msg[96];
};
/* Filled by calls that name several entries; n of them, the rest counted in total. */
#define RELAYD_ENTRY_ERRORS_MAX 16u
struct relayd_entry_errors {
    uint32_t n, total;
    struct relayd_entry_error e[RELAYD_ENTRY_ERRORS_MAX];
};

/* All or nothing. A tag that is open already with another prompt: ALREADY_EXISTS. */
RELAY_MUST_CHECK enum relay_code relayd_session_open_requests(
    struct relayd_session *session, const struct relayd_open_request *in, uint32_t n,
    struct relayd_opened_request *out, struct relayd_entry_errors *errors, struct relay_error *err);
/* n = 0: all of the session's, up to max. NOT_FOUND names the first unknown handle. *count =
 * written. */
RELAY_MUST_CHECK enum relay_code relayd_session_get_requests(struct relayd_session *session,
                                                             const uint64_t *handles, uint32_t n,
                                                             struct relayd_request_info *out,
                                                             uint32_t max, uint32_t *count,
                                                             struct relay_error *err);
/* held[layer] of one request, over all layers of the model. NOT_FOUND. */
RELAY_MUST_CHECK enum relay_code relayd_session_request_held(struct relayd_session *session,
                                                             uint64_t handle,
                                                             uint32_t *held /* [L] */,
                                                             struct relay_error *err);
/* Ignores unknown handles; returns how many were open. A request in flight is freed after it. */
uint32_t relayd_session_close_requests(struct relayd_session *session, const uint64_t *handles,
                                       uint32_t n);
/* tokens_keep[i] for handles[i]. All handles are resolved before any request is cut; one with a
 * call in flight ends it there (lengths are absolute: send it again). */
RELAY_MUST_CHECK enum relay_code relayd_session_truncate_requests(
    struct relayd_session *session, const uint64_t *handles, const uint32_t *tokens_keep,
    uint32_t n, struct relayd_entry_errors *errors, struct relay_error *err);
/* See relayd_request_append. Blocks while it stores. */
RELAY_MUST_CHECK enum relay_code relayd_session_append(struct relayd_session *session,
                                                       uint64_t handle,
                                                       const struct relayd_kv_chunk *chunk,
                                                       struct relay_error *err);

/* ---- calls ---- */

/* A unary call: one layer, self-contained. Arrays are the caller's and are copied. */
struct relayd_call_desc {
    uint64_t step_id; /* 0 = unfenced */
    uint32_t layer;
    enum relay_part part;
    enum relay_sharing sharing;
    bool want_lse, want_timings;
    const uint64_t *handles;
    const uint32_t *q_lens;    /* [num_entries], or NULL = all 1 */
    const uint32_t *positions; /* [num_entries] */
    uint32_t num_entries;
    size_t q_bytes, k_bytes, v_bytes; /* as they came */
    uint64_t received_ns;
    uint64_t deadline_ns; /* UINT64_MAX = none */
};

/* Checks the description (layer, counts, byte sizes with expected and got, rows_max, response size,
 * k and v together, none with PROMPT_ONLY or on a layer that shares another's K/V, duplicate
 * handles except with PROMPT_ONLY), takes a slot and places the tensors: the caller copies q, k, v
 * to call->io and then submits, or gives up with relayd_slots_give. */
RELAY_MUST_CHECK enum relay_code relayd_session_call_begin(struct relayd_session *session,
                                                           const struct relayd_call_desc *desc,
                                                           struct relayd_call **out,
                                                           struct relay_error *err);
/* Resolves and lends the handles (NOT_FOUND, a handle twice INVALID_ARGUMENT except with
 * PROMPT_ONLY, ABORTED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION; each bad entry in errors) and
 * hands over to the executor. on_done comes exactly once when this returns RELAY_OK; otherwise
 * nothing was written and the call is still the caller's. */
RELAY_MUST_CHECK enum relay_code relayd_session_call_submit(struct relayd_session *session,
                                                            struct relayd_call *call,
                                                            const uint64_t *handles,
                                                            relayd_call_done_fn on_done, void *user,
                                                            struct relayd_entry_errors *errors,
                                                            struct relay_error *err);

#endif
