/* Binds one address. Plaintext: TLS comes with credentials. One thread. */
#include "service/rpc/listen.h"

#include <grpc/grpc_security.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define UNIX_SCHEME "unix:"

/* The path in "unix:/path" or "unix:///path"; NULL for another address. */
static const char *unix_path(const char *address)
{
    if (strncmp(address, UNIX_SCHEME, strlen(UNIX_SCHEME)) != 0) {
        return NULL;
    }
    const char *path = address + strlen(UNIX_SCHEME);
    return strncmp(path, "///", 3) == 0 ? path + 2 : path;
}

/* gRPC unlinks a socket file before it binds, also one that another server is serving. */
static bool is_served(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t bytes = strlen(path);
    if (bytes >= sizeof(name.sun_path)) {
        return false;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    memcpy(name.sun_path, path, bytes + 1);
    bool served = connect(fd, (const struct sockaddr *)&name, sizeof(name)) == 0;
    close(fd);
    return served;
}

enum relay_code relayd_rpc_listen(grpc_server *server, const char *address, uint32_t *port,
                                  struct relay_error *err)
{
    const char *path = unix_path(address);
    if (path != NULL && is_served(path)) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "cannot listen on %s: another server does",
                          address);
    }
    grpc_server_credentials *insecure = grpc_insecure_server_credentials_create();
    int bound = grpc_server_add_http2_port(server, address, insecure);
    grpc_server_credentials_release(insecure);
    if (bound == 0) {
        return RELAY_FAIL(err, RELAY_UNAVAILABLE, "cannot listen on %s", address);
    }
    *port = path == NULL ? (uint32_t)bound : 0;
    return RELAY_OK;
}
