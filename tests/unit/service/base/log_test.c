/* service/base/log: levels, both formats, escaping, one line per event whatever the text is. */
#include "service/base/log.h"

#include "testlib/check.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

static char captured[1 << 20];
static int saved_stderr = -1;
static FILE *capture_file;

static void capture_begin(void)
{
    fflush(stderr);
    capture_file = tmpfile();
    if (capture_file == NULL) {
        CHECK_FAIL("no temporary file");
    }
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(capture_file), STDERR_FILENO);
}

static void capture_end(void)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(capture_file);
    size_t used = fread(captured, 1, sizeof(captured) - 1, capture_file);
    captured[used] = '\0';
    fclose(capture_file);
}

static size_t count_lines(void)
{
    size_t lines = 0;
    for (const char *c = captured; *c != '\0'; c++) {
        lines += *c == '\n';
    }
    return lines;
}

static void test_levels_are_parsed_in_any_case(void)
{
    enum relayd_log_level level = RELAYD_LOG_ERROR;
    CHECK(relayd_log_level_parse("debug", &level));
    CHECK_EQ(level, RELAYD_LOG_DEBUG);
    CHECK(relayd_log_level_parse("WARN", &level));
    CHECK_EQ(level, RELAYD_LOG_WARN);
    CHECK(!relayd_log_level_parse("loud", &level));
    CHECK(!relayd_log_level_parse("", &level));
    CHECK_EQ(level, RELAYD_LOG_WARN);
}

static void test_lines_below_the_level_are_dropped(void)
{
    relayd_log_init(RELAYD_LOG_WARN, false);
    CHECK(!relayd_log_enabled(RELAYD_LOG_INFO));
    CHECK(relayd_log_enabled(RELAYD_LOG_ERROR));
    capture_begin();
    CHECK_STILL();
    RELAYD_LOG(INFO, "quiet", "n=%d", 1);
    RELAYD_LOG(ERROR, "loud", "n=%d", 2);
    capture_end();
    CHECK(strstr(captured, "quiet") == NULL);
    CHECK(strstr(captured, " level=error event=loud n=2\n") != NULL);
    CHECK(strncmp(captured, "ts=2", 4) == 0);
}

static void test_json_line_is_escaped(void)
{
    relayd_log_init(RELAYD_LOG_INFO, true);
    capture_begin();
    CHECK_STILL();
    RELAYD_LOG(INFO, "odd", "a=\"%s\"\n\x01\xff", "b\\c");
    capture_end();
    CHECK(strstr(captured, "\"level\":\"info\",\"event\":\"odd\","
                           "\"msg\":\"a=\\\"b\\\\c\\\"\\u000a\\u0001\\u00ff\"}\n") != NULL);
    CHECK_EQ(count_lines(), 1);
}

static void test_newlines_and_long_text_stay_one_line(void)
{
    static char text[8192];
    memset(text, '"', sizeof(text) - 1); /* doubles when escaped */
    for (int json = 0; json < 2; json++) {
        relayd_log_init(RELAYD_LOG_INFO, json != 0);
        capture_begin();
        CHECK_STILL();
        RELAYD_LOG(INFO, "long", "a\nb %s", text);
        capture_end();
        CHECK_EQ(count_lines(), 1);
        size_t used = strlen(captured);
        CHECK(used < 4096);
        CHECK_EQ(captured[used - 1], '\n');
        if (json != 0) {
            CHECK_EQ(captured[used - 2], '}');
            CHECK_EQ(captured[used - 3], '"');
        }
    }
}

static void test_quote_escapes_and_cuts_whole(void)
{
    char out[32];
    CHECK_STR(relayd_log_quote("a b", out, sizeof(out)), "\"a b\"");
    CHECK_STR(relayd_log_quote("\"\\", out, sizeof(out)), "\"\\\"\\\\\"");
    CHECK_STR(relayd_log_quote("\n\x80", out, sizeof(out)), "\"\\x0a\\x80\"");
    CHECK_STR(relayd_log_quote("abcdef", out, 6), "\"abc\"");
    /* An escape that does not fit is left out, never split. */
    CHECK_STR(relayd_log_quote("ab\n", out, 8), "\"ab\"");
    CHECK_STR(relayd_log_quote("abc", out, 3), "\"\"");
    CHECK_STR(relayd_log_quote("abc", out, 2), "");
    CHECK_STR(relayd_log_quote("abc", out, 1), "");
}

#define WRITERS       4
#define LINES_PER_ONE 200

static void *write_lines(void *arg)
{
    for (int i = 0; i < LINES_PER_ONE; i++) {
        RELAYD_LOG(INFO, "thread", "who=%s end", (const char *)arg);
    }
    return NULL;
}

static void test_lines_of_threads_do_not_mix(void)
{
    static char names[WRITERS][2] = {"a", "b", "c", "d"};
    pthread_t threads[WRITERS];
    relayd_log_init(RELAYD_LOG_INFO, false);
    capture_begin();
    CHECK_STILL();
    /* Appending makes the file offset common to all writers, as with a pipe or a terminal. */
    fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
    int started = 0;
    for (; started < WRITERS; started++) {
        if (pthread_create(&threads[started], NULL, write_lines, names[started]) != 0) {
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
    capture_end();
    CHECK_EQ(started, WRITERS);
    CHECK_EQ(count_lines(), WRITERS * LINES_PER_ONE);
    char *rest = captured;
    for (char *line = strtok_r(rest, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        CHECK(strncmp(line, "ts=", 3) == 0);
        CHECK(strlen(line) > 4 && strcmp(line + strlen(line) - 4, " end") == 0);
    }
}

int main(void)
{
    CHECK_RUN(test_levels_are_parsed_in_any_case);
    CHECK_RUN(test_lines_below_the_level_are_dropped);
    CHECK_RUN(test_json_line_is_escaped);
    CHECK_RUN(test_newlines_and_long_text_stay_one_line);
    CHECK_RUN(test_quote_escapes_and_cuts_whole);
    CHECK_RUN(test_lines_of_threads_do_not_mix);
    return check_done();
}
