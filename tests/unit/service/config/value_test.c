/* service/config/value: reading and writing of single values, by type. */
#include "service/config/config_internal.h"

#include "testlib/check.h"

static struct relayd_config config;
static struct relay_error err;

static enum relay_code set(enum relayd_option option, const char *text)
{
    return relayd_value_set(&config, &relayd_option_table[option], text, false, "here", &err);
}

static const char *print(enum relayd_option option)
{
    static char text[256];
    FILE *out = fmemopen(text, sizeof(text), "w");
    if (out == NULL) {
        return "";
    }
    relayd_value_print(&config, &relayd_option_table[option], 0, out);
    fclose(out);
    return text;
}

static void test_bytes_take_units(void)
{
    static const struct {
        const char *text;
        uint64_t value;
        const char *printed;
    } good[] = {{"0", 0, "0"},
                {"4096", 4096, "4K"},
                {"4097", 4097, "4097"},
                {"3k", 3072, "3K"},
                {"5M", 5 << 20, "5M"},
                {"6g", 6ull << 30, "6G"},
                {"1024M", 1ull << 30, "1G"},
                {"18446744073709551615", UINT64_MAX, "18446744073709551615"}};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK_OK(set(RELAYD_OPTION_prompt_bytes_max, good[i].text), err);
        CHECK(config.prompt_bytes_max == good[i].value);
        CHECK_STR(print(RELAYD_OPTION_prompt_bytes_max), good[i].printed);
    }
    static const char *const bad[] = {"",
                                      "x",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1T",
                                      "1KB",
                                      "0x10",
                                      "1.5G",
                                      "18446744073709551616",
                                      "18014398509481984K",
                                      "17179869184G"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_CODE(set(RELAYD_OPTION_prompt_bytes_max, bad[i]), RELAY_INVALID_ARGUMENT);
        CHECK(config.prompt_bytes_max == UINT64_MAX);
    }
}

static void test_times_take_units(void)
{
    static const struct {
        const char *text;
        uint64_t value;
        const char *printed;
    } good[] = {{"250", 250, "250ms"}, {"250ms", 250, "250ms"}, {"90s", 90000, "90s"},
                {"2m", 120000, "2m"},  {"1h", 3600000, "1h"},   {"24h", 86400000, "1d"}};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        CHECK_OK(set(RELAYD_OPTION_session_lease_max_ms, good[i].text), err);
        CHECK(config.session_lease_max_ms == good[i].value);
        CHECK_STR(print(RELAYD_OPTION_session_lease_max_ms), good[i].printed);
    }
    CHECK_CODE(set(RELAYD_OPTION_session_lease_max_ms, "1w"), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(set(RELAYD_OPTION_session_lease_max_ms, "99"), RELAY_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "here: 99 is outside 100ms to 1d");
}

static void test_plain_numbers_take_no_units(void)
{
    CHECK_OK(set(RELAYD_OPTION_calls_max, "65536"), err);
    CHECK_EQ(config.calls_max, 65536);
    CHECK_STR(print(RELAYD_OPTION_calls_max), "65536");
    CHECK_CODE(set(RELAYD_OPTION_calls_max, "65537"), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(set(RELAYD_OPTION_calls_max, "1K"), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(set(RELAYD_OPTION_calls_max, "4294967297"), RELAY_INVALID_ARGUMENT);
    CHECK_EQ(config.calls_max, 65536);
}

static void test_choices_are_whole_words(void)
{
    CHECK_OK(set(RELAYD_OPTION_log_format, "json"), err);
    CHECK_STR(config.log_format, "json");
    static const char *const bad[] = {"", "js", "jsonx", "logfmt|json", "|", "JSON"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_CODE(set(RELAYD_OPTION_log_format, bad[i]), RELAY_INVALID_ARGUMENT);
        CHECK_STR(config.log_format, "json");
    }
    relayd_config_fini(&config);
}

static void test_a_failed_list_keeps_the_old_one(void)
{
    CHECK_OK(set(RELAYD_OPTION_listen, " a:1 , b:2"), err);
    CHECK_EQ(config.listen.n, 2);
    CHECK_STR(config.listen.items[0], "a:1");
    CHECK_STR(config.listen.items[1], "b:2");
    CHECK_CODE(set(RELAYD_OPTION_listen, "c:3,"), RELAY_INVALID_ARGUMENT);
    CHECK_EQ(config.listen.n, 2);
    CHECK_OK(relayd_value_set(&config, &relayd_option_table[RELAYD_OPTION_listen], "c:3", true,
                              "here", &err),
             err);
    CHECK_EQ(config.listen.n, 3);
    CHECK_OK(set(RELAYD_OPTION_listen, "d:4"), err);
    CHECK_EQ(config.listen.n, 1);
    relayd_config_fini(&config);
}

static void test_names(void)
{
    char text[96];
    const struct relayd_option_desc *desc = &relayd_option_table[RELAYD_OPTION_call_rows_max];
    relayd_option_flag(desc, text, sizeof(text));
    CHECK_STR(text, "--call-rows-max");
    relayd_option_env(desc, text, sizeof(text));
    CHECK_STR(text, "RELAYD_CALL_ROWS_MAX");
    CHECK(relayd_option_find("call-rows-max", 13, '-') == desc);
    CHECK(relayd_option_find("call_rows_max", 13, '_') == desc);
    CHECK(relayd_option_find("call_rows_max", 13, '-') == NULL);
    CHECK(relayd_option_find("call-rows", 9, '-') == NULL);
}

/* The list itself: names are unique, help is one line, a section is one that exists. */
static void test_the_list_is_sound(void)
{
    for (size_t i = 0; i < RELAYD_NUM_OPTIONS; i++) {
        const struct relayd_option_desc *desc = &relayd_option_table[i];
        CHECK(relayd_option_find(desc->name, strlen(desc->name), '_') == desc);
        CHECK(strchr(desc->help, '\n') == NULL && strlen(desc->help) > 10);
        CHECK(desc->min <= desc->max);
        CHECK((desc->type == RELAYD_TYPE_CHOICE) == (desc->choices != NULL));
        size_t s = 0;
        while (s < relayd_num_sections &&
               strcmp(relayd_section_table[s].name, desc->section) != 0) {
            s++;
        }
        CHECK(s < relayd_num_sections);
    }
}

int main(void)
{
    CHECK_RUN(test_bytes_take_units);
    CHECK_RUN(test_times_take_units);
    CHECK_RUN(test_plain_numbers_take_no_units);
    CHECK_RUN(test_choices_are_whole_words);
    CHECK_RUN(test_a_failed_list_keeps_the_old_one);
    CHECK_RUN(test_names);
    CHECK_RUN(test_the_list_is_sound);
    return check_done();
}
