#include "service/rpc/accept.h"
#include "service/base/clock.h"
#include "service/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOG_INTERVAL_NS UINT64_C(1000000000)

static _Atomic uint64_t refused;
static _Atomic uint64_t log_after_ns;

uint64_t relayd_rpc_refused_connections(void)
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
    return limit > 2 * RELAYD_RPC_FDS_RESERVED && (uint64_t)fd >= limit - RELAYD_RPC_FDS_RESERVED;
}

/* libc's, and gRPC's way into the process. EAGAIN where no connection is left that could be taken:
 * gRPC then waits for the next one. */
RELAY_EXPORT int accept4(int fd, __SOCKADDR_ARG address, socklen_t *address_bytes, int flags)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
    const socklen_t room = address_bytes == NULL ? 0 : *address_bytes;
    for (;;) {
        if (address_bytes != NULL) {
            *address_bytes = room;
        }
        const int got = (int)syscall(SYS_accept4, fd, address.__sockaddr__, address_bytes, flags);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
        if (got >= 0 && is_last(got, limit.rlim_cur)) {
            close(got);
            refuse(limit.rlim_cur);
            continue;
        }
        if (got < 0 && (errno == EMFILE || errno == ENFILE)) {
            refuse(limit.rlim_cur);
            errno = EAGAIN;
        }
        return got;
    }
}
