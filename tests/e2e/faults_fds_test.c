/* The server's file descriptors run out: those who are connected go on, who comes is told so at
 * once, and when there is room again everyone is served. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LIMIT  64u
#define FLOOD  200u
#define LAYERS 2u

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static struct faults_peer own;
static struct faults_engine engine;
static float want[LAYERS * 4 * 32], got[LAYERS * 4 * 32];
static uint64_t steps;

static void step(float *out)
{
    CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, out, NULL, &err), err);
}

static int connect_raw(bool tcp)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct sockaddr_in in = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)server.port),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(un.sun_path, sizeof(un.sun_path), "%s/sock", server.dir);
    const struct sockaddr *address =
        tcp ? (const struct sockaddr *)&in : (const struct sockaddr *)&un;
    if (connect(fd, address, tcp ? sizeof(in) : sizeof(un)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What a new client gets: OK, or the code it sees. */
static enum relay_code newcomer(bool tcp)
{
    struct faults_peer peer;
    struct faults_engine other;
    faults_peer_open(&peer, tcp ? server.tcp_target : server.unix_target);
    const enum relay_code code = faults_engine_open(&other, &peer, &model, 2, 60000, 0, &err);
    if (code == RELAY_OK) {
        faults_engine_close(&other);
    }
    faults_peer_close(&peer);
    return code;
}

static void flood(bool tcp)
{
    int fds[FLOOD];
    uint32_t n = 0;
    struct faults_counts start;
    CHECK(faults_counts(&own, server.pid, &start));
    while (n < FLOOD && (fds[n] = connect_raw(tcp)) >= 0) {
        n++;
    }
    CHECK(n >= LIMIT);
    CHECK_CODE(newcomer(tcp), RELAY_UNAVAILABLE);
    CHECK_CODE(newcomer(!tcp), RELAY_UNAVAILABLE);
    CHECK(faults_fds(server.pid) <= LIMIT + 3);
    for (int i = 0; i < 10; i++) {
        step(got);
        CHECK_STILL();
        CHECK(memcmp(got, want, sizeof(want)) == 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        close(fds[i]);
    }
    CHECK(faults_back_to(&own, server.pid, &start));
    CHECK_CODE(newcomer(tcp), RELAY_OK);
    CHECK_CODE(newcomer(!tcp), RELAY_OK);
    CHECK(faults_back_to(&own, server.pid, &start));
}

static void test_a_limit(void)
{
    const struct rlimit limit = {LIMIT, LIMIT};
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", 64, 1, false, &err), err);
    CHECK_OK(faults_engine_open(&engine, &own, &model, 1, 600000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&engine, "p", 1, 0, &err), err);
    CHECK_OK(faults_engine_attach(&engine, &err), err);
    step(want);
    CHECK_STILL();
    CHECK_EQ(prlimit(server.pid, RLIMIT_NOFILE, &limit, NULL), 0);
}

static void test_a_flood_on_tcp(void)
{
    flood(true);
}

static void test_a_flood_on_the_unix_socket(void)
{
    flood(false);
}

static void test_stop_is_clean(void)
{
    faults_engine_close(&engine);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads", "1", "--log-level", "error", NULL};
    faults_model_init(&model, "fds@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_a_limit);
    CHECK_RUN(test_a_flood_on_tcp);
    CHECK_RUN(test_a_flood_on_the_unix_socket);
    CHECK_RUN(test_stop_is_clean);
    test_server_fini(&server);
    return check_done();
}
