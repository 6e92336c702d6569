/* Steps on a stream whose server misbehaves: what the caller is told, and what goes on by itself.
 */
#include "testlib/check.h"
#include "unit/client/lib/fake_server.h"

#include <relay/client.h>
#include <time.h>

#define HQ        4u
#define D         128u
#define OUT_BYTES (HQ * D * 4u)

static const struct relay_layer_kind kind = {
    .num_q_heads = HQ, .num_kv_heads = 1, .head_dim_qk = D, .head_dim_v = D};
static const uint32_t layer_kind[2] = {0, 0};
static const struct relay_model model = {.key = "m",
                                         .num_layers = 2,
                                         .num_kinds = 1,
                                         .kinds = &kind,
                                         .layer_kind = layer_kind,
                                         .kv_dtype = RELAY_DTYPE_F32};
static const struct relay_step_entry entry = {1, 0, 1};

struct fixture {
    struct fake_server *server;
    struct relay_client *client;
    struct relay_session *session;
    struct relay_step *step;
    float q[HQ * D], k[D], v[D], out[HQ * D];
};

static struct relay_error err;

/* retries_max tries more than the first; an open step without LSE. */
static void open_fixture(struct fixture *f, enum fake_behaviour behaviour, uint32_t retries_max)
{
    struct relay_client_options client_options = RELAY_CLIENT_OPTIONS_INIT;
    struct relay_step_options options = RELAY_STEP_OPTIONS_INIT;
    memset(f, 0, sizeof(*f));
    client_options.retries_max = retries_max;
    client_options.backoff_ms_min = 1;
    client_options.backoff_ms_max = 10;
    options.want_lse = false;
    f->server = fake_server_start();
    CHECK(f->server != NULL);
    fake_server_out_bytes(f->server, OUT_BYTES);
    fake_server_behave(f->server, behaviour);
    CHECK_OK(relay_client_open(fake_server_target(f->server), &client_options, &f->client, &err),
             err);
    CHECK_OK(relay_session_open(f->client, &model, NULL, &f->session, &err), err);
    CHECK_OK(relay_step_begin(f->session, &entry, 1, &options, &f->step, &err), err);
    for (uint32_t i = 0; i < HQ * D; i++) {
        f->out[i] = 1;
    }
}

static void close_fixture(struct fixture *f)
{
    relay_step_end(f->step);
    relay_session_close(f->session);
    relay_client_close(f->client);
    fake_server_stop(f->server);
}

static enum relay_code attend(struct fixture *f, uint32_t layer)
{
    return relay_step_attend(f->step, layer, f->q, f->k, f->v, f->out, NULL, &err);
}

static void test_link_carries_calls(void)
{
    struct fixture f;
    open_fixture(&f, FAKE_GOOD, 0);
    CHECK_STILL();
    CHECK_EQ(fake_server_streams(f.server), 0); /* connects when somebody waits */
    for (int i = 0; i < 100; i++) {
        CHECK_OK(attend(&f, i % 2 == 0), err);
    }
    CHECK(f.out[0] == 0 && f.out[HQ * D - 1] == 0);
    CHECK_EQ(relay_step_timings(f.step)->compute_us, 5);
    CHECK_EQ(relay_step_kv_tokens_free(f.step), 1000);
    CHECK_EQ(fake_server_streams(f.server), 1);
    CHECK_EQ(fake_server_calls(f.server), 100);
    close_fixture(&f);
}

/* A stream that was taken over, or ended for no reason: again, with the same call. */
static void test_link_tries_again(void)
{
    static const enum fake_behaviour how[] = {FAKE_ABORT, FAKE_END};
    for (size_t i = 0; i < sizeof(how) / sizeof(how[0]); i++) {
        struct fixture f;
        open_fixture(&f, how[i], 2);
        CHECK_STILL();
        CHECK_OK(attend(&f, 0), err);
        CHECK(f.out[0] == 0);
        CHECK_EQ(fake_server_streams(f.server), 2);
        CHECK_EQ(fake_server_calls(f.server), 2);
        close_fixture(&f);
    }
}

static void test_link_gives_up_after_enough_tries(void)
{
    struct fixture f;
    open_fixture(&f, FAKE_ABORT, 0);
    CHECK_STILL();
    CHECK_CODE(attend(&f, 0), RELAY_ABORTED);
    CHECK(f.out[0] == 1);
    CHECK_EQ(fake_server_streams(f.server), 1);
    CHECK_OK(attend(&f, 0), err); /* the same step, later, works */
    close_fixture(&f);
}

/* What would go wrong again is told at once. */
static void test_link_does_not_repeat_what_is_refused(void)
{
    struct fixture f;
    open_fixture(&f, FAKE_TOO_LARGE, 5);
    CHECK_STILL();
    CHECK_CODE(attend(&f, 0), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(fake_server_streams(f.server), 1);
    fake_server_behave(f.server, FAKE_GOOD);
    CHECK_OK(attend(&f, 1), err);
    close_fixture(&f);
}

static void test_link_takes_no_nonsense(void)
{
    static const enum fake_behaviour how[] = {FAKE_GARBAGE, FAKE_SHORT};
    for (size_t i = 0; i < sizeof(how) / sizeof(how[0]); i++) {
        struct fixture f;
        open_fixture(&f, how[i], 3);
        CHECK_STILL();
        CHECK_CODE(attend(&f, 0), RELAY_INTERNAL);
        CHECK(f.out[0] == 1);
        CHECK_EQ(fake_server_calls(f.server), 1);
        close_fixture(&f);
    }
}

static void test_link_passes_over_other_answers(void)
{
    struct fixture f;
    open_fixture(&f, FAKE_STRANGER, 0);
    CHECK_STILL();
    for (int i = 0; i < 5; i++) {
        CHECK_OK(attend(&f, 1), err);
    }
    close_fixture(&f);
}

static void test_link_knows_a_lost_session(void)
{
    static const struct {
        enum fake_behaviour how;
        enum relay_code code;
        const char *word;
    } cases[] = {
        {FAKE_OTHER_EPOCH, RELAY_FAILED_PRECONDITION, "restarted"},
        {FAKE_RESTARTED, RELAY_FAILED_PRECONDITION, "restarted"},
        {FAKE_FORGOT, RELAY_NOT_FOUND, "ended"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct relay_step *step = NULL;
        struct fixture f;
        open_fixture(&f, cases[i].how, 3);
        CHECK_STILL();
        CHECK_CODE(attend(&f, 0), cases[i].code);
        CHECK(strstr(err.msg, cases[i].word) != NULL);
        fake_server_behave(f.server, FAKE_GOOD); /* too late */
        CHECK_CODE(attend(&f, 0), cases[i].code);
        CHECK_CODE(relay_step_begin(f.session, &entry, 1, NULL, &step, &err), cases[i].code);
        CHECK(step == NULL);
        CHECK_EQ(fake_server_streams(f.server), 1);
        close_fixture(&f);
    }
}

/* Drain: the open step goes on, and the stream is closed properly when it has ended. */
static void test_link_leaves_a_server_that_drains(void)
{
    struct fixture f;
    open_fixture(&f, FAKE_DRAIN, 0);
    CHECK_STILL();
    CHECK_OK(attend(&f, 0), err);
    CHECK(relay_session_draining(f.session));
    CHECK_OK(attend(&f, 1), err);
    CHECK_EQ(fake_server_half_closes(f.server), 0);
    relay_step_end(f.step);
    f.step = NULL;
    for (int i = 0; i < 2000 && fake_server_half_closes(f.server) == 0; i++) {
        const struct timespec t = {0, 5000000};
        nanosleep(&t, NULL);
        (void)relay_session_draining(f.session);
    }
    CHECK_EQ(fake_server_half_closes(f.server), 1);
    CHECK_EQ(fake_server_ends(f.server), 1);
    close_fixture(&f);
}

static void test_link_checks_arguments(void)
{
    struct fixture f;
    float lse[HQ];
    uint64_t ticket = 0;
    open_fixture(&f, FAKE_GOOD, 0);
    CHECK_STILL();
    CHECK_CODE(relay_step_wait(f.step, 1, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_submit_rows(f.step, 0, 0, 0, f.q, f.k, f.v, f.out, NULL, &ticket, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_submit_rows(f.step, 0, 1, 1, f.q, f.k, f.v, f.out, NULL, &ticket, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_submit(f.step, 2, f.q, f.k, f.v, f.out, NULL, &ticket, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_submit(f.step, 0, f.q, NULL, f.v, f.out, NULL, &ticket, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_step_submit(f.step, 0, f.q, f.k, f.v, f.out, lse, &ticket, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_EQ(ticket, 0);
    CHECK_EQ(fake_server_streams(f.server), 0);
    close_fixture(&f);
}

int main(void)
{
    CHECK_RUN(test_link_carries_calls);
    CHECK_RUN(test_link_tries_again);
    CHECK_RUN(test_link_gives_up_after_enough_tries);
    CHECK_RUN(test_link_does_not_repeat_what_is_refused);
    CHECK_RUN(test_link_takes_no_nonsense);
    CHECK_RUN(test_link_passes_over_other_answers);
    CHECK_RUN(test_link_knows_a_lost_session);
    CHECK_RUN(test_link_leaves_a_server_that_drains);
    CHECK_RUN(test_link_checks_arguments);
    return check_done();
}
