/* Targets: what is taken and what is refused, through the public face. Nothing connects. */
#include "testlib/check.h"

#include <relay/client.h>

static void test_target_takes_what_people_write(void)
{
    static const char *const good[] = {
        "unix:///run/relayd/relayd.sock",
        "unix:relative.sock",
        "127.0.0.1:7070",
        "localhost:1",
        "[::1]:65535",
        "dns:///relayd.example:7070",
        "ipv4:127.0.0.1:7070",
        "ipv6:[::1]:7070",
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct relay_client *client = NULL;
        struct relay_error err;
        CHECK_OK(relay_client_open(good[i], NULL, &client, &err), err);
        CHECK(client != NULL);
        relay_client_close(client);
    }
}

static void test_target_refuses_the_rest(void)
{
    static const char *const bad[] = {
        NULL,           "",
        "unix:",        "unix://",
        "unix://relay", "localhost",
        ":7070",        "host:",
        "host:0",       "host:65536",
        "host:7070x",   "host:-1",
        "host: 7070",   "host:+7070",
        "::1:7070",     "[::1]",
        "[]:7070",      "[::1:7070",
        "ho st:7070",   "http://host:7070",
        "host/path:70", "inproc://x:1",
        "dns:///host",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct relay_client *client = NULL;
        struct relay_error err = {.code = RELAY_OK};
        CHECK_CODE(relay_client_open(bad[i], NULL, &client, &err), RELAY_INVALID_ARGUMENT);
        CHECK(client == NULL);
        CHECK_EQ(err.code, RELAY_INVALID_ARGUMENT);
        CHECK(strlen(err.msg) > 0);
    }
}

static void test_target_refuses_long_paths(void)
{
    char target[2048] = "unix:///";
    struct relay_client *client = NULL;
    struct relay_error err;
    memset(target + 8, 'a', 120);
    CHECK_CODE(relay_client_open(target, NULL, &client, &err), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "107") != NULL);
    memset(target, 'a', sizeof(target) - 1);
    target[sizeof(target) - 1] = '\0';
    CHECK_CODE(relay_client_open(target, NULL, &client, &err), RELAY_INVALID_ARGUMENT);
}

int main(void)
{
    CHECK_RUN(test_target_takes_what_people_write);
    CHECK_RUN(test_target_refuses_the_rest);
    CHECK_RUN(test_target_refuses_long_paths);
    return check_done();
}
