/* Uploads: how a prompt comes to be. Nothing is visible before commit; commit wants every token
 * that a row at position >= num_tokens can see (a window layer its last window - 1, a chunked layer
 * those from floor(num_tokens / chunk) * chunk on). All bytes are charged to the prompt budget at
 * begin.
 *
 * A stream drives an upload: begin, chunks, then commit or abort; those calls are for one thread at
 * a time. A begin with the same upload_id takes an upload over from the stream that drove it, which
 * may be dead without anybody knowing yet; the older one's calls then fail with ABORTED. So they do
 * when nothing came for upload_expiry_ms. Chunk writes, checksums and digests happen outside the
 * store's mutex. */
#ifndef RELAYD_STORE_UPLOADS_H
#define RELAYD_STORE_UPLOADS_H

#include "service/store/prompts.h"

enum relayd_on_exists { /* values of OnExists in relay.proto */
                        RELAYD_ON_EXISTS_SAME_OR_FAIL = 0,
                        RELAYD_ON_EXISTS_KEEP = 1,
                        RELAYD_ON_EXISTS_REPLACE = 2,
};

#define RELAYD_UPLOAD_ID_BYTES 16u

struct relayd_upload_desc {
    const char *tenant;
    const char *prompt_id; /* checked by the caller on raw bytes and again here */
    const struct relay_model *model;
    uint32_t num_tokens; /* >= 1 */
    const char *variant;
    const uint8_t *content_key;
    uint32_t content_key_bytes;
    enum relayd_on_exists on_exists;
    const uint8_t *upload_id; /* 16 bytes, or NULL */
    uint64_t idle_ttl_ms;
    bool pinned;
    const struct relayd_label *labels;
    uint32_t num_labels;
};

struct relayd_kv_chunk {
    uint32_t layer;
    uint32_t token_begin;
    uint32_t token_count;   /* >= 1 */
    enum relay_dtype dtype; /* UNSPECIFIED = kv_dtype; else converted to it on arrival */
    uint64_t xxh64;         /* XXH64 with seed 0 of k's then v's bytes as sent; 0 = unchecked */
    const void *k;          /* [token_count,Hkv,dqk] */
    size_t k_bytes;
    const void *v; /* [token_count,Hkv,dv]; 0 bytes with v_from_k */
    size_t v_bytes;
};

struct relayd_upload;

/* Starts, resumes (same upload_id, same desc, else FAILED_PRECONDITION), or finds the prompt there
 * already: then *out is NULL and *exists is filled. That is so for KEEP, and for SAME_OR_FAIL when
 * both content keys are there and equal; both there and different: ALREADY_EXISTS. SAME_OR_FAIL
 * without keys uploads and compares digests at commit.
 * INVALID_ARGUMENT, UNIMPLEMENTED (shape), ABORTED (a chunk of this upload_id is being stored for
 * an older stream: try again), RESOURCE_EXHAUSTED (budget, prompts_max, uploads_max). */
RELAY_MUST_CHECK enum relay_code relayd_upload_begin(struct relayd_store *store,
                                                     const struct relayd_upload_desc *desc,
                                                     struct relayd_upload **out,
                                                     struct relayd_prompt_info *exists,
                                                     struct relay_error *err);
/* held[layer] = tokens [.., held) that are in, 0 when none are; that of kv_layer where a layer
 * shares another's. *num_layers = L. ABORTED (taken over). */
RELAY_MUST_CHECK enum relay_code relayd_upload_held(struct relayd_upload *upload,
                                                    uint32_t *held /* [RELAY_LAYERS_MAX] */,
                                                    uint32_t *num_layers, struct relay_error *err);
/* The first token a layer must bring; num_tokens when it need not bring any, 0 when the upload was
 * taken over. */
uint32_t relayd_upload_first(struct relayd_upload *upload, uint32_t layer);

/* INVALID_ARGUMENT (layer, range, byte counts with expected and got; a layer that shares another's
 * K/V), FAILED_PRECONDITION (a gap, or tokens that are in already: ascending only; the first chunk
 * of a layer may begin anywhere at or below its first needed token), DATA_LOSS (xxh64 differs),
 * ABORTED (taken over).
 * After an error the upload is as before the chunk. */
RELAY_MUST_CHECK enum relay_code relayd_upload_chunk(struct relayd_upload *upload,
                                                     const struct relayd_kv_chunk *chunk,
                                                     struct relay_error *err);
/* Publishes atomically and ends the upload in every case. ABORTED (taken over); FAILED_PRECONDITION
 * naming the first layer that misses tokens (with an upload_id it then waits to be resumed);
 * ALREADY_EXISTS when SAME_OR_FAIL meets other content. */
RELAY_MUST_CHECK enum relay_code relayd_upload_commit(struct relayd_upload *upload,
                                                      struct relayd_prompt_info *out,
                                                      struct relay_error *err);
/* Ends a broken upload: with an upload_id its partial waits upload_expiry_ms, else it is gone. */
void relayd_upload_abort(struct relayd_upload *upload);

#endif
