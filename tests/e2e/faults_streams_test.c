/* Two thousand streams that do nothing: what each costs the server, that engines among them work
 * as always, and that all is given back. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#define PEERS 10u
#ifdef RELAY_TEST_SANITIZED
#define STREAMS_EACH 20u
#else
#define STREAMS_EACH 200u
#endif
#define STREAMS  (PEERS * STREAMS_EACH)
#define LAYERS   2u
#define TOKENS   64u
#define SAMPLES  20u /* streams that are woken for a step */
#define KIB_EACH 64u /* more than what is measured, less than what would hurt */

static struct test_server server;
static struct faults_model model;
static struct relay_error err;

static struct faults_peer own, peers[PEERS];
static struct faults_engine first, engines[STREAMS];
static float want[LAYERS * 4 * 32], got[LAYERS * 4 * 32];

static void test_two_thousand_idle_streams(void)
{
    struct faults_counts start, full;
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", TOKENS, 1, false, &err), err);
    CHECK_OK(faults_engine_open(&first, &own, &model, 1, 600000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&first, "p", 1, 0, &err), err);
    CHECK_OK(faults_engine_attach(&first, &err), err);
    CHECK_OK(faults_engine_step(&first, 1, 0, RELAY_PART_FULL, want, NULL, &err), err);
    CHECK(faults_counts(&own, server.pid, &start));
    const uint64_t began_ms = faults_now_ms();
    for (uint32_t p = 0; p < PEERS; p++) {
        faults_peer_open(&peers[p], p % 2 == 0 ? server.unix_target : server.tcp_target);
        for (uint32_t s = 0; s < STREAMS_EACH; s++) {
            struct faults_engine *engine = &engines[p * STREAMS_EACH + s];
            CHECK_OK(faults_engine_open(engine, &peers[p], &model, 1, 600000, 0, &err), err);
            CHECK_OK(faults_engine_attach(engine, &err), err);
        }
    }
    CHECK(faults_counts(&own, server.pid, &full));
    CHECK_EQ(full.sessions, start.sessions + STREAMS);
    const uint64_t each = (full.rss_bytes - start.rss_bytes) / STREAMS;
    fprintf(stderr, "%u streams on %u connections in %llu ms: %llu bytes of the server each\n",
            STREAMS, PEERS, (unsigned long long)(faults_now_ms() - began_ms),
            (unsigned long long)each);
#ifndef RELAY_TEST_SANITIZED
    CHECK(each < KIB_EACH << 10);
#endif
    /* Any of them can be woken, and none is mixed up with another. */
    for (uint32_t i = 0; i < STREAMS; i += STREAMS / SAMPLES) {
        CHECK_OK(faults_engine_requests(&engines[i], "p", 1, 0, &err), err);
        CHECK_OK(faults_engine_step(&engines[i], 1, 0, RELAY_PART_FULL, got, NULL, &err), err);
        CHECK(memcmp(got, want, sizeof(want)) == 0);
    }
    CHECK_OK(faults_engine_step(&first, 2, 0, RELAY_PART_FULL, got, NULL, &err), err);
    CHECK(memcmp(got, want, sizeof(want)) == 0);
    for (uint32_t i = 0; i < STREAMS; i++) {
        faults_engine_close(&engines[i]);
    }
    for (uint32_t p = 0; p < PEERS; p++) {
        faults_peer_close(&peers[p]);
    }
    CHECK(faults_back_to(&own, server.pid, &start));
    faults_engine_close(&first);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {
        "--threads", "1",           "--sessions-max", "2500", "--streams-max",
        "256",       "--log-level", "warn",           NULL};
    faults_model_init(&model, "streams@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_two_thousand_idle_streams);
    test_server_fini(&server);
    return check_done();
}
