/* Streams behind a gated backend: steps, pieces, take-over, endings. Whatever happens, requests and
 * pages come back. */
#include "service/session/stream.h"

#include "testlib/check.h"
#include "testlib/gate_backend.h"
#include "testlib/stack.h"

static struct relay_error err;

struct watcher {
    atomic_int ready, lost;
    enum relay_code code;
};

static void on_ready(void *user)
{
    atomic_fetch_add(&((struct watcher *)user)->ready, 1);
}

static void on_lost(void *user, enum relay_code code, const char *why)
{
    struct watcher *w = user;
    (void)why;
    w->code = code;
    atomic_fetch_add(&w->lost, 1);
}

struct world {
    struct stack stack;
    struct relayd_session *session;
    struct relayd_stream *stream;
    struct watcher watcher;
    uint64_t handles[4];
};

static bool attach(struct world *w, struct watcher *watcher, struct relayd_stream **out)
{
    struct relayd_stream_events events = {on_ready, on_lost, watcher};
    struct relayd_stream_info info;
    memset(watcher, 0, sizeof(*watcher));
    return relayd_stream_attach(w->session, &events, &info, out, &err) == RELAY_OK;
}

/* Prompt "p" of 9 tokens (seed 1), four requests on it, one stream. */
static bool world_init(struct world *w, uint32_t request_pages)
{
    memset(w, 0, sizeof(*w));
    struct relayd_open_request in[4];
    struct relayd_opened_request out[4];
    for (int i = 0; i < 4; i++) {
        in[i] = (struct relayd_open_request){.prompt = {.prompt_id = "p", .variant = ""}};
    }
    if (!stack_init(&w->stack, request_pages) ||
        stack_register(&w->stack, "p", 1, 9, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err) != RELAY_OK ||
        stack_open_session(&w->stack, &w->session, &err) != RELAY_OK ||
        relayd_session_open_requests(w->session, in, 4, out, NULL, &err) != RELAY_OK) {
        return false;
    }
    for (int i = 0; i < 4; i++) {
        w->handles[i] = out[i].handle;
    }
    return attach(w, &w->watcher, &w->stream);
}

static void world_fini(struct world *w)
{
    relayd_stream_detach(w->stream);
    relayd_session_release(w->session);
    stack_fini(&w->stack);
}

static enum relay_code begin(struct world *w, uint64_t step_id, const uint64_t *handles,
                             const uint32_t *positions, const uint32_t *q_lens, uint32_t n,
                             uint64_t *free_tokens)
{
    struct relayd_step_desc desc = {
        .step_id = step_id,
        .want_lse = true,
        .want_timings = true,
        .deadline_ns = UINT64_MAX,
        .handles = handles,
        .q_lens = q_lens,
        .positions = positions,
        .num_entries = n,
    };
    return relayd_stream_begin(w->stream, &desc, free_tokens, NULL, &err);
}

static void on_done(struct relayd_call *call)
{
    struct stack_call *c = call->user;
    pthread_mutex_lock(&c->mutex);
    c->error = call->error;
    c->timings = call->timings;
    if (call->error.code == RELAY_OK) {
        memcpy(c->out, call->io.out, (size_t)call->rows * STACK_HQ * STACK_D * sizeof(float));
        memcpy(c->lse, call->io.lse, (size_t)call->rows * STACK_HQ * sizeof(float));
    }
    relayd_slots_give(call);
    c->done = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* The tensors of a stack_call as rows [row_begin, +rows) of a step. */
static enum relay_code submit(struct relayd_stream *stream, struct stack_call *c,
                              uint32_t row_begin)
{
    struct relayd_layer_call desc = {
        .step_id = c->desc.step_id,
        .layer = c->desc.layer,
        .row_begin = row_begin,
        .row_count = c->rows,
        .q_bytes = c->desc.q_bytes,
        .k_bytes = c->desc.k_bytes,
        .v_bytes = c->desc.v_bytes,
    };
    struct relayd_call *call = NULL;
    c->done = false;
    enum relay_code code = relayd_stream_call_begin(stream, &desc, &call, &err);
    if (code != RELAY_OK) {
        return code;
    }
    memcpy((void *)(uintptr_t)call->io.q, c->q, c->desc.q_bytes);
    if (c->desc.k_bytes != 0) {
        memcpy((void *)(uintptr_t)call->io.k, c->k, c->desc.k_bytes);
        memcpy((void *)(uintptr_t)call->io.v, c->v, c->desc.v_bytes);
    }
    code = relayd_stream_call_submit(stream, call, on_done, c, &err);
    if (code != RELAY_OK) {
        relayd_slots_give(call);
    }
    return code;
}

/* Row `row` of the call against dense attention over the prompt and its context of `seed`. */
static double check_row(const struct stack_call *c, uint32_t row, uint32_t context_tokens,
                        uint32_t seed)
{
    static float k[256 * STACK_HKV * STACK_D], v[256 * STACK_HKV * STACK_D];
    stack_kv(1, c->desc.layer, 0, 9, k, v);
    stack_kv(seed, c->desc.layer, 0, context_tokens, k + 9 * STACK_HKV * STACK_D,
             v + 9 * STACK_HKV * STACK_D);
    return stack_check(c->desc.layer, c->q + row * STACK_HQ * STACK_D, 8 + context_tokens, k, v,
                       9 + context_tokens, c->out + row * STACK_HQ * STACK_D,
                       c->lse + row * STACK_HQ);
}

static uint64_t bytes_used(struct world *w)
{
    struct relayd_store_stats stats;
    relayd_store_stats(w->stack.store, &stats);
    return stats.request_bytes_used;
}

static void test_steps_walk_the_layers(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    CHECK_EQ(atomic_load(&w.watcher.ready), 1);
    const uint32_t one[] = {1, 1, 1, 1};
    for (uint32_t t = 0; t < 3; t++) {
        const uint32_t positions[] = {t, t, t, t};
        CHECK_OK(begin(&w, t + 1, w.handles, positions, one, 4, NULL), err);
        for (uint32_t layer = 0; layer < STACK_LAYERS; layer++) {
            struct stack_call c;
            stack_call_init(&c, layer, t + 1);
            for (uint32_t i = 0; i < 4; i++) {
                stack_call_add(&c, w.handles[i], t, 1, true, 30 + i);
            }
            CHECK_OK(submit(w.stream, &c, 0), err);
            CHECK_CODE(stack_call_wait(&c), RELAY_OK);
            for (uint32_t i = 0; i < 4; i++) {
                CHECK(check_row(&c, i, t + 1, 30 + i) < 1e-6);
            }
            stack_call_fini(&c);
        }
        relayd_stream_end_step(w.stream, t + 1);
    }
    world_fini(&w);
}

static void test_pieces_of_a_prefill(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0, 0}, q_lens[] = {5, 3};
    CHECK_OK(begin(&w, 1, w.handles, positions, q_lens, 2, NULL), err);
    /* Rows 0-3, then 4-7: the first entry's last row travels with the second entry. */
    struct stack_call a, b;
    stack_call_init(&a, 0, 1);
    stack_call_add(&a, 0, 0, 4, true, 40);
    stack_call_init(&b, 0, 1);
    stack_call_add(&b, 0, 4, 1, true, 40);
    stack_call_add(&b, 0, 0, 3, true, 41);
    CHECK_OK(submit(w.stream, &a, 0), err);
    CHECK_OK(submit(w.stream, &b, 4), err);
    CHECK_CODE(stack_call_wait(&a), RELAY_OK);
    CHECK_CODE(stack_call_wait(&b), RELAY_OK);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(check_row(&a, i, i + 1, 40) < 1e-6);
    }
    CHECK(check_row(&b, 0, 5, 40) < 1e-6);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(check_row(&b, 1 + i, i + 1, 41) < 1e-6);
    }
    CHECK_CODE(submit(w.stream, &b, 5), RELAY_INVALID_ARGUMENT); /* rows 5-8 of 8 */
    stack_call_fini(&a);
    stack_call_fini(&b);
    world_fini(&w);
}

static void test_refused_steps_answer_their_calls(void)
{
    struct world w;
    CHECK(world_init(&w, 4));
    const uint32_t positions[] = {0, 0, 0, 0}, q_lens[] = {4, 4, 4, 8};
    uint64_t free_tokens = 99;
    uint64_t before = bytes_used(&w);
    CHECK_CODE(begin(&w, 1, w.handles, positions, q_lens, 4, &free_tokens),
               RELAY_RESOURCE_EXHAUSTED); /* 5 pages of 4 */
    CHECK_EQ(bytes_used(&w), before);
    struct stack_call c;
    stack_call_init(&c, 0, 1);
    stack_call_add(&c, 0, 0, 1, true, 1);
    CHECK_CODE(submit(w.stream, &c, 0), RELAY_RESOURCE_EXHAUSTED);
    CHECK(strstr(err.msg, "refused") != NULL);
    relayd_stream_end_step(w.stream, 1);
    CHECK_CODE(submit(w.stream, &c, 0), RELAY_FAILED_PRECONDITION);
    stack_call_fini(&c);
    CHECK_OK(begin(&w, 2, w.handles, positions, NULL, 4, &free_tokens), err);
    CHECK_EQ(free_tokens, 0);
    for (uint64_t i = 0; i < 3 * RELAYD_STREAM_STEPS_MAX; i++) { /* refused ones make room */
        CHECK_CODE(begin(&w, 3 + i, w.handles, positions, q_lens, 4, NULL),
                   RELAY_RESOURCE_EXHAUSTED);
    }
    relayd_stream_end_step(w.stream, 2);
    CHECK_EQ(bytes_used(&w), before);
    world_fini(&w);
}

/* A step of one request. */
static enum relay_code begin_one(struct world *w, uint64_t step_id, uint64_t handle)
{
    const uint32_t position = 0;
    return begin(w, step_id, &handle, &position, NULL, 1, NULL);
}

static void test_a_step_too_many_answers_its_calls(void)
{
    struct world w;
    struct relayd_open_request in[11];
    struct relayd_opened_request out[11];
    struct stack_call c;
    CHECK(world_init(&w, 64));
    for (int i = 0; i < 11; i++) {
        in[i] = (struct relayd_open_request){.prompt = {.prompt_id = "p", .variant = ""}};
    }
    CHECK_OK(relayd_session_open_requests(w.session, in, 11, out, NULL, &err), err);
    CHECK_STILL();
    for (uint64_t i = 0; i < 15; i++) {
        CHECK_OK(begin_one(&w, 10 + i, i < 4 ? w.handles[i] : out[i - 4].handle), err);
    }
    struct relayd_step_desc nothing_stored = {
        .step_id = 30,
        .part = RELAY_PART_PROMPT_ONLY,
        .handles = w.handles,
        .positions = (const uint32_t[]){0},
        .num_entries = 1,
        .deadline_ns = UINT64_MAX,
    };
    CHECK_OK(relayd_stream_begin(w.stream, &nothing_stored, NULL, NULL, &err), err); /* ends 10 */
    CHECK_OK(relayd_session_open_requests(w.session, in, 1, out, NULL, &err), err);
    CHECK_OK(begin_one(&w, 31, out[0].handle), err); /* the 16th */
    CHECK_CODE(begin_one(&w, 32, out[0].handle), RELAY_RESOURCE_EXHAUSTED);
    stack_call_init(&c, 0, 32);
    stack_call_add(&c, 0, 0, 1, true, 1);
    CHECK_CODE(submit(w.stream, &c, 0), RELAY_RESOURCE_EXHAUSTED);
    relayd_stream_end_step(w.stream, 31);
    CHECK_OK(begin_one(&w, 33, out[0].handle), err);
    stack_call_fini(&c);
    world_fini(&w);
}

static void test_steps_refused_elsewhere_are_remembered(void)
{
    struct world w;
    struct stack_call c;
    struct relay_error why = {0};
    CHECK(world_init(&w, 64));
    uint64_t before = bytes_used(&w);
    CHECK_OK(begin_one(&w, 5, w.handles[0]), err);
    (void)RELAY_FAIL(&why, RELAY_INVALID_ARGUMENT, "no positions");
    relayd_stream_refuse(w.stream, 5, &why);
    CHECK_EQ(bytes_used(&w), before); /* the step of this id has ended */
    stack_call_init(&c, 0, 5);
    stack_call_add(&c, 0, 0, 1, true, 1);
    CHECK_CODE(submit(w.stream, &c, 0), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "no positions") != NULL);
    CHECK_OK(begin_one(&w, 5, w.handles[0]), err);
    CHECK_OK(submit(w.stream, &c, 0), err);
    CHECK_CODE(stack_call_wait(&c), RELAY_OK);
    stack_call_fini(&c);
    world_fini(&w);
}

static void test_newer_steps_end_older_ones(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0, 0};
    struct stack_call c;
    CHECK_OK(begin(&w, 5, w.handles, positions, NULL, 2, NULL), err);
    CHECK_OK(begin(&w, 6, &w.handles[1], positions, NULL, 1, NULL), err);
    stack_call_init(&c, 0, 5);
    stack_call_add(&c, 0, 0, 1, true, 1);
    stack_call_add(&c, 0, 0, 1, true, 2);
    CHECK_CODE(submit(w.stream, &c, 0), RELAY_FAILED_PRECONDITION);
    stack_call_fini(&c);
    CHECK_CODE(begin(&w, 4, &w.handles[1], positions, NULL, 1, NULL), RELAY_ABORTED);
    CHECK_CODE(begin(&w, 0, w.handles, positions, NULL, 1, NULL), RELAY_INVALID_ARGUMENT);
    const uint64_t twice[] = {w.handles[0], w.handles[0]};
    CHECK_CODE(begin(&w, 7, twice, positions, NULL, 2, NULL), RELAY_INVALID_ARGUMENT);
    world_fini(&w);
}

static void test_unary_calls_stay_out_of_open_steps(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0};
    struct stack_call c;
    CHECK_OK(begin(&w, 5, w.handles, positions, NULL, 1, NULL), err);
    stack_call_init(&c, 0, 6);
    stack_call_add(&c, w.handles[0], 0, 1, true, 1);
    CHECK_CODE(stack_call_submit(&w.stack, w.session, &c, &err), RELAY_FAILED_PRECONDITION);
    relayd_stream_end_step(w.stream, 5);
    CHECK_OK(stack_call_submit(&w.stack, w.session, &c, &err), err);
    CHECK_CODE(stack_call_wait(&c), RELAY_OK);
    stack_call_fini(&c);
    world_fini(&w);
}

static void test_taking_over_waits_for_the_old_work(void)
{
    struct world w;
    struct watcher second, third;
    struct relayd_stream *next = NULL, *last = NULL;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0};
    struct stack_call c, late;
    CHECK_OK(begin(&w, 1, w.handles, positions, NULL, 1, NULL), err);
    gate_backend_close_gate(w.stack.backend);
    stack_call_init(&c, 0, 1);
    stack_call_add(&c, 0, 0, 1, true, 1);
    CHECK_OK(submit(w.stream, &c, 0), err);
    gate_backend_wait_runs(w.stack.backend, 1);
    CHECK(attach(&w, &second, &next));
    CHECK_EQ(atomic_load(&w.watcher.lost), 1);
    CHECK_CODE(w.watcher.code, RELAY_ABORTED);
    CHECK_EQ(atomic_load(&second.ready), 0);
    stack_call_init(&late, 1, 1);
    stack_call_add(&late, 0, 0, 1, true, 1);
    CHECK_CODE(submit(w.stream, &late, 0), RELAY_ABORTED);
    CHECK_CODE(begin(&w, 2, w.handles, positions, NULL, 1, NULL), RELAY_ABORTED);
    CHECK(attach(&w, &third, &last)); /* and taken over again before it was ready */
    CHECK_EQ(atomic_load(&second.lost), 1);
    gate_backend_open_gate(w.stack.backend);
    CHECK_CODE(stack_call_wait(&c), RELAY_OK); /* launched work finishes, K/V stays */
    while (atomic_load(&third.ready) == 0) {
    }
    CHECK_EQ(atomic_load(&second.ready), 0);
    relayd_stream_detach(next);
    relayd_stream_detach(w.stream);
    w.stream = last;
    CHECK_OK(begin(&w, 1, w.handles, positions, NULL, 1, NULL), err); /* the same step again */
    CHECK_OK(submit(w.stream, &late, 0), err);                        /* from any layer */
    CHECK_CODE(stack_call_wait(&late), RELAY_OK);
    CHECK(check_row(&late, 0, 1, 1) < 1e-6);
    stack_call_fini(&c);
    stack_call_fini(&late);
    world_fini(&w);
}

static void test_detach_mid_layer_gives_all_back(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0, 0, 0, 0};
    struct stack_call c;
    CHECK_OK(begin(&w, 1, w.handles, positions, NULL, 4, NULL), err);
    gate_backend_close_gate(w.stack.backend);
    stack_call_init(&c, 0, 1);
    for (uint32_t i = 0; i < 4; i++) {
        stack_call_add(&c, 0, 0, 1, true, i);
    }
    CHECK_OK(submit(w.stream, &c, 0), err);
    gate_backend_wait_runs(w.stack.backend, 1);
    relayd_stream_detach(w.stream);
    CHECK_EQ(relayd_session_close_requests(w.session, w.handles, 4), 4);
    CHECK(bytes_used(&w) != 0); /* still lent to the launch */
    gate_backend_open_gate(w.stack.backend);
    CHECK_CODE(stack_call_wait(&c), RELAY_OK);
    CHECK_EQ(bytes_used(&w), 0);
    stack_call_fini(&c);
    w.stream = NULL;
    world_fini(&w);
}

static void test_leases_and_session_end(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    atomic_fetch_add(&w.stack.now_ns, UINT64_C(3600) * 1000000000);
    CHECK_EQ(relayd_sessions_sweep(w.stack.sessions), 0); /* a stream is attached */
    CHECK_EQ(atomic_load(&w.watcher.lost), 0);
    relayd_session_close(w.session);
    CHECK_EQ(atomic_load(&w.watcher.lost), 1);
    CHECK_CODE(w.watcher.code, RELAY_NOT_FOUND);
    struct relayd_store_stats stats;
    relayd_store_stats(w.stack.store, &stats);
    CHECK_EQ(stats.requests, 0);
    world_fini(&w);
    CHECK(world_init(&w, 64));
    relayd_stream_detach(w.stream);
    w.stream = NULL;
    atomic_fetch_add(&w.stack.now_ns, UINT64_C(999) * 1000000);
    CHECK_EQ(relayd_sessions_sweep(w.stack.sessions), 0); /* the lease began with the detach */
    atomic_fetch_add(&w.stack.now_ns, UINT64_C(1) * 1000000);
    CHECK_EQ(relayd_sessions_sweep(w.stack.sessions), 1);
    world_fini(&w);
}

static void test_a_step_that_is_late_is_not_launched(void)
{
    struct world w;
    CHECK(world_init(&w, 64));
    const uint32_t positions[] = {0};
    struct relayd_step_desc desc = {
        .step_id = 1,
        .deadline_ns = atomic_load(&w.stack.now_ns) + 100,
        .handles = w.handles,
        .positions = positions,
        .num_entries = 1,
    };
    struct stack_call c;
    CHECK_OK(relayd_stream_begin(w.stream, &desc, NULL, NULL, &err), err);
    atomic_fetch_add(&w.stack.now_ns, 100);
    stack_call_init(&c, 0, 1);
    stack_call_add(&c, 0, 0, 1, true, 1);
    CHECK_OK(submit(w.stream, &c, 0), err);
    CHECK_CODE(stack_call_wait(&c), RELAY_DEADLINE_EXCEEDED);
    stack_call_fini(&c);
    world_fini(&w);
}

int main(void)
{
    CHECK_RUN(test_steps_walk_the_layers);
    CHECK_RUN(test_pieces_of_a_prefill);
    CHECK_RUN(test_refused_steps_answer_their_calls);
    CHECK_RUN(test_a_step_too_many_answers_its_calls);
    CHECK_RUN(test_steps_refused_elsewhere_are_remembered);
    CHECK_RUN(test_newer_steps_end_older_ones);
    CHECK_RUN(test_unary_calls_stay_out_of_open_steps);
    CHECK_RUN(test_taking_over_waits_for_the_old_work);
    CHECK_RUN(test_detach_mid_layer_gives_all_back);
    CHECK_RUN(test_leases_and_session_end);
    CHECK_RUN(test_a_step_that_is_late_is_not_launched);
    return check_done();
}
