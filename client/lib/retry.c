#include "client_internal.h"

#include <sys/random.h>
#include <time.h>

uint64_t relay_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

void relay_random(void *out, size_t n)
{
    uint8_t *at = out;
    while (n > 0) {
        const ssize_t got = getrandom(at, n, 0);
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        }
    }
}

uint64_t relay_backoff_us(const struct relay_client_options *options, uint32_t attempt)
{
    uint64_t wait_us = (uint64_t)options->backoff_ms_min * 1000u;
    const uint64_t most_us = (uint64_t)options->backoff_ms_max * 1000u;
    for (uint32_t i = 0; i < attempt && wait_us < most_us; i++) {
        wait_us *= 2;
    }
    if (wait_us > most_us) {
        wait_us = most_us;
    }
    /* Between half of it and all of it, so that clients of one dead server do not return as one. */
    uint64_t random;
    relay_random(&random, sizeof(random));
    return wait_us / 2 + random % (wait_us / 2 + 1);
}

void relay_sleep_us(uint64_t us)
{
    struct timespec left = {(time_t)(us / 1000000u), (long)(us % 1000000u) * 1000};
    while (nanosleep(&left, &left) != 0) {
    }
}

bool relay_backoff(struct relay_client *client, uint32_t attempt, uint64_t deadline_us)
{
    const uint64_t wait_us = relay_backoff_us(&client->options, attempt);
    const uint64_t until_us = relay_now_us() + wait_us;
    if (until_us >= deadline_us) {
        return false;
    }
    relay_call_reconnect(client, until_us);
    /* All of the wait, also when it has: the server may not have noticed yet that the connection
     * before broke, and holds what the call left half done. */
    const uint64_t now_us = relay_now_us();
    if (now_us < until_us) {
        relay_sleep_us(until_us - now_us);
    }
    return true;
}
