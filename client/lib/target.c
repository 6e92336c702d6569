/* Targets as people write them -> targets as gRPC wants them. Pure. */
#include "client_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define TARGET_BYTES_MAX 1024u

static bool starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static enum relay_code check_unix(const char *path, struct relay_error *err)
{
    if (path[0] == '\0') {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: unix: without a path");
    }
    if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "target: a unix socket's path has at most %zu bytes, this one %zu",
                          sizeof(((struct sockaddr_un *)0)->sun_path) - 1, strlen(path));
    }
    return RELAY_OK;
}

/* "host:port" or "[v6]:port"; the name itself is the resolver's to judge. */
static enum relay_code check_host_port(const char *target, struct relay_error *err)
{
    const char *colon = strrchr(target, ':');
    if (target[0] == '[') {
        const char *bracket = strchr(target, ']');
        if (bracket == NULL || bracket == target + 1 || bracket[1] != ':') {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: [address]:port expected");
        }
        colon = bracket + 1;
    } else if (colon == NULL || colon == target || strchr(target, ':') != colon) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "target: host:port or unix:path expected, got \"%.80s\"", target);
    }
    char *end = NULL;
    const unsigned long port = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || port < 1 || port > 65535) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: no port in 1..65535: \"%.80s\"",
                          target);
    }
    for (const char *at = target; at < colon; at++) {
        if ((unsigned char)*at <= ' ' || *at == '/') {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: bad host: \"%.80s\"", target);
        }
    }
    return RELAY_OK;
}

enum relay_code relay_target_parse(const char *target, char **out, struct relay_error *err)
{
    if (target == NULL || target[0] == '\0' || strlen(target) > TARGET_BYTES_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "target: 1..%u bytes expected",
                          TARGET_BYTES_MAX);
    }
    enum relay_code code;
    if (starts(target, "unix://")) {
        if (target[7] != '/') {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "target: unix:// wants an absolute path (unix:path takes any)");
        }
        code = check_unix(target + 7, err);
    } else if (starts(target, "unix:")) {
        code = check_unix(target + 5, err);
    } else if (starts(target, "dns:") || starts(target, "ipv4:") || starts(target, "ipv6:")) {
        const char *rest = strchr(target, ':') + 1;
        while (*rest == '/') {
            rest++;
        }
        code = check_host_port(rest, err);
    } else if (strstr(target, "://") != NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "target: this scheme is not known: \"%.80s\"", target);
    } else {
        code = check_host_port(target, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    char *copy = strdup(target);
    if (copy == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    *out = copy;
    return RELAY_OK;
}
