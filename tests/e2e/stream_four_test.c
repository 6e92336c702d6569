/* Four engines, each with a connection, a session and a stream of its own, walk a fixed number of
 * steps on one prompt at the same time, layers in flight ahead of their answers: every row is
 * right, launches mix their rows, and nothing is left. What a race detector is to watch. */
#include "e2e/stream_kit.h"
#include "testlib/check.h"

#include <pthread.h>

#define STREAMS 4u
#define STEPS   60u
#define ROWS    3u

static struct test_server server;
static struct relay_error err;
static pthread_barrier_t together;

struct engine {
    pthread_t thread;
    uint32_t index;
    struct relay_client *client;
    struct relay_session *session;
    struct kit_batch batch;
    enum relay_code code;
    uint32_t steps;    /* walked, and right */
    uint32_t most_met; /* sessions in one launch */
    struct relay_error err;
};

/* All layers before the first answer, as an engine that knows its next layers' inputs would. */
static enum relay_code walk_step(struct engine *e)
{
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    struct relay_step *step = NULL;
    uint64_t tickets[KIT_LAYERS];
    options.align_us = 10000;
    enum relay_code code =
        relay_step_begin(e->session, e->batch.entries, e->batch.n, &options, &step, &e->err);
    for (uint32_t l = 0; l < KIT_LAYERS && code == RELAY_OK; l++) {
        code = kit_submit(&e->batch, step, l, &tickets[l], &e->err);
    }
    for (uint32_t l = 0; l < KIT_LAYERS && code == RELAY_OK; l++) {
        code = relay_step_wait(step, tickets[l], &e->err);
        const uint32_t met = relay_step_timings(step)->batch_sessions;
        e->most_met = met > e->most_met ? met : e->most_met;
    }
    relay_step_end(step);
    return code;
}

static void *run(void *user)
{
    struct engine *e = user;
    bool right = true;
    e->code = relay_client_open(server.unix_target, NULL, &e->client, &e->err);
    if (e->code == RELAY_OK) {
        e->code = relay_session_open(e->client, kit_model(), NULL, &e->session, &e->err);
    }
    if (e->code == RELAY_OK) {
        e->code = kit_open(&e->batch, e->session, ROWS, 100 * (e->index + 1u), ROWS, &e->err);
    }
    pthread_barrier_wait(&together);
    while (e->code == RELAY_OK && right && e->steps < STEPS) {
        kit_rows(&e->batch, e->steps, 1);
        e->code = walk_step(e);
        right = e->code == RELAY_OK && kit_right(&e->batch, 1);
        e->steps += right;
    }
    return NULL;
}

static void test_four_streams_walk_a_fixed_number_of_steps(void)
{
    static struct engine engines[STREAMS];
    struct relay_client *client = NULL;
    uint32_t most_met = 0;
    CHECK_OK(relay_client_open(server.unix_target, NULL, &client, &err), err);
    CHECK_OK(kit_register(client, &err), err);
    CHECK_EQ(pthread_barrier_init(&together, NULL, STREAMS), 0);
    for (uint32_t i = 0; i < STREAMS; i++) {
        engines[i].index = i;
        CHECK_EQ(pthread_create(&engines[i].thread, NULL, run, &engines[i]), 0);
    }
    for (uint32_t i = 0; i < STREAMS; i++) {
        CHECK_EQ(pthread_join(engines[i].thread, NULL), 0);
        most_met = engines[i].most_met > most_met ? engines[i].most_met : most_met;
    }
    for (uint32_t i = 0; i < STREAMS; i++) {
        CHECK_OK(engines[i].code, engines[i].err);
        CHECK_EQ(engines[i].steps, STEPS);
        kit_close(&engines[i].batch);
        relay_session_close(engines[i].session);
        relay_client_close(engines[i].client);
    }
    fprintf(stderr, "%u steps of %u layers on %u streams, up to %u sessions in a launch\n", STEPS,
            KIT_LAYERS, STREAMS, most_met);
    CHECK(most_met >= 2);
    relay_client_close(client);
    CHECK(test_server_wait_idle(&server));
    struct relay_server_info *info = test_server_info(&server);
    CHECK(info != NULL);
    CHECK_EQ(info->request_bytes_used, 0);
    CHECK_EQ(info->rows, (uint64_t)STREAMS * STEPS * KIT_LAYERS * ROWS);
    relay_server_info_free(info);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    if (!test_server_start(&server, NULL)) {
        test_server_fini(&server);
        return 1;
    }
    CHECK_RUN(test_four_streams_walk_a_fixed_number_of_steps);
    test_server_fini(&server);
    return check_done();
}
