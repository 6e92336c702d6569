/* The pool of requests' pages runs dry in the middle of eight clients' work: only BeginStep, or the
 * first write of a unary step, says so; nothing half-done is left; when somebody makes room all go
 * on, and every result is the one of a server that had room all the time. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <pthread.h>
#include <stdatomic.h>

#define CLIENTS     8u
#define REQUESTS    2u  /* of a client */
#define POSITIONS   48u /* 3 pages a request: 48 pages in all */
#define LAYERS      2u
#define PAGE_TOKENS "16"
#define PAGES       "512K" /* 64 pages of 16 tokens, 512 bytes a token over the layers */
#define HOG_TOKENS  512u   /* 32 pages: the clients have 32, two for each request */
#define ROW_FLOATS  ((size_t)LAYERS * REQUESTS * 4 * 16)

static struct faults_model model;
static struct relay_error err;

struct client {
    pthread_t thread;
    const struct test_server *server;
    uint64_t seed;
    struct faults_peer peer;
    struct faults_engine engine;
    struct relay_error err;
    enum relay_code code;
    int at;             /* the layer that failed */
    bool unary;         /* half of them */
    unsigned exhausted; /* how often there was no room */
    float out[POSITIONS][LAYERS * REQUESTS * 4 * 16];
};

static struct client plenty[CLIENTS], scarce[CLIENTS];
static atomic_uint waiting;  /* clients that have met the end of the pool */
static atomic_uint finished; /* clients that never did */

/* One token a request through all layers. */
static enum relay_code walk(struct client *c, uint32_t position)
{
    const size_t n = ROW_FLOATS / LAYERS;
    enum relay_code code = RELAY_OK;
    if (!c->unary) {
        return faults_engine_step(&c->engine, position + 1, position, RELAY_PART_FULL,
                                  c->out[position], &c->at, &c->err);
    }
    for (uint32_t layer = 0; code == RELAY_OK && layer < LAYERS; layer++) {
        c->at = (int)layer;
        code = faults_engine_unary(&c->engine, position + 1, position, layer,
                                   c->out[position] + layer * n, &c->err);
    }
    return code;
}

static bool is_first(const struct client *c)
{
    return c->at == (c->unary ? 0 : -1);
}

static void *client_run(void *arg)
{
    struct client *c = arg;
    faults_peer_open(&c->peer, c->server->unix_target);
    c->code = faults_engine_open(&c->engine, &c->peer, &model, c->seed, 600000, 0, &c->err);
    if (c->code == RELAY_OK) {
        c->code = faults_engine_requests(&c->engine, "p", REQUESTS, 0, &c->err);
    }
    if (c->code == RELAY_OK && !c->unary) {
        c->code = faults_engine_attach(&c->engine, &c->err);
    }
    const uint64_t until_ms = faults_now_ms() + FAULTS_TIMEOUT_MS;
    for (uint32_t position = 0; c->code == RELAY_OK && position < POSITIONS;) {
        const enum relay_code code = walk(c, position);
        if (code == RELAY_OK) {
            position++;
        } else if (code == RELAY_RESOURCE_EXHAUSTED && is_first(c) && faults_now_ms() < until_ms) {
            if (c->exhausted++ == 0) {
                atomic_fetch_add(&waiting, 1);
            }
            faults_sleep_ms(5);
        } else {
            c->code = code;
        }
    }
    atomic_fetch_add(&finished, c->exhausted == 0);
    return NULL;
}

static void start_clients(struct client *clients, const struct test_server *server)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i].server = server;
        clients[i].seed = 10 + i;
        clients[i].unary = i % 2 == 1;
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, client_run, &clients[i]), 0);
    }
}

static void join_clients(struct client *clients)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *c = &clients[i];
        pthread_join(c->thread, NULL);
        if (c->code != RELAY_OK) {
            CHECK_FAIL("client %u: %s at layer %d: %s", i, relay_code_name(c->code), c->at,
                       c->err.msg);
        }
    }
}

static void close_clients(struct client *clients)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        faults_engine_close(&clients[i].engine);
        faults_peer_close(&clients[i].peer);
    }
}

static void with_plenty(void)
{
    struct test_server server = {.pid = 0};
    struct faults_peer own;
    const char *const args[] = {"--threads", "1", "--page-tokens", PAGE_TOKENS, NULL};
    CHECK(test_server_start(&server, args));
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", 100, 1, false, &err), err);
    start_clients(plenty, &server);
    join_clients(plenty);
    close_clients(plenty);
    faults_peer_close(&own);
    const int code = test_server_stop(&server);
    test_server_fini(&server);
    CHECK_EQ(code, 0);
}

static void with_little(void)
{
    struct test_server server = {.pid = 0};
    struct faults_peer own;
    struct faults_engine hog;
    struct faults_counts start;
    const char *const args[] = {
        "--threads", "1",           "--page-tokens", PAGE_TOKENS, "--request-bytes-max",
        PAGES,       "--log-level", "warn",          NULL};
    CHECK(test_server_start(&server, args));
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", 100, 1, false, &err), err);
    CHECK(faults_counts(&own, server.pid, &start));
    CHECK_OK(faults_engine_open(&hog, &own, &model, 1, 600000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&hog, NULL, 1, HOG_TOKENS, &err), err);
    start_clients(scarce, &server);
    CHECK_STILL();
    /* Six pages a client: at most five can finish, the others come to wait for room. */
    for (uint64_t until_ms = faults_now_ms() + FAULTS_TIMEOUT_MS;
         atomic_load(&waiting) + atomic_load(&finished) < CLIENTS && faults_now_ms() < until_ms;) {
        faults_sleep_ms(5);
    }
    const unsigned blocked = atomic_load(&waiting);
    faults_engine_close(&hog);
    join_clients(scarce);
    CHECK_STILL();
    CHECK(blocked >= CLIENTS - 5);
    close_clients(scarce);
    CHECK(faults_back_to(&own, server.pid, &start));
    faults_peer_close(&own);
    const int code = test_server_stop(&server);
    test_server_fini(&server);
    CHECK_EQ(code, 0);
}

static void test_the_pool_runs_dry(void)
{
    unsigned refused = 0;
    with_plenty();
    CHECK_STILL();
    CHECK_EQ(atomic_exchange(&finished, 0), CLIENTS);
    CHECK_EQ(atomic_load(&waiting), 0);
    with_little();
    CHECK_STILL();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        refused += scarce[i].exhausted;
        CHECK(memcmp(plenty[i].out, scarce[i].out, sizeof(plenty[i].out)) == 0);
    }
    fprintf(stderr, "%u of %u clients met the end of the pool, were refused %u times and went on\n",
            atomic_load(&waiting), CLIENTS, refused);
}

int main(void)
{
    faults_model_init(&model, "pool@test", LAYERS, 4, 2, 16);
    CHECK_RUN(test_the_pool_runs_dry);
    return check_done();
}
