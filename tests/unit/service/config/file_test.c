/* service/config/file: the syntax of options files and the line each mistake is blamed on. */
#include "service/config/config_internal.h"

#include "testlib/check.h"

#include <unistd.h>

static struct relayd_config config;
static struct relay_error err;
static enum relayd_config_action action;
static char path[64];

static enum relay_code load_bytes(const char *text, size_t bytes)
{
    const char *const argv[] = {"relayd", "--config", path, NULL};
    const char *const envp[] = {NULL};

    strncpy(path, "/tmp/relayd_file_XXXXXX", sizeof(path) - 1);
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, text, bytes) != (ssize_t)bytes) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
    close(fd);
    enum relay_code code = relayd_config_init(&config, 3, argv, envp, &action, &err);
    unlink(path);
    return code;
}

static enum relay_code load(const char *text)
{
    return load_bytes(text, strlen(text));
}

static void check_refused(const char *text, const char *a, const char *b)
{
    enum relay_code code = load(text);
    if (code == RELAY_OK) {
        relayd_config_fini(&config);
    }
    CHECK_CODE(code, RELAY_INVALID_ARGUMENT);
    if (strstr(err.msg, a) == NULL || strstr(err.msg, b) == NULL) {
        CHECK_FAIL("\"%s\" lacks \"%s\" or \"%s\"", err.msg, a, b);
    }
}

static void test_comments_blanks_and_sections(void)
{
    CHECK_OK(load("# first\n; second\n\nthreads=2\n[compute]\n  calls_max = 5 ; why\n"
                  "\tlaunch_rows_max: 5000\n[rpc]\r\nspin_us = 7\r\n[log]\nlog_level = warn"),
             err);
    CHECK_EQ(config.threads, 2);
    CHECK_EQ(config.calls_max, 5);
    CHECK_EQ(config.launch_rows_max, 5000);
    CHECK_EQ(config.spin_us, 7);
    CHECK_STR(config.log_level, "warn");
    relayd_config_fini(&config);
    CHECK_OK(load(""), err);
    relayd_config_fini(&config);
}

static void test_mistakes_name_file_line_and_key(void)
{
    check_refused("\n\nthread = 2\n", ":3: thread", "no such option");
    check_refused("[store]\nthreads = 2\n", ":2: threads",
                  "stands in [store], belongs in [compute]");
    check_refused("[x]\nthreads = 2\n", ":2: threads", "stands in [x]");
    check_refused("threads = 1\nthreads = 2\n", ":2: threads", "given twice");
    check_refused("threads = x\n", ":1: threads", "\"x\" is not a number");
    check_refused("threads = 1\ngibberish\n", ":2:", "neither [section] nor name = value");
    check_refused("threads = 1\n[compute\n", ":2:", "neither");
    check_refused("--threads = 1\n", ":1: --threads", "no such option");
    check_refused("call-rows-max = 1\n", ":1: call-rows-max", "no such option");
}

static void test_an_indented_line_is_a_line(void)
{
    check_refused("threads = 1\n  calls_max = x\n", ":2: calls_max", "\"x\"");
}

static void test_long_lines_are_refused_not_split(void)
{
    char text[600];
    memset(text, 'a', sizeof(text));
    memcpy(text, "backend = ", 10);
    text[sizeof(text) - 2] = '\n';
    text[sizeof(text) - 1] = '\0';
    check_refused(text, ":1:", "longer than");
}

static void test_a_missing_file_is_named(void)
{
    const char *const argv[] = {"relayd", "--config=/nonexistent/relayd.ini", NULL};
    const char *const envp[] = {NULL};
    CHECK_CODE(relayd_config_init(&config, 2, argv, envp, &action, &err), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "/nonexistent/relayd.ini: No such file") != NULL);
    const char *const dir[] = {"relayd", "--config=/", NULL};
    CHECK_CODE(relayd_config_init(&config, 2, dir, envp, &action, &err), RELAY_INVALID_ARGUMENT);
}

/* Every prefix of a good file is a good file or a clean refusal. */
static void test_truncated_anywhere(void)
{
    static const char text[] = "[server]\nlisten = unix:/a, unix:/b\n[session]\n"
                               "session_lease_ms = 5s ; short\n[rpc]\nreflection = no\n";
    for (size_t bytes = 0; bytes <= strlen(text); bytes++) {
        enum relay_code code = load_bytes(text, bytes);
        CHECK(code == RELAY_OK || code == RELAY_INVALID_ARGUMENT);
        if (code == RELAY_OK) {
            relayd_config_fini(&config);
        }
    }
}

int main(void)
{
    CHECK_RUN(test_comments_blanks_and_sections);
    CHECK_RUN(test_mistakes_name_file_line_and_key);
    CHECK_RUN(test_an_indented_line_is_a_line);
    CHECK_RUN(test_long_lines_are_refused_not_split);
    CHECK_RUN(test_a_missing_file_is_named);
    CHECK_RUN(test_truncated_anywhere);
    return check_done();
}
