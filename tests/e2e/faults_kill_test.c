/* Clients killed by SIGKILL, in every state a client can be in, a thousand times: the server gives
 * back all they had, and another engine's results stay the same to the bit all the while.
 *
 * A nursery process, forked before gRPC is used, forks the victims: a few at a time, each walks to
 * its state, says so, and is killed at once. RELAY_TEST_KILLS: another number of them. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Sanitizers make a client ten times slower. */
#ifdef RELAY_TEST_SANITIZED
#define KILLS 105
#else
#define KILLS 1000
#endif
#define AT_A_TIME  3
#define LEASE_MS   2000u
#define TOKENS     300u
#define REQUESTS   8u
#define LAYERS     4u
#define LONG_ROWS  32u /* of a request, in calls that take a while */
#define READY_MS   60000
#define BYSTANDERS 2u

static unsigned kills = KILLS;
static struct test_server server;
static struct faults_model model;
static struct relay_error err;

/* ---- victims ---- */

struct victim {
    struct faults_peer peer;
    struct faults_engine engine;
    struct faults_call *call;
    unsigned number;
};

static bool attached(struct victim *v)
{
    return faults_engine_open(&v->engine, &v->peer, &model, v->number, LEASE_MS, 0, &err) ==
               RELAY_OK &&
           faults_engine_requests(&v->engine, "p", REQUESTS, 0, &err) == RELAY_OK &&
           faults_engine_attach(&v->engine, &err) == RELAY_OK;
}

static bool uploading(struct victim *v, const char *upload_id)
{
    char id[32];
    snprintf(id, sizeof(id), "victim-%u", v->number);
    v->call = faults_upload_begin(&v->peer, &model, id, TOKENS, false, upload_id, &err);
    return v->call != NULL && faults_upload_chunk(v->call, &model, 0, 0, TOKENS, 1) &&
           faults_upload_chunk(v->call, &model, 1, 0, TOKENS / 2, 1);
}

static bool upload(struct victim *v)
{
    return uploading(v, NULL);
}

/* Leaves a hidden partial, until it expires. */
static bool resumable_upload(struct victim *v)
{
    char upload_id[17];
    snprintf(upload_id, sizeof(upload_id), "%016u", v->number);
    return uploading(v, upload_id);
}

/* Some layers of the step hold one token more than the others. */
static bool between_layers(struct victim *v)
{
    struct faults_answer answer;
    if (!attached(v) || !faults_engine_begin(&v->engine, 1, 0, 1, RELAY_PART_FULL) ||
        !faults_engine_call(&v->engine, 1, 0, 1, 0, RELAY_PART_FULL, FAULTS_TIMEOUT_MS)) {
        return false;
    }
    for (int i = 0; i < 2; i++) { /* begun, result */
        if (faults_engine_answer(&v->engine, FAULTS_TIMEOUT_MS, NULL, 0, &answer) !=
                FAULTS_MESSAGE ||
            answer.code != RELAY_OK) {
            return false;
        }
    }
    return true;
}

/* One layer is being computed, others wait, nobody reads the answers. */
static bool mid_layer(struct victim *v)
{
    bool sent = attached(v) && faults_engine_begin(&v->engine, 1, 0, LONG_ROWS, RELAY_PART_FULL);
    for (uint32_t layer = 0; sent && layer < LAYERS; layer++) {
        sent = faults_engine_call(&v->engine, 1, 0, LONG_ROWS, layer, RELAY_PART_FULL,
                                  FAULTS_TIMEOUT_MS);
    }
    return sent;
}

/* A step is open in one stream while another takes the session over. */
static bool taken_over(struct victim *v)
{
    if (!mid_layer(v)) {
        return false;
    }
    v->call = v->engine.stream;
    return faults_engine_attach(&v->engine, &err) == RELAY_OK;
}

/* Connected, and a unary call was made: a session without a stream. */
static bool idle_session(struct victim *v)
{
    return faults_engine_open(&v->engine, &v->peer, &model, v->number, LEASE_MS, 0, &err) ==
               RELAY_OK &&
           faults_engine_requests(&v->engine, "p", REQUESTS, 0, &err) == RELAY_OK;
}

static const struct {
    const char *name;
    bool (*reach)(struct victim *v);
} states[] = {
    {"attached", attached},
    {"mid-upload", upload},
    {"mid-resumable-upload", resumable_upload},
    {"between layers", between_layers},
    {"mid-layer", mid_layer},
    {"taken over", taken_over},
    {"idle session", idle_session},
};
#define NUM_STATES (sizeof(states) / sizeof(states[0]))

/* ---- the nursery ---- */

struct bed {
    pid_t pid;
    int ready; /* a byte comes when the victim is in its state */
};

static void victim_run(unsigned number, int ready)
{
    struct victim v;
    memset(&v, 0, sizeof(v));
    v.number = number;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    faults_peer_open(&v.peer, server.unix_target);
    if (!states[number % NUM_STATES].reach(&v)) {
        fprintf(stderr, "%s: %s: %s\n", states[number % NUM_STATES].name, relay_code_name(err.code),
                err.msg);
        _exit(1);
    }
    if (write(ready, "r", 1) == 1) {
        for (;;) {
            pause();
        }
    }
    _exit(1);
}

static bool lay(struct bed *bed, unsigned number)
{
    int fds[2];
    if (pipe(fds) != 0) {
        return false;
    }
    bed->pid = fork();
    if (bed->pid == 0) {
        close(fds[0]);
        victim_run(number, fds[1]);
    }
    close(fds[1]);
    bed->ready = fds[0];
    return bed->pid > 0;
}

/* Kills whoever is ready, or has failed; false for the latter. */
static bool reap(struct bed *bed)
{
    char byte;
    const bool ready = read(bed->ready, &byte, 1) == 1;
    close(bed->ready);
    kill(bed->pid, SIGKILL);
    waitpid(bed->pid, NULL, 0);
    bed->pid = 0;
    return ready;
}

/* The exit code: 0 when every victim got as far as it should. */
static int nursery_run(void)
{
    struct bed beds[AT_A_TIME];
    unsigned next = 0;
    bool ok = true;
    for (int b = 0; b < AT_A_TIME; b++) {
        ok = ok && lay(&beds[b], next++);
    }
    for (unsigned killed = 0; ok && killed < kills; killed++) {
        struct pollfd polls[AT_A_TIME];
        for (int b = 0; b < AT_A_TIME; b++) {
            polls[b] =
                (struct pollfd){.fd = beds[b].pid > 0 ? beds[b].ready : -1, .events = POLLIN};
        }
        if (poll(polls, AT_A_TIME, READY_MS) <= 0) {
            fprintf(stderr, "a client got stuck\n");
            return 1;
        }
        int b = 0;
        while (polls[b].revents == 0) {
            b++;
        }
        ok = reap(&beds[b]);
        if (ok && next < kills) {
            ok = lay(&beds[b], next++);
        }
    }
    return ok ? 0 : 1;
}

/* ---- the test ---- */

static pid_t nursery;
static int go;

/* Before anything of gRPC. Waits for a byte, so that the prompt is there. */
static bool nursery_open(void)
{
    int fds[2];
    char byte;
    if (pipe(fds) != 0) {
        return false;
    }
    nursery = fork();
    if (nursery == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[1]);
        _exit(read(fds[0], &byte, 1) == 1 ? nursery_run() : 1);
    }
    close(fds[0]);
    go = fds[1];
    return nursery > 0;
}

static void test_a_thousand_kills_leave_nothing(void)
{
    static float want[BYSTANDERS * LAYERS * 4 * 32], got[BYSTANDERS * LAYERS * 4 * 32];
    struct faults_peer peer;
    struct faults_engine engine;
    struct faults_counts start, end;
    unsigned steps = 0;
    int status = 0;
    faults_peer_open(&peer, server.unix_target);
    CHECK_OK(faults_register(&peer, &model, "p", TOKENS, 1, false, &err), err);
    CHECK(faults_counts(&peer, server.pid, &start));
    CHECK_OK(faults_engine_open(&engine, &peer, &model, 1, 600000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&engine, "p", BYSTANDERS, 0, &err), err);
    CHECK_OK(faults_engine_attach(&engine, &err), err);
    CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, want, NULL, &err), err);
    const uint64_t began_ms = faults_now_ms();
    CHECK_EQ(write(go, "g", 1), 1);
    while (waitpid(nursery, &status, WNOHANG) == 0) {
        CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, got, NULL, &err), err);
        CHECK(memcmp(got, want, sizeof(want)) == 0);
        faults_sleep_ms(20);
    }
    CHECK_EQ(status, 0);
    fprintf(stderr, "%u clients killed in %zu states, %llu ms; %u steps beside them\n", kills,
            NUM_STATES, (unsigned long long)(faults_now_ms() - began_ms), steps);
    CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, got, NULL, &err), err);
    CHECK(memcmp(got, want, sizeof(want)) == 0);
    faults_engine_close(&engine);
    CHECK(faults_back_to(&peer, server.pid, &start));
    CHECK(faults_counts(&peer, server.pid, &end));
    CHECK_EQ(end.epoch, start.epoch);
    fprintf(stderr, "resident memory: %llu KiB before, %llu KiB after\n",
            (unsigned long long)start.rss_bytes >> 10, (unsigned long long)end.rss_bytes >> 10);
    faults_peer_close(&peer);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads",
                                       "1",
                                       "--sweep-interval-ms",
                                       "50",
                                       "--upload-expiry-ms",
                                       "1000",
                                       "--log-level",
                                       "warn",
                                       "--session-lease-ms",
                                       "2000",
                                       NULL};
    if (getenv("RELAY_TEST_KILLS") != NULL) {
        kills = (unsigned)strtoul(getenv("RELAY_TEST_KILLS"), NULL, 10);
    }
    faults_model_init(&model, "kill@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args) || !nursery_open()) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_a_thousand_kills_leave_nothing);
    test_server_fini(&server);
    return check_done();
}
