/* What the fault tests share above the raw peer: a small model, prompts and uploads, an engine that
 * walks steps over a stream, and what the server holds, to be compared with the start.
 *
 * Tensors are float32 and a function of a seed: whoever sends the same gets the same bits, whatever
 * others do or suffer. For one thread per peer. */
#ifndef RELAY_TESTS_FAULTS_KIT_H
#define RELAY_TESTS_FAULTS_KIT_H

#include "e2e/faults_peer.h"
#include "testlib/server.h"

#include <proto/wire/stream.h>
#include <relay/types.h>

#define FAULTS_LAYERS_MAX   8u
#define FAULTS_REQUESTS_MAX 64u

/* ---- model ---- */

struct faults_model {
    struct relay_layer_kind kind;
    uint32_t layer_kind[FAULTS_LAYERS_MAX];
    struct relay_model model;
};

void faults_model_init(struct faults_model *model, const char *key, uint32_t layers, uint32_t hq,
                       uint32_t hkv, uint32_t d);
/* Floats of one token's K (and of its V), of one row's q (and out). */
size_t faults_kv_floats(const struct faults_model *model);
size_t faults_q_floats(const struct faults_model *model);

/* ---- what the server holds ---- */

struct faults_counts {
    uint32_t sessions, requests, prompts, uploads, calls;
    uint64_t prompt_bytes, request_bytes; /* of K/V pages */
    uint32_t fds;
    uint64_t rss_bytes; /* not compared */
    uint64_t epoch;
};

/* False: the reason is printed. */
bool faults_counts(struct faults_peer *peer, pid_t server, struct faults_counts *out);
/* Polls until it holds what it held then, at most half a minute; the last difference is printed. */
bool faults_back_to(struct faults_peer *peer, pid_t server, const struct faults_counts *start);
uint64_t faults_rss_bytes(pid_t pid);
uint32_t faults_fds(pid_t pid);
void faults_sleep_ms(uint32_t ms);
uint64_t faults_now_ms(void);

/* ---- prompts ---- */

/* A registration that has got its UploadState, or NULL: *err is the server's. upload_id: 16 bytes,
 * or NULL. */
struct faults_call *faults_upload_begin(struct faults_peer *peer, const struct faults_model *model,
                                        const char *id, uint32_t tokens, bool replace,
                                        const char *upload_id, struct relay_error *err);
/* Tokens [begin, +count) of a layer of the prompt that this seed makes. */
bool faults_upload_chunk(struct faults_call *call, const struct faults_model *model, uint32_t layer,
                         uint32_t begin, uint32_t count, uint64_t seed);
/* The whole of it. */
enum relay_code faults_register(struct faults_peer *peer, const struct faults_model *model,
                                const char *id, uint32_t tokens, uint64_t seed, bool replace,
                                struct relay_error *err);
enum relay_code faults_unregister(struct faults_peer *peer, const struct faults_model *model,
                                  const char *id, struct relay_error *err);

/* ---- an engine ---- */

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
