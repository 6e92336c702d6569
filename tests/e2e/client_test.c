/* librelay against a real relayd: sessions, requests and steps on the recorded prompt. */
#include "testlib/check.h"
#include "testlib/compare.h"
#include "testlib/golden.h"
#include "testlib/server.h"

#include <pthread.h>
#include <time.h>

#define OUT_FLOATS (GOLDEN_REQUESTS * GOLDEN_HQ * GOLDEN_D)
#define LSE_FLOATS (GOLDEN_REQUESTS * GOLDEN_HQ)

static struct test_server server;
static struct golden golden;

struct fixture {
    struct relay_client *client;
    struct relay_session *session;
    uint64_t requests[GOLDEN_REQUESTS];
    struct relay_step_entry entries[GOLDEN_REQUESTS];
};

static struct relay_error err;

/* A client and a session with the four recorded requests, their own tokens appended. */
static void open_fixture(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    CHECK_OK(relay_client_open(server.unix_target, NULL, &f->client, &err), err);
    CHECK_OK(relay_session_open(f->client, golden.model, NULL, &f->session, &err), err);
    for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
        CHECK_OK(relay_request_open(f->session, "golden", &f->requests[r], &err), err);
        CHECK_OK(relay_request_append(f->session, f->requests[r], 0, golden.user_lens[r],
                                      golden.user[r], &err),
                 err);
        f->entries[r] = (struct relay_step_entry){f->requests[r], golden.user_lens[r], 1};
    }
}

static void close_fixture(struct fixture *f)
{
    relay_session_close(f->session);
    relay_client_close(f->client);
}

/* Runs a recorded step; out and lse are of its last layer, each layer is compared with `out` and
 * `lse` of the file. */
static void run_step(struct fixture *f, uint32_t s, const struct relay_step_options *options,
                     bool write, const char *want_out, const char *want_lse, float *out, float *lse)
{
    struct relay_step *step = NULL;
    const struct tolerance tolerance = tolerance_of(RELAY_DTYPE_F32, 0.0);
    for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
        f->entries[r].position = golden.user_lens[r] + s;
    }
    CHECK_OK(relay_step_begin(f->session, f->entries, GOLDEN_REQUESTS, options, &step, &err), err);
    CHECK_EQ(relay_step_rows(step), GOLDEN_REQUESTS);
    for (uint32_t l = 0; l < GOLDEN_LAYERS; l++) {
        char why[256];
        CHECK_OK(relay_step_attend(step, l, golden_step(&golden, l, "q", s),
                                   write ? golden_step(&golden, l, "k_new", s) : NULL,
                                   write ? golden_step(&golden, l, "v_new", s) : NULL, out, lse,
                                   &err),
                 err);
        if (!compare_tensor(&tolerance, out, golden_step(&golden, l, want_out, s), OUT_FLOATS, NULL,
                            NULL, why, sizeof(why))) {
            CHECK_FAIL("%s, layer %u, step %u: %s", want_out, l, s, why);
        }
        if (!compare_tensor(&tolerance, lse, golden_step(&golden, l, want_lse, s), LSE_FLOATS, NULL,
                            NULL, why, sizeof(why))) {
            CHECK_FAIL("%s, layer %u, step %u: %s", want_lse, l, s, why);
        }
        const struct relay_timings *t = relay_step_timings(step);
        CHECK(t->total_us > 0 && t->batch_rows >= GOLDEN_REQUESTS);
    }
    relay_step_end(step);
}

static void test_steps_give_the_recorded_results(void)
{
    static float out[OUT_FLOATS], lse[LSE_FLOATS];
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    for (uint32_t s = 0; s < GOLDEN_STEPS; s++) {
        run_step(&f, s, NULL, true, "out", "lse", out, lse);
        CHECK_STILL();
    }
    close_fixture(&f);
}

/* The two parts before the merge, and their merge here: the split that engines build on. */
static void test_parts_give_the_recorded_parts(void)
{
    static float out[OUT_FLOATS], lse[LSE_FLOATS];
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    for (uint32_t s = 0; s < GOLDEN_STEPS; s++) {
        options.part = RELAY_PART_CONTEXT_ONLY;
        run_step(&f, s, &options, true, "out_context", "lse_context", out, lse);
        CHECK_STILL();
        options.part = RELAY_PART_PROMPT_ONLY;
        run_step(&f, s, &options, false, "out_prompt", "lse_prompt", out, lse);
        CHECK_STILL();
    }
    close_fixture(&f);
}

/* Read-only, relay or plain, over TCP, again: the same answer; relay reads the prompt once. */
static void test_steps_in_every_way(void)
{
    static float first[OUT_FLOATS], again[OUT_FLOATS], lse[LSE_FLOATS], lse_again[LSE_FLOATS];
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    run_step(&f, 0, NULL, true, "out", "lse", first, lse);
    CHECK_STILL();
    run_step(&f, 0, NULL, false, "out", "lse", again, lse_again);
    CHECK_STILL();
    CHECK(memcmp(first, again, sizeof(first)) == 0);
    CHECK(memcmp(lse, lse_again, sizeof(lse)) == 0);
    options.sharing = RELAY_SHARING_NEVER;
    run_step(&f, 0, &options, false, "out", "lse", again, lse_again);
    CHECK_STILL();

    uint64_t read[2];
    for (int plain = 0; plain < 2; plain++) {
        options.sharing = plain ? RELAY_SHARING_NEVER : RELAY_SHARING_ALWAYS;
        CHECK_OK(relay_step_begin(f.session, f.entries, GOLDEN_REQUESTS, &options, &step, &err),
                 err);
        CHECK_OK(relay_step_attend(step, 1, golden_step(&golden, 1, "q", 0), NULL, NULL, again,
                                   NULL, &err),
                 err);
        read[plain] = relay_step_timings(step)->prompt_bytes;
        relay_step_end(step);
    }
    CHECK_EQ(read[0], GOLDEN_TOKENS * 2 * GOLDEN_D * 2);
    CHECK_EQ(read[1], GOLDEN_REQUESTS * read[0]);
    close_fixture(&f);
}

/* Steps of several rows: the recorded four tokens of each request at once. */
static void test_a_step_of_several_tokens(void)
{
    static float q[GOLDEN_STEPS * OUT_FLOATS], k[GOLDEN_STEPS * GOLDEN_REQUESTS * GOLDEN_D],
        v[GOLDEN_STEPS * GOLDEN_REQUESTS * GOLDEN_D], out[GOLDEN_STEPS * OUT_FLOATS],
        want[GOLDEN_STEPS * OUT_FLOATS];
    const size_t row = (size_t)GOLDEN_HQ * GOLDEN_D;
    const struct tolerance tolerance = tolerance_of(RELAY_DTYPE_F32, 0.0);
    struct relay_step *step = NULL;
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
        f.entries[r].q_len = GOLDEN_STEPS;
    }
    CHECK_OK(relay_step_begin(f.session, f.entries, GOLDEN_REQUESTS, NULL, &step, &err), err);
    CHECK_EQ(relay_step_rows(step), GOLDEN_REQUESTS * GOLDEN_STEPS);
    for (uint32_t l = 0; l < GOLDEN_LAYERS; l++) {
        char why[256];
        for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
            for (uint32_t s = 0; s < GOLDEN_STEPS; s++) {
                const size_t i = r * GOLDEN_STEPS + s;
                memcpy(q + i * row, golden_step(&golden, l, "q", s) + r * row, row * sizeof(float));
                memcpy(want + i * row, golden_step(&golden, l, "out", s) + r * row,
                       row * sizeof(float));
                memcpy(k + i * GOLDEN_D, golden_step(&golden, l, "k_new", s) + r * GOLDEN_D,
                       GOLDEN_D * sizeof(float));
                memcpy(v + i * GOLDEN_D, golden_step(&golden, l, "v_new", s) + r * GOLDEN_D,
                       GOLDEN_D * sizeof(float));
            }
        }
        CHECK_OK(relay_step_attend(step, l, q, k, v, out, NULL, &err), err);
        if (!compare_tensor(&tolerance, out, want, GOLDEN_STEPS * OUT_FLOATS, NULL, NULL, why,
                            sizeof(why))) {
            CHECK_FAIL("layer %u: %s", l, why);
        }
    }
    relay_step_end(step);
    close_fixture(&f);
}

static void test_requests_tell_their_state(void)
{
    static float out[OUT_FLOATS], lse[LSE_FLOATS];
    struct relay_request state[GOLDEN_REQUESTS];
    const uint32_t keep[2] = {1, 0};
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    run_step(&f, 0, NULL, true, "out", "lse", out, lse);
    CHECK_STILL();
    CHECK_OK(relay_requests_get(f.session, f.requests, GOLDEN_REQUESTS, state, &err), err);
    for (uint32_t r = 0; r < GOLDEN_REQUESTS; r++) {
        CHECK_EQ(state[r].handle, f.requests[r]);
        CHECK_EQ(state[r].length, golden.user_lens[r] + 1);
        CHECK_EQ(state[r].held_max, golden.user_lens[r] + 1);
        CHECK_EQ(state[r].prompt_tokens, GOLDEN_TOKENS);
        CHECK_EQ(state[r].last_step_id, 1);
    }
    CHECK_OK(relay_requests_truncate(f.session, f.requests, keep, 2, &err), err);
    CHECK_OK(relay_requests_get(f.session, f.requests, 2, state, &err), err);
    CHECK_EQ(state[0].length, 1);
    CHECK_EQ(state[1].length, 0);
    CHECK_OK(relay_requests_close(f.session, f.requests, 2, &err), err);
    CHECK_OK(relay_requests_close(f.session, f.requests, 2, &err), err);
    CHECK_CODE(relay_requests_get(f.session, f.requests, 1, state, &err), RELAY_NOT_FOUND);
    close_fixture(&f);
}

/* Their entries are a few bytes each on the wire, and ten times that in memory. */
static void test_as_many_requests_as_a_session_may_have(void)
{
    enum { N = 4096 - GOLDEN_REQUESTS };
    static struct relay_request_options options[N + 1];
    static struct relay_request opened[N + 1], state[N];
    static uint64_t handles[N];
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    for (uint32_t i = 0; i < N + 1; i++) {
        options[i] = (struct relay_request_options)RELAY_REQUEST_OPTIONS_INIT;
    }
    CHECK_CODE(relay_requests_open(f.session, options, N + 1, opened, &err),
               RELAY_RESOURCE_EXHAUSTED);
    CHECK_OK(relay_requests_open(f.session, options, N, opened, &err), err);
    for (uint32_t i = 0; i < N; i++) {
        handles[i] = opened[i].handle;
    }
    CHECK_OK(relay_requests_get(f.session, handles, N, state, &err), err);
    CHECK_EQ(state[N - 1].handle, handles[N - 1]);
    CHECK_OK(relay_requests_close(f.session, handles, N, &err), err);
    close_fixture(&f);
}

/* Bad input gets its code and the server's words, and the next good step the same bits. */
static void test_mistakes_change_nothing(void)
{
    static float before[OUT_FLOATS], after[OUT_FLOATS], lse[LSE_FLOATS], out[OUT_FLOATS];
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_request_options opens[2] = {RELAY_REQUEST_OPTIONS_INIT,
                                             RELAY_REQUEST_OPTIONS_INIT};
    struct relay_request opened[2];
    struct relay_step *step = NULL;
    struct fixture f, other;
    uint64_t request = 7;
    open_fixture(&f);
    CHECK_STILL();
    open_fixture(&other);
    CHECK_STILL();
    run_step(&f, 0, NULL, true, "out", "lse", before, lse);
    CHECK_STILL();
    const float *q = golden_step(&golden, 0, "q", 0);
    const float *k = golden_step(&golden, 0, "k_new", 0);
    const float *v = golden_step(&golden, 0, "v_new", 0);

    CHECK_CODE(relay_request_open(f.session, "no/such/prompt", &request, &err), RELAY_NOT_FOUND);
    CHECK_EQ(request, 7);
    opens[0].prompt_id = "golden";
    opens[1].prompt_id = "golden";
    opens[1].generation = 12345;
    CHECK_CODE(relay_requests_open(f.session, opens, 2, opened, &err), RELAY_ABORTED);
    opens[1].generation = 0;
    opens[1].variant = "lora";
    CHECK_CODE(relay_requests_open(f.session, opens, 2, opened, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "lora") != NULL);
    opens[1].size = 1;
    CHECK_CODE(relay_requests_open(f.session, opens, 2, opened, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_request_append(f.session, f.requests[0], golden.user_lens[0] + 9, 1,
                                    golden.user[0], &err),
               RELAY_FAILED_PRECONDITION);

    struct relay_step_entry bad[2] = {f.entries[0], f.entries[1]};
    bad[1].request = 99;
    CHECK_OK(relay_step_begin(f.session, bad, 2, NULL, &step, &err), err);
    CHECK_CODE(relay_step_attend(step, 0, q, k, v, out, NULL, &err), RELAY_NOT_FOUND);
    CHECK(strstr(err.msg, "1") != NULL);
    CHECK_CODE(relay_step_attend(step, 2, q, k, v, out, NULL, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_attend(step, 0, q, k, NULL, out, NULL, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_attend(step, 0, NULL, k, v, out, NULL, &err), RELAY_INVALID_ARGUMENT);
    relay_step_end(step);
    /* Another session's handle is simply not there. */
    bad[1] = other.entries[1];
    CHECK_OK(relay_step_begin(f.session, bad, 2, NULL, &step, &err), err);
    CHECK_CODE(relay_step_attend(step, 0, q, k, v, out, NULL, &err), RELAY_NOT_FOUND);
    relay_step_end(step);
    bad[1] = bad[0];
    CHECK_OK(relay_step_begin(f.session, bad, 2, NULL, &step, &err), err);
    CHECK_CODE(relay_step_attend(step, 0, q, k, v, out, NULL, &err), RELAY_INVALID_ARGUMENT);
    relay_step_end(step);
    bad[0].position += 5;
    CHECK_OK(relay_step_begin(f.session, bad, 1, NULL, &step, &err), err);
    CHECK_CODE(relay_step_attend(step, 0, q, k, v, out, NULL, &err), RELAY_FAILED_PRECONDITION);
    relay_step_end(step);
    options.step_id = 1; /* the handles have seen newer ones by now */
    CHECK_OK(relay_step_begin(f.session, f.entries, 1, &options, &step, &err), err);
    CHECK_EQ(relay_step_id(step), 1);
    relay_step_end(step);
    CHECK_CODE(relay_step_begin(f.session, f.entries, 0, NULL, &step, &err),
               RELAY_INVALID_ARGUMENT);

    run_step(&f, 0, NULL, false, "out", "lse", after, lse);
    CHECK_STILL();
    CHECK(memcmp(before, after, sizeof(before)) == 0);
    close_fixture(&other);
    close_fixture(&f);
}

static void test_an_older_step_is_aborted(void)
{
    static float out[OUT_FLOATS], lse[LSE_FLOATS];
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    options.step_id = 10;
    run_step(&f, 0, &options, true, "out", "lse", out, lse);
    CHECK_STILL();
    options.step_id = 9;
    CHECK_OK(relay_step_begin(f.session, f.entries, GOLDEN_REQUESTS, &options, &step, &err), err);
    CHECK_CODE(
        relay_step_attend(step, 0, golden_step(&golden, 0, "q", 0), NULL, NULL, out, NULL, &err),
        RELAY_ABORTED);
    relay_step_end(step);
    /* The session's own ids go on from the largest. */
    CHECK_OK(relay_step_begin(f.session, f.entries, 1, NULL, &step, &err), err);
    CHECK_EQ(relay_step_id(step), 11);
    relay_step_end(step);
    close_fixture(&f);
}

static uint32_t sessions_held(void)
{
    struct relay_server_info *info = test_server_info(&server);
    const uint32_t sessions = info != NULL ? info->sessions : UINT32_MAX;
    relay_server_info_free(info);
    return sessions;
}

/* Two sessions with the shortest lease, idle: the one without keepalive ends. */
static void test_keepalive_keeps_an_idle_lease(void)
{
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    struct relay_client *client = NULL;
    struct relay_session *kept = NULL, *lost = NULL;
    uint64_t request;
    CHECK_OK(relay_client_open(server.unix_target, NULL, &client, &err), err);
    options.lease_ms = 2000;
    CHECK_OK(relay_session_open(client, golden.model, &options, &kept, &err), err);
    options.keepalive = false;
    CHECK_OK(relay_session_open(client, golden.model, &options, &lost, &err), err);
    CHECK(relay_session_lease_ms(lost) >= 2000);
    CHECK(relay_session_server_epoch(lost) == relay_session_server_epoch(kept));
    CHECK_EQ(sessions_held(), 2);
    for (int i = 0; i < 600 && sessions_held() == 2; i++) {
        const struct timespec t = {0, 50000000};
        nanosleep(&t, NULL);
    }
    CHECK_EQ(sessions_held(), 1);
    CHECK_CODE(relay_request_open(lost, "golden", &request, &err), RELAY_NOT_FOUND);
    CHECK_OK(relay_request_open(kept, "golden", &request, &err), err);
    relay_session_close(lost);
    relay_session_close(kept);
    relay_client_close(client);
}

struct worker {
    struct relay_client *client;
    const float *want;
    enum relay_code code;
    bool same;
};

/* One thread: a session of its own on the shared client, the recorded first step, many times. */
static void *work(void *user)
{
    struct worker *w = user;
    struct relay_session *session = NULL;
    struct relay_step *step = NULL;
    float *out = malloc(GOLDEN_HQ * GOLDEN_D * sizeof(float));
    uint64_t request;
    w->same = out != NULL;
    w->code = relay_session_open(w->client, golden.model, NULL, &session, NULL);
    if (w->code == RELAY_OK) {
        w->code = relay_request_open(session, "golden", &request, NULL);
    }
    if (w->code == RELAY_OK) {
        w->code =
            relay_request_append(session, request, 0, golden.user_lens[0], golden.user[0], NULL);
    }
    for (int i = 0; w->code == RELAY_OK && w->same && i < 20; i++) {
        const struct relay_step_entry entry = {request, golden.user_lens[0], 1};
        w->code = relay_step_begin(session, &entry, 1, NULL, &step, NULL);
        if (w->code == RELAY_OK) {
            w->code = relay_step_attend(step, 1, golden_step(&golden, 1, "q", 0),
                                        golden_step(&golden, 1, "k_new", 0),
                                        golden_step(&golden, 1, "v_new", 0), out, NULL, NULL);
            relay_step_end(step);
        }
        w->same =
            w->code == RELAY_OK && memcmp(out, w->want, GOLDEN_HQ * GOLDEN_D * sizeof(float)) == 0;
    }
    relay_session_close(session);
    free(out);
    return NULL;
}

/* More threads than may pluck from one queue; whoever shares a launch, a row's bits are the same.
 */
static void test_threads_share_a_client(void)
{
    static float out[OUT_FLOATS], lse[LSE_FLOATS];
    struct worker workers[8];
    pthread_t threads[8];
    struct fixture f;
    open_fixture(&f);
    CHECK_STILL();
    run_step(&f, 0, NULL, true, "out", "lse", out, lse);
    CHECK_STILL();
    for (int i = 0; i < 8; i++) {
        workers[i] = (struct worker){f.client, out, RELAY_UNKNOWN, false};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(workers[i].code, RELAY_OK);
        CHECK(workers[i].same);
    }
    close_fixture(&f);
}

static void test_server_tells_about_itself(void)
{
    struct relay_client *client = NULL;
    struct relay_server_info *info = NULL;
    bool serving = false;
    CHECK_OK(relay_client_open(server.tcp_target, NULL, &client, &err), err);
    CHECK_OK(relay_client_server_info(client, &info, &err), err);
    const char *backend =
        getenv("RELAYD_BACKEND"); /* relayd's own variable: "cuda:0" runs this there */
    CHECK(strncmp(backend != NULL ? backend : "cpu", info->backend, strlen(info->backend)) == 0);
    CHECK(info->version[0] != '\0' && info->threads > 0 && info->page_tokens > 0);
    CHECK(info->prompt_bytes_used > 0 && info->prompt_bytes_used <= info->prompt_bytes_max);
    CHECK_EQ(info->prompts, 1);
    relay_server_info_free(info);
    CHECK_OK(relay_client_health(client, NULL, &serving, &err), err);
    CHECK(serving);
    serving = false;
    CHECK_OK(relay_client_health(client, "relay.v1.RelayAttention", &serving, &err), err);
    CHECK(serving);
    CHECK_CODE(relay_client_health(client, "no.such.Service", &serving, &err), RELAY_NOT_FOUND);
    relay_client_close(client);
}

static void register_golden(void)
{
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    struct relay_client *client = NULL;
    desc.prompt_id = "golden";
    desc.model = golden.model;
    desc.num_tokens = GOLDEN_TOKENS;
    desc.layers = golden.prompt;
    CHECK_OK(relay_client_open(server.unix_target, NULL, &client, &err), err);
    CHECK_OK(relay_prompt_register(client, &desc, NULL, &err), err);
    relay_client_close(client);
}

static void test_nothing_is_left(void)
{
    CHECK(test_server_wait_idle(&server));
    struct relay_server_info *info = test_server_info(&server);
    CHECK(info != NULL);
    CHECK_EQ(info->request_bytes_used, 0);
    relay_server_info_free(info);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    golden_load(&golden);
    if (!test_server_start(&server, NULL)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(register_golden);
    CHECK_RUN(test_server_tells_about_itself);
    CHECK_RUN(test_steps_give_the_recorded_results);
    CHECK_RUN(test_parts_give_the_recorded_parts);
    CHECK_RUN(test_steps_in_every_way);
    CHECK_RUN(test_a_step_of_several_tokens);
    CHECK_RUN(test_requests_tell_their_state);
    CHECK_RUN(test_as_many_requests_as_a_session_may_have);
    CHECK_RUN(test_mistakes_change_nothing);
    CHECK_RUN(test_an_older_step_is_aborted);
    CHECK_RUN(test_keepalive_keeps_an_idle_lease);
    CHECK_RUN(test_threads_share_a_client);
    CHECK_RUN(test_nothing_is_left);
    test_server_fini(&server);
    golden_free(&golden);
    return check_done();
}
