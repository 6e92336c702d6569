/* librelay when things break: a connection cut in the middle of an upload or an append, a server
 * that restarts, stops answering, or is gone. */
#include "testlib/check.h"
#include "testlib/server.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* One layer, 2 KiB of K and V a token. */
#define HKV    4u
#define D      128u
#define TOKENS 8192u
#define BYTES  ((size_t)TOKENS * HKV * D * 2 * 2)

static struct test_server server;
static struct relay_error err;
static uint8_t *kv; /* [TOKENS,HKV,D] bf16, K then V */

static const struct relay_layer_kind kind = {
    .num_q_heads = HKV, .num_kv_heads = HKV, .head_dim_qk = D, .head_dim_v = D};
static const uint32_t layer_kind[1] = {0};
static const struct relay_model model = {.key = "breaks",
                                         .num_layers = 1,
                                         .num_kinds = 1,
                                         .kinds = &kind,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_BF16};

/* ---- a proxy that cuts ---- */

/* Forwards one connection after the other to the server and cuts the one that brings the budget of
 * client bytes to 0. */
struct proxy {
    char path[80];
    char target[96];
    int listener;
    pthread_t thread;
    atomic_bool stop;
    atomic_long budget; /* client bytes until the cut; < 0 = none */
    atomic_ulong bytes; /* from clients, ever */
    atomic_uint cuts;
};

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, path, strnlen(path, sizeof(address.sun_path) - 1));
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Moves what is there; false at the end of the connection. */
static bool pump(int from, int to, size_t *moved)
{
    static uint8_t buffer[65536];
    const ssize_t got = read(from, buffer, sizeof(buffer));
    for (ssize_t sent = 0; sent < got;) {
        const ssize_t n = send(to, buffer + sent, (size_t)(got - sent), MSG_NOSIGNAL);
        if (n <= 0) {
            return false;
        }
        sent += n;
    }
    *moved = got > 0 ? (size_t)got : 0;
    return got > 0;
}

struct pair {
    int client, server;
};

#define PAIRS_MAX 16

/* One readable pair; false when it is over. */
static bool serve(struct proxy *p, const struct pair *pair, short client_events,
                  short server_events)
{
    size_t moved = 0;
    if (client_events != 0) {
        if (!pump(pair->client, pair->server, &moved)) {
            return false;
        }
        atomic_fetch_add(&p->bytes, moved);
        if (atomic_load(&p->budget) >= 0) {
            if (atomic_fetch_sub(&p->budget, (long)moved) <= (long)moved) {
                atomic_store(&p->budget, -1);
                atomic_fetch_add(&p->cuts, 1);
                return false;
            }
        }
    }
    return server_events == 0 || pump(pair->server, pair->client, &moved);
}

static void *proxy_run(void *user)
{
    struct proxy *p = user;
    struct pair pairs[PAIRS_MAX];
    int n = 0;
    while (!atomic_load(&p->stop)) {
        struct pollfd fds[1 + 2 * PAIRS_MAX];
        fds[0] = (struct pollfd){.fd = p->listener, .events = POLLIN};
        for (int i = 0; i < n; i++) {
            fds[1 + 2 * i] = (struct pollfd){.fd = pairs[i].client, .events = POLLIN};
            fds[2 + 2 * i] = (struct pollfd){.fd = pairs[i].server, .events = POLLIN};
        }
        if (poll(fds, (nfds_t)(1 + 2 * n), 50) <= 0) {
            continue;
        }
        for (int i = n - 1; i >= 0; i--) {
            if (!serve(p, &pairs[i], fds[1 + 2 * i].revents, fds[2 + 2 * i].revents)) {
                close(pairs[i].client);
                close(pairs[i].server);
                pairs[i] = pairs[--n];
            }
        }
        if (fds[0].revents != 0 && n < PAIRS_MAX) {
            const struct pair fresh = {accept(p->listener, NULL, NULL),
                                       connect_unix(server.unix_target + strlen("unix://"))};
            if (fresh.server >= 0) {
                pairs[n++] = fresh;
            } else {
                close(fresh.client);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        close(pairs[i].client);
        close(pairs[i].server);
    }
    return NULL;
}

static void proxy_start(struct proxy *p)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memset(p, 0, sizeof(*p));
    atomic_store(&p->budget, -1);
    snprintf(p->path, sizeof(p->path), "%s/proxy", server.dir);
    snprintf(p->target, sizeof(p->target), "unix://%s", p->path);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", p->path);
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(p->listener, (const struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(p->listener, 8), 0);
    CHECK_EQ(pthread_create(&p->thread, NULL, proxy_run, p), 0);
}

static void proxy_stop(struct proxy *p)
{
    atomic_store(&p->stop, true);
    pthread_join(p->thread, NULL);
    close(p->listener);
    unlink(p->path);
}

/* ---- tests ---- */

static struct relay_kv layer(void)
{
    return (struct relay_kv){kv, kv + BYTES / 2, RELAY_DTYPE_BF16};
}

struct progress {
    uint64_t first;
    uint32_t calls;
};

static bool watch(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;
    (void)total;
    if (p->calls++ == 0) {
        p->first = done;
    }
    return true;
}

static struct relay_client *open_client(const char *target, uint32_t retries_max)
{
    struct relay_client_options options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_client *client = NULL;
    options.retries_max = retries_max;
    if (relay_client_open(target, &options, &client, &err) != RELAY_OK) {
        return NULL;
    }
    return client;
}

static struct relay_prompt_desc desc_of(const char *id, const struct relay_kv *layers)
{
    struct relay_prompt_desc desc = RELAY_PROMPT_DESC_INIT;
    desc.prompt_id = id;
    desc.model = &model;
    desc.num_tokens = TOKENS;
    desc.layers = layers;
    return desc;
}

/* Cut after 3/4: at most what was not acknowledged is sent again. */
static void test_an_upload_goes_on_after_a_cut(void)
{
    struct proxy proxy;
    struct relay_prompt *direct = NULL, *cut = NULL;
    const struct relay_kv layers[1] = {layer()};
    struct relay_prompt_desc desc = desc_of("direct", layers);
    proxy_start(&proxy);
    CHECK_STILL();
    struct relay_client *straight = open_client(server.unix_target, 0);
    struct relay_client *client = open_client(proxy.target, 10);
    CHECK(straight != NULL && client != NULL);
    CHECK_OK(relay_prompt_register(straight, &desc, &direct, &err), err);
    atomic_store(&proxy.budget, (long)(BYTES / 4 * 3));
    desc.prompt_id = "cut";
    CHECK_OK(relay_prompt_register(client, &desc, &cut, &err), err);
    CHECK_EQ(atomic_load(&proxy.cuts), 1);
    CHECK(memcmp(direct->digest, cut->digest, 32) == 0);
    CHECK_EQ(direct->bytes, cut->bytes);
    CHECK(atomic_load(&proxy.bytes) < BYTES + BYTES / 2);
    CHECK_OK(relay_prompt_unregister(straight, "breaks", "direct", 0, NULL, &err), err);
    CHECK_OK(relay_prompt_unregister(straight, "breaks", "cut", 0, NULL, &err), err);
    relay_prompt_free(direct);
    relay_prompt_free(cut);
    relay_client_close(straight);
    relay_client_close(client);
    proxy_stop(&proxy);
}

/* Without repeats the cut is the caller's to see; another call with the same upload_id goes on. */
static void test_an_upload_is_resumed_by_its_id(void)
{
    static const uint8_t upload_id[16] = "0123456789abcde";
    struct proxy proxy;
    struct progress progress = {0, 0};
    const struct relay_kv layers[1] = {layer()};
    struct relay_prompt_desc desc = desc_of("resumed", layers);
    struct relay_prompt *prompt = NULL;
    desc.upload_id = upload_id;
    proxy_start(&proxy);
    CHECK_STILL();
    struct relay_client *client = open_client(proxy.target, 0);
    struct relay_client *straight = open_client(server.unix_target, 10);
    CHECK(straight != NULL && client != NULL);
    atomic_store(&proxy.budget, (long)(BYTES / 2));
    CHECK_CODE(relay_prompt_register(client, &desc, NULL, &err), RELAY_UNAVAILABLE);
    CHECK_CODE(relay_prompt_get(straight, "breaks", "resumed", 0, &prompt, &err), RELAY_NOT_FOUND);
    struct relay_server_info *info = test_server_info(&server);
    CHECK(info != NULL);
    CHECK_EQ(info->uploads, 1);
    CHECK(info->prompt_bytes_used >= BYTES);
    relay_server_info_free(info);
    desc.progress = watch;
    desc.progress_user = &progress;
    CHECK_OK(relay_prompt_register(straight, &desc, NULL, &err), err);
    CHECK(progress.first >= BYTES / 4 && progress.first < BYTES);
    CHECK_OK(relay_prompt_unregister(straight, "breaks", "resumed", 0, NULL, &err), err);
    relay_client_close(straight);
    relay_client_close(client);
    proxy_stop(&proxy);
}

static void test_an_append_is_repeated_after_a_cut(void)
{
    struct proxy proxy;
    const struct relay_kv layers[1] = {layer()};
    struct relay_session *session = NULL;
    struct relay_request state;
    uint64_t request;
    proxy_start(&proxy);
    CHECK_STILL();
    struct relay_client *client = open_client(proxy.target, 10);
    CHECK(client != NULL);
    CHECK_OK(relay_session_open(client, &model, NULL, &session, &err), err);
    CHECK_OK(relay_request_open(session, NULL, &request, &err), err);
    atomic_store(&proxy.budget, (long)(BYTES / 4));
    CHECK_OK(relay_request_append(session, request, 0, TOKENS / 2, layers, &err), err);
    CHECK_EQ(atomic_load(&proxy.cuts), 1);
    CHECK_OK(relay_requests_get(session, &request, 1, &state, &err), err);
    CHECK_EQ(state.length, TOKENS / 2);
    CHECK_EQ(state.generation, 0);
    relay_session_close(session);
    relay_client_close(client);
    proxy_stop(&proxy);
}

/* A server that does not answer: the deadline ends the call, and the same step goes through later.
 */
static void test_a_silent_server_meets_the_deadline(void)
{
    static float q[HKV * D], out[HKV * D], again[HKV * D];
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_session *session = NULL;
    struct relay_step *step = NULL;
    uint64_t request;
    struct relay_client *client = open_client(server.unix_target, 4);
    CHECK(client != NULL);
    for (size_t i = 0; i < HKV * D; i++) {
        q[i] = (float)(i % 13) * 0.125f;
    }
    CHECK_OK(relay_session_open(client, &model, NULL, &session, &err), err);
    CHECK_OK(relay_request_open(session, NULL, &request, &err), err);
    const struct relay_step_entry entry = {request, 0, 1};
    options.timeout_ms = 300;
    CHECK_OK(relay_step_begin(session, &entry, 1, &options, &step, &err), err);
    test_server_freeze(&server);
    const enum relay_code code = relay_step_attend(step, 0, q, q, q, out, NULL, &err);
    kill(server.pid, SIGCONT);
    CHECK_EQ(code, RELAY_DEADLINE_EXCEEDED);
    relay_step_end(step);
    /* The late one may still arrive; a newer step, and then the same one again, give one answer. */
    options.timeout_ms = 0;
    CHECK_OK(relay_step_begin(session, &entry, 1, &options, &step, &err), err);
    CHECK_OK(relay_step_attend(step, 0, q, q, q, out, NULL, &err), err);
    CHECK_OK(relay_step_attend(step, 0, q, q, q, again, NULL, &err), err);
    CHECK(memcmp(out, again, sizeof(out)) == 0);
    relay_step_end(step);
    relay_session_close(session);
    relay_client_close(client);
}

static void test_a_restart_is_survived_by_what_is_safe(void)
{
    struct relay_server_info *before = NULL, *after = NULL;
    struct relay_session *session = NULL;
    uint64_t request = 0;
    struct relay_client *client = open_client(server.unix_target, 6);
    CHECK(client != NULL);
    CHECK_OK(relay_client_server_info(client, &before, &err), err);
    CHECK_OK(relay_session_open(client, &model, NULL, &session, &err), err);
    test_server_kill(&server);
    CHECK(test_server_start(&server, NULL));
    CHECK_OK(relay_client_server_info(client, &after, &err), err);
    CHECK(before->server_epoch != after->server_epoch);
    CHECK_CODE(relay_request_open(session, NULL, &request, &err), RELAY_NOT_FOUND);
    relay_server_info_free(before);
    relay_server_info_free(after);
    relay_session_close(session);
    CHECK_EQ(test_server_stop(&server), 0);
    CHECK_CODE(relay_client_server_info(client, &after, &err), RELAY_UNAVAILABLE);
    relay_client_close(client);
}

/* A client that asked in vain for a while connects with its next call's repeats: how long its
 * channel would wait by itself, more than they take in all, does not matter. */
static void test_an_outage_ends_when_the_server_is_back(void)
{
    const struct timespec pause = {0, 20000000};
    struct relay_server_info *info = NULL;
    struct relay_session *session = NULL;
    struct relay_client *client = open_client(server.unix_target, 3);
    CHECK(client != NULL);
    for (int i = 0; i < 100; i++) { /* opening a session is not repeated */
        CHECK_CODE(relay_session_open(client, &model, NULL, &session, &err), RELAY_UNAVAILABLE);
        (void)nanosleep(&pause, NULL);
    }
    CHECK(test_server_start(&server, NULL));
    CHECK_OK(relay_client_server_info(client, &info, &err), err);
    relay_server_info_free(info);
    relay_client_close(client);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--unacked-bytes-max", "2M", NULL};
    kv = malloc(BYTES);
    for (size_t i = 0; kv != NULL && i < BYTES; i++) {
        /* Upper bytes in 0x3c..0x3f: numbers around 1. */
        kv[i] = i % 2 == 0 ? (uint8_t)(i * 2654435761u >> 13) : (uint8_t)(0x3c | (i >> 7 & 3));
    }
    if (kv == NULL || !test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_an_upload_goes_on_after_a_cut);
    CHECK_RUN(test_an_upload_is_resumed_by_its_id);
    CHECK_RUN(test_an_append_is_repeated_after_a_cut);
    CHECK_RUN(test_a_silent_server_meets_the_deadline);
    CHECK_RUN(test_a_restart_is_survived_by_what_is_safe);
    CHECK_RUN(test_an_outage_ends_when_the_server_is_back);
    test_server_fini(&server);
    free(kv);
    return check_done();
}
