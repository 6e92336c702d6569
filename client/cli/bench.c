/* relayctl bench: a closed loop of decode steps by several sessions on one made-up prompt, relay
 * and plain by turns, so that both see the same machine.
 *
 * Each session has a thread, a client and a connection of its own, as engines have; a barrier
 * before each step makes them walk the same kind of sharing at the same time. The prompt lives
 * under an id and a model key of this run and is unregistered at the end, also after Ctrl-C. */
#include "bench.h"

#include "commands.h"
#include "output.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Steps of each kind that are run and not counted: caches and connections warm up. */
#define WARMUP_STEPS 3u
/* What a crashed bench leaves behind goes after that. */
#define IDLE_TTL_MS 600000u

struct bench {
    const struct relay_cli_args *args;
    uint32_t batch;
    struct relay_layer_kind kind;
    struct relay_model model;
    uint32_t *layer_kind;
    char id[64];
    uint8_t *tokens;  /* [max(S, C),Hkv,D] made up, for the prompt's and the requests' K and V */
    uint8_t *rows;    /* [batch,Hq,D] made up, for q and for new K and V */
    size_t row_bytes; /* of q, and of out */
    pthread_barrier_t start;
};

struct session {
    struct bench *bench;
    pthread_t thread;
    struct relay_client *client;
    struct relay_session *session;
    struct relay_step_entry *entries;
    uint8_t *out;
    float *lse;
    struct relay_cli_bench_samples relay, plain;
    struct relay_error err;
    enum relay_code code;
};

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* ---- made-up tensors ---- */

/* n values between -1 and 1, the same in each run. */
static uint8_t *make_up(enum relay_dtype dtype, size_t n)
{
    const size_t size = relay_dtype_size(dtype);
    uint8_t *values = calloc(n, size);
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; values != NULL && i < n; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        const float value = (float)(int32_t)(state >> 32) * 0x1p-31f;
        relay_dtype_convert(dtype, values + i * size, RELAY_DTYPE_F32, &value, 1);
    }
    return values;
}

static enum relay_code bench_init(struct bench *b, const struct relay_cli_args *args,
                                  struct relay_error *err)
{
    const size_t size = relay_dtype_size(args->dtype);
    const uint32_t tokens =
        args->prompt_tokens > args->context_tokens ? args->prompt_tokens : args->context_tokens;
    b->args = args;
    b->batch = args->batch > 0 ? args->batch : 64;
    b->row_bytes = (size_t)args->q_heads * args->head_dim * size;
    b->kind = (struct relay_layer_kind){.num_q_heads = args->q_heads,
                                        .num_kv_heads = args->kv_heads,
                                        .head_dim_qk = args->head_dim,
                                        .head_dim_v = args->head_dim};
    snprintf(b->id, sizeof(b->id), "bench-%" PRIx64 "-%d", now_us(), (int)getpid());
    b->layer_kind = calloc(args->layers, sizeof(b->layer_kind[0]));
    b->tokens = make_up(args->dtype, (size_t)tokens * args->kv_heads * args->head_dim);
    b->rows = make_up(args->dtype, (size_t)b->batch * args->q_heads * args->head_dim);
    b->model = (struct relay_model){.key = b->id,
                                    .num_layers = args->layers,
                                    .num_kinds = 1,
                                    .kinds = &b->kind,
                                    .layer_kind = b->layer_kind,
                                    .kv_dtype = args->dtype};
    if (b->layer_kind == NULL || b->tokens == NULL || b->rows == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    return relay_model_validate(&b->model, err);
}

/* The same made-up K/V for each layer; the caller frees it. */
static struct relay_kv *layers_of(const struct bench *b)
{
    struct relay_kv *layers = calloc(b->args->layers, sizeof(layers[0]));
    for (uint32_t l = 0; layers != NULL && l < b->args->layers; l++) {
        layers[l] = (struct relay_kv){b->tokens, b->tokens, b->args->dtype};
    }
    return layers;
}

static enum relay_code register_prompt(const struct bench *b, struct relay_client *client,
                                       struct relay_error *err)
{
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    struct relay_kv *layers = layers_of(b);
    if (layers == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    desc.prompt_id = b->id;
    desc.model = &b->model;
    desc.num_tokens = b->args->prompt_tokens;
    desc.layers = layers;
    desc.idle_ttl_ms = IDLE_TTL_MS;
    const enum relay_code code = relay_prompt_register(client, &desc, NULL, err);
    free(layers);
    return code;
}

/* ---- a session ---- */

static bool samples_init(struct relay_cli_bench_samples *s, const struct relay_cli_args *args)
{
    const size_t calls = (size_t)args->steps * args->layers;
    s->layer_us = calloc(calls, sizeof(s->layer_us[0]));
    s->compute_us = calloc(calls, sizeof(s->compute_us[0]));
    s->step_us = calloc(args->steps, sizeof(s->step_us[0]));
    return s->layer_us != NULL && s->compute_us != NULL && s->step_us != NULL;
}

static void samples_free(struct relay_cli_bench_samples *s)
{
    free(s->layer_us);
    free(s->compute_us);
    free(s->step_us);
}

static void count_call(struct relay_cli_bench_samples *s, const struct relay_timings *t)
{
    const uint32_t company = t->batch_sessions > 0 ? t->batch_sessions : 1;
    s->layer_us[s->calls] = t->total_us;
    s->compute_us[s->calls++] = t->compute_us;
    s->prompt_bytes += (double)t->prompt_bytes / company;
    s->kv_bytes += (double)t->kv_bytes / company;
    s->launch_bytes += (double)(t->prompt_bytes + t->kv_bytes);
    s->launch_us += t->compute_us;
    s->batch_sessions += company;
    s->batch_rows += t->batch_rows;
    if (company > s->batch_sessions_max) {
        s->batch_sessions_max = company;
    }
}

/* Requests with their own tokens, so that each step adds one at the same place. */
static enum relay_code open_requests(struct session *s)
{
    const struct bench *b = s->bench;
    struct relay_kv *layers = layers_of(b);
    if (layers == NULL) {
        return RELAY_FAIL(&s->err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    enum relay_code code = RELAY_OK;
    for (uint32_t i = 0; i < b->batch && code == RELAY_OK && !interrupted; i++) {
        uint64_t request = 0;
        code = relay_request_open(s->session, b->id, &request, &s->err);
        if (code == RELAY_OK && b->args->context_tokens > 0) {
            code = relay_request_append(s->session, request, 0, b->args->context_tokens, layers,
                                        &s->err);
        }
        s->entries[i] = (struct relay_step_entry){request, b->args->context_tokens, 1};
    }
    free(layers);
    return code;
}

static enum relay_code session_init(struct session *s)
{
    const struct relay_cli_args *args = s->bench->args;
    const uint32_t batch = s->bench->batch;
    struct relay_client_options client_options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    const size_t response = batch * (s->bench->row_bytes + args->q_heads * sizeof(float)) + 4096;
    options.io_dtype = args->dtype;
    if (response > ((size_t)4 << 20)) {
        options.response_bytes_max = response < UINT32_MAX ? (uint32_t)response : UINT32_MAX;
    }
    client_options.timeout_ms = args->timeout_ms;
    s->entries = calloc(batch, sizeof(s->entries[0]));
    s->out = calloc(batch, s->bench->row_bytes);
    s->lse = calloc((size_t)batch * args->q_heads, sizeof(s->lse[0]));
    if (s->entries == NULL || s->out == NULL || s->lse == NULL || !samples_init(&s->relay, args) ||
        !samples_init(&s->plain, args)) {
        return RELAY_FAIL(&s->err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    enum relay_code code = relay_client_open(args->target, &client_options, &s->client, &s->err);
    if (code == RELAY_OK) {
        code = relay_session_open(s->client, &s->bench->model, &options, &s->session, &s->err);
    }
    return code == RELAY_OK ? open_requests(s) : code;
}

static void session_fini(struct session *s)
{
    relay_session_close(s->session);
    relay_client_close(s->client);
    free(s->entries);
    free(s->out);
    free(s->lse);
    samples_free(&s->relay);
    samples_free(&s->plain);
}

/* One step of all layers, counted in samples if not NULL. */
static enum relay_code run_step(struct session *s, enum relay_sharing sharing,
                                struct relay_cli_bench_samples *samples)
{
    const struct bench *b = s->bench;
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    const uint64_t start_us = now_us();
    options.sharing = sharing;
    options.align_us = b->args->align_us;
    enum relay_code code =
        relay_step_begin(s->session, s->entries, b->batch, &options, &step, &s->err);
    for (uint32_t l = 0; l < b->args->layers && code == RELAY_OK; l++) {
        code = relay_step_attend(step, l, b->rows, b->rows, b->rows, s->out, s->lse, &s->err);
        if (code == RELAY_OK && samples != NULL) {
            count_call(samples, relay_step_timings(step));
        }
    }
    if (code == RELAY_OK && samples != NULL) {
        const uint64_t us = now_us() - start_us;
        samples->step_us[samples->steps++] = us;
        samples->wall_us += us;
    }
    relay_step_end(step);
    return code;
}

static void *session_run(void *user)
{
    struct session *s = user;
    const struct relay_cli_args *args = s->bench->args;
    const uint32_t kinds = args->both ? 2 : 1;
    s->code = session_init(s);
    const uint32_t steps = kinds * (WARMUP_STEPS + args->steps);
    for (uint32_t i = 0; i < steps; i++) {
        /* Also after an error: the others count on all at the barrier. */
        pthread_barrier_wait(&s->bench->start);
        if (s->code != RELAY_OK || interrupted) {
            continue;
        }
        const enum relay_sharing sharing =
            !args->both ? args->sharing : (i % 2 == 0 ? RELAY_SHARING_AUTO : RELAY_SHARING_NEVER);
        struct relay_cli_bench_samples *samples =
            sharing == RELAY_SHARING_NEVER ? &s->plain : &s->relay;
        s->code = run_step(s, sharing, i < kinds * WARMUP_STEPS ? NULL : samples);
    }
    return NULL;
}

/* ---- all of it ---- */

static void append(uint64_t *to, uint32_t *n, const uint64_t *from, uint32_t count)
{
    memcpy(to + *n, from, count * sizeof(to[0]));
    *n += count;
}

/* All sessions' samples as one. */
static bool add_up(struct relay_cli_bench_samples *all, const struct session *sessions, uint32_t n,
                   bool plain)
{
    uint32_t calls = 0, steps = 0, compute = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct relay_cli_bench_samples *s = plain ? &sessions[i].plain : &sessions[i].relay;
        calls += s->calls;
        steps += s->steps;
    }
    all->layer_us = calloc(calls + 1, sizeof(all->layer_us[0]));
    all->compute_us = calloc(calls + 1, sizeof(all->compute_us[0]));
    all->step_us = calloc(steps + 1, sizeof(all->step_us[0]));
    if (all->layer_us == NULL || all->compute_us == NULL || all->step_us == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct relay_cli_bench_samples *s = plain ? &sessions[i].plain : &sessions[i].relay;
        append(all->layer_us, &all->calls, s->layer_us, s->calls);
        append(all->compute_us, &compute, s->compute_us, s->calls);
        append(all->step_us, &all->steps, s->step_us, s->steps);
        all->wall_us += s->wall_us;
        all->prompt_bytes += s->prompt_bytes;
        all->kv_bytes += s->kv_bytes;
        all->launch_bytes += s->launch_bytes;
        all->launch_us += s->launch_us;
        all->batch_sessions += s->batch_sessions;
        all->batch_rows += s->batch_rows;
        if (s->batch_sessions_max > all->batch_sessions_max) {
            all->batch_sessions_max = s->batch_sessions_max;
        }
    }
    return true;
}

static enum relay_code report(const struct bench *b, const struct session *sessions,
                              const struct relay_server_info *info, struct relay_error *err)
{
    const struct relay_cli_args *args = b->args;
    struct relay_cli_bench_report r = {
        .args = args,
        .backend = info->backend,
        .isa = info->isa,
        .threads = info->threads,
        .batch = b->batch,
        .prompt_layer_bytes = 2 * (uint64_t)args->prompt_tokens * args->kv_heads * args->head_dim *
                              relay_dtype_size(args->dtype),
        .has_relay = args->both || args->sharing != RELAY_SHARING_NEVER,
        .has_plain = args->both || args->sharing == RELAY_SHARING_NEVER,
    };
    enum relay_code code = RELAY_OK;
    if (add_up(&r.relay, sessions, args->sessions, false) &&
        add_up(&r.plain, sessions, args->sessions, true)) {
        relay_cli_bench_print(&r);
    } else {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    samples_free(&r.relay);
    samples_free(&r.plain);
    return code;
}

/* Runs the sessions' threads; the first error of one of them. */
static enum relay_code run_sessions(struct bench *b, struct session *sessions,
                                    struct relay_error *err)
{
    const uint32_t n = b->args->sessions;
    enum relay_code code = RELAY_OK;
    uint32_t started = 0;
    pthread_barrier_init(&b->start, NULL, n);
    while (started < n) {
        sessions[started].bench = b;
        if (pthread_create(&sessions[started].thread, NULL, session_run, &sessions[started]) != 0) {
            /* The barrier waits for threads that never come: there is no way on. */
            fprintf(stderr, "relayctl: no threads for %u sessions\n", n);
            exit(RELAY_CLI_EXIT_ERROR);
        }
        started++;
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(sessions[i].thread, NULL);
        if (code == RELAY_OK && sessions[i].code != RELAY_OK) {
            code = sessions[i].code;
            *err = sessions[i].err;
        }
    }
    pthread_barrier_destroy(&b->start);
    return code;
}

int relay_cli_bench(struct relay_client *client, const struct relay_cli_args *args)
{
    const struct sigaction action = {.sa_handler = interrupt};
    struct bench b = {.args = args};
    struct relay_server_info *info = NULL;
    struct relay_error err;
    bool registered = false;
    struct session *sessions = calloc(args->sessions, sizeof(sessions[0]));
    enum relay_code code = sessions != NULL
                               ? bench_init(&b, args, &err)
                               : RELAY_FAIL(&err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (code == RELAY_OK) {
        code = relay_client_server_info(client, &info, &err);
    }
    if (code == RELAY_OK) {
        code = register_prompt(&b, client, &err);
        registered = code == RELAY_OK;
    }
    if (code == RELAY_OK) {
        code = run_sessions(&b, sessions, &err);
    }
    if (code == RELAY_OK && interrupted) {
        code = RELAY_FAIL(&err, RELAY_CANCELLED, "interrupted");
    }
    if (code == RELAY_OK) {
        code = report(&b, sessions, info, &err);
    }
    for (uint32_t i = 0; sessions != NULL && i < args->sessions; i++) {
        session_fini(&sessions[i]);
    }
    if (registered) {
        struct relay_error why;
        if (relay_prompt_unregister(client, b.id, b.id, 0, NULL, &why) != RELAY_OK &&
            code == RELAY_OK) {
            code = why.code;
            err = why;
        }
    }
    relay_server_info_free(info);
    free(sessions);
    free(b.layer_kind);
    free(b.tokens);
    free(b.rows);
    return code == RELAY_OK ? RELAY_CLI_EXIT_OK : relay_cli_print_error(&err);
}
