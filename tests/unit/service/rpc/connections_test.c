/* accept4 within the descriptors, and peers that stop reading: on plain sockets, without gRPC and
 * without waiting. */
#include "service/rpc/connections.h"

#include "testlib/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define STALL_NS UINT64_C(1000)

static int listener;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_bytes;

/* An abstract address: nothing to remove. */
static void test_listen(void)
{
    const int n = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1,
                           "relayd-connections-test-%ld", (long)getpid());
    address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(listener, (const struct sockaddr *)&address, address_bytes), 0);
    CHECK_EQ(listen(listener, 64), 0);
}

struct pair {
    int client, server;
};

static struct pair pair_open(void)
{
    struct pair p = {socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), -1};
    if (connect(p.client, (const struct sockaddr *)&address, address_bytes) == 0) {
        p.server = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    }
    return p;
}

static void pair_close(const struct pair *p)
{
    close(p->client);
    close(p->server);
}

static void fill(int fd)
{
    static const char bytes[4096];
    while (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0) {
    }
}

/* How many it ends of those there are, looked at twice. */
static uint32_t sweep_twice(uint64_t first_ns, uint64_t second_ns)
{
    const uint32_t ended = relayd_rpc_connections_sweep(first_ns, STALL_NS);
    return ended + relayd_rpc_connections_sweep(second_ns, STALL_NS);
}

static bool is_shut(int client)
{
    char bytes[4096];
    ssize_t got;
    do {
        got = recv(client, bytes, sizeof(bytes), MSG_DONTWAIT);
    } while (got > 0);
    return got == 0;
}

static void test_connections_accept_tells_the_address(void)
{
    struct sockaddr_un peer;
    socklen_t bytes = sizeof(peer);
    const int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client, (const struct sockaddr *)&address, address_bytes), 0);
    const int fd = accept4(listener, (struct sockaddr *)&peer, &bytes, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(peer.sun_family, AF_UNIX);
    CHECK_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    close(fd);
    close(client);
    CHECK_EQ(accept4(listener, NULL, NULL, 0), -1);
    CHECK_EQ(errno, EAGAIN);
}

static void test_connections_silent_peers_are_ended(void)
{
    struct pair idle = pair_open(), silent = pair_open();
    fill(silent.server);
    CHECK_EQ(sweep_twice(100, 100 + STALL_NS - 1), 0);
    CHECK(!is_shut(idle.client));
    CHECK_EQ(relayd_rpc_connections_sweep(100 + STALL_NS, STALL_NS), 1);
    CHECK(is_shut(silent.client));
    CHECK(!is_shut(idle.client));
    CHECK_EQ(sweep_twice(9000, 19000), 0); /* once */
    pair_close(&idle);
    pair_close(&silent);
}

static void test_connections_slow_peers_go_on(void)
{
    char bytes[4096];
    struct pair slow = pair_open();
    fill(slow.server);
    for (uint64_t now_ns = 100; now_ns < 100 + 20 * STALL_NS; now_ns += STALL_NS) {
        CHECK_EQ(relayd_rpc_connections_sweep(now_ns, STALL_NS), 0);
        CHECK(recv(slow.client, bytes, sizeof(bytes), MSG_DONTWAIT) > 0);
    }
    pair_close(&slow);
}

/* The number of a closed connection comes again for a stranger's socket, and for a file. */
static void test_connections_numbers_that_come_again(void)
{
    int strangers[2];
    struct pair gone = pair_open();
    fill(gone.server);
    CHECK_EQ(relayd_rpc_connections_sweep(100, STALL_NS), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, strangers), 0);
    CHECK_EQ(dup2(strangers[0], gone.server), gone.server);
    fill(gone.server);
    CHECK_EQ(sweep_twice(100 + STALL_NS, 100 + 9 * STALL_NS), 0);
    CHECK_EQ(relayd_rpc_connections_end(), 0);
    CHECK(!is_shut(strangers[1]));
    close(strangers[0]);
    close(strangers[1]);
    pair_close(&gone);
}

static void test_connections_end_ends_all(void)
{
    struct pair one = pair_open(), two = pair_open();
    CHECK_EQ(relayd_rpc_connections_end(), 2);
    CHECK(is_shut(one.client) && is_shut(two.client));
    CHECK_EQ(relayd_rpc_connections_end(), 0);
    pair_close(&one);
    pair_close(&two);
}

/* Connections leave some descriptors to others, those over the limit are told so, and when there is
 * room again they are served. */
static void test_connections_descriptors_run_out(void)
{
    struct rlimit old, few;
    struct pair pairs[64];
    int n = 0, others = 0;
    const uint64_t refused = relayd_rpc_connections_refused();
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    few = old;
    few.rlim_cur = 64;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (; n < 64 && (pairs[n] = pair_open()).server >= 0; n++) {
    }
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(relayd_rpc_connections_refused(), refused + 1);
    CHECK(is_shut(pairs[n].client));
    close(pairs[n].client);
    /* Others take the rest: now accept itself fails, and says the same. */
    while (others < 64 && dup(listener) >= 0) {
        others++;
    }
    CHECK(others >= (int)RELAYD_RPC_FDS_RESERVED);
    CHECK_EQ(accept4(listener, NULL, NULL, 0), -1);
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
    pairs[n] = pair_open();
    CHECK(pairs[n].server >= 0);
    for (int i = 0; i <= n; i++) {
        pair_close(&pairs[i]);
    }
}

int main(void)
{
    CHECK_RUN(test_listen);
    CHECK_RUN(test_connections_accept_tells_the_address);
    CHECK_RUN(test_connections_silent_peers_are_ended);
    CHECK_RUN(test_connections_slow_peers_go_on);
    CHECK_RUN(test_connections_numbers_that_come_again);
    CHECK_RUN(test_connections_end_ends_all);
    CHECK_RUN(test_connections_descriptors_run_out);
    return check_done();
}
