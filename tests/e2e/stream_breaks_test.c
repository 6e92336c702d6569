/* Steps on a stream when things break: cut and frozen connections, a server that stops answering,
 * is killed, or goes away politely. What goes on must go on right; what cannot says so. */
#include "e2e/stream_kit.h"
#include "testlib/check.h"
#include "testlib/rng.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct test_server server;
static struct relay_error err;

struct fixture {
    struct relay_client *client;
    struct relay_session *session;
    struct kit_batch b;
};

/* A session through target with n requests of rows_max / n rows each. */
static void fixture_open(struct fixture *f, const char *target, uint32_t n, uint32_t rows_max)
{
    struct relay_client_options client_options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    memset(f, 0, sizeof(*f));
    client_options.backoff_ms_min = 5;
    client_options.retries_max = 8;
    options.response_bytes_max = 16u << 20;
    CHECK_OK(relay_client_open(target, &client_options, &f->client, &err), err);
    CHECK_OK(relay_session_open(f->client, kit_model(), &options, &f->session, &err), err);
    CHECK_OK(kit_open(&f->b, f->session, n, 1000, rows_max, &err), err);
}

static void fixture_close(struct fixture *f)
{
    kit_close(&f->b);
    relay_session_close(f->session);
    relay_client_close(f->client);
}

static void setup(void)
{
    struct relay_client *client = NULL;
    CHECK_OK(relay_client_open(server.unix_target, NULL, &client, &err), err);
    CHECK_OK(kit_register(client, &err), err);
    relay_client_close(client);
}

/* Cut at a different place each time: at once, between layers, in the middle of a message. */
static void test_a_step_goes_on_after_cuts(void)
{
    struct kit_wire *wire = kit_wire_open(&server);
    struct rng rng = {1};
    struct fixture f;
    CHECK(wire != NULL);
    fixture_open(&f, kit_wire_target(wire), 4, 16);
    CHECK_STILL();
    for (uint32_t s = 0; s < 30; s++) {
        struct relay_step *step = NULL;
        uint64_t tickets[KIT_LAYERS];
        kit_rows(&f.b, 4 * s, 4);
        CHECK_OK(relay_step_begin(f.session, f.b.entries, f.b.n, NULL, &step, &err), err);
        CHECK_OK(
            relay_step_attend(step, 0, f.b.q[0], f.b.k[0], f.b.v[0], f.b.out[0], f.b.lse[0], &err),
            err);
        kit_wire_cut(wire, s % 3 == 0 ? 0 : rng_range(&rng, 1, 100000));
        for (uint32_t l = 1; l < KIT_LAYERS; l++) {
            CHECK_OK(kit_submit(&f.b, step, l, &tickets[l], &err), err);
        }
        for (uint32_t l = KIT_LAYERS - 1; l >= 1; l--) {
            CHECK_OK(relay_step_wait(step, tickets[l], &err), err);
        }
        relay_step_end(step);
        CHECK(kit_right(&f.b, 1));
    }
    CHECK(kit_wire_cuts(wire) >= 20);
    fixture_close(&f);
    kit_wire_close(wire);
}

struct worker {
    struct relay_session *session;
    uint64_t seed;
    struct relay_error err;
    bool right;
};

static void *work(void *user)
{
    struct worker *w = user;
    struct kit_batch b;
    enum relay_code code = kit_open(&b, w->session, 2, w->seed, 8, &w->err);
    w->right = true;
    for (uint32_t s = 0; s < 30 && code == RELAY_OK && w->right; s++) {
        kit_rows(&b, s, 1);
        code = kit_step(&b, NULL, &w->err);
        w->right = code == RELAY_OK && kit_right(&b, 1);
    }
    w->right = w->right && code == RELAY_OK;
    kit_close(&b);
    return NULL;
}

/* Several threads on one stream that is cut again and again. */
static void test_threads_go_on_after_cuts(void)
{
    struct kit_wire *wire = kit_wire_open(&server);
    struct worker workers[3];
    pthread_t threads[3];
    struct fixture f;
    CHECK(wire != NULL);
    fixture_open(&f, kit_wire_target(wire), 1, 1);
    CHECK_STILL();
    for (uint64_t i = 0; i < 3; i++) {
        workers[i] = (struct worker){.session = f.session, .seed = 2000 + 10 * i};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 10; i++) {
        kit_wire_cut(wire, 40000);
        const struct timespec t = {0, 20000000};
        nanosleep(&t, NULL);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < 3; i++) {
        if (!workers[i].right) {
            CHECK_FAIL("thread %d: %s", i, workers[i].err.msg);
        }
    }
    fixture_close(&f);
    kit_wire_close(wire);
}

/* More than sockets and windows on the way take; few keys a row, so quickly computed. */
#define BIG_ROWS  3000u
#define BIG_LAYER KIT_WINDOW_LAYER
/* Long enough to compute them. */
#ifdef RELAY_TEST_SANITIZED
#define BIG_TIMEOUT_MS 15000u
#else
#define BIG_TIMEOUT_MS 3000u
#endif

/* The old connection freezes and stays open: the server still has the old stream when the new one
 * attaches, and the new one takes over. */
static void test_a_new_stream_takes_over(void)
{
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct kit_wire *wire = kit_wire_open(&server);
    struct relay_step *step = NULL;
    struct fixture f;
    uint64_t ticket;
    CHECK(wire != NULL);
    fixture_open(&f, kit_wire_target(wire), 1, BIG_ROWS);
    CHECK_STILL();
    kit_rows(&f.b, 0, BIG_ROWS);
    options.timeout_ms = BIG_TIMEOUT_MS;
    options.wait_admitted = true;
    CHECK_OK(relay_step_begin(f.session, f.b.entries, 1, &options, &step, &err), err);
    kit_wire_freeze(wire);
    const unsigned before = kit_wire_connections(wire);
    CHECK_OK(kit_submit(&f.b, step, BIG_LAYER, &ticket, &err), err);
    CHECK_CODE(relay_step_wait(step, ticket, &err), RELAY_DEADLINE_EXCEEDED);
    CHECK_OK(kit_submit(&f.b, step, BIG_LAYER, &ticket, &err), err);
    CHECK_OK(relay_step_wait(step, ticket, &err), err);
    CHECK(kit_wire_connections(wire) > before);
    relay_step_end(step);
    CHECK(kit_layer_right(&f.b, BIG_LAYER, 499));
    kit_wire_cut(wire, 0); /* unary calls have a connection that froze too */
    fixture_close(&f);
    kit_wire_close(wire);
}

/* At the deadline the tensors are the caller's again, wherever they lay; the step goes on. */
static void test_a_silent_server_gives_memory_back(void)
{
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    struct fixture f;
    uint64_t ticket;
    fixture_open(&f, server.unix_target, 1, BIG_ROWS);
    CHECK_STILL();
    kit_rows(&f.b, 0, BIG_ROWS);
    options.timeout_ms = BIG_TIMEOUT_MS;
    CHECK_OK(relay_step_begin(f.session, f.b.entries, 1, &options, &step, &err), err);
    for (int i = 0; i < 2; i++) {
        const size_t q_bytes = (size_t)BIG_ROWS * KIT_HQ * KIT_D * sizeof(float);
        float *q = malloc(q_bytes);
        CHECK(q != NULL);
        memcpy(q, f.b.q[BIG_LAYER], q_bytes);
        test_server_freeze(&server);
        CHECK_OK(relay_step_submit(step, BIG_LAYER, q, f.b.k[BIG_LAYER], f.b.v[BIG_LAYER],
                                   f.b.out[BIG_LAYER], f.b.lse[BIG_LAYER], &ticket, &err),
                 err);
        const enum relay_code code = relay_step_wait(step, ticket, &err);
        memset(q, 0xff, q_bytes);
        free(q);
        kill(server.pid, SIGCONT);
        CHECK_EQ(code, RELAY_DEADLINE_EXCEEDED);
        CHECK_OK(kit_submit(&f.b, step, BIG_LAYER, &ticket, &err), err);
        CHECK_OK(relay_step_wait(step, ticket, &err), err);
        CHECK(kit_layer_right(&f.b, BIG_LAYER, 499));
        kit_wipe(&f.b);
    }
    relay_step_end(step);
    fixture_close(&f);
}

static bool is_gone(pid_t pid, int *code)
{
    int status;
    if (waitpid(pid, &status, WNOHANG) != pid) {
        return false;
    }
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
}

static void wait_exit(void)
{
    int code = -1;
    for (int i = 0; i < 6000 && !is_gone(server.pid, &code); i++) {
        const struct timespec t = {0, 10000000};
        nanosleep(&t, NULL);
    }
    if (code == 0) {
        server.pid = 0;
    } else {
        test_server_print_log(&server);
    }
    CHECK_EQ(code, 0);
}

/* SIGTERM in the middle of a step: Drain is seen, its calls finish, the server exits 0 although its
 * patience is far longer than this test's. */
static void test_a_server_drains(void)
{
    struct relay_step *step = NULL;
    struct fixture f, idle;
    uint64_t tickets[KIT_LAYERS];
    fixture_open(&f, server.unix_target, 4, 16);
    CHECK_STILL();
    fixture_open(&idle, server.unix_target, 1, 1);
    CHECK_STILL();
    kit_rows(&idle.b, 0, 1);
    CHECK_OK(kit_step(&idle.b, NULL, &err), err); /* its stream stays, without a step */
    kit_rows(&f.b, 0, 4);
    CHECK_OK(relay_step_begin(f.session, f.b.entries, f.b.n, NULL, &step, &err), err);
    CHECK_OK(kit_submit(&f.b, step, 0, &tickets[0], &err), err);
    CHECK_OK(relay_step_wait(step, tickets[0], &err), err);
    CHECK(!relay_session_draining(f.session));
    CHECK_OK(kit_submit(&f.b, step, 1, &tickets[1], &err), err);
    kill(server.pid, SIGTERM);
    CHECK_OK(relay_step_wait(step, tickets[1], &err), err);
    for (int i = 0; i < 100000 && !relay_session_draining(f.session); i++) {
        CHECK_OK(relay_step_attend(step, 0, f.b.q[0], NULL, NULL, f.b.out[0], f.b.lse[0], &err),
                 err);
    }
    CHECK(relay_session_draining(f.session));
    CHECK_OK(kit_submit(&f.b, step, 2, &tickets[2], &err), err);
    CHECK_OK(relay_step_wait(step, tickets[2], &err), err);
    CHECK(kit_right(&f.b, 1));
    relay_step_end(step);
    wait_exit();
    CHECK_STILL();
    CHECK(relay_session_draining(idle.session));
    /* Nobody is there any more. */
    kit_rows(&f.b, 4, 1);
    CHECK_CODE(kit_step(&f.b, NULL, &err), RELAY_UNAVAILABLE);
    CHECK(test_server_start(&server, NULL));
    CHECK_CODE(kit_step(&f.b, NULL, &err), RELAY_FAILED_PRECONDITION);
    fixture_close(&idle);
    fixture_close(&f);
    setup();
}

/* SIGKILL with a call under way: a clean error while nobody is there, another when somebody new is,
 * and a new session's results are right. */
static void test_a_server_is_killed(void)
{
    struct relay_step *step = NULL;
    struct fixture f;
    uint64_t ticket, epoch;
    fixture_open(&f, server.unix_target, 4, 16);
    CHECK_STILL();
    epoch = relay_session_server_epoch(f.session);
    kit_rows(&f.b, 0, 4);
    CHECK_OK(relay_step_begin(f.session, f.b.entries, f.b.n, NULL, &step, &err), err);
    CHECK_OK(kit_submit(&f.b, step, 0, &ticket, &err), err);
    CHECK_OK(relay_step_wait(step, ticket, &err), err);
    test_server_freeze(&server);
    CHECK_OK(kit_submit(&f.b, step, 1, &ticket, &err), err);
    test_server_kill(&server);
    CHECK_CODE(relay_step_wait(step, ticket, &err), RELAY_UNAVAILABLE);
    CHECK(test_server_start(&server, NULL));
    setup();
    CHECK_STILL();
    CHECK_OK(kit_submit(&f.b, step, 1, &ticket, &err), err);
    CHECK_CODE(relay_step_wait(step, ticket, &err), RELAY_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "restarted") != NULL);
    CHECK_CODE(kit_submit(&f.b, step, 1, &ticket, &err), RELAY_FAILED_PRECONDITION);
    relay_step_end(step);
    CHECK_CODE(kit_step(&f.b, NULL, &err), RELAY_FAILED_PRECONDITION);
    fixture_close(&f);
    fixture_open(&f, server.unix_target, 4, 16);
    CHECK_STILL();
    CHECK(relay_session_server_epoch(f.session) != epoch);
    kit_rows(&f.b, 0, 4);
    CHECK_OK(kit_step(&f.b, NULL, &err), err);
    CHECK(kit_right(&f.b, 1));
    fixture_close(&f);
}

/* A session whose lease ran out is told from a server that restarted. */
static void test_a_session_ends(void)
{
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    struct kit_wire *wire = kit_wire_open(&server);
    struct fixture f;
    CHECK(wire != NULL);
    fixture_open(&f, kit_wire_target(wire), 1, 1);
    CHECK_STILL();
    kit_close(&f.b);
    relay_session_close(f.session);
    options.lease_ms = 2000;
    options.keepalive = false;
    CHECK_OK(relay_session_open(f.client, kit_model(), &options, &f.session, &err), err);
    CHECK_OK(kit_open(&f.b, f.session, 1, 1, 1, &err), err);
    kit_rows(&f.b, 0, 1);
    CHECK_OK(kit_step(&f.b, NULL, &err), err);
    kit_wire_cut(wire, 0); /* while a stream is attached the lease does not end */
    struct relay_server_info *info = test_server_info(&server);
    for (int i = 0; i < 3000 && info != NULL && info->sessions > 0; i++) {
        const struct timespec t = {0, 10000000};
        nanosleep(&t, NULL);
        relay_server_info_free(info);
        info = test_server_info(&server);
    }
    CHECK(info != NULL && info->sessions == 0);
    relay_server_info_free(info);
    CHECK_CODE(kit_step(&f.b, NULL, &err), RELAY_NOT_FOUND);
    CHECK(strstr(err.msg, "has ended") != NULL);
    fixture_close(&f);
    kit_wire_close(wire);
}

static void test_nothing_is_left(void)
{
    CHECK(test_server_wait_idle(&server));
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--drain-timeout-ms", "1h", NULL};
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(setup);
    CHECK_RUN(test_a_step_goes_on_after_cuts);
    CHECK_RUN(test_threads_go_on_after_cuts);
    CHECK_RUN(test_a_new_stream_takes_over);
    CHECK_RUN(test_a_silent_server_gives_memory_back);
    CHECK_RUN(test_a_server_drains);
    CHECK_RUN(test_a_server_is_killed);
    CHECK_RUN(test_a_session_ends);
    CHECK_RUN(test_nothing_is_left);
    test_server_fini(&server);
    return check_done();
}
