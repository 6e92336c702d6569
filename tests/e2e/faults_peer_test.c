/* Peers that neither answer nor go: stopped processes, and a network that swallows everything. The
 * server's keepalive finds them; their steps end, their requests and memory come back when their
 * lease is over, and others never notice.
 *
 * The test lives in a network namespace of its own, so that it can take the network away. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LAYERS    4u
#define TOKENS    300u
#define REQUESTS  8u
#define ROWS      32u /* of a request, in calls that take a while */
#define LEASE_MS  2000u
#define CHILDREN  2u
#define OUT_BYTES (2 * LAYERS * 4 * 32 * sizeof(float))

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static bool own_network;

/* An engine in the middle of a step, answers unread. */
static bool reach(struct faults_engine *engine, struct faults_peer *peer, const char *target)
{
    faults_peer_open(peer, target);
    bool sent = faults_engine_open(engine, peer, &model, 7, LEASE_MS, 0, &err) == RELAY_OK &&
                faults_engine_requests(engine, "p", REQUESTS, 0, &err) == RELAY_OK &&
                faults_engine_attach(engine, &err) == RELAY_OK &&
                faults_engine_begin(engine, 1, 0, ROWS, RELAY_PART_FULL);
    for (uint32_t layer = 0; sent && layer < LAYERS; layer++) {
        sent = faults_engine_call(engine, 1, 0, ROWS, layer, RELAY_PART_FULL, FAULTS_TIMEOUT_MS);
    }
    return sent;
}

/* Reads what is left; how the stream ended. */
static enum relay_code read_to_end(struct faults_engine *engine)
{
    struct faults_answer answer;
    while (faults_engine_answer(engine, FAULTS_TIMEOUT_MS, NULL, 0, &answer) == FAULTS_MESSAGE) {
    }
    return faults_call_status(engine->stream, &err);
}

/* ---- someone else, whose results must stay the same ---- */

struct bystander {
    struct faults_peer peer;
    struct faults_engine engine;
    struct faults_counts start;
    uint64_t steps;
    unsigned char want[OUT_BYTES], got[OUT_BYTES];
};

static struct bystander by;

static void step(unsigned char *out)
{
    CHECK_OK(faults_engine_step(&by.engine, ++by.steps, 0, RELAY_PART_FULL, (float *)(void *)out,
                                NULL, &err),
             err);
}

static void open_bystander(void)
{
    by.steps = 0;
    faults_peer_open(&by.peer, server.unix_target);
    CHECK_OK(faults_register(&by.peer, &model, "p", TOKENS, 1, false, &err), err);
    CHECK_OK(faults_engine_open(&by.engine, &by.peer, &model, 1, 600000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&by.engine, "p", 2, 0, &err), err);
    CHECK_OK(faults_engine_attach(&by.engine, &err), err);
    step(by.want);
    CHECK_STILL();
    CHECK(faults_counts(&by.peer, server.pid, &by.start));
}

/* Until the silent ones are gone, their sessions too. */
static void wait_gone(const char *what)
{
    const uint64_t began_ms = faults_now_ms();
    CHECK(faults_back_to(&by.peer, server.pid, &by.start));
    fprintf(stderr, "%s: gone after %llu ms\n", what,
            (unsigned long long)(faults_now_ms() - began_ms));
    step(by.got);
    CHECK_STILL();
    CHECK(memcmp(by.got, by.want, sizeof(by.want)) == 0);
}

static void close_bystander(void)
{
    faults_engine_close(&by.engine);
    faults_peer_close(&by.peer);
}

/* ---- stopped processes ---- */

struct child {
    pid_t pid;
    int go, ready;
};

static struct child children[CHILDREN];

static void child_run(int go, int ready, const char *target)
{
    struct faults_peer peer;
    struct faults_engine engine;
    char byte;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (read(go, &byte, 1) != 1 || !reach(&engine, &peer, target) || write(ready, "r", 1) != 1 ||
        read(go, &byte, 1) != 1) {
        fprintf(stderr, "%s: %s\n", relay_code_name(err.code), err.msg);
        _exit(1);
    }
    const enum relay_code code = read_to_end(&engine);
    fprintf(stderr, "woken: %s: %s\n", relay_code_name(code), err.msg);
    _exit(code == RELAY_UNAVAILABLE ? 0 : 1);
}

/* Before gRPC is used here. */
static bool open_children(void)
{
    const char *const targets[CHILDREN] = {server.unix_target, server.tcp_target};
    for (uint32_t i = 0; i < CHILDREN; i++) {
        int go[2], ready[2];
        if (pipe(go) != 0 || pipe(ready) != 0) {
            return false;
        }
        children[i] = (struct child){fork(), go[1], ready[0]};
        if (children[i].pid == 0) {
            child_run(go[0], ready[1], targets[i]);
        }
        close(go[0]);
        close(ready[1]);
    }
    return true;
}

static void test_stopped_peers_go(void)
{
    struct faults_counts now;
    char byte;
    int status;
    open_bystander();
    CHECK_STILL();
    for (uint32_t i = 0; i < CHILDREN; i++) {
        CHECK_EQ(write(children[i].go, "g", 1), 1);
        CHECK_EQ(read(children[i].ready, &byte, 1), 1);
        CHECK_EQ(kill(children[i].pid, SIGSTOP), 0);
    }
    CHECK(faults_counts(&by.peer, server.pid, &now));
    CHECK_EQ(now.sessions, by.start.sessions + CHILDREN);
    wait_gone("stopped processes");
    CHECK_STILL();
    for (uint32_t i = 0; i < CHILDREN; i++) { /* awake again, they learn it by a clear code */
        CHECK_EQ(write(children[i].go, "g", 1), 1);
        CHECK_EQ(kill(children[i].pid, SIGCONT), 0);
        CHECK_EQ(waitpid(children[i].pid, &status, 0), children[i].pid);
        CHECK_EQ(status, 0);
    }
    close_bystander();
}

/* ---- no network ---- */

static bool loopback(bool up)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = up ? IFF_UP : 0};
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const bool done = fd >= 0 && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    close(fd);
    return done;
}

static void test_half_open_connections_go(void)
{
    struct faults_peer peer;
    struct faults_engine engine;
    struct faults_counts now;
    if (!own_network) {
        CHECK_SKIP("no network namespace of its own here (needs root): %s", strerror(errno));
    }
    open_bystander();
    CHECK_STILL();
    CHECK(reach(&engine, &peer, server.tcp_target));
    CHECK(faults_counts(&by.peer, server.pid, &now));
    CHECK_EQ(now.sessions, by.start.sessions + 1);
    CHECK(loopback(false));
    wait_gone("half-open connection");
    CHECK_STILL();
    CHECK(loopback(true));
    CHECK_CODE(read_to_end(&engine), RELAY_UNAVAILABLE);
    faults_call_close(engine.stream);
    faults_peer_close(&peer);
    /* The address serves again. */
    CHECK(reach(&engine, &peer, server.tcp_target));
    faults_engine_close(&engine);
    faults_peer_close(&peer);
    wait_gone("who came back");
    CHECK_STILL();
    close_bystander();
}

static void test_stop_is_clean(void)
{
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads",
                                       "1",
                                       "--sweep-interval-ms",
                                       "50",
                                       "--keepalive-time-ms",
                                       "1000",
                                       "--keepalive-timeout-ms",
                                       "1000",
                                       "--session-lease-ms",
                                       "2000",
                                       "--log-level",
                                       "warn",
                                       NULL};
    own_network = unshare(CLONE_NEWNET) == 0 && loopback(true);
    const int why = errno;
    faults_model_init(&model, "peer@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args) || !open_children()) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_stopped_peers_go);
    errno = why;
    CHECK_RUN(test_half_open_connections_go);
    CHECK_RUN(test_stop_is_clean);
    test_server_fini(&server);
    return check_done();
}
