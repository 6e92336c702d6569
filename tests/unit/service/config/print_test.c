/* service/config/print: what is printed can be read back, and every option is in every text. */
#include "service/config/config_internal.h"

#include "testlib/check.h"

#include <unistd.h>

static struct relay_error err;
static char text[1 << 16];

static void render(void (*print)(FILE *))
{
    FILE *out = fmemopen(text, sizeof(text), "w");
    if (out == NULL) {
        CHECK_FAIL("no memory stream");
    }
    print(out);
    fclose(out);
}

static void check_has_every_option(void)
{
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        char flag[96];
        relayd_option_flag(&relayd_option_table[i], flag, sizeof(flag));
        if (strstr(text, flag) == NULL) {
            CHECK_FAIL("%s is missing", flag);
        }
    }
}

static void test_help_has_every_option(void)
{
    render(relayd_config_help);
    CHECK_STILL();
    check_has_every_option();
}

static void test_markdown_has_every_option_and_whole_tables(void)
{
    render(relayd_config_help_markdown);
    CHECK_STILL();
    check_has_every_option();
    CHECK_STILL();
    CHECK(strstr(text, "debug\\|info") != NULL);
    char *rest = text;
    for (char *line = strtok_r(rest, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        int cells = 0;
        for (char *c = line; line[0] == '|' && *c != '\0'; c++) {
            cells += *c == '|' && (c == line || c[-1] != '\\');
        }
        CHECK(line[0] != '|' || cells == 6);
    }
}

static void test_printed_config_reads_back_equal(void)
{
    struct relayd_config first, second;
    enum relayd_config_action action;
    const char *const argv[] = {"relayd",
                                "--listen=unix:/a,127.0.0.1:0",
                                "--threads=3",
                                "--no-reflection",
                                "--prompt-bytes-max=1234567",
                                "--log-format=json",
                                "--drain-delay-ms=1500"};
    const char *const envp[] = {"RELAYD_SPIN_US=9", NULL};
    char path[] = "/tmp/relayd_print_XXXXXX";
    const char *const again[] = {"relayd", "--config", path};
    const char *const no_env[] = {NULL};
    char *texts[2] = {NULL, NULL};
    size_t bytes;

    CHECK_OK(relayd_config_init(&first, 7, argv, envp, &action, &err), err);
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    FILE *out = fdopen(fd, "w");
    CHECK(out != NULL);
    relayd_config_print(&first, out);
    fclose(out);
    CHECK_OK(relayd_config_init(&second, 3, again, no_env, &action, &err), err);
    unlink(path);

    CHECK_EQ(second.listen.n, 2);
    CHECK_STR(second.listen.items[1], "127.0.0.1:0");
    CHECK_EQ(second.threads, 3);
    CHECK_EQ(second.spin_us, 9);
    CHECK(!second.reflection);
    CHECK_EQ(second.prompt_bytes_max, 1234567);
    CHECK_STR(second.log_format, "json");
    CHECK_EQ(second.drain_delay_ms, 1500);
    /* All the others too: printed with the same sources, both are the same text. */
    memcpy(second.source, first.source, sizeof(second.source));
    struct relayd_config *const both[] = {&first, &second};
    for (int i = 0; i < 2; i++) {
        FILE *memory = open_memstream(&texts[i], &bytes);
        CHECK(memory != NULL);
        relayd_config_print(both[i], memory);
        fclose(memory);
    }
    CHECK_STR(texts[0], texts[1]);
    CHECK(strstr(texts[0], "spin_us = 9 ; environment\n") != NULL);
    CHECK(strstr(texts[0], "threads = 3 ; flag\n") != NULL);
    free(texts[0]);
    free(texts[1]);
    relayd_config_fini(&first);
    relayd_config_fini(&second);
}

int main(void)
{
    CHECK_RUN(test_help_has_every_option);
    CHECK_RUN(test_markdown_has_every_option_and_whole_tables);
    CHECK_RUN(test_printed_config_reads_back_equal);
    return check_done();
}
