/* Kept plans: the same key gives the same plan without building; a used one outlives newer keys. */
#include "service/batch/plans.h"
#include "testlib/check.h"

static struct relay_error err;
static struct relayd_plans *plans;

static const struct relay_plan *get(const uint64_t *key, size_t words, uint32_t rows)
{
    static const struct relay_shape shape = {
        .kind =
            {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8, .scale = 1.0F},
        .kv_dtype = RELAY_DTYPE_F32,
        .io_dtype = RELAY_DTYPE_F32,
        .out_dtype = RELAY_DTYPE_F32,
    };
    const uint32_t page = 0;
    struct relay_entry entry = {
        .q_len = rows, .segment = RELAY_NO_SEGMENT, .pages = &page, .context_tokens = rows};
    struct relay_plan_input in = {.shape = &shape,
                                  .entries = &entry,
                                  .num_entries = 1,
                                  .page_tokens = 16,
                                  .split_tokens_min = 16,
                                  .splits_max = 1,
                                  .block_tokens = 16};
    const struct relay_plan *plan = NULL;
    return relayd_plans_get(plans, key, words, &in, &plan, &err) == RELAY_OK ? plan : NULL;
}

static void test_same_key_same_plan(void)
{
    const uint64_t key[] = {1, 2, 3};
    const struct relay_plan *a = get(key, 3, 5);
    CHECK(a != NULL);
    CHECK_EQ(a->num_rows, 5);
    uint64_t built = relayd_plans_built(plans);
    CHECK(get(key, 3, 5) == a);
    CHECK_EQ(relayd_plans_built(plans), built);
    const struct relay_plan *shorter = get(key, 2, 6);
    CHECK(shorter != NULL && shorter != a);
    CHECK_EQ(shorter->num_rows, 6);
    CHECK_EQ(a->num_rows, 5);
}

static void test_the_last_two_are_never_rebuilt(void)
{
    for (uint64_t i = 0; i < 100; i++) {
        const uint64_t key[] = {100 + i}, next[] = {101 + i};
        const struct relay_plan *a = get(key, 1, 1 + (uint32_t)i % 7);
        const struct relay_plan *b = get(next, 1, 1 + (uint32_t)(i + 1) % 7);
        CHECK(a != NULL && b != NULL && a != b);
        CHECK_EQ(a->num_rows, 1 + i % 7);
    }
}

static void test_a_failed_build_keeps_nothing(void)
{
    const uint64_t key[] = {7777};
    CHECK(get(key, 1, 0) == NULL); /* q_len 0 */
    const struct relay_plan *plan = get(key, 1, 3);
    CHECK(plan != NULL);
    CHECK_EQ(plan->num_rows, 3);
}

int main(void)
{
    if (relayd_plans_create(&plans, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_same_key_same_plan);
    CHECK_RUN(test_the_last_two_are_never_rebuilt);
    CHECK_RUN(test_a_failed_build_keeps_nothing);
    relayd_plans_destroy(plans);
    return check_done();
}
