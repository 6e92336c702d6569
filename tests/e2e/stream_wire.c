/* The forwarder of stream_kit.h. One thread moves the bytes; atomics tell it what to do. */
#include "e2e/stream_kit.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAIRS_MAX 32
#define NO_CUT    INT64_MAX

struct pair {
    int client, server;
    bool frozen;
};

struct kit_wire {
    char server_path[108];
    char target[32];
    int listener;
    pthread_t thread;
    atomic_bool stop, freeze;
    _Atomic int64_t budget; /* client bytes until the cut */
    atomic_uint connections, cuts;
    struct pair pairs[PAIRS_MAX]; /* the thread's */
    int n;
};

static int connect_server(const struct kit_wire *wire)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, wire->server_path, sizeof(address.sun_path));
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void drop(struct kit_wire *wire, int i)
{
    close(wire->pairs[i].client);
    close(wire->pairs[i].server);
    wire->pairs[i] = wire->pairs[--wire->n];
}

static void cut_all(struct kit_wire *wire)
{
    atomic_store(&wire->budget, NO_CUT);
    atomic_fetch_add(&wire->cuts, (unsigned)wire->n);
    while (wire->n > 0) {
        drop(wire, wire->n - 1);
    }
}

/* Moves what is there; false at the end of the connection. Waits for room at the other side. */
static bool forward(int from, int to, int64_t *moved)
{
    static _Thread_local uint8_t buffer[65536];
    const ssize_t got = read(from, buffer, sizeof(buffer));
    for (ssize_t sent = 0; sent < got;) {
        const ssize_t n = send(to, buffer + sent, (size_t)(got - sent), MSG_NOSIGNAL);
        if (n <= 0) {
            return false;
        }
        sent += n;
    }
    *moved = got > 0 ? (int64_t)got : 0;
    return got > 0;
}

static void take_new(struct kit_wire *wire)
{
    const int one = 1;
    const struct pair fresh = {accept(wire->listener, NULL, NULL), connect_server(wire), false};
    if (fresh.client < 0 || fresh.server < 0 || wire->n == PAIRS_MAX) {
        if (fresh.client >= 0) {
            close(fresh.client);
        }
        if (fresh.server >= 0) {
            close(fresh.server);
        }
        return;
    }
    (void)setsockopt(fresh.client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    wire->pairs[wire->n++] = fresh;
    atomic_fetch_add(&wire->connections, 1);
}

static void move_pair(struct kit_wire *wire, int i, short from_client, short from_server)
{
    struct pair *pair = &wire->pairs[i];
    int64_t moved = 0;
    bool ok = from_client == 0 || forward(pair->client, pair->server, &moved);
    const bool cut =
        atomic_load(&wire->budget) != NO_CUT && atomic_fetch_sub(&wire->budget, moved) <= moved;
    ok = ok && (from_server == 0 || forward(pair->server, pair->client, &moved));
    if (cut) {
        cut_all(wire);
    } else if (!ok) {
        drop(wire, i);
    }
}

static void *run(void *user)
{
    struct kit_wire *wire = user;
    while (!atomic_load(&wire->stop)) {
        struct pollfd fds[1 + 2 * PAIRS_MAX];
        const int n = wire->n;
        fds[0] = (struct pollfd){.fd = wire->listener, .events = POLLIN};
        for (int i = 0; i < n; i++) {
            const bool frozen = wire->pairs[i].frozen;
            fds[1 + 2 * i] =
                (struct pollfd){.fd = frozen ? -1 : wire->pairs[i].client, .events = POLLIN};
            fds[2 + 2 * i] =
                (struct pollfd){.fd = frozen ? -1 : wire->pairs[i].server, .events = POLLIN};
        }
        const int ready = poll(fds, (nfds_t)(1 + 2 * n), 5);
        if (atomic_exchange(&wire->freeze, false)) {
            for (int i = 0; i < n; i++) {
                wire->pairs[i].frozen = true;
            }
            continue;
        }
        if (atomic_load(&wire->budget) == 0) {
            cut_all(wire);
            continue;
        }
        /* From the last on: dropping one moves the last into its place. */
        for (int i = n - 1; i >= 0 && ready > 0; i--) {
            if (i < wire->n && (fds[1 + 2 * i].revents != 0 || fds[2 + 2 * i].revents != 0)) {
                move_pair(wire, i, fds[1 + 2 * i].revents, fds[2 + 2 * i].revents);
            }
        }
        if (ready > 0 && fds[0].revents != 0) {
            take_new(wire);
        }
    }
    while (wire->n > 0) {
        drop(wire, wire->n - 1);
    }
    return NULL;
}

struct kit_wire *kit_wire_open(const struct test_server *server)
{
    struct kit_wire *wire = calloc(1, sizeof(*wire));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    if (wire == NULL) {
        return NULL;
    }
    snprintf(wire->server_path, sizeof(wire->server_path), "%s",
             server->unix_target + strlen("unix://"));
    atomic_store(&wire->budget, NO_CUT);
    wire->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(wire->listener, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(wire->listener, 8) != 0 ||
        getsockname(wire->listener, (struct sockaddr *)&address, &bytes) != 0 ||
        pthread_create(&wire->thread, NULL, run, wire) != 0) {
        perror("forwarder");
        close(wire->listener);
        free(wire);
        return NULL;
    }
    snprintf(wire->target, sizeof(wire->target), "127.0.0.1:%u", ntohs(address.sin_port));
    return wire;
}

void kit_wire_close(struct kit_wire *wire)
{
    if (wire != NULL) {
        atomic_store(&wire->stop, true);
        pthread_join(wire->thread, NULL);
        close(wire->listener);
        free(wire);
    }
}

const char *kit_wire_target(const struct kit_wire *wire)
{
    return wire->target;
}

/* Until the thread has done it. */
static void wait_done(struct kit_wire *wire)
{
    while (atomic_load(&wire->freeze) || atomic_load(&wire->budget) == 0) {
        const struct timespec t = {0, 1000000};
        nanosleep(&t, NULL);
    }
}

void kit_wire_cut(struct kit_wire *wire, uint64_t after_bytes)
{
    atomic_store(&wire->budget, (int64_t)after_bytes);
    wait_done(wire);
}

void kit_wire_freeze(struct kit_wire *wire)
{
    atomic_store(&wire->freeze, true);
    wait_done(wire);
}

unsigned kit_wire_connections(struct kit_wire *wire)
{
    return atomic_load(&wire->connections);
}

unsigned kit_wire_cuts(struct kit_wire *wire)
{
    return atomic_load(&wire->cuts);
}
