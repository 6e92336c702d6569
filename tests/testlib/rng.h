/* Random numbers for tests: the same sequence everywhere for a seed. Not thread-safe per state. */
#ifndef RELAY_TESTLIB_RNG_H
#define RELAY_TESTLIB_RNG_H

#include <stdint.h>

struct rng {
    uint64_t state;
};

/* SplitMix64: any seed is good, also consecutive ones. */
static inline uint64_t rng_u64(struct rng *rng)
{
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* In [0, n), n > 0. */
static inline uint32_t rng_below(struct rng *rng, uint32_t n)
{
    return (uint32_t)(((rng_u64(rng) >> 32) * n) >> 32);
}

/* In [lo, hi]. */
static inline uint32_t rng_range(struct rng *rng, uint32_t lo, uint32_t hi)
{
    return lo + rng_below(rng, hi - lo + 1);
}

/* In [-1, 1). */
static inline float rng_unit(struct rng *rng)
{
    return (float)((double)(rng_u64(rng) >> 11) * 0x1p-52 - 1.0);
}

/* About normal with deviation 1, within +-6: the sum of twelve uniform numbers. */
static inline float rng_normal(struct rng *rng)
{
    double sum = 0.0;
    for (int i = 0; i < 3; i++) {
        uint64_t u = rng_u64(rng);
        sum += (double)(u & 0xffffu) + (double)((u >> 16) & 0xffffu) +
               (double)((u >> 32) & 0xffffu) + (double)(u >> 48);
    }
    return (float)(sum / 65536.0 - 6.0);
}

#endif
