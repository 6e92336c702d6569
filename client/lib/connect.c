/* A socket connected to a target, within a deadline. For the connections that must be cut from
 * here: gRPC's own cannot be. Any thread. */
#include "client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Of a unix socket: the q, k and v of a step. */
#define SEND_BYTES (2 << 20)

static bool starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static enum relay_code no_server(const char *target, const char *why, struct relay_error *err)
{
    return RELAY_FAIL(err, RELAY_UNAVAILABLE, "no server at %.100s: %s", target, why);
}

/* 0 or an errno. */
static int finish_connect(int fd, uint64_t deadline_us)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    for (;;) {
        const uint64_t now_us = relay_now_us();
        if (now_us >= deadline_us) {
            return ETIMEDOUT;
        }
        const uint64_t left_ms = (deadline_us - now_us + 999) / 1000;
        const int ready = poll(&p, 1, left_ms < 60000 ? (int)left_ms : 60000);
        if (ready > 0) {
            int error = 0;
            socklen_t bytes = sizeof(error);
            return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
        }
        if (ready < 0 && errno != EINTR) {
            return errno;
        }
    }
}

/* 0 or an errno. */
static int connect_to(int family, const struct sockaddr *address, socklen_t bytes,
                      uint64_t deadline_us, int *out)
{
    const int one = 1, send_bytes = SEND_BYTES;
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return errno;
    }
    int error = connect(fd, address, bytes) == 0 ? 0 : errno;
    if (error == EINPROGRESS || error == EINTR) {
        error = finish_connect(fd, deadline_us);
    }
    if (error == 0 && family != AF_UNIX &&
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) {
        error = errno;
    }
    if (family == AF_UNIX) {
        /* As much as the system allows: else a message goes in parts, each after a wake-up here and
         * there. TCP sizes its buffers by itself. */
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
    }
    if (error != 0) {
        close(fd);
    } else {
        *out = fd;
    }
    return error;
}

static enum relay_code connect_unix(const char *target, const char *path, uint64_t deadline_us,
                                    int *fd, struct relay_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    /* relay_target_parse has seen that it fits. */
    memcpy(address.sun_path, path, strnlen(path, sizeof(address.sun_path) - 1));
    const int error =
        connect_to(AF_UNIX, (const struct sockaddr *)&address, sizeof(address), deadline_us, fd);
    return error == 0 ? RELAY_OK : no_server(target, strerror(error), err);
}

/* "host:port" or "[v6]:port", checked before; all addresses in turn. */
static enum relay_code connect_inet(const char *target, const char *host_port, uint64_t deadline_us,
                                    int *fd, struct relay_error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char host[256];
    const char *colon = strrchr(host_port, ':');
    const size_t brackets = host_port[0] == '[' ? 1 : 0;
    const size_t length = (size_t)(colon - host_port) - 2 * brackets;
    if (length >= sizeof(host)) {
        return no_server(target, "the host's name is too long", err);
    }
    memcpy(host, host_port + brackets, length);
    host[length] = '\0';
    const int failed = getaddrinfo(host, colon + 1, &hints, &found);
    if (failed != 0) {
        return no_server(target, gai_strerror(failed), err);
    }
    int error = EHOSTUNREACH;
    for (const struct addrinfo *a = found; a != NULL && error != 0; a = a->ai_next) {
        error = connect_to(a->ai_family, a->ai_addr, a->ai_addrlen, deadline_us, fd);
    }
    freeaddrinfo(found);
    return error == 0 ? RELAY_OK : no_server(target, strerror(error), err);
}

enum relay_code relay_connect(const char *target, uint64_t deadline_us, int *fd,
                              struct relay_error *err)
{
    if (starts(target, "unix:")) {
        const char *path = starts(target, "unix://") ? target + 7 : target + 5;
        return connect_unix(target, path, deadline_us, fd, err);
    }
    return connect_inet(target, relay_target_authority(target), deadline_us, fd, err);
}

const char *relay_target_authority(const char *target)
{
    if (starts(target, "unix:")) {
        return "localhost";
    }
    if (starts(target, "dns:") || starts(target, "ipv4:") || starts(target, "ipv6:")) {
        target = strchr(target, ':') + 1;
        target += strspn(target, "/");
    }
    return target;
}
