/* Sessions, handles and the refusals of calls: each bad input gets its code, and the counters end
 * where they began. */
#include "testlib/check.h"
#include "testlib/stack.h"

static struct relay_error err;

static void open_tagged(struct relayd_session *s, const char *prompt, uint64_t tag,
                        struct relayd_opened_request *out, enum relay_code want)
{
    struct relayd_open_request in = {.tag = tag, .prompt = {.prompt_id = prompt, .variant = ""}};
    CHECK_CODE(relayd_session_open_requests(s, &in, 1, out, NULL, &err), want);
}

static void test_tokens_are_secret_and_tenanted(void)
{
    struct stack stack;
    struct relayd_session_info a, b;
    struct relayd_session *s = NULL;
    CHECK(stack_init(&stack, 16));
    struct relayd_session_desc desc = {
        .tenant = "one", .model = stack_model(), .io_dtype = RELAY_DTYPE_F32};
    CHECK_OK(relayd_session_open(stack.sessions, &desc, &a, &err), err);
    CHECK_OK(relayd_session_open(stack.sessions, &desc, &b, &err), err);
    CHECK(memcmp(a.token, b.token, sizeof(a.token)) != 0);
    CHECK_CODE(relayd_session_acquire(stack.sessions, "two", a.token, 16, &s, &err),
               RELAY_NOT_FOUND);
    CHECK_CODE(relayd_session_acquire(stack.sessions, "one", a.token, 15, &s, &err),
               RELAY_INVALID_ARGUMENT);
    a.token[3] ^= 1;
    CHECK_CODE(relayd_session_acquire(stack.sessions, "one", a.token, 16, &s, &err),
               RELAY_NOT_FOUND);
    a.token[3] ^= 1;
    CHECK_OK(relayd_session_acquire(stack.sessions, "one", a.token, 16, &s, &err), err);
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_leases_end_unused_sessions(void)
{
    struct stack stack;
    struct relayd_session_info info;
    struct relayd_session *s = NULL;
    struct relayd_opened_request opened;
    CHECK(stack_init(&stack, 16));
    struct relayd_session_desc desc = {
        .tenant = "", .model = stack_model(), .io_dtype = RELAY_DTYPE_F32, .lease_ms = 100};
    CHECK_OK(relayd_session_open(stack.sessions, &desc, &info, &err), err);
    CHECK_EQ(info.lease_ms, 100);
    CHECK_OK(relayd_session_acquire(stack.sessions, "", info.token, 16, &s, &err), err);
    open_tagged(s, "", 0, &opened, RELAY_OK);
    CHECK_STILL();
    relayd_session_release(s);
    atomic_fetch_add(&stack.now_ns, 99 * 1000000);
    CHECK_EQ(relayd_sessions_sweep(stack.sessions), 0);
    CHECK_OK(relayd_session_acquire(stack.sessions, "", info.token, 16, &s, &err), err);
    relayd_session_release(s); /* renewed */
    atomic_fetch_add(&stack.now_ns, 99 * 1000000);
    CHECK_EQ(relayd_sessions_sweep(stack.sessions), 0);
    atomic_fetch_add(&stack.now_ns, 1000000);
    CHECK_EQ(relayd_sessions_sweep(stack.sessions), 1);
    CHECK_EQ(relayd_sessions_count(stack.sessions), 0);
    CHECK_CODE(relayd_session_acquire(stack.sessions, "", info.token, 16, &s, &err),
               RELAY_NOT_FOUND);
    struct relayd_store_stats stats;
    relayd_store_stats(stack.store, &stats);
    CHECK_EQ(stats.requests, 0);
    CHECK_EQ(stats.models, 0);
    stack_fini(&stack);
}

static void test_session_limits_and_bad_models(void)
{
    struct stack stack;
    struct relayd_session_info info;
    CHECK(stack_init(&stack, 16));
    struct relayd_session_desc desc = {
        .tenant = "", .model = stack_model(), .io_dtype = RELAY_DTYPE_F32};
    for (int i = 0; i < 4; i++) {
        CHECK_OK(relayd_session_open(stack.sessions, &desc, &info, &err), err);
    }
    CHECK_CODE(relayd_session_open(stack.sessions, &desc, &info, &err), RELAY_RESOURCE_EXHAUSTED);
    desc.io_dtype = RELAY_DTYPE_F8_E4M3;
    CHECK_CODE(relayd_session_open(stack.sessions, &desc, &info, &err), RELAY_INVALID_ARGUMENT);
    desc.io_dtype = RELAY_DTYPE_F32;
    struct relay_model other = *stack_model();
    other.kv_dtype = RELAY_DTYPE_BF16;
    desc.model = &other;
    CHECK_CODE(relayd_session_open(stack.sessions, &desc, &info, &err), RELAY_FAILED_PRECONDITION);
    stack_fini(&stack);
}

static void test_tags_and_handles(void)
{
    struct stack stack;
    struct relayd_session *a = NULL, *b = NULL;
    struct relayd_opened_request x, y;
    CHECK(stack_init(&stack, 16));
    CHECK_OK(stack_register(&stack, "p", 1, 6, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err), err);
    CHECK_OK(stack_open_session(&stack, &a, &err), err);
    CHECK_OK(stack_open_session(&stack, &b, &err), err);
    open_tagged(a, "p", 7, &x, RELAY_OK);
    open_tagged(a, "p", 7, &y, RELAY_OK);
    CHECK_STILL();
    CHECK_EQ(x.handle, y.handle);
    CHECK_EQ(x.prompt_tokens, 6);
    CHECK(x.generation != 0);
    open_tagged(a, "", 7, &y, RELAY_ALREADY_EXISTS);
    open_tagged(b, "p", 7, &y, RELAY_OK);
    CHECK_STILL();
    CHECK(x.handle != y.handle);
    struct relayd_request_info info[2];
    uint32_t n = 0;
    CHECK_CODE(relayd_session_get_requests(b, &x.handle, 1, info, 1, &n, &err), RELAY_NOT_FOUND);
    CHECK_EQ(relayd_session_close_requests(b, &x.handle, 1), 0); /* another session's: unknown */
    CHECK_EQ(relayd_session_close_requests(a, &x.handle, 1), 1);
    CHECK_EQ(relayd_session_close_requests(a, &x.handle, 1), 0);
    open_tagged(a, "", 7, &x, RELAY_OK); /* the tag is free again */
    CHECK_STILL();
    open_tagged(a, "nobody", 0, &x, RELAY_NOT_FOUND);
    relayd_session_release(a);
    relayd_session_release(b);
    stack_fini(&stack);
}

static void test_open_requests_is_all_or_nothing(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    CHECK(stack_init(&stack, 4));
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    struct relayd_open_request in[3] = {
        {.tag = 1, .prompt = {.prompt_id = "", .variant = ""}, .tokens_reserved = 8},
        {.tag = 1, .prompt = {.prompt_id = "", .variant = ""}},
        {.tag = 2, .prompt = {.prompt_id = "", .variant = ""}, .tokens_reserved = 12},
    };
    struct relayd_opened_request out[3];
    struct relayd_entry_errors errors = {0};
    CHECK_CODE(relayd_session_open_requests(s, in, 3, out, &errors, &err),
               RELAY_RESOURCE_EXHAUSTED); /* 2 + 3 pages of 4 */
    CHECK_EQ(errors.n, 1);
    CHECK_EQ(errors.e[0].index, 2);
    struct relayd_store_stats stats;
    relayd_store_stats(stack.store, &stats);
    CHECK_EQ(stats.requests, 0);
    CHECK_EQ(stats.request_bytes_used, 0);
    CHECK_OK(relayd_session_open_requests(s, in, 2, out, &errors, &err), err);
    CHECK_EQ(out[0].handle, out[1].handle);
    struct relayd_open_request many[17];
    struct relayd_opened_request many_out[17];
    for (int i = 0; i < 17; i++) {
        many[i] = (struct relayd_open_request){.prompt = {.prompt_id = "", .variant = ""}};
    }
    CHECK_CODE(relayd_session_open_requests(s, many, 17, many_out, NULL, &err),
               RELAY_RESOURCE_EXHAUSTED);
    relayd_session_release(s);
    stack_fini(&stack);
}

/* Submits one call after `change` and says what came of it. */
static enum relay_code attempt(struct stack *stack, struct relayd_session *s, struct stack_call *c)
{
    enum relay_code code = stack_call_submit(stack, s, c, &err);
    return code == RELAY_OK ? stack_call_wait(c) : code;
}

static void test_bad_calls_change_nothing(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    struct relayd_opened_request r;
    struct stack_call good, again, c;
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_register(&stack, "p", 1, 13, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err), err);
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    open_tagged(s, "p", 0, &r, RELAY_OK);
    CHECK_STILL();
    stack_call_init(&good, 1, 5);
    stack_call_add(&good, r.handle, 0, 2, true, 3);
    CHECK_CODE(attempt(&stack, s, &good), RELAY_OK);
    struct relayd_store_stats before, after;
    relayd_store_stats(stack.store, &before);

#define ATTEMPT(want, layer_, step_, change)                                                       \
    do {                                                                                           \
        stack_call_init(&c, (layer_), (step_));                                                    \
        stack_call_add(&c, r.handle, 2, 1, true, 3);                                               \
        change;                                                                                    \
        CHECK_CODE(attempt(&stack, s, &c), want);                                                  \
        stack_call_fini(&c);                                                                       \
    } while (0)
    ATTEMPT(RELAY_INVALID_ARGUMENT, 2, 6, (void)0); /* layer out of range */
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.desc.q_bytes -= 4);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.desc.k_bytes += 4);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.desc.v_bytes = 0);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.q_lens[0] = 0);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.desc.num_entries = 0);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.positions[0] = UINT32_MAX);
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.desc.part = RELAY_PART_PROMPT_ONLY); /* with k, v */
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, stack_call_add(&c, r.handle, 2, 1, true, 3)); /* twice */
    ATTEMPT(RELAY_INVALID_ARGUMENT, 1, 6, c.q_lens[0] = 65);
    ATTEMPT(RELAY_NOT_FOUND, 1, 6, c.handles[0] += 1000);
    ATTEMPT(RELAY_FAILED_PRECONDITION, 1, 6, c.positions[0] = 3); /* a gap */
    ATTEMPT(RELAY_FAILED_PRECONDITION, 1, 6,
            c.desc.k_bytes = c.desc.v_bytes = 0); /* nothing there */
    ATTEMPT(RELAY_ABORTED, 1, 4, (void)0);        /* older than step 6, which was accepted */
#undef ATTEMPT
    relayd_store_stats(stack.store, &after);
    CHECK_EQ(before.request_bytes_used, after.request_bytes_used);
    stack_call_init(&again, 1, 6);
    stack_call_add(&again, r.handle, 0, 2, true, 3);
    CHECK_CODE(attempt(&stack, s, &again), RELAY_OK);
    CHECK(memcmp(good.out, again.out, sizeof(good.out)) == 0);
    CHECK(memcmp(good.lse, again.lse, sizeof(good.lse)) == 0);
    stack_call_fini(&good);
    stack_call_fini(&again);
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_response_limit_comes_before_any_write(void)
{
    struct stack stack;
    struct relayd_session_info info;
    struct relayd_session *s = NULL;
    struct relayd_opened_request r;
    struct stack_call c;
    CHECK(stack_init(&stack, 64));
    struct relayd_session_desc desc = {.tenant = "",
                                       .model = stack_model(),
                                       .io_dtype = RELAY_DTYPE_F32,
                                       .response_bytes_max = 512};
    CHECK_OK(relayd_session_open(stack.sessions, &desc, &info, &err), err);
    CHECK_OK(relayd_session_acquire(stack.sessions, "", info.token, 16, &s, &err), err);
    open_tagged(s, "", 0, &r, RELAY_OK);
    CHECK_STILL();
    stack_call_init(&c, 0, 1);
    stack_call_add(&c, r.handle, 0, 2, true, 3); /* 2 rows x (128 + 16) bytes + head > 512 */
    CHECK_CODE(attempt(&stack, s, &c), RELAY_INVALID_ARGUMENT);
    struct relayd_request_info look;
    uint32_t n = 0;
    CHECK_OK(relayd_session_get_requests(s, &r.handle, 1, &look, 1, &n, &err), err);
    CHECK_EQ(look.held_max, 0);
    stack_call_fini(&c);
    relayd_session_release(s);
    stack_fini(&stack);
}

static void test_append_truncate_and_attend(void)
{
    struct stack stack;
    struct relayd_session *s = NULL;
    struct relayd_opened_request r;
    struct stack_call c;
    static float k[64 * STACK_HKV * STACK_D], v[64 * STACK_HKV * STACK_D];
    CHECK(stack_init(&stack, 64));
    CHECK_OK(stack_register(&stack, "p", 1, 13, RELAYD_ON_EXISTS_SAME_OR_FAIL, &err), err);
    CHECK_OK(stack_open_session(&stack, &s, &err), err);
    open_tagged(s, "p", 0, &r, RELAY_OK);
    CHECK_STILL();
    for (uint32_t layer = 0; layer < STACK_LAYERS; layer++) {
        stack_kv(9, layer, 0, 10, k, v);
        size_t bytes = 10 * STACK_HKV * STACK_D * sizeof(float);
        struct relayd_kv_chunk chunk = {
            .layer = layer, .token_count = 10, .k = k, .k_bytes = bytes, .v = v, .v_bytes = bytes};
        CHECK_OK(relayd_session_append(s, r.handle, &chunk, &err), err);
    }
    uint32_t keep = 6;
    CHECK_OK(relayd_session_truncate_requests(s, &r.handle, &keep, 1, NULL, &err), err);
    struct relayd_request_info info;
    uint32_t n = 0;
    CHECK_OK(relayd_session_get_requests(s, &r.handle, 1, &info, 1, &n, &err), err);
    CHECK_EQ(info.length, 6);
    for (uint32_t layer = 0; layer < STACK_LAYERS; layer++) {
        stack_call_init(&c, layer, 1);
        stack_call_add(&c, r.handle, 6, 1, true, 9); /* the same token that was cut */
        CHECK_CODE(attempt(&stack, s, &c), RELAY_OK);
        stack_kv(1, layer, 0, 13, k, v);
        stack_kv(9, layer, 0, 7, k + 13 * STACK_HKV * STACK_D, v + 13 * STACK_HKV * STACK_D);
        CHECK(stack_check(layer, c.q, 19, k, v, 20, c.out, c.lse) < 1e-6);
        stack_call_fini(&c);
    }
    relayd_session_release(s);
    stack_fini(&stack);
}

int main(void)
{
    CHECK_RUN(test_tokens_are_secret_and_tenanted);
    CHECK_RUN(test_leases_end_unused_sessions);
    CHECK_RUN(test_session_limits_and_bad_models);
    CHECK_RUN(test_tags_and_handles);
    CHECK_RUN(test_open_requests_is_all_or_nothing);
    CHECK_RUN(test_bad_calls_change_nothing);
    CHECK_RUN(test_response_limit_comes_before_any_write);
    CHECK_RUN(test_append_truncate_and_attend);
    return check_done();
}
