/* service/base/clock: the system clock runs forward, and a test's clock is taken as it is. */
#include "service/base/clock.h"

#include "testlib/check.h"

#include <time.h>

static void test_system_clock_never_goes_back(void)
{
    uint64_t last = relayd_clock_now_ns(&relayd_clock_system);
    CHECK(last > 0);
    for (int i = 0; i < 1000; i++) {
        uint64_t now = relayd_clock_now_ns(&relayd_clock_system);
        CHECK(now >= last);
        last = now;
    }
}

static void test_system_clock_knows_the_date(void)
{
    time_t before = time(NULL);
    uint64_t unix_ms = relayd_clock_unix_ms(&relayd_clock_system);
    time_t after = time(NULL);
    /* time() may lag the fine clock by one tick. */
    CHECK(unix_ms / 1000 >= (uint64_t)before);
    CHECK(unix_ms / 1000 <= (uint64_t)after + 1);
}

static uint64_t read_user(void *user)
{
    return *(const uint64_t *)user;
}

static void test_given_clock_is_asked_with_its_user(void)
{
    uint64_t value = 41;
    struct relayd_clock clock = {.now_ns = read_user, .unix_ms = read_user, .user = &value};
    CHECK_EQ(relayd_clock_now_ns(&clock), 41);
    value = 42;
    CHECK_EQ(relayd_clock_now_ns(&clock), 42);
    CHECK_EQ(relayd_clock_unix_ms(&clock), 42);
}

int main(void)
{
    CHECK_RUN(test_system_clock_never_goes_back);
    CHECK_RUN(test_system_clock_knows_the_date);
    CHECK_RUN(test_given_clock_is_asked_with_its_user);
    return check_done();
}
