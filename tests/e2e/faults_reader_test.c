/* A client that sends and does not read: its answers wait in its own slots, it takes no more memory
 * than those, and others' results stay the same to the bit. When it reads at last, everything is
 * there. One that sends more than it may is cut off. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#define LAYERS     2u
#define HQ         16u
#define HKV        2u
#define D          64u
#define TOKENS     64u
#define REQUESTS   8u
#define ROWS       32u /* of a request */
#define ROWS_ALL   (REQUESTS * ROWS)
#define IN_FLIGHT  8u
#define CALLS_MAX  2000u
#define SLACK      ((uint64_t)8 << 20)
#define WINDOW     ((uint64_t)16 << 20) /* what gRPC takes in ahead of its reader */
#define OUT_FLOATS (ROWS_ALL * HQ * D)
/* q, k, v, out, LSE of a call with all rows of the session. */
#define SLOT_BYTES                                                                                 \
    ((uint64_t)ROWS_ALL * (2 * HQ * D + 2 * HKV * D + HQ) * sizeof(float) + (uint64_t)5 * 64)

static struct test_server server;
static struct faults_model model;
static struct relay_error err;

static struct faults_peer peer, own; /* the reader's and everyone else's */
static struct faults_engine reader, other;
static float want[LAYERS * 2 * HQ * D], got[LAYERS * 2 * HQ * D];
static float result[OUT_FLOATS], first[LAYERS][OUT_FLOATS];
static uint64_t steps;
static struct faults_counts start;

static void test_others_begin(void)
{
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", TOKENS, 1, false, &err), err);
    CHECK_OK(faults_engine_open(&other, &own, &model, 1, 600000, 2, &err), err);
    CHECK_OK(faults_engine_requests(&other, "p", 2, 0, &err), err);
    CHECK_OK(faults_engine_attach(&other, &err), err);
    CHECK_OK(faults_engine_step(&other, ++steps, 0, RELAY_PART_FULL, want, NULL, &err), err);
    CHECK(faults_counts(&own, server.pid, &start));
}

static void others_go_on(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        CHECK_OK(faults_engine_step(&other, ++steps, 0, RELAY_PART_FULL, got, NULL, &err), err);
        CHECK(memcmp(got, want, sizeof(want)) == 0);
    }
}

/* Calls of step 1, layer after layer, again and again: the same step's call may be repeated. */
static bool send_call(unsigned n)
{
    return faults_engine_call(&reader, 1, 0, ROWS, n % LAYERS, RELAY_PART_FULL, FAULTS_TIMEOUT_MS);
}

/* One answer; the bits of a layer are always the same. */
static void take_answer(unsigned *good)
{
    static bool seen[LAYERS];
    struct faults_answer answer;
    CHECK_EQ(faults_engine_answer(&reader, FAULTS_TIMEOUT_MS, result, sizeof(result), &answer),
             FAULTS_MESSAGE);
    CHECK_EQ(answer.kind, RELAY_WIRE_STREAM_RESULT);
    CHECK_EQ(answer.code, RELAY_OK);
    CHECK_EQ(answer.out_bytes, sizeof(result));
    if (!seen[answer.layer]) {
        seen[answer.layer] = true;
        memcpy(first[answer.layer], result, sizeof(result));
    }
    CHECK(memcmp(first[answer.layer], result, sizeof(result)) == 0);
    ++*good;
}

static void open_reader(void)
{
    struct faults_answer answer;
    faults_peer_open(&peer, server.tcp_target);
    CHECK_OK(faults_engine_open(&reader, &peer, &model, 2, 600000, ROWS_ALL, &err), err);
    CHECK_OK(faults_engine_requests(&reader, "p", REQUESTS, 0, &err), err);
    CHECK_OK(faults_engine_attach(&reader, &err), err);
    CHECK(faults_engine_begin(&reader, 1, 0, ROWS, RELAY_PART_FULL));
    CHECK_EQ(faults_engine_answer(&reader, FAULTS_TIMEOUT_MS, NULL, 0, &answer), FAULTS_MESSAGE);
    CHECK_EQ(answer.code, RELAY_OK);
}

static void close_reader(void)
{
    faults_engine_close(&reader);
    faults_peer_close(&peer);
}

/* Sends until the server has had enough. */
static void send_until_cut(unsigned *sent, uint64_t *rss_most)
{
    bool went = true;
    for (*sent = 0; went && *sent < CALLS_MAX; ++*sent) {
        went = send_call(*sent);
        const uint64_t now = faults_rss_bytes(server.pid);
        *rss_most = now > *rss_most ? now : *rss_most;
    }
    CHECK(!went); /* else nothing bounds what a client can make the server keep */
}

static void check_growth(const char *who, uint64_t before, uint64_t most, uint64_t slack)
{
    const uint64_t grown = most > before ? most - before : 0;
    fprintf(stderr, "%s: grew by %llu KiB; allowed: %u slots of %llu KiB and %llu KiB\n", who,
            (unsigned long long)grown >> 10, IN_FLIGHT, (unsigned long long)SLOT_BYTES >> 10,
            (unsigned long long)slack >> 10);
#ifndef RELAY_TEST_SANITIZED
    CHECK(grown <= IN_FLIGHT * SLOT_BYTES + slack);
#endif
}

/* The same traffic with a client that reads: what gRPC and the allocator keep for it is there
 * before anything is measured. */
static void test_a_good_reader_first(void)
{
    unsigned good = 0;
    open_reader();
    CHECK_STILL();
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < IN_FLIGHT; i++) {
            CHECK(send_call(i));
        }
        for (unsigned i = 0; i < IN_FLIGHT; i++) {
            take_answer(&good);
            CHECK_STILL();
        }
    }
    CHECK_EQ(good, 10 * IN_FLIGHT);
    close_reader();
    CHECK(faults_back_to(&own, server.pid, &start));
}

/* As many calls as it may have in flight, none of them read until later. */
static void test_a_slow_reader_hurts_nobody(void)
{
    unsigned good = 0;
    const uint64_t before = faults_rss_bytes(server.pid);
    uint64_t most = before;
    open_reader();
    CHECK_STILL();
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        CHECK(send_call(i));
    }
    for (int i = 0; i < 20; i++) {
        others_go_on(5);
        CHECK_STILL();
        const uint64_t now = faults_rss_bytes(server.pid);
        most = now > most ? now : most;
    }
    check_growth("slow reader", before, most, SLACK);
    CHECK_STILL();
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        take_answer(&good);
        CHECK_STILL();
    }
    CHECK_EQ(good, IN_FLIGHT);
    close_reader();
    CHECK(faults_back_to(&own, server.pid, &start));
}

/* More and more calls, no answer read: the stream is cut, the session lives. */
static void test_a_flood_is_cut(void)
{
    struct faults_answer answer;
    unsigned sent;
    open_reader();
    CHECK_STILL();
    const uint64_t before = faults_rss_bytes(server.pid);
    uint64_t most = before;
    send_until_cut(&sent, &most);
    CHECK_STILL();
    while (faults_engine_answer(&reader, FAULTS_TIMEOUT_MS, NULL, 0, &answer) == FAULTS_MESSAGE) {
    }
    CHECK_CODE(faults_call_status(reader.stream, &err), RELAY_RESOURCE_EXHAUSTED);
    fprintf(stderr, "cut after %u calls of %zu KiB: %s\n", sent,
            ROWS_ALL * (HQ * D + 2 * HKV * D) * sizeof(float) >> 10, err.msg);
    check_growth("flood", before, most, SLACK + WINDOW);
    CHECK_STILL();
    others_go_on(10);
    CHECK_STILL();
    faults_call_close(reader.stream);
    CHECK_OK(faults_engine_attach(&reader, &err), err);
    CHECK_OK(faults_engine_step(&reader, 2, ROWS, RELAY_PART_PROMPT_ONLY, NULL, NULL, &err), err);
    close_reader();
    CHECK(faults_back_to(&own, server.pid, &start));
}

/* Gone while its answers lie there. */
static void test_a_slow_reader_that_leaves(void)
{
    open_reader();
    CHECK_STILL();
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        CHECK(send_call(i));
    }
    close_reader();
    others_go_on(10);
    CHECK_STILL();
    CHECK(faults_back_to(&own, server.pid, &start));
}

static void test_stop_is_clean(void)
{
    faults_engine_close(&other);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads", "1", "--log-level", "warn", NULL};
    faults_model_init(&model, "reader@test", LAYERS, HQ, HKV, D);
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_others_begin);
    CHECK_RUN(test_a_good_reader_first);
    CHECK_RUN(test_a_slow_reader_hurts_nobody);
    CHECK_RUN(test_a_flood_is_cut);
    CHECK_RUN(test_a_slow_reader_that_leaves);
    CHECK_RUN(test_stop_is_clean);
    test_server_fini(&server);
    return check_done();
}
