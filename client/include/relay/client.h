/* librelay: the C client of relayd.
 *
 *     relay_client_open("unix:///run/relayd/relayd.sock", NULL, &client, &err);
 *     relay_prompt_register(client, &prompt_desc, NULL, &err);      (client_prompts.h)
 *     relay_session_open(client, &model, &options, &session, &err);
 *     relay_request_open(session, "support-bot/v3", &request, &err);
 *     relay_step_begin(session, entries, n, NULL, &step, &err);
 *     for each layer: relay_step_attend(step, layer, q, k, v, out, lse, &err);
 *     relay_step_end(step);                                         (or _submit and _wait)
 *
 * Letters: R rows, Hq query heads, Hkv KV heads, D head dim (dqk, dv), S prompt tokens, L layers.
 * Tensors are row-major, little-endian and contiguous; LSE is float32, natural logarithm, -inf for
 * a row that sees nothing.
 *
 * Threads: a client and its sessions may be used from any number of threads at once, also for
 * several steps of a session at the same time; a step belongs to one thread at a time. Close what
 * was opened on an object before the object itself, and only when no other thread is inside a call
 * on it. Every call that talks to the server blocks, at most timeout_ms. Forking while a client is
 * open is not supported.
 *
 * Errors: functions that can fail return a code and fill *err (NULL is allowed); the text is the
 * server's where the server refused. Any call may return UNAVAILABLE (no server, or it is going
 * away), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (memory, quota) and INTERNAL (an answer that makes
 * no sense); the codes named at each function are those that tell something of their own. Outputs
 * are written only on success.
 *
 * Calls that are safe to repeat are repeated on UNAVAILABLE, with jittered backoff, until they work
 * or time is up. Not repeated: relay_session_open and relay_prompt_unregister.
 *
 * Options structs begin with their size and are made by their _INIT macro; later versions append
 * fields. A size this library does not know is INVALID_ARGUMENT. */
#ifndef RELAY_CLIENT_H
#define RELAY_CLIENT_H

#include <relay/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct relay_client;
struct relay_session;
struct relay_step;

/* ---- connection -------------------------------------------------------------------------------*/

struct relay_client_options {
    size_t size;
    uint32_t timeout_ms;      /* of one call, repeats included */
    uint32_t upload_stall_ms; /* an upload without progress for so long has failed */
    uint32_t retries_max;     /* repeats of one call or one stuck upload; 0 = none. The default
                                 outlasts 1.6 to 3.2 s without a server */
    uint32_t backoff_ms_min;  /* first wait; doubles, jittered */
    uint32_t backoff_ms_max;
    uint32_t receive_bytes_max; /* one message from the server */
    uint32_t keepalive_time_ms; /* pings on a silent connection; 0 = none, else >= 10000 */
    uint32_t keepalive_timeout_ms;
};
#define RELAY_CLIENT_OPTIONS_INIT                                                                  \
    {                                                                                              \
        sizeof(struct relay_client_options), 30000, 60000, 6, 50, 2000, 64u << 20, 20000, 10000    \
    }

/* target: "unix:///path", "unix:path", "host:port", "[v6]:port", "ipv4:a.b.c.d:port",
 * "dns:///host:port". Does not connect: the first call does. options may be NULL.
 * INVALID_ARGUMENT for a target or option that cannot work. The caller owns *out. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_client_open(
    const char *target, const struct relay_client_options *options, struct relay_client **out,
    struct relay_error *err);
/* Sessions must be closed. NULL is fine. */
RELAY_EXPORT void relay_client_close(struct relay_client *client);

/* What the server says of itself; 0 and "" where it says nothing. */
struct relay_server_info {
    const char *version; /* "0.1.0" */
    const char *backend; /* "cpu" */
    const char *device;  /* the first one's name */
    const char *isa;
    uint64_t uptime_ms;
    uint64_t server_epoch; /* changes when the server restarts: all handles are lost */
    uint64_t prompt_bytes_used, prompt_bytes_max, request_bytes_used, request_bytes_max;
    uint64_t message_bytes_max, response_bytes_max;                 /* limits of one message */
    uint32_t rows_max, entries_max;                                 /* limits of one call */
    uint32_t sessions, requests, prompts, uploads, calls_in_flight; /* held now */
    uint32_t threads, page_tokens;
    bool batch_invariant;
    uint32_t rpcs_open;
    /* Counts since the server started. */
    uint64_t calls, calls_failed; /* attention calls: answered; of them, not computed */
    uint64_t launches, rows, compute_us;
    uint64_t prompt_bytes_read, kv_bytes_read; /* K/V read by launches: prompts', contexts' */
    uint64_t bytes_received, bytes_sent;       /* of messages */
};
/* The caller frees *out with relay_server_info_free. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_client_server_info(
    struct relay_client *client, struct relay_server_info **out, struct relay_error *err);
RELAY_EXPORT void relay_server_info_free(struct relay_server_info *info);

/* grpc.health.v1: *serving of "" (the whole server) or "relay.v1.RelayAttention". service may be
 * NULL for "". NOT_FOUND for a service it does not know. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_client_health(struct relay_client *client,
                                                                  const char *service,
                                                                  bool *serving,
                                                                  struct relay_error *err);

/* ---- sessions ---------------------------------------------------------------------------------*/

struct relay_session_options {
    size_t size;
    enum relay_dtype io_dtype;   /* of q and of new k, v */
    enum relay_dtype out_dtype;  /* of out; UNSPECIFIED = io_dtype */
    uint32_t lease_ms;           /* 0 = the server's choice */
    uint32_t rows_max;           /* most rows of one call; 0 = the server's limit */
    uint32_t response_bytes_max; /* 0 = 4 MiB; at most the client's receive_bytes_max */
    bool keepalive;              /* keep the lease while nobody calls */
    bool stream;                 /* steps go over one stream; false: a unary call a layer */
    uint32_t spin_us; /* poll so long for an answer before sleeping; costs a core; 0 = off */
};
#define RELAY_SESSION_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(struct relay_session_options), RELAY_DTYPE_F32, RELAY_DTYPE_UNSPECIFIED, 0, 0, 0,   \
            true, true, 0                                                                          \
    }

/* A session owns request handles; the server ends it, handles and all, when it hears nothing for
 * the lease. With keepalive, a thread of the client sends an empty message after a third of the
 * lease without a call; without it, the caller must call often enough. Copies model; options may be
 * NULL. INVALID_ARGUMENT, UNIMPLEMENTED (no kernel for a shape), FAILED_PRECONDITION (the server
 * knows model->key with another description). Not repeated on UNAVAILABLE. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_session_open(
    struct relay_client *client, const struct relay_model *model,
    const struct relay_session_options *options, struct relay_session **out,
    struct relay_error *err);
/* Tells the server, ends its requests, frees. Steps must have ended. If the server cannot be told,
 * the lease ends the session there. NULL is fine. */
RELAY_EXPORT void relay_session_close(struct relay_session *session);
/* The server said that it is going away: end the open steps, then open a session elsewhere (there
 * handles are new). Known while a call waits, or within a second where the session has keepalive.
 */
RELAY_EXPORT bool relay_session_draining(struct relay_session *session);
/* As granted. */
RELAY_EXPORT uint32_t relay_session_lease_ms(const struct relay_session *session);
RELAY_EXPORT uint64_t relay_session_server_epoch(const struct relay_session *session);

/* ---- requests: one sequence being decoded, by a handle that means something in its session only
 */

struct relay_request_options {
    size_t size;
    const char *prompt_id;   /* NULL or "" = no prompt */
    const char *variant;     /* must equal the prompt's; NULL = "" */
    uint64_t generation;     /* 0 = newest; ABORTED when the prompt's is another */
    const void *content_key; /* must equal the prompt's if it has one; NULL = not compared */
    uint32_t content_key_bytes;
    uint32_t tokens_reserved; /* context tokens to reserve memory for now */
};
#define RELAY_REQUEST_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(struct relay_request_options), NULL, NULL, 0, NULL, 0, 0                            \
    }

struct relay_request {
    uint64_t handle;        /* never 0 */
    uint64_t generation;    /* of its prompt; 0 = no prompt */
    uint32_t prompt_tokens; /* S */
    uint32_t length;        /* context tokens that every layer holds */
    uint32_t held_max;      /* context tokens of the layer that holds most */
    uint64_t last_step_id;
};

/* One request on the newest generation of a prompt (NULL = none); *request is its handle.
 * NOT_FOUND. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_request_open(struct relay_session *session,
                                                                 const char *prompt_id,
                                                                 uint64_t *request,
                                                                 struct relay_error *err);
/* n at once, all or none. NOT_FOUND, ABORTED (generation), FAILED_PRECONDITION (variant, content
 * key, model). out [n]. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_requests_open(
    struct relay_session *session, const struct relay_request_options *options, uint32_t n,
    struct relay_request *out, struct relay_error *err);
/* requests [n] -> out [n]. NOT_FOUND. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_requests_get(struct relay_session *session,
                                                                 const uint64_t *requests,
                                                                 uint32_t n,
                                                                 struct relay_request *out,
                                                                 struct relay_error *err);
/* Unknown handles are ignored. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_requests_close(struct relay_session *session,
                                                                   const uint64_t *requests,
                                                                   uint32_t n,
                                                                   struct relay_error *err);
/* Cuts requests[i] to tokens_keep[i] context tokens in every layer. OUT_OF_RANGE or
 * INVALID_ARGUMENT where it holds fewer; NOT_FOUND. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_requests_truncate(struct relay_session *session,
                                                                      const uint64_t *requests,
                                                                      const uint32_t *tokens_keep,
                                                                      uint32_t n,
                                                                      struct relay_error *err);

/* K/V of a layer, in memory that stays the caller's. */
struct relay_kv {
    const void *k;          /* [tokens,Hkv,dqk]; NULL for a layer that has no K/V of its own */
    const void *v;          /* [tokens,Hkv,dv]; NULL with v_from_k */
    enum relay_dtype dtype; /* UNSPECIFIED = the model's kv_dtype */
};
/* Adds prefilled context tokens [token_begin, +token_count) to all layers; layers [L]. token_begin
 * is at most what a layer holds (FAILED_PRECONDITION for a gap); layers never get shorter. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_request_append(
    struct relay_session *session, uint64_t request, uint32_t token_begin, uint32_t token_count,
    const struct relay_kv *layers, struct relay_error *err);

/* ---- steps: one token (or chunk of tokens) for a batch of requests through the layers
 *
 * Steps of a session travel on one stream, over a connection of its own, opened with the first
 * step. When it breaks, whoever waits opens it again, begins the same steps and sends what was not
 * answered once more: the same step never shortens what is held, so this is safe. A server that has
 * restarted knows no handle any more: FAILED_PRECONDITION, for this and all later steps. No thread
 * runs behind the caller's back: messages are sent by submit and moved on by wait. */

struct relay_step_entry {
    uint64_t request;  /* handle */
    uint32_t position; /* context index of the entry's first new token */
    uint32_t q_len;    /* rows; 0 means 1 */
};

struct relay_step_options {
    size_t size;
    uint64_t step_id;           /* 0 = the session's next; else larger than every one before */
    enum relay_part part;       /* PROMPT_ONLY: k and v stay with the caller */
    enum relay_sharing sharing; /* AUTO but in tests and measurements */
    uint32_t timeout_ms;        /* of each wait, reconnecting included; 0 = the client's */
    uint32_t timeout_us;        /* from the server's receipt of the step: layers launched later are
                                 * DEADLINE_EXCEEDED; 0 = none. Streams only */
    uint32_t align_us;  /* how long a layer may wait for other sessions' steps on the same prompt;
                         * 0 = not at all. Streams only */
    bool want_lse;      /* false: lse is NULL in every call, and is not sent */
    bool want_timings;  /* what relay_step_timings tells */
    bool wait_admitted; /* begin waits for the server's answer to it. Streams only */
};
#define RELAY_STEP_OPTIONS_INIT                                                                    \
    {                                                                                              \
        sizeof(struct relay_step_options), 0, RELAY_PART_FULL, RELAY_SHARING_AUTO, 0, 0, 0, true,  \
            true, false                                                                            \
    }

/* Copies entries [n]; rows of the step are the entries' rows in order, R in all. The server judges
 * them once for all layers and reserves memory for all: what it says comes from the first wait, or
 * from here with wait_admitted (without a stream: from each call). options may be NULL. A request
 * has one open step; an older one ends. INVALID_ARGUMENT, and with wait_admitted the codes of
 * relay_step_wait. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_step_begin(
    struct relay_session *session, const struct relay_step_entry *entries, uint32_t n,
    const struct relay_step_options *options, struct relay_step **out, struct relay_error *err);
/* Submits one layer and waits for it. Stores k, v at the entries' positions and attends to prompt
 * and context.
 *   q   [R,Hq,dqk]  io_dtype        out [R,Hq,dv] out_dtype
 *   k   [R,Hkv,dqk] io_dtype        lse [R,Hq]    float32, or NULL if not wanted
 *   v   [R,Hkv,dv]  io_dtype, NULL with v_from_k
 * k and v both NULL = read only: the tokens are held already (or the part is PROMPT_ONLY, or the
 * layer uses another's K/V). One bad entry fails the call and nothing is stored. Safe to repeat
 * with the same step.
 * NOT_FOUND (handle, session), ABORTED (a newer step was accepted), FAILED_PRECONDITION (gap, a
 * newer step took the request, server restarted), INVALID_ARGUMENT. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_step_attend(struct relay_step *step,
                                                                uint32_t layer, const void *q,
                                                                const void *k, const void *v,
                                                                void *out, float *lse,
                                                                struct relay_error *err);
/* Sends one layer and does not wait: relay_step_wait(*ticket) must come. Until it has returned q, k
 * and v stay readable and unchanged (they are sent from where they are, maybe twice) and out and
 * lse writable. Any number may be submitted; as many as the server lets are under way. Without a
 * stream the call is made here. INVALID_ARGUMENT, RESOURCE_EXHAUSTED, and what earlier answers have
 * shown: the step was refused, the session is lost. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_step_submit(
    struct relay_step *step, uint32_t layer, const void *q, const void *k, const void *v, void *out,
    float *lse, uint64_t *ticket, struct relay_error *err);
/* The same for rows [row_begin, +row_count) of the step: a long prefill in pieces, ascending within
 * a layer. Tensors hold these rows only. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_step_submit_rows(
    struct relay_step *step, uint32_t layer, uint32_t row_begin, uint32_t row_count, const void *q,
    const void *k, const void *v, void *out, float *lse, uint64_t *ticket, struct relay_error *err);
/* Waits for a submitted call, in any order; the ticket is used up whatever comes. When it returns,
 * the tensors are the caller's alone again. Codes as relay_step_attend. */
RELAY_EXPORT RELAY_MUST_CHECK enum relay_code relay_step_wait(struct relay_step *step,
                                                              uint64_t ticket,
                                                              struct relay_error *err);
/* Tells the server and frees the step; calls not waited for are given up. NULL is fine. */
RELAY_EXPORT void relay_step_end(struct relay_step *step);

/* What the server measured for the last call that was waited for and succeeded; borrowed until the
 * next one. Zeros before the first, and but for total_us without want_timings. */
struct relay_timings {
    uint32_t queue_us, plan_us, compute_us;
    uint32_t batch_rows,
        batch_sessions;              /* of the launch, as far as they are the caller's tenant's */
    uint64_t prompt_bytes, kv_bytes; /* K/V read: prompts', contexts' */
    uint64_t total_us;               /* measured here: from submit to answer */
};
RELAY_EXPORT const struct relay_timings *relay_step_timings(const struct relay_step *step);
RELAY_EXPORT uint64_t relay_step_id(const struct relay_step *step);
/* R */
RELAY_EXPORT uint32_t relay_step_rows(const struct relay_step *step);
/* Context tokens that could still be reserved when the step was admitted; 0 before. Streams only.
 */
RELAY_EXPORT uint64_t relay_step_kv_tokens_free(struct relay_step *step);

#ifdef __cplusplus
}
#endif

#include <relay/client_prompts.h>
#endif
