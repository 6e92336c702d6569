/* Sessions: the table, tokens, leases, lifetime. Any thread; the table's mutex is never held while
 * a session is taken apart. */
#include "service/base/log.h"
#include "service/session/stream_internal.h"

#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_MS UINT64_C(1000000)

static uint64_t now_ns(const struct relayd_sessions *sessions)
{
    return relayd_clock_now_ns(sessions->opt.clock);
}

void relayd_session_renew(struct relayd_session *session)
{
    uint64_t end = now_ns(session->sessions) + session->lease_ms * NS_PER_MS;
    atomic_store_explicit(&session->lease_end_ns, end, memory_order_relaxed);
}

/* ---- lifetime ---- */

enum relay_code relayd_sessions_create(const struct relayd_sessions_options *options,
                                       struct relayd_sessions **out, struct relay_error *err)
{
    struct relayd_sessions *sessions = calloc(1, sizeof(*sessions));
    if (sessions == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for sessions");
    }
    enum relay_code code = relayd_blocks_create(options->backend, &sessions->blocks, err);
    if (code != RELAY_OK) {
        free(sessions);
        return code;
    }
    sessions->opt = *options;
    atomic_init(&sessions->next_handle, 1);
    pthread_mutex_init(&sessions->mutex, NULL);
    *out = sessions;
    return RELAY_OK;
}

static void session_free(struct relayd_session *session)
{
    relayd_slots_release(session->slots);
    relayd_model_release(session->model);
    free(session->lends);
    free(session->tenant);
    pthread_mutex_destroy(&session->mutex);
    free(session);
}

void relayd_session_release(struct relayd_session *session)
{
    if (session != NULL &&
        atomic_fetch_sub_explicit(&session->refs, 1, memory_order_acq_rel) == 1) {
        session_free(session);
    }
}

/* Ends a session that has just left the table and drops the table's reference. */
static void end(struct relayd_session *session)
{
    pthread_mutex_lock(&session->mutex);
    session->closed = true;
    struct relayd_stream *stream = relayd_stream_lose_locked(session);
    struct session_request *entry, *next;
    HASH_ITER(by_handle, session->requests, entry, next)
    {
        relayd_session_drop(session, entry);
    }
    pthread_mutex_unlock(&session->mutex);
    relayd_stream_tell_lost(stream, RELAY_NOT_FOUND, "the session has ended");
    relayd_session_release(session);
}

static bool lease_is_over(const struct relayd_session *session, uint64_t now)
{
    return atomic_load_explicit(&session->lease_end_ns, memory_order_relaxed) <= now;
}

/* Its lease is over and no stream keeps it. */
static bool is_over(struct relayd_session *session, uint64_t now)
{
    if (!lease_is_over(session, now)) {
        return false;
    }
    pthread_mutex_lock(&session->mutex);
    /* Once more: a stream that has just left renewed it. */
    bool over = session->stream == NULL && lease_is_over(session, now);
    pthread_mutex_unlock(&session->mutex);
    return over;
}

void relayd_sessions_destroy(struct relayd_sessions *sessions)
{
    if (sessions == NULL) {
        return;
    }
    struct relayd_session *session, *next;
    HASH_ITER(hh, sessions->table, session, next)
    {
        HASH_DEL(sessions->table, session);
        end(session);
    }
    pthread_mutex_destroy(&sessions->mutex);
    relayd_blocks_release(sessions->blocks);
    free(sessions);
}

uint32_t relayd_sessions_sweep(struct relayd_sessions *sessions)
{
    uint64_t now = now_ns(sessions);
    struct relayd_session *gone = NULL;
    struct relayd_session *session, *next;
    pthread_mutex_lock(&sessions->mutex);
    HASH_ITER(hh, sessions->table, session, next)
    {
        if (is_over(session, now)) {
            HASH_DEL(sessions->table, session);
            session->next_gone = gone;
            gone = session;
        }
    }
    pthread_mutex_unlock(&sessions->mutex);
    uint32_t n = 0;
    while (gone != NULL) {
        session = gone;
        gone = session->next_gone;
        end(session);
        n++;
    }
    if (n != 0) {
        RELAYD_LOG(INFO, "session.lease_over", "count=%u", n);
    }
    return n;
}

uint32_t relayd_sessions_count(struct relayd_sessions *sessions)
{
    pthread_mutex_lock(&sessions->mutex);
    uint32_t n = (uint32_t)HASH_COUNT(sessions->table);
    pthread_mutex_unlock(&sessions->mutex);
    return n;
}

const struct relayd_sessions_options *relayd_sessions_limits(const struct relayd_sessions *sessions)
{
    return &sessions->opt;
}

/* ---- opening ---- */

/* Tensor bytes of the largest call over the model's layers. */
static size_t call_bytes_max(const struct relay_model *spec, enum relay_dtype io,
                             enum relay_dtype out, uint32_t rows)
{
    size_t most = 0;
    for (uint32_t i = 0; i < spec->num_kinds; i++) {
        const struct relay_layer_kind *kind = &spec->kinds[i];
        size_t kv_dims = (size_t)kind->head_dim_qk + (kind->v_from_k ? 0 : kind->head_dim_v);
        size_t row = (size_t)kind->num_q_heads * kind->head_dim_qk * relay_dtype_size(io) +
                     kind->num_kv_heads * kv_dims * relay_dtype_size(io) +
                     (size_t)kind->num_q_heads * kind->head_dim_v * relay_dtype_size(out) +
                     (size_t)kind->num_q_heads * sizeof(float);
        most = row > most ? row : most;
    }
    return most * rows + (size_t)5 * 64; /* each of the five tensors starts on 64 bytes */
}

static uint32_t pick(uint32_t wanted, uint32_t fallback, uint32_t limit)
{
    uint32_t value = wanted == 0 ? fallback : wanted;
    return value > limit ? limit : value;
}

static bool is_io_dtype(enum relay_dtype dtype)
{
    return dtype == RELAY_DTYPE_F32 || dtype == RELAY_DTYPE_F16 || dtype == RELAY_DTYPE_BF16;
}

static enum relay_code fill(struct relayd_sessions *sessions,
                            const struct relayd_session_desc *desc, struct relayd_session *session,
                            struct relay_error *err)
{
    const struct relayd_sessions_options *opt = &sessions->opt;
    session->sessions = sessions;
    session->io_dtype = desc->io_dtype;
    session->out_dtype =
        desc->out_dtype == RELAY_DTYPE_UNSPECIFIED ? desc->io_dtype : desc->out_dtype;
    if (!is_io_dtype(session->io_dtype) || !is_io_dtype(session->out_dtype)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "io_dtype and out_dtype are F32, F16 or BF16, got %s and %s",
                          relay_dtype_name(session->io_dtype),
                          relay_dtype_name(session->out_dtype));
    }
    session->lease_ms = pick(desc->lease_ms, opt->lease_ms_default, opt->lease_ms_max);
    session->rows_max = pick(desc->rows_max, opt->rows_max, opt->rows_max);
    session->response_bytes_max =
        pick(desc->response_bytes_max, opt->response_bytes_max, opt->response_bytes_limit);
    session->tenant = strdup(desc->tenant);
    if (session->tenant == NULL || RAND_bytes(session->token, sizeof(session->token)) != 1) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a session");
    }
    enum relay_code code =
        relayd_model_acquire(opt->store, desc->tenant, desc->model, &session->model, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = relayd_model_supports(session->model, session->io_dtype, session->out_dtype, err);
    if (code != RELAY_OK) {
        return code;
    }
    struct relayd_slots_options slots = {
        .blocks = sessions->blocks,
        .calls_max = opt->calls_in_flight_max,
        .tensor_bytes = call_bytes_max(relayd_model_spec(session->model), session->io_dtype,
                                       session->out_dtype, session->rows_max),
    };
    return relayd_slots_create(&slots, &session->slots, err);
}

enum relay_code relayd_session_open(struct relayd_sessions *sessions,
                                    const struct relayd_session_desc *desc,
                                    struct relayd_session_info *out, struct relay_error *err)
{
    struct relayd_session *session = calloc(1, sizeof(*session));
    if (session == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a session");
    }
    atomic_init(&session->refs, 1);
    pthread_mutex_init(&session->mutex, NULL);
    enum relay_code code = fill(sessions, desc, session, err);
    if (code != RELAY_OK) {
        goto out;
    }
    struct relayd_session_info info = {
        .lease_ms = session->lease_ms,
        .rows_max = session->rows_max,
        .response_bytes_max = session->response_bytes_max,
    };
    memcpy(info.token, session->token, sizeof(info.token));
    relayd_session_renew(session);
    pthread_mutex_lock(&sessions->mutex);
    if (HASH_COUNT(sessions->table) >= sessions->opt.sessions_max) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%u sessions are open already",
                          sessions->opt.sessions_max);
    } else {
        HASH_ADD_KEYPTR(hh, sessions->table, session->token, sizeof(session->token), session);
        if (session->hh.tbl != NULL) {
            session = NULL; /* the table's now */
        } else {
            code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a session");
        }
    }
    pthread_mutex_unlock(&sessions->mutex);
    if (code == RELAY_OK) {
        *out = info;
    }
out:
    relayd_session_release(session);
    return code;
}

/* ---- finding and ending ---- */

enum relay_code relayd_session_acquire(struct relayd_sessions *sessions, const char *tenant,
                                       const uint8_t *token, size_t token_bytes,
                                       struct relayd_session **out, struct relay_error *err)
{
    if (token_bytes != RELAYD_SESSION_TOKEN_BYTES) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "session: expected %u bytes, got %zu",
                          RELAYD_SESSION_TOKEN_BYTES, token_bytes);
    }
    struct relayd_session *session = NULL;
    pthread_mutex_lock(&sessions->mutex);
    HASH_FIND(hh, sessions->table, token, RELAYD_SESSION_TOKEN_BYTES, session);
    if (session != NULL && strcmp(session->tenant, tenant) != 0) {
        session = NULL;
    }
    if (session != NULL) {
        atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);
        relayd_session_renew(session);
    }
    pthread_mutex_unlock(&sessions->mutex);
    if (session == NULL) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "no such session: it ended, or never was");
    }
    *out = session;
    return RELAY_OK;
}

void relayd_session_close(struct relayd_session *session)
{
    struct relayd_sessions *sessions = session->sessions;
    struct relayd_session *found = NULL;
    pthread_mutex_lock(&sessions->mutex);
    HASH_FIND(hh, sessions->table, session->token, sizeof(session->token), found);
    if (found != NULL) {
        HASH_DEL(sessions->table, found);
    }
    pthread_mutex_unlock(&sessions->mutex);
    if (found != NULL) {
        end(found);
    }
}

const struct relay_model *relayd_session_model(const struct relayd_session *session)
{
    return relayd_model_spec(session->model);
}

uint32_t relayd_session_response_bytes_max(const struct relayd_session *session)
{
    return session->response_bytes_max;
}

enum relay_dtype relayd_session_io_dtype(const struct relayd_session *session)
{
    return session->io_dtype;
}

enum relay_dtype relayd_session_out_dtype(const struct relayd_session *session)
{
    return session->out_dtype;
}
