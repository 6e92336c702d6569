/* What admitting a step of B requests costs the service, and what planning its launch does. Below
 * the RPCs: sessions, store and planner are called as service/rpc and service/batch call them. One
 * JSON line. One thread, plus the backend's and the executor's, which have nothing to do.
 *
 *     rpc_admission_bench [B] [STEPS] */
#include "service/session/stream.h"

#include <relay/backend.h>
#include <relay/plan.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH_MAX     4096u
#define STEPS_MAX     100000u
#define WARMUP        20u
#define PROMPT_TOKENS 8192u
#define CONTEXT       128u
#define PAGE_TOKENS   64u

static const struct relay_layer_kind kind = {
    .num_q_heads = 32, .num_kv_heads = 8, .head_dim_qk = 128, .head_dim_v = 128};
static const uint32_t layer_kind[2] = {0, 0};
static const struct relay_model model = {.key = "admission",
                                         .num_layers = 2,
                                         .num_kinds = 1,
                                         .kinds = &kind,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_BF16};

static struct relay_error err;

static uint64_t now_ns(void *user)
{
    struct timespec t;
    (void)user;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t unix_ms(void *user)
{
    (void)user;
    return (uint64_t)time(NULL) * 1000u;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int failed(const char *what)
{
    fprintf(stderr, "rpc_admission_bench: %s: %s\n", what, err.msg);
    return 1;
}

/* ---- admission ---- */

struct service {
    struct relayd_clock clock;
    struct relay_backend *backend;
    struct relayd_store *store;
    struct relayd_executor *executor;
    struct relayd_sessions *sessions;
    struct relayd_session *session;
    struct relayd_stream *stream;
};

static bool service_open(struct service *s, uint32_t batch)
{
    s->clock = (struct relayd_clock){now_ns, unix_ms, NULL};
    if (relay_backend_open("ref", NULL, &s->backend, &err) != RELAY_OK) {
        return false;
    }
    const struct relayd_store_options store = {
        .backend = s->backend,
        .clock = &s->clock,
        .prompt_bytes_max = (uint64_t)1 << 30,
        .request_bytes_max = (uint64_t)8 << 30,
        .upload_expiry_ms = 1000,
        .page_tokens = PAGE_TOKENS,
        .models_max = 4,
        .prompts_max = 16,
        .uploads_max = 4,
        .requests_max = batch,
        .prompt_tokens_max = 1 << 20,
        .context_tokens_max = 1 << 20,
        .chunk_bytes_max = 1 << 20,
        .unacked_bytes_max = 4 << 20,
    };
    if (relayd_store_create(&store, &s->store, &err) != RELAY_OK) {
        return false;
    }
    const struct relayd_executor_options executor = {
        .backend = s->backend, .clock = &s->clock, .calls_max = 32, .rows_max = 8192};
    if (relayd_executor_create(&executor, &s->executor, &err) != RELAY_OK) {
        return false;
    }
    const struct relayd_sessions_options sessions = {
        .store = s->store,
        .executor = s->executor,
        .backend = s->backend,
        .clock = &s->clock,
        .sessions_max = 4,
        .requests_per_session_max = batch,
        .lease_ms_default = 60000,
        .lease_ms_max = 60000,
        .rows_max = batch,
        .calls_in_flight_max = 8,
        .response_bytes_max = 4 << 20,
        .response_bytes_limit = 4 << 20,
    };
    return relayd_sessions_create(&sessions, &s->sessions, &err) == RELAY_OK;
}

static void service_close(struct service *s)
{
    relayd_stream_detach(s->stream);
    if (s->session != NULL) {
        relayd_session_close(s->session);
        relayd_session_release(s->session);
    }
    relayd_sessions_destroy(s->sessions);
    relayd_executor_destroy(s->executor);
    relayd_store_destroy(s->store);
    relay_backend_close(s->backend);
}

static void on_ready(void *user)
{
    (void)user;
}

static void on_lost(void *user, enum relay_code code, const char *why)
{
    (void)user;
    (void)code;
    (void)why;
}

static bool open_requests(struct service *s, uint32_t batch, uint64_t *handles)
{
    const struct relayd_session_desc desc = {
        .tenant = "", .model = &model, .io_dtype = RELAY_DTYPE_BF16, .out_dtype = RELAY_DTYPE_BF16};
    const struct relayd_stream_events events = {on_ready, on_lost, NULL};
    struct relayd_session_info info;
    struct relayd_stream_info stream_info;
    if (relayd_session_open(s->sessions, &desc, &info, &err) != RELAY_OK ||
        relayd_session_acquire(s->sessions, "", info.token, sizeof(info.token), &s->session,
                               &err) != RELAY_OK ||
        relayd_stream_attach(s->session, &events, &stream_info, &s->stream, &err) != RELAY_OK) {
        return false;
    }
    for (uint32_t i = 0; i < batch; i++) {
        const struct relayd_open_request in = {.prompt = {.prompt_id = "", .variant = ""}};
        struct relayd_opened_request out;
        if (relayd_session_open_requests(s->session, &in, 1, &out, NULL, &err) != RELAY_OK) {
            return false;
        }
        handles[i] = out.handle;
    }
    return true;
}

/* us of each begin; steps go on by a token, so every PAGE_TOKENS-th takes a page a request. */
static bool admit(struct service *s, uint32_t batch, const uint64_t *handles, uint32_t steps,
                  double *us)
{
    uint32_t *positions = calloc(batch, sizeof(*positions));
    bool ok = positions != NULL;
    for (uint32_t i = 0; i < WARMUP + steps && ok; i++) {
        struct relayd_entry_errors errors = {0};
        uint64_t tokens_free = 0;
        for (uint32_t k = 0; k < batch; k++) {
            positions[k] = i;
        }
        const struct relayd_step_desc desc = {
            .step_id = i + 1,
            .deadline_ns = UINT64_MAX,
            .handles = handles,
            .positions = positions,
            .num_entries = batch,
        };
        const uint64_t start = now_ns(NULL);
        ok = relayd_stream_begin(s->stream, &desc, &tokens_free, &errors, &err) == RELAY_OK;
        us[i < WARMUP ? 0 : i - WARMUP] = (double)(now_ns(NULL) - start) / 1e3;
        relayd_stream_end_step(s->stream, desc.step_id);
    }
    free(positions);
    return ok;
}

/* ---- the plan ---- */

static bool plan(struct relay_backend *backend, uint32_t batch, uint32_t steps, double *us)
{
    const uint32_t prompt_pages = PROMPT_TOKENS / PAGE_TOKENS;
    const uint32_t own_pages = CONTEXT / PAGE_TOKENS + 1;
    const struct relay_shape shape = relay_shape_of(&model, 0, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
    uint32_t *pages = calloc(prompt_pages + (size_t)batch * own_pages, sizeof(*pages));
    struct relay_entry *entries = calloc(batch, sizeof(*entries));
    struct relay_plan *p = NULL;
    bool ok = pages != NULL && entries != NULL && relay_plan_create(&p, &err) == RELAY_OK;
    if (!ok) {
        free(pages);
        free(entries);
        return false;
    }
    for (uint32_t i = 0; i < prompt_pages + batch * own_pages; i++) {
        pages[i] = i;
    }
    const struct relay_segment segment = {
        .pages = pages, .tokens = PROMPT_TOKENS, .parent = RELAY_NO_SEGMENT};
    for (uint32_t i = 0; i < batch; i++) {
        entries[i] = (struct relay_entry){.row_begin = i,
                                          .q_len = 1,
                                          .segment = 0,
                                          .position = PROMPT_TOKENS + CONTEXT,
                                          .pages = pages + prompt_pages + (size_t)i * own_pages,
                                          .context_position = PROMPT_TOKENS,
                                          .context_tokens = CONTEXT + 1,
                                          .append = true};
    }
    struct relay_plan_input in = {.shape = &shape,
                                  .segments = &segment,
                                  .num_segments = 1,
                                  .entries = entries,
                                  .num_entries = batch,
                                  .page_tokens = PAGE_TOKENS};
    relay_backend_plan_defaults(backend, &in);
    for (uint32_t i = 0; i < WARMUP + steps && ok; i++) {
        const uint64_t start = now_ns(NULL);
        ok = relay_plan_build(p, &in, &err) == RELAY_OK;
        us[i < WARMUP ? 0 : i - WARMUP] = (double)(now_ns(NULL) - start) / 1e3;
    }
    relay_plan_destroy(p);
    free(pages);
    free(entries);
    return ok;
}

int main(int argc, char **argv)
{
    const uint32_t batch = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 256;
    const uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 2000;
    struct service s = {.backend = NULL};
    if (batch < 1 || batch > BATCH_MAX || steps < 1 || steps > STEPS_MAX) {
        fprintf(stderr, "usage: rpc_admission_bench [B <= %u] [STEPS <= %u]\n", BATCH_MAX,
                STEPS_MAX);
        return 2;
    }
    uint64_t *handles = calloc(batch, sizeof(*handles));
    double *begin_us = calloc(steps, sizeof(*begin_us));
    double *plan_us = calloc(steps, sizeof(*plan_us));
    struct relay_backend *cpu = NULL;
    const bool ok =
        handles != NULL && begin_us != NULL && plan_us != NULL && service_open(&s, batch) &&
        open_requests(&s, batch, handles) && admit(&s, batch, handles, steps, begin_us) &&
        relay_backend_open("cpu", NULL, &cpu, &err) == RELAY_OK && plan(cpu, batch, steps, plan_us);
    if (ok) {
        qsort(begin_us, steps, sizeof(double), compare_doubles);
        qsort(plan_us, steps, sizeof(double), compare_doubles);
        printf("{\"bench\": \"admission\", \"batch\": %u, \"steps\": %u, \"begin_p50_us\": %.1f, "
               "\"begin_p99_us\": %.1f, \"plan_p50_us\": %.1f, \"plan_p99_us\": %.1f}\n",
               batch, steps, begin_us[steps / 2], begin_us[(size_t)steps * 99 / 100],
               plan_us[steps / 2], plan_us[(size_t)steps * 99 / 100]);
    }
    relay_backend_close(cpu);
    service_close(&s);
    free(handles);
    free(begin_us);
    free(plan_us);
    return ok ? 0 : failed("run");
}
