#include "service/rpc/connections.h"
#include "service/base/clock.h"
#include "service/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOG_INTERVAL_NS UINT64_C(1000000000)
#define TABLE_MIN       64u

/* gRPC closes descriptors without a word and numbers come again: a socket's inode says whether the
 * number still means the same connection. */
struct connection {
    ino_t inode; /* 0 = none */
    int unsent;  /* bytes that waited for the peer when it was last looked at */
    uint64_t since_ns;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the table */
static struct connection *table;                          /* [table_size], by descriptor */
static uint32_t table_size;

static _Atomic uint64_t refused;
static _Atomic uint64_t log_after_ns;

/* ---- accepting ---- */

uint64_t relayd_rpc_connections_refused(void)
{
    return atomic_load_explicit(&refused, memory_order_relaxed);
}

/* A flood must not fill the log too: one line a second. */
static void refuse(uint64_t limit)
{
    uint64_t count = atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed) + 1;
    uint64_t now_ns = relayd_clock_now_ns(&relayd_clock_system);
    uint64_t after_ns = atomic_load_explicit(&log_after_ns, memory_order_relaxed);
    if (now_ns >= after_ns &&
        atomic_compare_exchange_strong(&log_after_ns, &after_ns, now_ns + LOG_INTERVAL_NS)) {
        RELAYD_LOG(WARN, "rpc.connections_refused",
                   "why=\"file descriptors\" limit=%" PRIu64 " count=%" PRIu64, limit, count);
    }
}

/* The lowest free number is given out, so a descriptor's number tells how many are in use. The
 * limit is asked for each time: it may be changed from outside. */
static bool is_last(int fd, uint64_t limit)
{
    return limit > (uint64_t)2 * RELAYD_RPC_FDS_RESERVED &&
           (uint64_t)fd >= limit - RELAYD_RPC_FDS_RESERVED;
}

/* Inode of the socket behind a descriptor, 0 when it is none. */
static ino_t inode_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode) ? status.st_ino : 0;
}

/* Without memory for it the connection is served all the same, and not watched. */
static void remember(int fd)
{
    const uint32_t index = (uint32_t)fd;
    pthread_mutex_lock(&mutex);
    if (index >= table_size) {
        uint32_t size = table_size < TABLE_MIN ? TABLE_MIN : table_size;
        while (size <= index) {
            size *= 2;
        }
        struct connection *larger = reallocarray(table, size, sizeof(*table));
        if (larger != NULL) {
            memset(larger + table_size, 0, (size - table_size) * sizeof(*table));
            table = larger;
            table_size = size;
        }
    }
    if (index < table_size) {
        table[index] = (struct connection){.inode = inode_of(fd)};
    }
    pthread_mutex_unlock(&mutex);
}

/* libc's name, and gRPC's way into the process. EAGAIN where no connection is left that could be
 * taken: gRPC then waits for the next one. */
RELAY_EXPORT int accept4(int fd, __SOCKADDR_ARG address, socklen_t *address_bytes, int flags)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
    const socklen_t room = address_bytes == NULL ? 0 : *address_bytes;
    for (;;) {
        if (address_bytes != NULL) {
            *address_bytes = room;
        }
        const int got = (int)syscall(SYS_accept4, fd, address.__sockaddr__, address_bytes, flags);
        const int error = errno;
        (void)getrlimit(RLIMIT_NOFILE, &limit);
        if (got >= 0 && is_last(got, limit.rlim_cur)) {
            close(got);
            refuse(limit.rlim_cur);
            continue;
        }
        if (got >= 0) {
            remember(got);
            return got;
        }
        const bool none_left = error == EMFILE || error == ENFILE;
        if (none_left) {
            refuse(limit.rlim_cur);
        }
        errno = none_left ? EAGAIN : error;
        return -1;
    }
}

/* ---- looking after them ---- */

/* Through a descriptor of our own, which cannot come to mean another connection on the way. */
static bool shut_down(int fd, ino_t inode)
{
    const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    const bool same = own >= 0 && inode_of(own) == inode;
    if (same) {
        (void)shutdown(own, SHUT_RDWR);
    }
    if (own >= 0) {
        close(own);
    }
    return same;
}

/* Bytes that wait for the peer while no more fit; 0 = the peer reads, or has read all. */
static int stuck_bytes(int fd)
{
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    int unsent = 0;
    if (poll(&writable, 1, 0) != 0 || ioctl(fd, SIOCOUTQ, &unsent) != 0) {
        return 0;
    }
    return unsent;
}

static bool is_stuck(int fd, struct connection *c, uint64_t now_ns, uint64_t stall_ns)
{
    const int unsent = stuck_bytes(fd);
    if (unsent == 0 || unsent != c->unsent) {
        c->unsent = unsent;
        c->since_ns = now_ns;
        return false;
    }
    return now_ns - c->since_ns >= stall_ns;
}

uint32_t relayd_rpc_connections_sweep(uint64_t now_ns, uint64_t stall_ns)
{
    uint32_t ended = 0;
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < table_size; i++) {
        struct connection *c = &table[i];
        const int fd = (int)i;
        if (c->inode == 0) {
            continue;
        }
        if (inode_of(fd) != c->inode) {
            c->inode = 0;
        } else if (is_stuck(fd, c, now_ns, stall_ns)) {
            ended += shut_down(fd, c->inode);
            c->inode = 0;
        }
    }
    pthread_mutex_unlock(&mutex);
    if (ended > 0) {
        RELAYD_LOG(WARN, "rpc.peers_silent", "count=%" PRIu32 " after_ms=%" PRIu64, ended,
                   stall_ns / 1000000);
    }
    return ended;
}

uint32_t relayd_rpc_connections_end(void)
{
    uint32_t ended = 0;
    pthread_mutex_lock(&mutex);
    for (uint32_t i = 0; i < table_size; i++) {
        if (table[i].inode != 0) {
            ended += shut_down((int)i, table[i].inode);
            table[i].inode = 0;
        }
    }
    pthread_mutex_unlock(&mutex);
    return ended;
}
