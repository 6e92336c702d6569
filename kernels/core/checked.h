/* Arithmetic that says when it overflows, for sizes that come from callers.
 *
 * Each function returns false on overflow and then leaves *out alone. Pure; thread-safe. */
#ifndef RELAY_CORE_CHECKED_H
#define RELAY_CORE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool relay_checked_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b) {
        return false;
    }
    *out = a + b;
    return true;
}

static inline bool relay_checked_mul(size_t a, size_t b, size_t *out)
{
    if (b != 0 && a > SIZE_MAX / b) {
        return false;
    }
    *out = a * b;
    return true;
}

/* a * b + c, the step of a size summed over fields. */
static inline bool relay_checked_mul_add(size_t a, size_t b, size_t c, size_t *out)
{
    size_t product;
    return relay_checked_mul(a, b, &product) && relay_checked_add(product, c, out);
}

/* ceil(a / b) without the overflow of (a + b - 1) / b; b > 0. */
static inline uint32_t relay_ceil_div_u32(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0 ? 1u : 0u);
}

#endif
