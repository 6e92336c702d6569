/* See unix_socket.h. No state. */
#include "service/ops/unix_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

const char *relayd_unix_path(const char *address)
{
    if (strncmp(address, "unix://", 7) == 0) {
        return address + 7;
    }
    return strncmp(address, "unix:", 5) == 0 ? address + 5 : NULL;
}

static void directory_of(const char *path, char *out, size_t out_bytes)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        snprintf(out, out_bytes, ".");
    } else if (slash == path) {
        snprintf(out, out_bytes, "/");
    } else {
        snprintf(out, out_bytes, "%.*s", (int)(slash - path), path);
    }
}

/* 0: somebody took the connection; else the errno that says why not. */
static int connect_to(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return errno;
    }
    int rc =
        connect(fd, (const struct sockaddr *)address, (socklen_t)sizeof(*address)) == 0 ? 0 : errno;
    close(fd);
    return rc;
}

enum relay_code relayd_unix_claim(const char *path, bool make_dir, struct relay_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char directory[sizeof(address.sun_path)];
    struct stat info;

    if (path[0] == '\0' || strlen(path) >= sizeof(address.sun_path)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "a unix socket's path has 1 to %zu characters, this one %zu",
                          sizeof(address.sun_path) - 1, strlen(path));
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    directory_of(path, directory, sizeof(directory));
    if (make_dir && mkdir(directory, 0755) != 0 && errno != EEXIST) {
        return RELAY_FAIL(err, RELAY_PERMISSION_DENIED, "%s cannot be made: %s", directory,
                          strerror(errno));
    }
    if (stat(directory, &info) != 0) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "%s: %s", directory, strerror(errno));
    }
    if (access(directory, W_OK | X_OK) != 0) {
        return RELAY_FAIL(err, RELAY_PERMISSION_DENIED, "%s: %s", directory, strerror(errno));
    }
    if (lstat(path, &info) != 0) {
        return errno == ENOENT
                   ? RELAY_OK
                   : RELAY_FAIL(err, RELAY_PERMISSION_DENIED, "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(info.st_mode)) {
        return RELAY_FAIL(err, RELAY_FAILED_PRECONDITION, "%s is there and is no socket", path);
    }
    int rc = connect_to(&address);
    if (rc == 0) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "%s is served by another process", path);
    }
    if (rc != ECONNREFUSED) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "%s may be in use: %s", path, strerror(rc));
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return RELAY_FAIL(err, RELAY_PERMISSION_DENIED, "%s is dead, but stays: %s", path,
                          strerror(errno));
    }
    return RELAY_OK;
}
