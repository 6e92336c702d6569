/* Steps over a session's stream against a real relayd: right results whole, in pieces and several
 * in flight, from one thread and from many, and two processes that share a prompt. */
#include "e2e/stream_kit.h"
#include "testlib/check.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#define STEPS 5u

static struct test_server server;
static struct relay_error err;
static struct relay_client *client;
static const char *self; /* this program, to run as another process */

static struct relay_session *open_session(bool stream)
{
    struct relay_session_options options = RELAY_SESSION_OPTIONS_INIT;
    struct relay_session *session = NULL;
    options.stream = stream;
    options.response_bytes_max = 16u << 20;
    if (relay_session_open(client, kit_model(), &options, &session, &err) != RELAY_OK) {
        fprintf(stderr, "session: %s\n", err.msg);
        return NULL;
    }
    return session;
}

static void setup(void)
{
    CHECK_OK(relay_client_open(server.unix_target, NULL, &client, &err), err);
    CHECK_OK(kit_register(client, &err), err);
}

static void test_steps_give_the_bits_of_unary_calls(void)
{
    struct relay_session *sessions[2] = {open_session(true), open_session(false)};
    struct kit_batch batches[2];
    CHECK(sessions[0] != NULL && sessions[1] != NULL);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(kit_open(&batches[i], sessions[i], 4, 100, 8, &err), err);
    }
    for (uint32_t s = 0; s < STEPS; s++) {
        for (int i = 0; i < 2; i++) {
            kit_rows(&batches[i], s, 1);
            CHECK_OK(kit_step(&batches[i], NULL, &err), err);
        }
        CHECK(kit_right(&batches[0], 1));
        for (uint32_t l = 0; l < KIT_LAYERS; l++) {
            CHECK(memcmp(batches[0].out[l], batches[1].out[l],
                         4 * KIT_HQ * KIT_D * sizeof(float)) == 0);
            CHECK(memcmp(batches[0].lse[l], batches[1].lse[l], 4 * KIT_HQ * sizeof(float)) == 0);
        }
    }
    for (int i = 0; i < 2; i++) {
        kit_close(&batches[i]);
        relay_session_close(sessions[i]);
    }
}

/* A prefill of 300 tokens in pieces of 70, all layers and pieces submitted before any is waited
 * for, and waited for from the last on. */
static void run_pieces(struct kit_batch *b)
{
    static const uint32_t piece = 70;
    uint64_t tickets[KIT_LAYERS * 32];
    struct relay_step *step = NULL;
    int n = 0;
    kit_rows(b, 0, 150);
    CHECK_OK(relay_step_begin(b->session, b->entries, b->n, NULL, &step, &err), err);
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        for (uint32_t row = 0; row < b->rows; row += piece) {
            const uint32_t count = b->rows - row < piece ? b->rows - row : piece;
            const size_t q = (size_t)row * KIT_HQ * KIT_D, kv = (size_t)row * KIT_HKV * KIT_D;
            CHECK_OK(relay_step_submit_rows(step, l, row, count, b->q[l] + q, b->k[l] + kv,
                                            b->v[l] + kv, b->out[l] + q,
                                            b->lse[l] + (size_t)row * KIT_HQ, &tickets[n++], &err),
                     err);
        }
    }
    while (n > 0) {
        CHECK_OK(relay_step_wait(step, tickets[--n], &err), err);
        CHECK(relay_step_timings(step)->total_us > 0);
    }
    CHECK_CODE(relay_step_wait(step, tickets[0], &err), RELAY_INVALID_ARGUMENT);
    relay_step_end(step);
    CHECK(kit_right(b, 13));
}

/* Also without a stream; where the server promises batch invariance, the same bits every way. */
static void test_long_prefills_in_pieces(void)
{
    struct relay_server_info *info = test_server_info(&server);
    struct relay_session *sessions[3] = {open_session(true), open_session(false),
                                         open_session(true)};
    struct kit_batch b[3];
    CHECK(info != NULL);
    for (int i = 0; i < 3; i++) {
        CHECK(sessions[i] != NULL);
        CHECK_OK(kit_open(&b[i], sessions[i], 2, 200, 300, &err), err);
    }
    run_pieces(&b[0]);
    CHECK_STILL();
    run_pieces(&b[1]);
    CHECK_STILL();
    kit_rows(&b[2], 0, 150);
    CHECK_OK(kit_step(&b[2], NULL, &err), err);
    CHECK(kit_right(&b[2], 13));
    for (int i = 1; i < 3 && info->batch_invariant; i++) {
        for (uint32_t l = 0; l < KIT_LAYERS; l++) {
            CHECK(memcmp(b[0].out[l], b[i].out[l], 300 * KIT_HQ * KIT_D * sizeof(float)) == 0);
            CHECK(memcmp(b[0].lse[l], b[i].lse[l], 300 * KIT_HQ * sizeof(float)) == 0);
        }
    }
    for (int i = 0; i < 3; i++) {
        kit_close(&b[i]);
        relay_session_close(sessions[i]);
    }
    relay_server_info_free(info);
}

/* Far more calls than the server lets be in flight, over three steps on one stream. */
static void test_many_calls_in_flight(void)
{
    struct relay_session *session = open_session(true);
    struct kit_batch b[3];
    struct relay_step *steps[3] = {NULL, NULL, NULL};
    uint64_t tickets[3][KIT_LAYERS];
    CHECK(session != NULL);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK_OK(kit_open(&b[i], session, 8, 300 + 8 * i, 64, &err), err);
        kit_rows(&b[i], 0, 8);
        CHECK_OK(relay_step_begin(session, b[i].entries, b[i].n, NULL, &steps[i], &err), err);
    }
    for (int round = 0; round < 10; round++) {
        for (uint32_t l = 0; l < KIT_LAYERS; l++) {
            for (int i = 0; i < 3; i++) {
                CHECK_OK(kit_submit(&b[i], steps[i], l, &tickets[i][l], &err), err);
            }
        }
        for (uint32_t l = KIT_LAYERS; l-- > 0;) {
            for (int i = 0; i < 3; i++) {
                CHECK_OK(relay_step_wait(steps[i], tickets[i][l], &err), err);
            }
        }
    }
    for (int i = 0; i < 3; i++) {
        CHECK(kit_right(&b[i], 3));
        CHECK(relay_step_kv_tokens_free(steps[i]) > 0);
        relay_step_end(steps[i]);
        kit_close(&b[i]);
    }
    relay_session_close(session);
}

/* Calls that nobody waits for: end gives them up, and their memory is free at once. */
static void test_calls_can_be_given_up(void)
{
    struct relay_session *session = open_session(true);
    struct kit_batch b;
    struct relay_step *step = NULL;
    uint64_t ticket;
    CHECK(session != NULL);
    for (int i = 0; i < 10; i++) {
        CHECK_OK(kit_open(&b, session, 4, 400, 400, &err), err);
        kit_rows(&b, 0, 100);
        CHECK_OK(relay_step_begin(session, b.entries, b.n, NULL, &step, &err), err);
        for (uint32_t l = 0; l < KIT_LAYERS; l++) {
            CHECK_OK(kit_submit(&b, step, l, &ticket, &err), err);
        }
        relay_step_end(step);
        kit_close(&b);
    }
    CHECK_OK(kit_open(&b, session, 4, 400, 4, &err), err);
    kit_rows(&b, 0, 1);
    CHECK_OK(kit_step(&b, NULL, &err), err);
    CHECK(kit_right(&b, 1));
    kit_close(&b);
    relay_session_close(session);
}

struct worker {
    struct relay_session *session;
    uint64_t seed;
    struct kit_batch batch;
    struct relay_error err;
    bool right;
};

static void *work(void *user)
{
    struct worker *w = user;
    const struct timespec t = {0, 1000000};
    enum relay_code code = kit_open(&w->batch, w->session, 2, w->seed, 8, &w->err);
    w->right = true;
    for (uint32_t s = 0; s < 20 && code == RELAY_OK && w->right; s++) {
        kit_rows(&w->batch, s, 1);
        code = kit_step(&w->batch, NULL, &w->err);
        w->right = code == RELAY_OK && kit_right(&w->batch, 1);
        if (s % 5 == w->seed % 5) {
            nanosleep(&t, NULL); /* let the others pump */
        }
    }
    kit_close(&w->batch);
    return NULL;
}

/* Steps of one session from several threads at once: they take turns at the stream. */
static void test_threads_share_a_stream(void)
{
    static struct worker workers[4];
    pthread_t threads[4];
    struct relay_session *session = open_session(true);
    CHECK(session != NULL);
    for (int i = 0; i < 4; i++) {
        workers[i] = (struct worker){.session = session, .seed = 500 + 10 * (uint64_t)i};
        CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < 4; i++) {
        if (!workers[i].right) {
            CHECK_FAIL("thread %d: %s", i, workers[i].err.msg);
        }
    }
    relay_session_close(session);
}

/* A refused step hurts no other on the stream. */
static void test_a_refused_step(void)
{
    struct relay_session *session = open_session(true);
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *good = NULL, *bad = NULL;
    struct kit_batch b;
    uint64_t tickets[2];
    CHECK(session != NULL);
    CHECK_OK(kit_open(&b, session, 2, 600, 8, &err), err);
    kit_rows(&b, 0, 1);
    struct relay_step_entry wrong[2] = {b.entries[0], {12345, 0, 1}};
    CHECK_OK(relay_step_begin(session, &b.entries[1], 1, NULL, &good, &err), err);
    options.wait_admitted = true;
    CHECK_CODE(relay_step_begin(session, wrong, 2, &options, &bad, &err), RELAY_NOT_FOUND);
    CHECK(bad == NULL && strstr(err.msg, "entry 1") != NULL);
    options.wait_admitted = false;
    CHECK_OK(relay_step_begin(session, wrong, 2, &options, &bad, &err), err);
    CHECK_OK(kit_submit(&b, bad, 0, &tickets[0], &err), err);
    CHECK_OK(kit_submit(&b, bad, 1, &tickets[1], &err), err);
    CHECK_CODE(relay_step_wait(bad, tickets[1], &err), RELAY_NOT_FOUND);
    CHECK_CODE(relay_step_wait(bad, tickets[0], &err), RELAY_NOT_FOUND);
    CHECK(strstr(err.msg, "entry 1") != NULL);
    CHECK_CODE(kit_submit(&b, bad, 2, &tickets[0], &err), RELAY_NOT_FOUND);
    for (uint32_t l = 0; l < KIT_LAYERS; l++) {
        CHECK_OK(relay_step_attend(good, l, b.q[l] + KIT_HQ * KIT_D, b.k[l] + KIT_HKV * KIT_D,
                                   b.v[l] + KIT_HKV * KIT_D, b.out[l] + KIT_HQ * KIT_D,
                                   b.lse[l] + KIT_HQ, &err),
                 err);
    }
    relay_step_end(good);
    relay_step_end(bad);
    CHECK_OK(kit_step(&b, NULL, &err), err);
    CHECK(kit_right(&b, 1));
    kit_close(&b);
    relay_session_close(session);
}

static void test_options_of_a_step(void)
{
    struct relay_session *session = open_session(true);
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    struct kit_batch b;
    CHECK(session != NULL);
    CHECK_OK(kit_open(&b, session, 2, 700, 8, &err), err);
    kit_rows(&b, 0, 1);
    options.size--;
    CHECK_CODE(relay_step_begin(session, b.entries, 2, &options, &step, &err),
               RELAY_INVALID_ARGUMENT);
    options.size++;
    options.want_lse = false;
    options.want_timings = false;
    CHECK_OK(relay_step_begin(session, b.entries, 2, &options, &step, &err), err);
    CHECK_CODE(relay_step_attend(step, 0, b.q[0], b.k[0], b.v[0], b.out[0], b.lse[0], &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_OK(relay_step_attend(step, 0, b.q[0], b.k[0], b.v[0], b.out[0], NULL, &err), err);
    CHECK_EQ(relay_step_timings(step)->batch_rows, 0);
    CHECK(relay_step_timings(step)->total_us > 0);
    relay_step_end(step);
    /* A microsecond after the step's receipt no layer can have been launched. */
    options = (struct relay_step_options)RELAY_STEP_OPTIONS_INIT;
    options.timeout_us = 1;
    CHECK_CODE(kit_step(&b, &options, &err), RELAY_DEADLINE_EXCEEDED);
    CHECK_OK(kit_step(&b, NULL, &err), err);
    CHECK(kit_right(&b, 1));
    kit_close(&b);
    relay_session_close(session);
}

/* Unary calls that need the request free come right after a step's end. */
static void test_a_step_has_ended_when_it_must_have(void)
{
    struct relay_session *session = open_session(true);
    struct kit_batch b;
    const uint32_t keep[2] = {0, 0};
    CHECK(session != NULL);
    CHECK_OK(kit_open(&b, session, 2, 800, 8, &err), err);
    for (int i = 0; i < 50; i++) {
        kit_rows(&b, 0, 2);
        CHECK_OK(kit_step(&b, NULL, &err), err);
        if (i % 2 == 0) {
            CHECK_OK(relay_requests_truncate(session, b.handles, keep, 2, &err), err);
        } else {
            const struct relay_kv layers[KIT_LAYERS] = {
                {b.k[0], b.v[0], RELAY_DTYPE_F32},
                {b.k[1], b.v[1], RELAY_DTYPE_F32},
                {b.k[2], b.v[2], RELAY_DTYPE_F32},
            };
            CHECK_OK(relay_request_append(session, b.handles[0], 0, 2, layers, &err), err);
        }
    }
    CHECK(kit_right(&b, 1));
    kit_close(&b);
    relay_session_close(session);
}

/* ---- two processes ---- */

#define PAIR_ROWS 4u

/* Says through `there` that this process has a session, and waits for the other's word on
 * `awaited`: a process under TSan on a loaded machine takes longer to start than all the steps of
 * the first. False where the other ended without a word. */
static bool meet(int there, int awaited)
{
    char word = 1;
    const bool said = write(there, &word, 1) == 1;
    return said && read(awaited, &word, 1) == 1;
}

/* Steps with align_us until one of its launches had both processes' rows; 0, or 1 with the reason
 * printed. Begins when the other process does, and goes on for a while as company for it. */
static int walk(uint64_t seed, int there, int awaited, bool *seen)
{
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_session *session = open_session(true);
    struct kit_batch b;
    struct relay_step *step = NULL;
    uint32_t after = 0;
    options.align_us = 50000;
    if (session == NULL || kit_open(&b, session, PAIR_ROWS, seed, PAIR_ROWS, &err) != RELAY_OK ||
        !meet(there, awaited)) {
        return 1;
    }
    enum relay_code code = RELAY_OK;
    for (uint32_t s = 0; s < 500 && after < 20 && code == RELAY_OK; s++) {
        kit_rows(&b, s, 1);
        code = relay_step_begin(session, b.entries, b.n, &options, &step, &err);
        for (uint32_t l = 0; l < KIT_LAYERS && code == RELAY_OK; l++) {
            code = relay_step_attend(step, l, b.q[l], b.k[l], b.v[l], b.out[l], b.lse[l], &err);
            const struct relay_timings *t = relay_step_timings(step);
            if (code == RELAY_OK && t->batch_sessions == 2) {
                /* Both processes' rows, and the prompt (where the window lets all of it be seen)
                 * once: not once per process or request. */
                if (t->batch_rows != 2 * PAIR_ROWS ||
                    (l != KIT_WINDOW_LAYER && t->prompt_bytes != KIT_PROMPT_LAYER_BYTES)) {
                    fprintf(stderr, "layer %u: %u rows, %llu prompt bytes\n", l, t->batch_rows,
                            (unsigned long long)t->prompt_bytes);
                    return 1;
                }
                *seen = true;
            }
        }
        relay_step_end(step);
        if (code == RELAY_OK && !kit_right(&b, 1)) {
            return 1;
        }
        after += *seen;
    }
    if (code != RELAY_OK) {
        fprintf(stderr, "%s: %s\n", relay_code_name(code), err.msg);
        return 1;
    }
    kit_close(&b);
    relay_session_close(session);
    return 0;
}

/* The other process: this program again, told where the server is and which files to meet by. */
static int be_other(const char *target, int there, int awaited)
{
    bool seen = false;
    if (relay_client_open(target, NULL, &client, &err) != RELAY_OK) {
        return 1;
    }
    const int result = walk(900, there, awaited, &seen);
    relay_client_close(client);
    return result != 0 ? 1 : (seen ? 0 : 2);
}

static void test_two_processes_share_a_prompt(void)
{
    bool seen = false;
    int status = 0;
    int to[2];
    int from[2];
    char awaited[12];
    char there[12];
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    snprintf(awaited, sizeof awaited, "%d", to[0]);
    snprintf(there, sizeof there, "%d", from[1]);
    const pid_t other = fork();
    if (other == 0) { /* nothing between fork and exec that gRPC's locks could hold up */
        close(to[1]);
        close(from[0]);
        execl(self, self, "--other", server.unix_target, awaited, there, (char *)NULL);
        _exit(127);
    }
    CHECK(other > 0);
    close(to[0]);
    close(from[1]);
    const int result = walk(910, to[1], from[0], &seen);
    close(to[1]);
    close(from[0]);
    CHECK_EQ(waitpid(other, &status, 0), other);
    CHECK_EQ(result, 0);
    CHECK(seen);
    CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : 128, 0);
}

static void test_nothing_is_left(void)
{
    relay_client_close(client);
    CHECK(test_server_wait_idle(&server));
    struct relay_server_info *info = test_server_info(&server);
    CHECK(info != NULL);
    CHECK_EQ(info->request_bytes_used, 0);
    CHECK(info->launches > 0 && info->calls >= info->launches && info->rows > info->launches);
    CHECK(info->prompt_bytes_read > 0 && info->kv_bytes_read > 0);
    relay_server_info_free(info);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--other") == 0) {
        return be_other(argv[2], (int)strtol(argv[4], NULL, 10), (int)strtol(argv[3], NULL, 10));
    }
    self = argv[0];
    if (!test_server_start(&server, NULL)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(setup);
    CHECK_RUN(test_steps_give_the_bits_of_unary_calls);
    CHECK_RUN(test_long_prefills_in_pieces);
    CHECK_RUN(test_many_calls_in_flight);
    CHECK_RUN(test_calls_can_be_given_up);
    CHECK_RUN(test_threads_share_a_stream);
    CHECK_RUN(test_a_refused_step);
    CHECK_RUN(test_options_of_a_step);
    CHECK_RUN(test_a_step_has_ended_when_it_must_have);
    CHECK_RUN(test_two_processes_share_a_prompt);
    CHECK_RUN(test_nothing_is_left);
    test_server_fini(&server);
    return check_done();
}
