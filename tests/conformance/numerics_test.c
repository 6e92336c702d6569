/* Numbers that break kernels: extreme, equal and dominant scores, and NaN where a row cannot see.
 */
#include "conformance.h"

#include <math.h>

static const struct problem_segment segments[] = {
    {200, PROBLEM_NONE, 0}, {70, 0, 0}, {33, 1, 0}, {65, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 2, .context = 80, .q_len = 1, .append = true},
    {.segment = 1, .context = 9, .q_len = 4, .append = true},
    {.segment = 3, .context = 300, .q_len = 2, .append = true},
    {.segment = PROBLEM_NONE, .context = 33, .q_len = 1},
    {.segment = 0, .context = 0, .q_len = 1},
};

static struct problem_config numerics_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(8, 2, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = COUNT(entries),
        .seed = 3,
    };
    return config;
}

/* Scores of some 1e4 of both signs: one key takes all, far from where exp over- and underflows. */
static void test_numerics_huge_scores(void)
{
    static const float scales[] = {1e2f, 1e3f, 1e4f, 1e6f};
    for (uint32_t i = 0; i < COUNT(scales); i++) {
        struct problem_config config = numerics_config();
        config.q_scale = scales[i];
        check_case(&config);
        CHECK_STILL();
        config.sinks = true;
        config.shape.kind.softcap = 30.0f;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_numerics_tiny_scores(void)
{
    struct problem_config config = numerics_config();
    config.q_scale = 1e-30f;
    check_case(&config);
}

static void equal_keys(struct problem *problem)
{
    const struct relay_layer_kind *kind = &problem->shape.kind;
    const struct problem_strip *first = &problem->segments[0];
    size_t row = (size_t)kind->num_kv_heads * kind->head_dim_qk * sizeof(float);
    for (uint32_t i = 0; i < COUNT(segments) + COUNT(entries); i++) {
        struct problem_strip *strip =
            i < COUNT(segments) ? &problem->segments[i] : &problem->contexts[i - COUNT(segments)];
        for (uint32_t t = 0; t < strip->tokens; t++) {
            memmove(problem_k(problem, strip, t, 0), first->k, row);
        }
    }
}

/* The output is the mean of V. */
static void test_numerics_equal_scores(void)
{
    for (int big = 0; big < 2; big++) {
        struct problem_config config = numerics_config();
        config.edit = equal_keys;
        config.q_scale = big ? 3000.0f : 1.0f;
        check_case(&config);
        CHECK_STILL();
    }
}

static uint32_t dominant_strip; /* segments, then contexts */
static uint32_t dominant_token;

/* All queries share a direction, and one token's key lies along it. */
static void one_dominant_token(struct problem *problem)
{
    struct problem_strip *strip = dominant_strip < COUNT(segments)
                                      ? &problem->segments[dominant_strip]
                                      : &problem->contexts[dominant_strip - COUNT(segments)];
    for (uint32_t e = 0; e < COUNT(entries); e++) {
        for (uint32_t i = 0; i < problem->entries[e].q_len * 8 * 64; i++) {
            problem->q[e][i] += i % 2 != 0 ? 3.0f : -3.0f;
        }
    }
    for (uint32_t d = 0; d < 2 * 64; d++) {
        problem_k(problem, strip, dominant_token, 0)[d] = d % 2 != 0 ? 4.0f : -4.0f;
    }
}

static void test_numerics_dominant_token_in_each_segment(void)
{
    for (dominant_strip = 0; dominant_strip < COUNT(segments) + COUNT(entries) - 1;
         dominant_strip++) {
        uint32_t tokens = dominant_strip < COUNT(segments)
                              ? segments[dominant_strip].tokens
                              : entries[dominant_strip - COUNT(segments)].context;
        uint32_t places[] = {0, tokens / 2, tokens - 1};
        for (uint32_t i = 0; i < COUNT(places); i++) {
            struct problem_config config = numerics_config();
            dominant_token = places[i];
            config.edit = one_dominant_token;
            check_case(&config);
            CHECK_STILL();
        }
    }
}

/* The last new token of each chunk is NaN: its own row is too, the rows before it are not. */
static void nan_last_token(struct problem *problem)
{
    struct problem_strip *own = &problem->contexts[1];
    for (uint32_t d = 0; d < 2 * 64; d++) {
        problem_k(problem, own, own->tokens - 1, 0)[d] = NAN;
        problem_v(problem, own, own->tokens - 1, 0)[d] = NAN;
    }
}

static void test_numerics_nan_of_a_later_row(void)
{
    struct problem_config config = numerics_config();
    struct problem problem;
    config.edit = nan_last_token;
    init_case(&problem, &config);
    CHECK_STILL();
    run_and_check(&problem, NULL); /* NaN exactly where the oracle has it */
    CHECK_STILL();
    CHECK(isfinite(((const float *)problem_out(&problem, 1, 2))[0]));
    CHECK(isnan(((const float *)problem_out(&problem, 1, 3))[0]));
    CHECK(isfinite(((const float *)problem_out(&problem, 0, 0))[0]));
    problem_fini(&problem);
}

/* NaN and infinities in one request's own tokens stay there. */
static void poison_one_request(struct problem *problem)
{
    struct problem_strip *own = &problem->contexts[2];
    for (uint32_t t = 0; t < 100; t++) {
        for (uint32_t d = 0; d < 2 * 64; d++) {
            problem_k(problem, own, t, 0)[d] = NAN;
            problem_v(problem, own, t, 0)[d] = INFINITY;
        }
    }
}

static void test_numerics_nan_of_another_request(void)
{
    struct problem_config config = numerics_config();
    config.edit = poison_one_request;
    check_case(&config);
}

/* A chunk or window that the poisoned prompt tokens lie outside of, for some rows only. */
static void poison_prompt_start(struct problem *problem)
{
    for (uint32_t t = 0; t < 64; t++) {
        for (uint32_t d = 0; d < 2 * 64; d++) {
            problem_k(problem, &problem->segments[3], t, 0)[d] = t % 2 != 0 ? NAN : INFINITY;
            problem_v(problem, &problem->segments[3], t, 0)[d] = NAN;
        }
    }
}

static void test_numerics_nan_outside_chunk_and_window(void)
{
    struct problem_config config = numerics_config();
    config.edit = poison_prompt_start;
    config.shape.kind.chunk = 64;
    check_case(&config);
    CHECK_STILL();
    config.shape.kind.chunk = 0;
    config.shape.kind.window = 301;
    check_case(&config);
}

static void values_of_one_infinity(struct problem *problem)
{
    problem_v(problem, &problem->segments[0], 5, 0)[7] = INFINITY;
    problem_v(problem, &problem->segments[0], 6, 1)[9] = -INFINITY;
}

static void test_numerics_visible_infinity_stays_in_its_column(void)
{
    struct problem_config config = numerics_config();
    config.edit = values_of_one_infinity;
    check_case(&config);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_numerics_huge_scores);
    CHECK_RUN(test_numerics_tiny_scores);
    CHECK_RUN(test_numerics_equal_scores);
    CHECK_RUN(test_numerics_dominant_token_in_each_segment);
    CHECK_RUN(test_numerics_nan_of_a_later_row);
    CHECK_RUN(test_numerics_nan_of_another_request);
    CHECK_RUN(test_numerics_nan_outside_chunk_and_window);
    CHECK_RUN(test_numerics_visible_infinity_stays_in_its_column);
    return conformance_close();
}
