/* One more than each limit allows: RESOURCE_EXHAUSTED, in words, and room again when one has gone.
 * Streams over the limit of their connection wait in HTTP/2 until one ends. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#define SESSIONS    4u
#define REQUESTS    24u /* over all sessions */
#define PER_SESSION 20u
#define UPLOADS     2u
#define PROMPTS     4u
#define IN_FLIGHT   2u
#define STREAMS     3u
#define STEPS       16u
#define LAYERS      2u
#define TOKENS      40u

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static struct faults_peer own;
static struct faults_counts start;

static void check_refused(enum relay_code code, const char *words)
{
    if (code != RELAY_RESOURCE_EXHAUSTED || strstr(err.msg, words) == NULL) {
        CHECK_FAIL("%s: %s; wanted RESOURCE_EXHAUSTED with \"%s\"", relay_code_name(code), err.msg,
                   words);
    }
}

static void back_to_start(void)
{
    CHECK(faults_back_to(&own, server.pid, &start));
}

static enum relay_code open_engine(struct faults_engine *engine, uint64_t seed)
{
    return faults_engine_open(engine, &own, &model, seed, 600000, 0, &err);
}

static void test_begin(void)
{
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", TOKENS, 1, false, &err), err);
    CHECK(faults_counts(&own, server.pid, &start));
}

static void test_sessions(void)
{
    struct faults_engine engines[SESSIONS], more;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        CHECK_OK(open_engine(&engines[i], i), err);
    }
    check_refused(open_engine(&more, 9), "4 sessions");
    CHECK_STILL();
    faults_engine_close(&engines[0]);
    CHECK_OK(open_engine(&more, 9), err);
    faults_engine_close(&more);
    for (uint32_t i = 1; i < SESSIONS; i++) {
        faults_engine_close(&engines[i]);
    }
    back_to_start();
}

static void test_requests(void)
{
    struct faults_engine one, two;
    CHECK_OK(open_engine(&one, 1), err);
    CHECK_OK(open_engine(&two, 2), err);
    CHECK_OK(faults_engine_requests(&one, "p", PER_SESSION, 0, &err), err);
    check_refused(faults_engine_requests(&one, "p", 1, 0, &err), "20 requests");
    CHECK_STILL();
    /* All or nothing: of five there is room for four. */
    check_refused(faults_engine_requests(&two, "p", REQUESTS - PER_SESSION + 1, 0, &err),
                  "24 requests");
    CHECK_STILL();
    CHECK_OK(faults_engine_requests(&two, "p", REQUESTS - PER_SESSION, 0, &err), err);
    CHECK_OK(faults_engine_drop(&one, 1, &err), err);
    CHECK_OK(faults_engine_requests(&two, "p", 1, 0, &err), err);
    faults_engine_close(&one);
    faults_engine_close(&two);
    back_to_start();
}

static void test_uploads(void)
{
    struct faults_call *uploads[UPLOADS];
    const char *const ids[UPLOADS] = {"u0", "u1"};
    for (uint32_t i = 0; i < UPLOADS; i++) {
        uploads[i] = faults_upload_begin(&own, &model, ids[i], TOKENS, false, NULL, &err);
        CHECK(uploads[i] != NULL);
        CHECK(faults_upload_chunk(uploads[i], &model, 0, 0, TOKENS, 1));
    }
    check_refused(faults_register(&own, &model, "more", TOKENS, 1, false, &err), "2 uploads");
    CHECK_STILL();
    faults_call_close(uploads[0]);
    /* The broken one is cleared away by the worker. */
    enum relay_code code = RELAY_RESOURCE_EXHAUSTED;
    for (int i = 0; i < 500 && code == RELAY_RESOURCE_EXHAUSTED; i++) {
        faults_sleep_ms(i == 0 ? 0 : 10);
        code = faults_register(&own, &model, "more", TOKENS, 1, false, &err);
    }
    CHECK_CODE(code, RELAY_OK);
    CHECK_OK(faults_unregister(&own, &model, "more", &err), err);
    faults_call_close(uploads[1]);
    back_to_start();
}

static void test_prompts(void)
{
    char id[8];
    for (uint32_t i = 1; i < PROMPTS; i++) {
        snprintf(id, sizeof(id), "p%u", i);
        CHECK_OK(faults_register(&own, &model, id, TOKENS, 1, false, &err), err);
    }
    check_refused(faults_register(&own, &model, "more", TOKENS, 1, false, &err), "4 prompts");
    CHECK_STILL();
    for (uint32_t i = 1; i < PROMPTS; i++) {
        snprintf(id, sizeof(id), "p%u", i);
        CHECK_OK(faults_unregister(&own, &model, id, &err), err);
    }
    CHECK_OK(faults_register(&own, &model, "more", TOKENS, 1, false, &err), err);
    CHECK_OK(faults_unregister(&own, &model, "more", &err), err);
    back_to_start();
}

/* K/V of more tokens than the budget of prompts: nothing of it stays. */
static void test_prompt_bytes(void)
{
    check_refused(faults_register(&own, &model, "big", 100000, 1, false, &err), "");
    CHECK_STILL();
    back_to_start();
}

/* Calls over the limit are refused one by one; the stream and its other calls live. */
static void test_calls_in_flight(void)
{
    struct faults_engine engine;
    struct faults_answer answer;
    unsigned good = 0, refused = 0;
    const unsigned calls = 40;
    CHECK_OK(open_engine(&engine, 1), err);
    CHECK_OK(faults_engine_requests(&engine, "p", PER_SESSION, 0, &err), err);
    CHECK_OK(faults_engine_attach(&engine, &err), err);
    CHECK(faults_engine_begin(&engine, 1, 0, 8, RELAY_PART_FULL));
    for (unsigned i = 0; i < calls; i++) {
        CHECK(faults_engine_call(&engine, 1, 0, 8, i % LAYERS, RELAY_PART_FULL, FAULTS_TIMEOUT_MS));
    }
    while (good + refused < calls) {
        CHECK_EQ(faults_engine_answer(&engine, FAULTS_TIMEOUT_MS, NULL, 0, &answer),
                 FAULTS_MESSAGE);
        if (answer.kind == RELAY_WIRE_STREAM_RESULT && answer.code != RELAY_OK) {
            CHECK_EQ(answer.code, RELAY_RESOURCE_EXHAUSTED);
            CHECK(strstr(answer.message, "all 2 calls") != NULL);
            refused++;
        } else if (answer.kind == RELAY_WIRE_STREAM_RESULT) {
            good++;
        }
    }
    fprintf(stderr, "%u calls at once: %u answered, %u refused\n", calls, good, refused);
    CHECK(good >= IN_FLIGHT && refused > 0);
    CHECK_OK(faults_engine_step(&engine, 2, 8, RELAY_PART_FULL, NULL, NULL, &err), err);
    faults_engine_close(&engine);
    back_to_start();
}

/* A step on each request; the one too many is refused and said so, and ending one makes room. */
static void test_steps_of_a_stream(void)
{
    struct faults_engine engine, one;
    struct faults_answer answer;
    CHECK_OK(open_engine(&engine, 1), err);
    CHECK_OK(faults_engine_requests(&engine, "p", STEPS + 1, 0, &err), err);
    CHECK_OK(faults_engine_attach(&engine, &err), err);
    one = engine;
    one.num_requests = 1;
    for (uint32_t i = 0; i <= STEPS; i++) {
        one.handles[0] = engine.handles[i];
        CHECK(faults_engine_begin(&one, i + 1, 0, 1, RELAY_PART_FULL));
        CHECK_EQ(faults_engine_answer(&one, FAULTS_TIMEOUT_MS, NULL, 0, &answer), FAULTS_MESSAGE);
        CHECK_EQ(answer.code, i < STEPS ? RELAY_OK : RELAY_RESOURCE_EXHAUSTED);
    }
    CHECK(strstr(answer.message, "16 steps") != NULL);
    CHECK(faults_engine_end(&one, 1));
    CHECK_OK(faults_engine_step(&one, STEPS + 2, 0, RELAY_PART_FULL, NULL, NULL, &err), err);
    faults_engine_close(&engine);
    back_to_start();
}

static void test_streams_of_a_connection(void)
{
    struct faults_peer peer;
    struct faults_engine engines[STREAMS], more;
    struct faults_answer answer;
    faults_peer_open(&peer, server.tcp_target);
    for (uint32_t i = 0; i < STREAMS; i++) {
        CHECK_OK(open_engine(&engines[i], i), err);
        engines[i].peer = &peer;
        CHECK_OK(faults_engine_attach(&engines[i], &err), err);
    }
    CHECK_OK(open_engine(&more, 9), err);
    more.peer = &peer;
    more.stream = faults_call_open(&peer, "StreamRelayAttention");
    /* Its first message cannot leave. */
    CHECK_EQ(faults_engine_answer(&more, 300, NULL, 0, &answer), FAULTS_SILENCE);
    faults_call_close(engines[0].stream);
    engines[0].stream = NULL;
    faults_call_close(more.stream);
    CHECK_OK(faults_engine_attach(&more, &err), err);
    for (uint32_t i = 0; i < STREAMS; i++) {
        engines[i].peer = &own; /* for the unary calls */
        faults_engine_close(&engines[i]);
    }
    more.peer = &own;
    faults_engine_close(&more);
    faults_peer_close(&peer);
    back_to_start();
}

static void test_stop_is_clean(void)
{
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads",
                                       "1",
                                       "--sessions-max",
                                       "4",
                                       "--requests-max",
                                       "24",
                                       "--requests-per-session-max",
                                       "20",
                                       "--uploads-max",
                                       "2",
                                       "--prompts-max",
                                       "4",
                                       "--prompt-bytes-max",
                                       "16M",
                                       "--calls-in-flight-max",
                                       "2",
                                       "--streams-max",
                                       "3",
                                       "--log-level",
                                       "warn",
                                       NULL};
    faults_model_init(&model, "limits@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_begin);
    CHECK_RUN(test_sessions);
    CHECK_RUN(test_requests);
    CHECK_RUN(test_uploads);
    CHECK_RUN(test_prompts);
    CHECK_RUN(test_prompt_bytes);
    CHECK_RUN(test_calls_in_flight);
    CHECK_RUN(test_steps_of_a_stream);
    CHECK_RUN(test_streams_of_a_connection);
    CHECK_RUN(test_stop_is_clean);
    test_server_fini(&server);
    return check_done();
}
