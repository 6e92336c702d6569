#include "service/batch/plans.h"

#include <stdlib.h>
#include <string.h>

#define PLANS 8u /* two window classes for a few cohorts at once */

struct kept_plan {
    struct relay_plan *plan;
    uint64_t *key;
    size_t key_words; /* 0 = holds nothing */
    size_t key_capacity;
    uint64_t hash;
    uint64_t used; /* tick of the last use */
};

struct relayd_plans {
    struct kept_plan kept[PLANS];
    uint64_t tick;
    uint64_t built;
};

enum relay_code relayd_plans_create(struct relayd_plans **out, struct relay_error *err)
{
    struct relayd_plans *plans = calloc(1, sizeof(*plans));
    if (plans == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for plans");
    }
    for (size_t i = 0; i < PLANS; i++) {
        enum relay_code code = relay_plan_create(&plans->kept[i].plan, err);
        if (code != RELAY_OK) {
            relayd_plans_destroy(plans);
            return code;
        }
    }
    *out = plans;
    return RELAY_OK;
}

void relayd_plans_destroy(struct relayd_plans *plans)
{
    if (plans == NULL) {
        return;
    }
    for (size_t i = 0; i < PLANS; i++) {
        relay_plan_destroy(plans->kept[i].plan);
        free(plans->kept[i].key);
    }
    free(plans);
}

static uint64_t hash_key(const uint64_t *key, size_t words)
{
    uint64_t h = words;
    for (size_t i = 0; i < words; i++) {
        h = (h ^ key[i]) * UINT64_C(0x9E3779B97F4A7C15);
        h ^= h >> 32;
    }
    return h;
}

/* Remembers what the plan is of; without memory for the key it is simply not found again. */
static void keep_key(struct kept_plan *kept, const uint64_t *key, size_t words, uint64_t hash)
{
    kept->key_words = 0;
    if (words > kept->key_capacity) {
        uint64_t *grown = reallocarray(kept->key, words * 2, sizeof(*grown));
        if (grown == NULL) {
            return;
        }
        kept->key = grown;
        kept->key_capacity = words * 2;
    }
    memcpy(kept->key, key, words * sizeof(*key));
    kept->key_words = words;
    kept->hash = hash;
}

enum relay_code relayd_plans_get(struct relayd_plans *plans, const uint64_t *key, size_t key_words,
                                 const struct relay_plan_input *in, const struct relay_plan **out,
                                 struct relay_error *err)
{
    uint64_t hash = hash_key(key, key_words);
    struct kept_plan *oldest = &plans->kept[0];
    plans->tick++;
    for (size_t i = 0; i < PLANS; i++) {
        struct kept_plan *kept = &plans->kept[i];
        if (kept->key_words == key_words && kept->hash == hash &&
            memcmp(kept->key, key, key_words * sizeof(*key)) == 0) {
            kept->used = plans->tick;
            *out = kept->plan;
            return RELAY_OK;
        }
        if (kept->used < oldest->used) {
            oldest = kept;
        }
    }
    oldest->key_words = 0;
    oldest->used = plans->tick;
    enum relay_code code = relay_plan_build(oldest->plan, in, err);
    if (code != RELAY_OK) {
        return code;
    }
    plans->built++;
    keep_key(oldest, key, key_words, hash);
    *out = oldest->plan;
    return RELAY_OK;
}

uint64_t relayd_plans_built(const struct relayd_plans *plans)
{
    return plans->built;
}
