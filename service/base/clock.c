/* The system's clocks behind struct relayd_clock. No state; any thread. */
#include "service/base/clock.h"

#include <time.h>

static uint64_t system_now_ns(void *user)
{
    (void)user;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t system_unix_ms(void *user)
{
    (void)user;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

const struct relayd_clock relayd_clock_system = {
    .now_ns = system_now_ns,
    .unix_ms = system_unix_ms,
    .user = NULL,
};
