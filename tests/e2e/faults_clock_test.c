/* The wall clock jumps ten years forth and twenty back: leases, idle times, expiry of uploads,
 * deadlines and steps go on as if nothing had happened. relayd runs under libfaketime, which moves
 * that clock and leaves the monotonic one alone. That only the monotonic clock decides is also a
 * lint: tests/lint/banned.py. */
#include "e2e/faults_engine.h"
#include "testlib/check.h"

#include <glob.h>
#include <relay/v1/relay.pb-c.h>
#include <unistd.h>

#define LAYERS     2u
#define YEAR_MS    (UINT64_C(365) * 86400 * 1000)
#define OUT_FLOATS (LAYERS * 4 * 32)

static struct test_server server;
static struct faults_model model;
static struct relay_error err;
static struct faults_peer own;
static struct faults_engine engine;
static struct faults_call *upload;
static struct faults_counts start;
static float want[OUT_FLOATS], got[OUT_FLOATS];
static uint64_t steps;
static char now_file[64];

static bool set_clock(const char *offset)
{
    FILE *file = fopen(now_file, "w");
    const bool done = file != NULL && fputs(offset, file) >= 0;
    return file != NULL && fclose(file) == 0 && done;
}

/* When the server thinks that a prompt which is registered now was made. */
static uint64_t server_unix_ms(void)
{
    Relay__V1__GetPromptRequest request = RELAY__V1__GET_PROMPT_REQUEST__INIT;
    ProtobufCMessage *message = NULL;
    uint64_t at = 0;
    request.model_key = (char *)(uintptr_t)model.model.key;
    request.prompt_id = (char *)(uintptr_t) "clock";
    if (faults_register(&own, &model, "clock", 8, 1, false, &err) == RELAY_OK &&
        faults_unary(&own, "GetPrompt", &request.base, &relay__v1__get_prompt_response__descriptor,
                     &message, &err) == RELAY_OK) {
        at = ((Relay__V1__GetPromptResponse *)message)->prompt->created_unix_ms;
        protobuf_c_message_free_unpacked(message, NULL);
        (void)faults_unregister(&own, &model, "clock", &err);
    }
    return at;
}

/* A minute's lease, a hidden partial, a prompt with an idle time, a step open. */
static void test_begin(void)
{
    faults_peer_open(&own, server.unix_target);
    CHECK_OK(faults_register(&own, &model, "p", 64, 1, false, &err), err);
    CHECK_OK(faults_engine_open(&engine, &own, &model, 1, 60000, 0, &err), err);
    CHECK_OK(faults_engine_requests(&engine, "p", 1, 0, &err), err);
    CHECK_OK(faults_engine_attach(&engine, &err), err);
    CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, want, NULL, &err), err);
    upload = faults_upload_begin(&own, &model, "partial", 64, false, "0123456789abcdef", &err);
    CHECK(upload != NULL && faults_upload_chunk(upload, &model, 0, 0, 64, 1));
    faults_call_close(upload);
    CHECK(faults_counts(&own, server.pid, &start));
    CHECK_EQ(start.uploads, 1);
}

/* Some sweeps later everything is as it was, and a short lease still ends. */
static void goes_on(void)
{
    struct faults_engine brief;
    for (int i = 0; i < 20; i++) {
        CHECK_OK(faults_engine_step(&engine, ++steps, 0, RELAY_PART_FULL, got, NULL, &err), err);
        CHECK(memcmp(got, want, sizeof(want)) == 0);
        faults_sleep_ms(20);
    }
    CHECK_OK(faults_engine_open(&brief, &own, &model, 1, 200, 0, &err), err);
    CHECK(faults_back_to(&own, server.pid, &start)); /* by the end of its lease alone */
}

static void jump(const char *offset, uint64_t years, bool forth)
{
    const uint64_t before = server_unix_ms();
    CHECK(before > 0);
    CHECK(set_clock(offset));
    const uint64_t after = server_unix_ms();
    const uint64_t by = forth ? after - before : before - after;
    if (by < (years - 1) * YEAR_MS || by > (years + 1) * YEAR_MS) {
        CHECK_SKIP("libfaketime does not move relayd's clock here: %llu ms became %llu ms",
                   (unsigned long long)before, (unsigned long long)after);
    }
    fprintf(stderr, "the server's wall clock went %s by %llu years\n", forth ? "forth" : "back",
            (unsigned long long)(by / YEAR_MS));
    goes_on();
}

static void test_ten_years_forth(void)
{
    jump("+3650d", 10, true);
}

static void test_twenty_years_back(void)
{
    jump("-3650d", 20, false);
}

static void test_stop_is_clean(void)
{
    faults_engine_close(&engine);
    faults_peer_close(&own);
    CHECK_EQ(test_server_stop(&server), 0);
}

int main(void)
{
    static const char *const args[] = {"--threads", "1", "--sweep-interval-ms", "20", "--log-level",
                                       "warn",      NULL};
    glob_t found = {.gl_pathc = 0};
    int code = 77;
#ifdef RELAY_TEST_SANITIZED
    fprintf(stderr, "skipped: libfaketime and sanitizers do not go together\n");
    return code;
#endif
    if (glob("/usr/lib/*/faketime/libfaketimeMT.so.1", 0, NULL, &found) != 0) {
        fprintf(stderr, "skipped: libfaketime is missing (Debian: libfaketime)\n");
        return code;
    }
    snprintf(now_file, sizeof(now_file), "/tmp/relayd-clock-%ld", (long)getpid());
    faults_model_init(&model, "clock@test", LAYERS, 4, 2, 32);
    setenv("LD_PRELOAD", found.gl_pathv[0], 1);
    setenv("FAKETIME_TIMESTAMP_FILE", now_file, 1);
    setenv("FAKETIME_NO_CACHE", "1", 1);
    setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1", 1);
    setenv("DONT_FAKE_MONOTONIC", "1", 1);
    const bool started = set_clock("+0d") && test_server_start(&server, args);
    unsetenv("LD_PRELOAD");
    globfree(&found);
    if (started) {
        CHECK_RUN(test_begin);
        CHECK_RUN(test_ten_years_forth);
        CHECK_RUN(test_twenty_years_back);
        CHECK_RUN(test_stop_is_clean);
        code = check_done();
    }
    test_server_fini(&server);
    unlink(now_file);
    return started ? code : 1;
}
