#include "testlib/stack.h"

#include "testlib/gate_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- parts ---- */

static const struct relay_layer_kind kinds[] = {
    {.num_q_heads = STACK_HQ,
     .num_kv_heads = STACK_HKV,
     .head_dim_qk = STACK_D,
     .head_dim_v = STACK_D},
    {.num_q_heads = STACK_HQ,
     .num_kv_heads = STACK_HKV,
     .head_dim_qk = STACK_D,
     .head_dim_v = STACK_D,
     .window = STACK_WINDOW},
};
static const uint32_t layer_kind[] = {0, 1};
static const struct relay_model model = {
    .key = "stack@1",
    .num_layers = STACK_LAYERS,
    .num_kinds = 2,
    .kinds = kinds,
    .layer_kind = layer_kind,
    .kv_dtype = RELAY_DTYPE_F32,
};

const struct relay_model *stack_model(void)
{
    return &model;
}

static uint64_t read_now(void *user)
{
    struct stack *stack = user;
    return atomic_load(&stack->now_ns);
}

static uint64_t read_unix(void *user)
{
    return read_now(user) / 1000000;
}

#define PAGE_BYTES ((uint64_t)STACK_LAYERS * 2 * STACK_HKV * 4 * STACK_D * sizeof(float))

bool stack_init(struct stack *stack, uint32_t request_pages)
{
    struct relay_error err = {0};
    memset(stack, 0, sizeof(*stack));
    atomic_init(&stack->now_ns, 1000000000);
    stack->clock = (struct relayd_clock){read_now, read_unix, stack};
    stack->backend = gate_backend_open();
    struct relayd_store_options store = {
        .backend = stack->backend,
        .clock = &stack->clock,
        .prompt_bytes_max = 1024 * PAGE_BYTES,
        .request_bytes_max = request_pages * PAGE_BYTES,
        .upload_expiry_ms = 1000,
        .page_tokens = 4,
        .models_max = 4,
        .prompts_max = 16,
        .uploads_max = 4,
        .requests_max = 64,
        .prompt_tokens_max = 4096,
        .context_tokens_max = 4096,
        .chunk_bytes_max = 1 << 20,
        .unacked_bytes_max = 4 << 20,
    };
    if (stack->backend == NULL || relayd_store_create(&store, &stack->store, &err) != RELAY_OK) {
        fprintf(stderr, "store: %s\n", err.msg);
        return false;
    }
    struct relayd_executor_options executor = {
        .backend = stack->backend, .clock = &stack->clock, .calls_max = 32, .rows_max = 256};
    if (relayd_executor_create(&executor, &stack->executor, &err) != RELAY_OK) {
        fprintf(stderr, "executor: %s\n", err.msg);
        return false;
    }
    struct relayd_sessions_options sessions = {
        .store = stack->store,
        .executor = stack->executor,
        .backend = stack->backend,
        .clock = &stack->clock,
        .sessions_max = 4,
        .requests_per_session_max = 16,
        .lease_ms_default = 1000,
        .lease_ms_max = 10000,
        .rows_max = 64,
        .calls_in_flight_max = 8,
        .response_bytes_max = 1 << 20,
        .response_bytes_limit = 4 << 20,
    };
    if (relayd_sessions_create(&sessions, &stack->sessions, &err) != RELAY_OK) {
        fprintf(stderr, "sessions: %s\n", err.msg);
        return false;
    }
    return true;
}

void stack_fini(struct stack *stack)
{
    relayd_sessions_destroy(stack->sessions);
    relayd_executor_destroy(stack->executor);
    relayd_store_destroy(stack->store);
    relay_backend_close(stack->backend);
}

/* ---- data ---- */

/* In [-1, 1), a fixed function of its arguments (splitmix64). */
static float noise(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = a * UINT64_C(0x9E3779B97F4A7C15) + b * UINT64_C(0xD1B54A32D192ED03) +
                 c * UINT64_C(0x94D049BB133111EB) + 1;
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    x ^= x >> 31;
    return (float)((double)(x >> 40) / (double)(1 << 23) - 1.0);
}

void stack_kv(uint32_t seed, uint32_t layer, uint32_t token_begin, uint32_t tokens, float *k,
              float *v)
{
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t i = 0; i < STACK_HKV * STACK_D; i++) {
            uint64_t where = ((uint64_t)layer << 32) | (token_begin + t);
            k[t * STACK_HKV * STACK_D + i] = noise(seed, where, 2 * i);
            v[t * STACK_HKV * STACK_D + i] = noise(seed, where, 2 * i + 1);
        }
    }
}

enum relay_code stack_register(struct stack *stack, const char *id, uint32_t seed, uint32_t tokens,
                               enum relayd_on_exists on_exists, struct relay_error *err)
{
    struct relayd_upload_desc desc = {
        .tenant = "",
        .prompt_id = id,
        .model = &model,
        .num_tokens = tokens,
        .variant = "",
        .on_exists = on_exists,
    };
    struct relayd_upload *upload = NULL;
    struct relayd_prompt_info *info = calloc(1, sizeof(*info));
    float *k = calloc((size_t)tokens * STACK_HKV * STACK_D, sizeof(float));
    float *v = calloc((size_t)tokens * STACK_HKV * STACK_D, sizeof(float));
    enum relay_code code = relayd_upload_begin(stack->store, &desc, &upload, info, err);
    for (uint32_t layer = 0; code == RELAY_OK && upload != NULL && layer < STACK_LAYERS; layer++) {
        stack_kv(seed, layer, 0, tokens, k, v);
        size_t bytes = (size_t)tokens * STACK_HKV * STACK_D * sizeof(float);
        struct relayd_kv_chunk chunk = {.layer = layer,
                                        .token_count = tokens,
                                        .k = k,
                                        .k_bytes = bytes,
                                        .v = v,
                                        .v_bytes = bytes};
        code = relayd_upload_chunk(upload, &chunk, err);
    }
    if (upload != NULL) {
        if (code == RELAY_OK) {
            code = relayd_upload_commit(upload, info, err);
        } else {
            relayd_upload_abort(upload);
        }
    }
    free(k);
    free(v);
    free(info);
    return code;
}

enum relay_code stack_open_session(struct stack *stack, struct relayd_session **out,
                                   struct relay_error *err)
{
    struct relayd_session_desc desc = {.tenant = "", .model = &model, .io_dtype = RELAY_DTYPE_F32};
    struct relayd_session_info info;
    enum relay_code code = relayd_session_open(stack->sessions, &desc, &info, err);
    if (code != RELAY_OK) {
        return code;
    }
    return relayd_session_acquire(stack->sessions, "", info.token, sizeof(info.token), out, err);
}

/* ---- calls ---- */

void stack_call_init(struct stack_call *c, uint32_t layer, uint64_t step_id)
{
    memset(c, 0, sizeof(*c));
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->desc = (struct relayd_call_desc){
        .step_id = step_id,
        .layer = layer,
        .want_lse = true,
        .want_timings = true,
        .handles = c->handles,
        .q_lens = c->q_lens,
        .positions = c->positions,
        .received_ns = 0,
        .deadline_ns = UINT64_MAX,
    };
}

void stack_call_fini(struct stack_call *c)
{
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->changed);
}

void stack_call_add(struct stack_call *c, uint64_t handle, uint32_t position, uint32_t q_len,
                    bool with_kv, uint32_t seed)
{
    uint32_t i = c->desc.num_entries++;
    c->handles[i] = handle;
    c->positions[i] = position;
    c->q_lens[i] = q_len;
    for (uint32_t r = 0; r < q_len; r++) {
        for (uint32_t x = 0; x < STACK_HQ * STACK_D; x++) {
            c->q[(c->rows + r) * STACK_HQ * STACK_D + x] =
                noise(seed + 1000, position + r, x + 7 * c->desc.layer);
        }
    }
    if (with_kv) {
        stack_kv(seed, c->desc.layer, position, q_len, c->k + c->rows * STACK_HKV * STACK_D,
                 c->v + c->rows * STACK_HKV * STACK_D);
    }
    c->rows += q_len;
    c->desc.q_bytes = c->rows * STACK_HQ * STACK_D * sizeof(float);
    if (with_kv) {
        c->desc.k_bytes = c->rows * STACK_HKV * STACK_D * sizeof(float);
        c->desc.v_bytes = c->desc.k_bytes;
    }
}

/* On the executor's thread: takes the answer out and gives the slot back. */
static void on_done(struct relayd_call *call)
{
    struct stack_call *c = call->user;
    pthread_mutex_lock(&c->mutex);
    c->error = call->error;
    c->timings = call->timings;
    if (call->error.code == RELAY_OK) {
        memcpy(c->out, call->io.out, (size_t)call->rows * STACK_HQ * STACK_D * sizeof(float));
        if (call->io.lse != NULL) {
            memcpy(c->lse, call->io.lse, (size_t)call->rows * STACK_HQ * sizeof(float));
        }
    }
    relayd_slots_give(call);
    c->call = NULL;
    c->done = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

enum relay_code stack_call_submit(struct stack *stack, struct relayd_session *session,
                                  struct stack_call *c, struct relay_error *err)
{
    (void)stack;
    struct relayd_call *call = NULL;
    c->done = false;
    enum relay_code code = relayd_session_call_begin(session, &c->desc, &call, err);
    if (code != RELAY_OK) {
        return code;
    }
    memcpy((void *)(uintptr_t)call->io.q, c->q, c->desc.q_bytes);
    if (c->desc.k_bytes != 0) {
        memcpy((void *)(uintptr_t)call->io.k, c->k, c->desc.k_bytes);
        memcpy((void *)(uintptr_t)call->io.v, c->v, c->desc.v_bytes);
    }
    c->call = call;
    code = relayd_session_call_submit(session, call, c->handles, on_done, c, &c->errors, err);
    if (code != RELAY_OK) {
        c->call = NULL;
        relayd_slots_give(call);
    }
    return code;
}

enum relay_code stack_call_wait(struct stack_call *c)
{
    pthread_mutex_lock(&c->mutex);
    while (!c->done) {
        pthread_cond_wait(&c->changed, &c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return c->error.code;
}

/* ---- checking ---- */

double stack_check(uint32_t layer, const float *q, uint32_t p, const float *k, const float *v,
                   uint32_t tokens, const float *out, const float *lse)
{
    double worst = 0;
    uint32_t first = layer == 1 && p + 1 > STACK_WINDOW ? p + 1 - STACK_WINDOW : 0;
    double *s = malloc(tokens * sizeof(*s));
    for (uint32_t h = 0; h < STACK_HQ; h++) {
        uint32_t kvh = h * STACK_HKV / STACK_HQ;
        double max = -INFINITY, sum = 0;
        double acc[STACK_D] = {0};
        for (uint32_t t = first; t < tokens; t++) {
            s[t] = 0;
            for (uint32_t i = 0; i < STACK_D; i++) {
                s[t] += (double)q[h * STACK_D + i] * (double)k[(t * STACK_HKV + kvh) * STACK_D + i];
            }
            s[t] /= sqrt((double)STACK_D);
            max = s[t] > max ? s[t] : max;
        }
        for (uint32_t t = first; t < tokens; t++) {
            double e = exp(s[t] - max);
            sum += e;
            for (uint32_t i = 0; i < STACK_D; i++) {
                acc[i] += e * (double)v[(t * STACK_HKV + kvh) * STACK_D + i];
            }
        }
        for (uint32_t i = 0; i < STACK_D; i++) {
            worst = fmax(worst, fabs(acc[i] / sum - (double)out[h * STACK_D + i]));
        }
        worst = fmax(worst, fabs(max + log(sum) - (double)lse[h]));
    }
    free(s);
    return worst;
}
