/* A prompt is replaced again and again, and unregistered, while eight sessions use it: whoever
 * began on the old one gets the old one's results to the bit, whoever comes gets the new one, and
 * every generation goes with its last user. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <pthread.h>
#include <stdatomic.h>

#define SESSIONS     8u
#define LAYERS       2u
#define TOKENS       300u
#define REPLACEMENTS 20u
#define OUT_FLOATS   (LAYERS * 2u * 4 * 32)

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static struct faults_peer own;

/* One session that runs the same step over and over; a thread's. */
struct user {
    pthread_t thread;
    struct faults_peer peer;
    struct faults_engine engine;
    struct relay_error err;
    enum relay_code code;
    bool changed;
    unsigned steps;
    float want[OUT_FLOATS], got[OUT_FLOATS];
};

static struct user users[SESSIONS];
static atomic_bool stop;
static pthread_barrier_t ready;

static enum relay_code user_open(struct user *u)
{
    enum relay_code code = faults_engine_open(&u->engine, &u->peer, &model, 5, 600000, 0, &u->err);
    if (code == RELAY_OK) {
        code = faults_engine_requests(&u->engine, "p", 2, 0, &u->err);
    }
    if (code == RELAY_OK) {
        code = faults_engine_attach(&u->engine, &u->err);
    }
    return code;
}

static void *user_run(void *arg)
{
    struct user *u = arg;
    faults_peer_open(&u->peer, server.unix_target);
    u->code = user_open(u);
    if (u->code == RELAY_OK) {
        u->code =
            faults_engine_step(&u->engine, ++u->steps, 0, RELAY_PART_FULL, u->want, NULL, &u->err);
    }
    pthread_barrier_wait(&ready);
    while (u->code == RELAY_OK && !u->changed && !atomic_load(&stop)) {
        u->code =
            faults_engine_step(&u->engine, ++u->steps, 0, RELAY_PART_FULL, u->got, NULL, &u->err);
        u->changed = u->code == RELAY_OK && memcmp(u->got, u->want, sizeof(u->want)) != 0;
    }
    return NULL;
}

/* What a session of its own gets from the prompt as it is now. */
static void newcomer(float *out)
{
    static struct user u;
    u.peer = own;
    CHECK_OK(user_open(&u), u.err);
    CHECK_OK(faults_engine_step(&u.engine, 1, 0, RELAY_PART_FULL, out, NULL, &u.err), u.err);
    faults_engine_close(&u.engine);
}

static void put(uint64_t seed)
{
    CHECK_OK(faults_register(&own, &model, "p", TOKENS, seed, true, &err), err);
}

static void check_users(const float *want)
{
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct user *u = &users[i];
        if (u->code != RELAY_OK) {
            CHECK_FAIL("session %u: %s: %s", i, relay_code_name(u->code), u->err.msg);
        }
        CHECK(!u->changed);
        CHECK(memcmp(u->want, want, sizeof(u->want)) == 0);
    }
}

static void test_replaced_and_unregistered_while_in_use(void)
{
    static float wants[2][OUT_FLOATS], got[OUT_FLOATS];
    struct faults_counts start, now;
    unsigned steps = 0;
    faults_peer_open(&own, server.unix_target);
    CHECK(faults_counts(&own, server.pid, &start));
    for (uint32_t which = 0; which < 2; which++) { /* ends with seed 1 in place */
        put(2 - which);
        CHECK_STILL();
        newcomer(wants[1 - which]);
        CHECK_STILL();
    }
    CHECK(memcmp(wants[0], wants[1], sizeof(wants[0])) != 0);

    pthread_barrier_init(&ready, NULL, SESSIONS + 1);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        CHECK_EQ(pthread_create(&users[i].thread, NULL, user_run, &users[i]), 0);
    }
    pthread_barrier_wait(&ready);
    for (uint32_t r = 0; r < REPLACEMENTS; r++) {
        const uint32_t which = 1 - r % 2; /* seed 2, 1, 2, ... */
        put(1 + which);
        newcomer(got);
        CHECK(check_failed_now || memcmp(got, wants[which], sizeof(got)) == 0);
    }
    const enum relay_code gone = faults_unregister(&own, &model, "p", &err);
    static struct user late;
    late.peer = own;
    const enum relay_code refused = user_open(&late);
    (void)faults_counts(&own, server.pid, &now);
    faults_sleep_ms(100); /* some more steps on what no one else can see any more */
    atomic_store(&stop, true);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        pthread_join(users[i].thread, NULL);
        steps += users[i].steps;
    }
    CHECK_EQ(gone, RELAY_OK);
    CHECK_EQ(refused, RELAY_NOT_FOUND);
    check_users(wants[0]);
    CHECK_STILL();
    fprintf(stderr, "%u replacements, %u steps of %u sessions on the first generation\n",
            REPLACEMENTS, steps, SESSIONS);
    CHECK_EQ(now.prompts, start.prompts + 1); /* the doomed one; those between had no users left */
    faults_engine_close(&late.engine);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        faults_engine_close(&users[i].engine);
        faults_peer_close(&users[i].peer);
    }
    CHECK(faults_back_to(&own, server.pid, &start));
    pthread_barrier_destroy(&ready);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads", "1", "--log-level", "warn", NULL};
    faults_model_init(&model, "prompts@test", LAYERS, 4, 2, 32);
    if (!test_server_start(&server, args)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_replaced_and_unregistered_while_in_use);
    test_server_fini(&server);
    return check_done();
}
