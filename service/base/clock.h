/* Time as a parameter, so that leases, TTLs and deadlines are tested without waiting.
 * Thread-safe: a clock is immutable once made; now_ns is monotonic, unix_ms is for display only. */
#ifndef RELAYD_BASE_CLOCK_H
#define RELAYD_BASE_CLOCK_H

#include <stdint.h>

struct relayd_clock {
    uint64_t (*now_ns)(void *user);
    uint64_t (*unix_ms)(void *user);
    void *user;
};

/* CLOCK_MONOTONIC and CLOCK_REALTIME. */
extern const struct relayd_clock relayd_clock_system;

static inline uint64_t relayd_clock_now_ns(const struct relayd_clock *clock)
{
    return clock->now_ns(clock->user);
}

static inline uint64_t relayd_clock_unix_ms(const struct relayd_clock *clock)
{
    return clock->unix_ms(clock->user);
}

#endif
