/* The server ends in the middle of eight engines' steps: by SIGTERM (all are told, all finish, exit
 * code 0), by SIGTERM with a peer that has stopped (at the deadline, exit code 0), by SIGKILL (a
 * clean error for all; the next one has another epoch, knows nothing, and gives the same bits). */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ENGINES  8u
#define LAYERS   4u
#define TOKENS   300u
#define REQUESTS 4u
#define ROWS     16u /* of a request */
#define FLOATS   ((size_t)REQUESTS * ROWS * 4 * 32)

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static struct faults_peer own, peers[ENGINES];
static struct faults_engine engines[ENGINES];
static float want[LAYERS][REQUESTS * ROWS * 4 * 32], got[REQUESTS * ROWS * 4 * 32];
static uint64_t epoch;

static bool send_layer(struct faults_engine *engine, uint32_t layer)
{
    return faults_engine_call(engine, 1, 0, ROWS, layer, RELAY_PART_FULL, FAULTS_TIMEOUT_MS);
}

/* A session with a step open and its first two layers under way, nothing read yet. */
static bool go(struct faults_engine *engine, struct faults_peer *peer, const char *target)
{
    faults_peer_open(peer, target);
    return faults_engine_open(engine, peer, &model, 3, 600000, 0, &err) == RELAY_OK &&
           faults_engine_requests(engine, "p", REQUESTS, 0, &err) == RELAY_OK &&
           faults_engine_attach(engine, &err) == RELAY_OK &&
           faults_engine_begin(engine, 1, 0, ROWS, RELAY_PART_FULL) && send_layer(engine, 0) &&
           send_layer(engine, 1);
}

/* Reads up to the result of a layer; counts Drains on the way. */
static void read_layer(struct faults_engine *engine, uint32_t layer, unsigned *drains)
{
    struct faults_answer answer;
    for (;;) {
        CHECK_EQ(faults_engine_answer(engine, FAULTS_TIMEOUT_MS, got, sizeof(got), &answer),
                 FAULTS_MESSAGE);
        *drains += answer.kind == RELAY_WIRE_STREAM_DRAIN;
        if (answer.kind == RELAY_WIRE_STREAM_RESULT) {
            break;
        }
        CHECK_EQ(answer.code, RELAY_OK);
    }
    CHECK_EQ(answer.code, RELAY_OK);
    CHECK_EQ(answer.layer, layer);
    CHECK_EQ(answer.out_bytes, sizeof(got));
}

static void read_wanted(struct faults_engine *engine, uint32_t layer, unsigned *drains)
{
    read_layer(engine, layer, drains);
    CHECK_STILL();
    CHECK(memcmp(got, want[layer], sizeof(got)) == 0);
}

static void start_server(const char *drain_timeout_ms)
{
    const char *const args[] = {"--threads",      "1", "--log-level", "warn", "--drain-timeout-ms",
                                drain_timeout_ms, NULL};
    CHECK(test_server_start(&server, args));
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", TOKENS, 1, false, &err), err);
}

static void go_all(void)
{
    for (uint32_t i = 0; i < ENGINES; i++) {
        CHECK(go(&engines[i], &peers[i], i % 2 == 0 ? server.unix_target : server.tcp_target));
    }
}

static void close_all(void)
{
    for (uint32_t i = 0; i < ENGINES; i++) {
        faults_call_close(engines[i].stream);
        faults_peer_close(&peers[i]);
    }
    memset(engines, 0, sizeof(engines));
    faults_peer_close(&own);
}

/* What a whole step gives while nothing is wrong. */
static void test_undisturbed(void)
{
    struct faults_counts counts;
    unsigned drains = 0;
    start_server("60000");
    CHECK_STILL();
    CHECK(faults_counts(&own, server.pid, &counts));
    epoch = counts.epoch;
    CHECK(go(&engines[0], &peers[0], server.unix_target));
    CHECK(send_layer(&engines[0], 2) && send_layer(&engines[0], 3));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        read_layer(&engines[0], layer, &drains);
        CHECK_STILL();
        memcpy(want[layer], got, sizeof(got));
    }
    CHECK_EQ(drains, 0);
    faults_engine_close(&engines[0]);
    faults_peer_close(&peers[0]);
    CHECK(faults_back_to(&own, server.pid, &counts));
}

static void test_sigterm(void)
{
    unsigned drains = 0;
    int status = -1;
    go_all();
    CHECK_STILL();
    CHECK_EQ(kill(server.pid, SIGTERM), 0);
    for (uint32_t i = 0; i < ENGINES; i++) {
        struct faults_answer answer;
        unsigned mine = 0;
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            if (layer >= 2) {
                CHECK(send_layer(&engines[i], layer));
            }
            read_wanted(&engines[i], layer, &mine);
            CHECK_STILL();
        }
        while (mine == 0) { /* the signal may take longer than the layers */
            CHECK_EQ(faults_engine_answer(&engines[i], FAULTS_TIMEOUT_MS, NULL, 0, &answer),
                     FAULTS_MESSAGE);
            CHECK_EQ(answer.kind, RELAY_WIRE_STREAM_DRAIN);
            mine++;
        }
        CHECK(faults_engine_end(&engines[i], 1));
        CHECK(faults_call_half_close(engines[i].stream));
        while (faults_engine_answer(&engines[i], FAULTS_TIMEOUT_MS, NULL, 0, &answer) ==
               FAULTS_MESSAGE) {
            CHECK_EQ(answer.kind, RELAY_WIRE_STREAM_DRAIN);
            mine++;
        }
        /* Every answer came. The status of the last streams may be lost when the server's end of
         * the connection closes behind it with bytes of ours unread: that is a reset. */
        enum relay_code code = faults_call_status(engines[i].stream, &err);
        CHECK(code == RELAY_OK || code == RELAY_UNAVAILABLE);
        CHECK_EQ(mine, 1);
        drains += mine;
    }
    CHECK_EQ(drains, ENGINES);
    CHECK_EQ(waitpid(server.pid, &status, 0), server.pid);
    server.pid = 0;
    CHECK_EQ(status, 0);
    close_all();
}

static void test_sigkill(void)
{
    struct faults_counts counts;
    unsigned drains = 0;
    start_server("60000");
    CHECK_STILL();
    CHECK(faults_counts(&own, server.pid, &counts));
    CHECK(counts.epoch != epoch);
    go_all();
    CHECK_STILL();
    test_server_kill(&server);
    for (uint32_t i = 0; i < ENGINES; i++) {
        struct faults_answer answer;
        while (faults_engine_answer(&engines[i], FAULTS_TIMEOUT_MS, NULL, 0, &answer) ==
               FAULTS_MESSAGE) {
        }
        CHECK_CODE(faults_call_status(engines[i].stream, &err), RELAY_UNAVAILABLE);
    }
    struct faults_engine old = engines[0];
    close_all();
    start_server("60000");
    CHECK_STILL();
    old.peer = &own;
    CHECK_CODE(faults_engine_requests(&old, "p", 1, 0, &err), RELAY_NOT_FOUND);
    go_all();
    CHECK_STILL();
    for (uint32_t i = 0; i < ENGINES; i++) {
        CHECK(send_layer(&engines[i], 2) && send_layer(&engines[i], 3));
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            read_wanted(&engines[i], layer, &drains);
            CHECK_STILL();
        }
    }
    close_all();
    CHECK_EQ(test_server_stop(&server), 0);
}

/* ---- a peer that has stopped ---- */

static pid_t stopped;
static int stopped_go, stopped_ready;

/* Before gRPC is used here. */
static bool fork_peer(void)
{
    int start[2], ready[2];
    char target[sizeof(server.unix_target)];
    if (pipe(start) != 0 || pipe(ready) != 0) {
        return false;
    }
    stopped_go = start[1];
    stopped_ready = ready[0];
    stopped = fork();
    if (stopped == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (read(start[0], target, sizeof(target)) != sizeof(target) ||
            !go(&engines[0], &peers[0], target) || !send_layer(&engines[0], 2) ||
            !send_layer(&engines[0], 3) || write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    close(start[0]);
    close(ready[1]);
    return stopped > 0;
}

static void test_sigterm_with_a_stopped_peer(void)
{
    char byte;
    start_server("1000");
    CHECK_STILL();
    CHECK_EQ(write(stopped_go, server.unix_target, sizeof(server.unix_target)),
             sizeof(server.unix_target));
    CHECK_EQ(read(stopped_ready, &byte, 1), 1);
    CHECK_EQ(kill(stopped, SIGSTOP), 0);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
    kill(stopped, SIGKILL);
    waitpid(stopped, NULL, 0);
}

int main(void)
{
    faults_model_init(&model, "stop@test", LAYERS, 4, 2, 32);
    if (!fork_peer()) {
        return 1;
    }
    CHECK_RUN(test_undisturbed);
    CHECK_RUN(test_sigterm);
    CHECK_RUN(test_sigkill);
    CHECK_RUN(test_sigterm_with_a_stopped_peer);
    test_server_fini(&server);
    return check_done();
}
