/* What the fault tests share above the raw peer: a small model, prompts and uploads, and what the
 * server holds, to be compared with the start.
 *
 * Tensors are float32 and a function of a seed: whoever sends the same gets the same bits, whatever
 * others do or suffer. For one thread per peer. */
#ifndef RELAY_TESTS_FAULTS_KIT_H
#define RELAY_TESTS_FAULTS_KIT_H

#include "e2e/faults_peer.h"
#include "testlib/server.h"

#include <relay/types.h>
#include <relay/v1/relay.pb-c.h>

#define FAULTS_LAYERS_MAX 8u

/* ---- model ---- */

struct faults_model {
    struct relay_layer_kind kind;
    uint32_t layer_kind[FAULTS_LAYERS_MAX];
    struct relay_model model;
};

void faults_model_init(struct faults_model *model, const char *key, uint32_t layers, uint32_t hq,
                       uint32_t hkv, uint32_t d);
/* As the wire has it; the arena, which this inits, owns it. */
Relay__V1__ModelSpec *faults_spec(const struct faults_model *model, struct relay_wire_arena *arena);
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

#endif
