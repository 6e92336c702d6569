/* service/config: which source wins, what is refused and how the message names the place. */
#include "service/config/config.h"

#include "testlib/check.h"

#include <unistd.h>

static struct relayd_config config;
static struct relay_error err;
static enum relayd_config_action action;

static const char *const no_env[] = {NULL};

static enum relay_code load(const char *const *argv, const char *const *envp)
{
    int argc = 0;
    while (argv[argc] != NULL) {
        argc++;
    }
    return relayd_config_init(&config, argc, argv, envp, &action, &err);
}

#define ARGS(...) ((const char *const[]){"relayd", __VA_ARGS__, NULL})
#define ENV(...)  ((const char *const[]){__VA_ARGS__, NULL})

static const char *write_file(const char *text)
{
    static char path[64];
    strncpy(path, "/tmp/relayd_config_XXXXXX", sizeof(path) - 1);
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
    close(fd);
    return path;
}

/* The load fails and its message has all of these. */
static void check_refused(const char *const *argv, const char *const *envp, const char *a,
                          const char *b)
{
    enum relay_code code = load(argv, envp);
    if (code == RELAY_OK) {
        relayd_config_fini(&config);
    }
    CHECK_CODE(code, RELAY_INVALID_ARGUMENT);
    if (strstr(err.msg, a) == NULL || strstr(err.msg, b) == NULL) {
        CHECK_FAIL("\"%s\" lacks \"%s\" or \"%s\"", err.msg, a, b);
    }
}

static void test_defaults(void)
{
    CHECK_OK(load(((const char *const[]){"relayd", NULL}), no_env), err);
    CHECK_EQ(action, RELAYD_CONFIG_RUN);
    CHECK_EQ(config.listen.n, 2);
    CHECK_STR(config.listen.items[0], "unix:/run/relayd/relayd.sock");
    CHECK_STR(config.listen.items[1], "127.0.0.1:7070");
    CHECK_EQ(config.prompt_bytes_max, 0);
    CHECK_EQ(config.session_lease_ms, 60000);
    CHECK_EQ(config.response_bytes_max, 4 << 20);
    CHECK_EQ(config.chunk_bytes_max, 1 << 20);
    CHECK(config.reflection);
    CHECK_STR(config.backend, "cpu");
    for (int i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        CHECK_EQ(config.source[i], RELAYD_CONFIG_DEFAULT);
    }
    relayd_config_fini(&config);
}

static void test_precedence(void)
{
    const char *path = write_file("threads = 1\n[session]\nsessions_max = 11\n"
                                  "session_lease_ms = 2s\n[log]\nlog_level = warn\n");
    char file[96];
    snprintf(file, sizeof(file), "--config=%s", path);
    CHECK_OK(load(ARGS(file, "--threads", "3"),
                  ENV("RELAYD_THREADS=2", "RELAYD_SESSIONS_MAX=22", "HOME=/")),
             err);
    CHECK_EQ(config.threads, 3);
    CHECK_EQ(config.source[RELAYD_OPTION_threads], RELAYD_CONFIG_FLAG);
    CHECK_EQ(config.sessions_max, 22);
    CHECK_EQ(config.source[RELAYD_OPTION_sessions_max], RELAYD_CONFIG_ENVIRONMENT);
    CHECK_EQ(config.session_lease_ms, 2000);
    CHECK_EQ(config.source[RELAYD_OPTION_session_lease_ms], RELAYD_CONFIG_FILE);
    CHECK_STR(config.log_level, "warn");
    CHECK_EQ(config.source[RELAYD_OPTION_spin_us], RELAYD_CONFIG_DEFAULT);
    relayd_config_fini(&config);
    unlink(path);
}

static void test_lists_grow_within_a_source_and_are_replaced_by_the_next(void)
{
    const char *path = write_file("[server]\nlisten = unix:/a\nlisten = unix:/b, 127.0.0.1:1\n");
    char variable[96];
    snprintf(variable, sizeof(variable), "RELAYD_CONFIG=%s", path);
    CHECK_OK(load(((const char *const[]){"relayd", NULL}), ENV(variable)), err);
    CHECK_EQ(config.listen.n, 3);
    CHECK_STR(config.listen.items[2], "127.0.0.1:1");
    relayd_config_fini(&config);

    CHECK_OK(load(ARGS("--listen", "127.0.0.1:0", "--listen=[::1]:0"),
                  ENV(variable, "RELAYD_LISTEN=unix:/c")),
             err);
    CHECK_EQ(config.listen.n, 2);
    CHECK_STR(config.listen.items[0], "127.0.0.1:0");
    CHECK_STR(config.listen.items[1], "[::1]:0");
    relayd_config_fini(&config);
    unlink(path);
}

static void test_booleans(void)
{
    CHECK_OK(load(ARGS("--no-reflection"), no_env), err);
    CHECK(!config.reflection);
    relayd_config_fini(&config);
    CHECK_OK(load(ARGS("--no-reflection", "--reflection"), no_env), err);
    CHECK(config.reflection);
    relayd_config_fini(&config);
    CHECK_OK(load(ARGS("--reflection=off"), no_env), err);
    CHECK(!config.reflection);
    relayd_config_fini(&config);
    check_refused(ARGS("--reflection=maybe"), no_env, "--reflection", "\"maybe\"");
    check_refused(ARGS("--no-threads"), no_env, "--no-threads", "no such option");
}

static void test_unknown_names_say_where_they_stood(void)
{
    check_refused(ARGS("--thread", "3"), no_env, "flag --thread:", "no such option");
    check_refused(ARGS("threads"), no_env, "argument threads:", "no such option");
    check_refused(ARGS("--"), no_env, "--", "no such option");
    check_refused(ARGS("--call_rows_max=1"), no_env, "--call_rows_max", "no such option");
    check_refused(ARGS("--spin-us=0"), ENV("RELAYD_SPIN=1"), "environment RELAYD_SPIN", "no such");
    check_refused(ARGS("--spin-us=0"), ENV("RELAYD_=1"), "environment RELAYD_", "no such");
}

static void test_kubernetes_service_links_are_not_options(void)
{
    CHECK_OK(load(ARGS("--threads=1"),
                  ENV("RELAYD_PORT=tcp://10.0.0.1:7070", "RELAYD_SERVICE_HOST=10.0.0.1",
                      "RELAYD_SERVICE_PORT_GRPC=7070", "RELAYD_PORT_7070_TCP_ADDR=10.0.0.1",
                      "RELAYD_HEADLESS_PORT=tcp://10.0.0.2:7070")),
             err);
    relayd_config_fini(&config);
}

static void test_bad_values_are_refused_wherever_they_stand(void)
{
    check_refused(ARGS("--threads"), no_env, "--threads", "missing");
    check_refused(ARGS("--threads", "many"), no_env, "flag --threads", "\"many\" is not a number");
    check_refused(ARGS("--rpc-threads=65"), no_env, "flag --rpc-threads", "65 is outside 0 to 64");
    check_refused(ARGS("--log-level=loud"), no_env, "flag --log-level", "debug|info|warn|error");
    check_refused(ARGS("--listen="), no_env, "flag --listen", "0 characters");
    check_refused(ARGS("--listen=unix:/a,,unix:/b"), no_env, "flag --listen", "0 characters");
    /* A stronger source does not hide a mistake in a weaker one. */
    check_refused(ARGS("--threads=1"), ENV("RELAYD_THREADS=-1"), "environment RELAYD_THREADS",
                  "\"-1\"");
}

static void test_values_must_fit_together(void)
{
    check_refused(ARGS("--session-lease-ms=2h"), no_env, "session_lease_ms (7200000)",
                  "session_lease_max_ms (3600000)");
    check_refused(ARGS("--response-bytes-max=64M"), no_env, "response_bytes_max",
                  "response_bytes_limit");
    check_refused(ARGS("--chunk-bytes-max=1M", "--message-bytes-max=1M"), no_env, "chunk_bytes_max",
                  "message_bytes_max");
    check_refused(ARGS("--call-rows-max=8193"), no_env, "call_rows_max", "launch_rows_max");
}

static void test_actions(void)
{
    CHECK_OK(load(ARGS("--version", "--nonsense"), no_env), err);
    CHECK_EQ(action, RELAYD_CONFIG_VERSION);
    relayd_config_fini(&config);
    CHECK_OK(load(ARGS("-h"), ENV("RELAYD_NONSENSE=1")), err);
    CHECK_EQ(action, RELAYD_CONFIG_HELP);
    relayd_config_fini(&config);
    CHECK_OK(load(ARGS("--help-markdown"), no_env), err);
    CHECK_EQ(action, RELAYD_CONFIG_HELP_MARKDOWN);
    relayd_config_fini(&config);
    CHECK_OK(load(ARGS("--print-config", "--threads=7"), no_env), err);
    CHECK_EQ(action, RELAYD_CONFIG_PRINT);
    CHECK_EQ(config.threads, 7);
    relayd_config_fini(&config);
}

static void test_failure_leaves_the_outputs_alone(void)
{
    memset(&config, 0x5a, sizeof(config));
    struct relayd_config before = config;
    action = RELAYD_CONFIG_PRINT;
    CHECK_CODE(load(ARGS("--listen=unix:/x", "--threads=x"), no_env), RELAY_INVALID_ARGUMENT);
    CHECK_EQ(memcmp(&before, &config, sizeof(config)), 0);
    CHECK_EQ(action, RELAYD_CONFIG_PRINT);
    memset(&config, 0, sizeof(config));
    relayd_config_fini(&config);
}

int main(void)
{
    CHECK_RUN(test_defaults);
    CHECK_RUN(test_precedence);
    CHECK_RUN(test_lists_grow_within_a_source_and_are_replaced_by_the_next);
    CHECK_RUN(test_booleans);
    CHECK_RUN(test_unknown_names_say_where_they_stood);
    CHECK_RUN(test_kubernetes_service_links_are_not_options);
    CHECK_RUN(test_bad_values_are_refused_wherever_they_stand);
    CHECK_RUN(test_values_must_fit_together);
    CHECK_RUN(test_actions);
    CHECK_RUN(test_failure_leaves_the_outputs_alone);
    return check_done();
}
