/* The executor behind a gate: what piles up goes out together, the prompt is read once for all of
 * it, order and cancellation hold, a broken backend poisons. No test depends on timing. */
#include "testlib/check.h"
#include "testlib/gate_backend.h"
#include "testlib/stack.h"

static struct relay_error err;

static void open_one(struct relayd_session *session, const char *prompt, uint64_t *handle)
{
    struct relayd_open_request in = {.prompt = {.prompt_id = prompt, .variant = ""}};
    struct relayd_opened_request out = {0};
    CHECK_OK(relayd_session_open_requests(session, &in, 1, &out, NULL, &err), err);
    *handle = out.handle;
}

/* Checks row 0 of a call against dense attention over prompt(seed 1, tokens) ++ context(seed). */
static double check_row(const struct stack_call *c, uint32_t prompt_tokens, uint32_t context_tokens,
                        uint32_t context_seed)
{
    uint32_t n = prompt_tokens + context_tokens;
    static float k[256 * STACK_HKV * STACK_D], v[256 * STACK_HKV * STACK_D];
    stack_kv(1, c->desc.layer, 0, prompt_tokens, k, v);
    stack_kv(context_seed, c->desc.layer, 0, context_tokens,
             k + prompt_tokens * STACK_HKV * STACK_D, v + prompt_tokens * STACK_HKV * STACK_D);
    return stack_check(c->desc.layer, c->q, n - 1, k, v, n, c->out, c->lse);
}

static void test_two_sessions_share_a_launch(void)
{
    struct stack stack;
    struct relayd_session *s[3];
    uint64_t h[3];
    struct stack_call c[3];
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_register(&stack, "p", 1, 21, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err), err);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(stack_open_session(&stack, &s[i], &err), err);
        open_one(s[i], "p", &h[i]);
        CHECK_STILL();
        stack_call_init(&c[i], 0, 1);
        stack_call_add(&c[i], h[i], 0, 1, true, 50 + (uint32_t)i);
    }
    gate_backend_close_gate(stack.backend);
    CHECK_OK(stack_call_submit(&stack, s[0], &c[0], &err), err);
    gate_backend_wait_runs(stack.backend, 1); /* 0 is running; 1 and 2 pile up */
    CHECK_OK(stack_call_submit(&stack, s[1], &c[1], &err), err);
    CHECK_OK(stack_call_submit(&stack, s[2], &c[2], &err), err);
    gate_backend_open_gate(stack.backend);
    for (int i = 0; i < 3; i++) {
        CHECK_CODE(stack_call_wait(&c[i]), RELAY_OK);
        CHECK(check_row(&c[i], 21, 1, 50 + (uint32_t)i) < 1e-6);
    }
    CHECK_EQ(gate_backend_runs(stack.backend), 2);
    CHECK_EQ(c[0].timings.batch_sessions, 1);
    CHECK_EQ(c[1].timings.batch_sessions, 2);
    CHECK_EQ(c[2].timings.batch_rows, 2);
    const uint64_t token = 2 * STACK_HKV * STACK_D * sizeof(float);
    CHECK_EQ(c[1].timings.prompt_bytes, 21 * token); /* once for both */
    CHECK_EQ(c[1].timings.kv_bytes, 2 * token);
    uint64_t shared = 0, own = 0;
    relay_backend_bytes_read(stack.backend, &shared, &own);
    CHECK_EQ(shared, 2 * 21 * token); /* counted where it was read: two launches */
    CHECK_EQ(own, 3 * token);
    struct relayd_executor_stats stats;
    relayd_executor_stats(stack.executor, &stats);
    CHECK_EQ(stats.launches, 2);
    CHECK_EQ(stats.calls, 3);
    CHECK_EQ(stats.waiting, 0);
    for (int i = 0; i < 3; i++) {
        relayd_session_release(s[i]);
        stack_call_fini(&c[i]);
    }
    stack_fini(&stack);
}

static void test_calls_on_a_request_run_in_order(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    uint64_t h = 0;
    struct stack_call c[4];
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_register(&stack, "p", 1, 9, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err), err);
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    open_one(s, "p", &h);
    CHECK_STILL();
    gate_backend_close_gate(stack.backend);
    for (uint32_t i = 0; i < 4; i++) {
        stack_call_init(&c[i], 0, i + 1);
        stack_call_add(&c[i], h, i, 1, true, 77);
        CHECK_OK(stack_call_submit(&stack, s, &c[i], &err), err);
    }
    gate_backend_open_gate(stack.backend);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_CODE(stack_call_wait(&c[i]), RELAY_OK);
        CHECK(check_row(&c[i], 9, i + 1, 77) < 1e-6);
        stack_call_fini(&c[i]);
    }
    CHECK_EQ(gate_backend_runs(stack.backend), 4);
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_cancelled_and_late_calls_write_nothing(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    uint64_t h[3] = {0};
    struct stack_call c[3];
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    gate_backend_close_gate(stack.backend);
    for (uint32_t i = 0; i < 3; i++) {
        open_one(s, "", &h[i]);
        CHECK_STILL();
        stack_call_init(&c[i], 0, 1);
        stack_call_add(&c[i], h[i], 0, 1, true, i);
        if (i == 2) {
            c[i].desc.deadline_ns = atomic_load(&stack.now_ns) + 10;
        }
        CHECK_OK(stack_call_submit(&stack, s, &c[i], &err), err);
        if (i == 0) {
            gate_backend_wait_runs(stack.backend, 1);
        }
    }
    atomic_store(&c[1].call->cancelled, true);
    atomic_fetch_add(&stack.now_ns, 10);
    gate_backend_open_gate(stack.backend);
    CHECK_CODE(stack_call_wait(&c[0]), RELAY_OK);
    CHECK_CODE(stack_call_wait(&c[1]), RELAY_CANCELLED);
    CHECK_CODE(stack_call_wait(&c[2]), RELAY_DEADLINE_EXCEEDED);
    struct relayd_request_info info[3];
    uint32_t n = 0;
    CHECK_OK(relayd_session_get_requests(s, h, 3, info, 3, &n, &err), err);
    CHECK_EQ(n, 3);
    CHECK_EQ(info[0].held_max, 1);
    CHECK_EQ(info[1].held_max, 0);
    CHECK_EQ(info[2].held_max, 0);
    CHECK_EQ(gate_backend_runs(stack.backend), 1);
    for (uint32_t i = 0; i < 3; i++) {
        stack_call_fini(&c[i]);
    }
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_a_bad_entry_fails_its_call_alone(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    uint64_t h[3] = {0};
    struct stack_call c[3];
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    for (uint32_t i = 0; i < 3; i++) {
        open_one(s, "", &h[i]);
        CHECK_STILL();
        stack_call_init(&c[i], 0, 1);
    }
    gate_backend_close_gate(stack.backend);
    stack_call_add(&c[0], h[0], 0, 1, true, 0);
    stack_call_add(&c[1], h[1], 0, 1, true, 1);
    stack_call_add(&c[1], h[2], 3, 1, true, 2); /* a gap */
    CHECK_OK(stack_call_submit(&stack, s, &c[0], &err), err);
    gate_backend_wait_runs(stack.backend, 1);
    CHECK_OK(stack_call_submit(&stack, s, &c[1], &err), err);
    gate_backend_open_gate(stack.backend);
    CHECK_CODE(stack_call_wait(&c[0]), RELAY_OK);
    CHECK_CODE(stack_call_wait(&c[1]), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(c[1].error.msg, "entry 1") != NULL);
    struct relayd_request_info info[2];
    uint32_t n = 0;
    CHECK_OK(relayd_session_get_requests(s, &h[1], 2, info, 2, &n, &err), err);
    CHECK_EQ(info[0].held_max, 0); /* the good entry of the bad call wrote nothing either */
    for (uint32_t i = 0; i < 3; i++) {
        stack_call_fini(&c[i]);
    }
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_a_refused_launch_writes_nothing(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    uint64_t h = 0;
    struct stack_call c[3];
    struct relayd_request_info info;
    uint32_t n = 0;
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    open_one(s, "", &h);
    CHECK_STILL();
    const uint32_t positions[] = {0, 1, 1}, rows[] = {3, 1, 1};
    for (uint32_t i = 0; i < 3; i++) {
        stack_call_init(&c[i], 0, i < 2 ? i + 1 : 2);
        stack_call_add(&c[i], h, positions[i], rows[i], true, 5);
    }
    CHECK_OK(stack_call_submit(&stack, s, &c[0], &err), err);
    CHECK_CODE(stack_call_wait(&c[0]), RELAY_OK);
    gate_backend_refuse_once(stack.backend);
    CHECK_OK(stack_call_submit(&stack, s, &c[1], &err), err);
    CHECK_CODE(stack_call_wait(&c[1]), RELAY_RESOURCE_EXHAUSTED);
    CHECK_OK(relayd_session_get_requests(s, &h, 1, &info, 1, &n, &err), err);
    CHECK_EQ(info.held_max, 3); /* the newer step did not drop what lay behind its position */
    CHECK_OK(stack_call_submit(&stack, s, &c[2], &err), err);
    CHECK_CODE(stack_call_wait(&c[2]), RELAY_OK);
    CHECK(check_row(&c[2], 0, 2, 5) < 1e-6);
    CHECK_OK(relayd_session_get_requests(s, &h, 1, &info, 1, &n, &err), err);
    CHECK_EQ(info.held_max, 2);
    struct relayd_executor_stats stats;
    relayd_executor_stats(stack.executor, &stats);
    CHECK(!stats.poisoned);
    for (uint32_t i = 0; i < 3; i++) {
        stack_call_fini(&c[i]);
    }
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_broken_backend_poisons(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    uint64_t h = 0;
    struct stack_call c;
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    open_one(s, "", &h);
    CHECK_STILL();
    gate_backend_break(stack.backend);
    stack_call_init(&c, 0, 1);
    stack_call_add(&c, h, 0, 1, true, 0);
    CHECK_OK(stack_call_submit(&stack, s, &c, &err), err);
    CHECK_CODE(stack_call_wait(&c), RELAY_UNAVAILABLE);
    CHECK_CODE(stack_call_submit(&stack, s, &c, &err), RELAY_UNAVAILABLE);
    struct relayd_executor_stats stats;
    relayd_executor_stats(stack.executor, &stats);
    CHECK(stats.poisoned);
    CHECK_EQ(stats.waiting, 0);
    stack_call_fini(&c);
    relayd_session_release(s);
    stack_fini(&stack);
}

int main(void)
{
    CHECK_RUN(test_two_sessions_share_a_launch);
    CHECK_RUN(test_calls_on_a_request_run_in_order);
    CHECK_RUN(test_cancelled_and_late_calls_write_nothing);
    CHECK_RUN(test_a_bad_entry_fails_its_call_alone);
    CHECK_RUN(test_a_refused_launch_writes_nothing);
    CHECK_RUN(test_broken_backend_poisons);
    return check_done();
}
