/* An engine of the fault tests: a session that walks steps over a stream, message by message, so
 * that a test can leave it anywhere. Its tensors are a function of its seed. A peer's thread only.
 */
#ifndef RELAY_TESTS_FAULTS_ENGINE_H
#define RELAY_TESTS_FAULTS_ENGINE_H

#include "e2e/faults_kit.h"

#include <proto/wire/stream.h>

#define FAULTS_REQUESTS_MAX 64u

struct faults_engine {
    struct faults_peer *peer;
    const struct faults_model *model;
    uint64_t seed; /* of its tensors */
    uint8_t token[RELAY_WIRE_SESSION_BYTES];
    uint32_t num_requests;
    uint64_t handles[FAULTS_REQUESTS_MAX];
    struct faults_call *stream; /* attached, or NULL */
};

/* A session. rows_max 0 = the server's. */
enum relay_code faults_engine_open(struct faults_engine *engine, struct faults_peer *peer,
                                   const struct faults_model *model, uint64_t seed,
                                   uint32_t lease_ms, uint32_t rows_max, struct relay_error *err);
/* n more requests on the prompt (NULL = none), with room for so many context tokens each. */
enum relay_code faults_engine_requests(struct faults_engine *engine, const char *prompt_id,
                                       uint32_t n, uint32_t tokens_reserved,
                                       struct relay_error *err);
/* Closes the session's requests from the first on. */
enum relay_code faults_engine_drop(struct faults_engine *engine, uint32_t n,
                                   struct relay_error *err);
/* Opens a stream, attaches, waits for Attached. */
enum relay_code faults_engine_attach(struct faults_engine *engine, struct relay_error *err);
/* Ends stream and session. */
void faults_engine_close(struct faults_engine *engine);

/* BeginStep: q_len rows of each request from position on. */
bool faults_engine_begin(struct faults_engine *engine, uint64_t step_id, uint32_t position,
                         uint32_t q_len, enum relay_part part);
/* LayerCall with the tensors that (seed, position, layer) make; no k and v for PROMPT_ONLY. */
bool faults_engine_call(struct faults_engine *engine, uint64_t step_id, uint32_t position,
                        uint32_t q_len, uint32_t layer, enum relay_part part, uint32_t timeout_ms);
bool faults_engine_end(struct faults_engine *engine, uint64_t step_id);

struct faults_answer {
    enum relay_wire_stream_answer kind;
    enum relay_code code; /* of a begun or a result */
    uint64_t step_id;
    uint32_t layer;
    char message[RELAY_ERROR_MSG_BYTES];
    uint64_t kv_tokens_free; /* of a begun */
    size_t out_bytes;        /* of a result */
};

/* The next answer; out (may be NULL) gets at most room bytes of a result's tensor. */
enum faults_event faults_engine_answer(struct faults_engine *engine, uint32_t timeout_ms, void *out,
                                       size_t room, struct faults_answer *answer);

/* A whole step of one row a request, layer after layer. out [L, requests, Hq, D]. *at, if not NULL,
 * is the layer that failed, -1 for BeginStep. */
enum relay_code faults_engine_step(struct faults_engine *engine, uint64_t step_id,
                                   uint32_t position, enum relay_part part, float *out, int *at,
                                   struct relay_error *err);
/* One layer of such a step by a unary call. out [requests, Hq, D]. */
enum relay_code faults_engine_unary(struct faults_engine *engine, uint64_t step_id,
                                    uint32_t position, uint32_t layer, float *out,
                                    struct relay_error *err);

#endif
