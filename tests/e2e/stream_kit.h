/* What the tests of steps on a stream share: a model, tensors that are a fixed function of (seed,
 * layer, position), steps made of them, and the dense fp64 check. For one thread per kit_batch;
 * kit_check only where CHECK may be used. */
#ifndef RELAY_E2E_STREAM_KIT_H
#define RELAY_E2E_STREAM_KIT_H

#include "testlib/server.h"

#define KIT_LAYERS       3u
#define KIT_HQ           8u
#define KIT_HKV          2u
#define KIT_D            64u
#define KIT_S            200u /* tokens of the prompt "kit" */
#define KIT_WINDOW       96u
#define KIT_WINDOW_LAYER 1u
/* K and V of the prompt in one layer. */
#define KIT_PROMPT_LAYER_BYTES ((uint64_t)KIT_S * KIT_HKV * KIT_D * 2 * sizeof(float))

#define KIT_REQUESTS_MAX 16u

/* F32 everywhere; all layers full but KIT_WINDOW_LAYER. */
const struct relay_model *kit_model(void);
/* Registers the prompt "kit". */
enum relay_code kit_register(struct relay_client *client, struct relay_error *err);

/* n requests of a session on the prompt, and the rows of one step of theirs. */
struct kit_batch {
    struct relay_session *session;
    uint32_t n, q_len, rows, rows_max;
    uint64_t seeds[KIT_REQUESTS_MAX];
    uint64_t handles[KIT_REQUESTS_MAX];
    uint32_t position; /* context index of the rows' first token, the same for all */
    struct relay_step_entry entries[KIT_REQUESTS_MAX];
    float *q[KIT_LAYERS], *k[KIT_LAYERS], *v[KIT_LAYERS], *out[KIT_LAYERS], *lse[KIT_LAYERS];
};

/* Opens n requests, with seeds from first_seed on; rows_max rows of memory. */
enum relay_code kit_open(struct kit_batch *b, struct relay_session *session, uint32_t n,
                         uint64_t first_seed, uint32_t rows_max, struct relay_error *err);
/* Closes the requests and frees. */
void kit_close(struct kit_batch *b);
/* Rows for q_len tokens each at `position`; wipes out and lse. */
void kit_rows(struct kit_batch *b, uint32_t position, uint32_t q_len);
/* Puts NaN into out and lse. */
void kit_wipe(struct kit_batch *b);
/* Begin, all layers one after the other, end. */
enum relay_code kit_step(struct kit_batch *b, const struct relay_step_options *options,
                         struct relay_error *err);
/* One layer of an open step, submitted whole. */
enum relay_code kit_submit(struct kit_batch *b, struct relay_step *step, uint32_t layer,
                           uint64_t *ticket, struct relay_error *err);
/* Whether out and lse of all layers are right, every stride-th row, the last included. False: the
 * reason is printed. */
bool kit_right(const struct kit_batch *b, uint32_t stride);
bool kit_layer_right(const struct kit_batch *b, uint32_t layer, uint32_t stride);

/* ---- a connection that can be cut or frozen: a forwarder with a thread of its own ---- */

struct kit_wire;

/* Forwards connections to a new TCP target to the server's unix socket. NULL: printed. */
struct kit_wire *kit_wire_open(const struct test_server *server);
void kit_wire_close(struct kit_wire *wire);
const char *kit_wire_target(const struct kit_wire *wire);
/* Closes all connections now, or when so many more bytes have come from clients; 0 = now. */
void kit_wire_cut(struct kit_wire *wire, uint64_t after_bytes);
/* From now on nothing moves on the connections there are; the ones that come later work. */
void kit_wire_freeze(struct kit_wire *wire);
/* Connections taken so far. */
unsigned kit_wire_connections(struct kit_wire *wire);
/* Connections that were cut so far. */
unsigned kit_wire_cuts(struct kit_wire *wire);

#endif
