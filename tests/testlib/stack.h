/* The service below its RPCs, for tests: gate backend, store, executor, sessions, and a clock that
 * the test moves. Model: 2 layers, 4 query heads, 2 KV heads, head dim 8, F32 everywhere; layer 1
 * has a window of 5 tokens. */
#ifndef RELAY_TESTLIB_STACK_H
#define RELAY_TESTLIB_STACK_H

#include "service/session/session.h"

#include <pthread.h>

#define STACK_LAYERS 2u
#define STACK_HQ     4u
#define STACK_HKV    2u
#define STACK_D      8u
#define STACK_WINDOW 5u

struct stack {
    _Atomic uint64_t now_ns;
    struct relayd_clock clock;
    struct relay_backend *backend;
    struct relayd_store *store;
    struct relayd_executor *executor;
    struct relayd_sessions *sessions;
};

/* Returns false (with a message on stderr) when something could not be made. Limits are small: 4
 * sessions, 16 requests a session, 8 calls in flight, 64 rows; request_pages pages of 4 tokens. */
bool stack_init(struct stack *stack, uint32_t request_pages);
void stack_fini(struct stack *stack);

const struct relay_model *stack_model(void);
/* K/V of a test sequence: a fixed function of seed and position. [tokens,Hkv,D] each. */
void stack_kv(uint32_t seed, uint32_t layer, uint32_t token_begin, uint32_t tokens, float *k,
              float *v);
/* Registers a prompt of stack_kv(seed). */
enum relay_code stack_register(struct stack *stack, const char *id, uint32_t seed, uint32_t tokens,
                               enum relayd_on_exists on_exists, struct relay_error *err);
enum relay_code stack_open_session(struct stack *stack, struct relayd_session **out,
                                   struct relay_error *err);

/* A call and where its answer arrives. */
struct stack_call {
    struct relayd_call_desc desc;
    uint64_t handles[64];
    uint32_t q_lens[64], positions[64];
    float q[64 * STACK_HQ * STACK_D];
    float k[64 * STACK_HKV * STACK_D];
    float v[64 * STACK_HKV * STACK_D];
    float out[64 * STACK_HQ * STACK_D];
    float lse[64 * STACK_HQ];
    uint32_t rows;
    struct relay_error error;
    struct relayd_call_timings timings;
    struct relayd_entry_errors errors;
    struct relayd_call *call; /* between submit and done: to cancel it */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool done;
};
void stack_call_init(struct stack_call *c, uint32_t layer, uint64_t step_id);
void stack_call_fini(struct stack_call *c);
/* One entry; with kv its rows carry stack_kv(seed) at context positions [position, +q_len). */
void stack_call_add(struct stack_call *c, uint64_t handle, uint32_t position, uint32_t q_len,
                    bool with_kv, uint32_t seed);
/* begin + copy + submit. */
enum relay_code stack_call_submit(struct stack *stack, struct relayd_session *session,
                                  struct stack_call *c, struct relay_error *err);
/* Waits for the answer; its code. */
enum relay_code stack_call_wait(struct stack_call *c);

/* Dense fp64 attention of q [Hq,D] at absolute position p over `tokens` keys of k, v [tokens,Hkv,D]
 * in layer's window; the largest difference to out [Hq,D] and lse [Hq]. */
double stack_check(uint32_t layer, const float *q, uint32_t p, const float *k, const float *v,
                   uint32_t tokens, const float *out, const float *lse);

#endif
