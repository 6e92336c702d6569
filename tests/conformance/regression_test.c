/* Twelve mistakes that other projects shipped, each as a test of its own name. */
#include "conformance.h"

#include "testlib/rng.h"

#include <math.h>

static struct problem_config config_of(uint32_t q_heads, uint32_t kv_heads, uint32_t dim)
{
    struct problem_config config = {
        .shape = problem_shape(q_heads, kv_heads, dim, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16,
                               RELAY_DTYPE_F32),
        .page_tokens = 16,
        .seed = 9,
    };
    return config;
}

static const struct problem_segment long_prompt[] = {{1500, PROBLEM_NONE, 0}};

/* 1. Grouped query heads packed into one tile while keys are split: LSE per (head, token). */
static void test_regression_packed_heads_with_split_keys(void)
{
    static const uint32_t heads[][2] = {{8, 1}, {14, 2}, {32, 8}, {12, 1}, {5, 1}};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 900, .q_len = 1, .append = true},
        {.segment = 0, .context = 40, .q_len = 3, .append = true},
    };
    for (uint32_t i = 0; i < COUNT(heads); i++) {
        struct problem_config config = config_of(heads[i][0], heads[i][1], 64);
        struct problem_plan how = {.split_tokens_min = 64, .splits_max = 100};
        struct problem problem;
        config.segments = long_prompt;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = COUNT(entries);
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, &how);
        CHECK_STILL();
        CHECK(problem.plan->rows[0].merge_count > 10);
        problem_fini(&problem);
    }
}

/* 2. LSE laid out by a padded or transposed stride: every (row, head) of many ragged rows, few
 * heads (as a tensor-parallel rank has them). */
static void test_regression_lse_stride(void)
{
    for (uint32_t heads = 1; heads <= 3; heads++) {
        struct problem_entry entries[19];
        struct problem_config config = config_of(heads, 1, 64);
        for (uint32_t i = 0; i < COUNT(entries); i++) {
            entries[i] = (struct problem_entry){
                .segment = 0, .context = 1 + 7 * i, .q_len = 1 + i % 3, .append = i > 0};
        }
        entries[0].q_len = 1;
        config.segments = long_prompt;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = COUNT(entries);
        check_case(&config);
        CHECK_STILL();
    }
}

/* 3. Rows without keys inside a ragged batch whose others are split; strangers' rows untouched. */
static void test_regression_empty_rows_in_a_split_batch(void)
{
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 700, .q_len = 1, .append = true},
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 3},
        {.segment = 0, .context = 3, .q_len = 2, .append = true},
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
        {.segment = PROBLEM_NONE, .context = 2000, .q_len = 1, .append = true},
    };
    struct problem_config config = config_of(8, 2, 64);
    config.segments = long_prompt;
    config.num_segments = 1;
    config.entries = entries;
    config.num_entries = COUNT(entries);
    config.num_ios = 2;
    check_case(&config);
}

/* Redraws every token by its absolute position, so that a sequence is the same however it is cut
 * into levels and context. */
static void draw_by_position(struct problem *problem)
{
    for (uint32_t i = 0; i < problem->config.num_segments + problem->config.num_entries; i++) {
        struct problem_strip *strip = i < problem->config.num_segments
                                          ? &problem->segments[i]
                                          : &problem->contexts[i - problem->config.num_segments];
        const struct relay_layer_kind *kind = &problem->shape.kind;
        for (uint32_t t = 0; t < strip->tokens; t++) {
            struct rng rng = {strip->position + t};
            for (uint32_t d = 0; d < kind->num_kv_heads * kind->head_dim_qk; d++) {
                problem_k(problem, strip, t, 0)[d] = rng_normal(&rng);
            }
            for (uint32_t d = 0; d < kind->num_kv_heads * kind->head_dim_v; d++) {
                problem_v(problem, strip, t, 0)[d] = rng_normal(&rng);
            }
        }
    }
}

/* The float32 terms, and P's rounding, that the last problem's results may be off by. */
static double sum_allowed;

/* Runs a problem with tensors by position; out and LSE of all rows, malloc'd. */
static unsigned char *run_by_position(const struct problem_segment *segments, uint32_t num_segments,
                                      const struct problem_entry *entries, uint32_t num_entries,
                                      size_t *bytes)
{
    struct problem_config config = config_of(4, 2, 64);
    struct problem problem;
    unsigned char *result;
    config.segments = segments;
    config.num_segments = num_segments;
    config.entries = entries;
    config.num_entries = num_entries;
    config.edit = draw_by_position;
    init_case(&problem, &config);
    if (check_failed_now) {
        return NULL;
    }
    run_and_check(&problem, NULL);
    sum_allowed = problem_tolerance(&problem).sum;
    result = problem_snapshot(&problem, bytes);
    problem_fini(&problem);
    return result;
}

/* 4. Empty with empty is (0, -inf); empty with x is x, bit by bit. (Partial results come from no
 * one but the backend itself, so an infinite LSE cannot be put in.) */
static void test_regression_empty_is_neutral(void)
{
    static const struct problem_segment with_empty[] = {
        {0, PROBLEM_NONE, 0}, {100, 0, 0}, {0, 1, 0}, {0, 2, 0}};
    static const struct problem_segment without[] = {{100, PROBLEM_NONE, 0}};
    static const struct problem_entry deep[] = {{.segment = 3, .context = 50, .q_len = 1},
                                                {.segment = 3, .context = 0, .q_len = 1},
                                                {.segment = 0, .context = 0, .q_len = 1}};
    static const struct problem_entry flat[] = {
        {.segment = 0, .context = 50, .q_len = 1},
        {.segment = 0, .context = 0, .q_len = 1},
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 1}};
    size_t bytes = 0;
    unsigned char *a = run_by_position(with_empty, COUNT(with_empty), deep, COUNT(deep), &bytes);
    unsigned char *b = run_by_position(without, COUNT(without), flat, COUNT(flat), &bytes);
    CHECK_STILL();
    CHECK(a != NULL && b != NULL && memcmp(a, b, bytes) == 0);
    free(a);
    free(b);
}

/* scale q k = -524288 for every key; V as drawn. */
static void very_negative_scores(struct problem *problem)
{
    struct problem_strip *own = &problem->contexts[0];
    for (uint32_t d = 0; d < 64; d++) {
        problem->q[0][d] = 64.0f;
    }
    for (uint32_t t = 0; t < own->tokens; t++) {
        for (uint32_t d = 0; d < 64; d++) {
            problem_k(problem, own, t, 0)[d] = -1024.0f;
        }
    }
}

/* 5. All scores far below any sentinel: with one key the output is its V and the LSE its score. */
static void test_regression_scores_below_sentinels(void)
{
    for (uint32_t context = 1; context <= 70; context += 69) {
        struct problem_entry entry = {.segment = PROBLEM_NONE, .context = context, .q_len = 1};
        struct problem_config config = config_of(1, 1, 64);
        struct problem problem;
        config.shape.kv_dtype = RELAY_DTYPE_F32;
        config.shape.io_dtype = RELAY_DTYPE_F32;
        config.entries = &entry;
        config.num_entries = 1;
        config.edit = very_negative_scores;
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, NULL);
        CHECK_STILL();
        if (context == 1) {
            CHECK(memcmp(problem_out(&problem, 0, 0), problem.contexts[0].v, 64 * sizeof(float)) ==
                  0);
            CHECK(problem_lse(&problem, 0, 0)[0] == -524288.0f);
        }
        problem_fini(&problem);
    }
}

/* 6. More heads than a tile or a warp has, and odd counts, in attention and merge. */
static void test_regression_many_and_odd_heads(void)
{
    static const uint32_t shapes[][3] = {{65, 1, 128}, {97, 97, 64}, {200, 8, 64}, {33, 3, 256},
                                         {96, 8, 128}, {48, 1, 256}, {1024, 8, 8}};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 100, .q_len = 1, .append = true},
        {.segment = 0, .context = 3, .q_len = 2, .append = true}};
    static const struct problem_segment prompt[] = {{300, PROBLEM_NONE, 0}};
    for (uint32_t i = 0; i < COUNT(shapes); i++) {
        struct problem_config config = config_of(shapes[i][0], shapes[i][1], shapes[i][2]);
        config.segments = prompt;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = COUNT(entries);
        config.sinks = true;
        check_case(&config);
        CHECK_STILL();
    }
}

/* 7. Head dims that are no power of two: right, or refused loudly. */
static void test_regression_odd_head_dims(void)
{
    static const uint32_t dims[] = {72, 80, 96, 112, 136, 224, 104, 200, 576};
    static const uint32_t wrong[] = {0, 4, 100, 129, 584};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 17, .q_len = 2, .append = true}};
    static const struct problem_segment prompt[] = {{70, PROBLEM_NONE, 0}};
    struct relay_error err;
    for (uint32_t i = 0; i < COUNT(dims); i++) {
        struct problem_config config = config_of(4, 2, dims[i]);
        config.segments = prompt;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = 1;
        check_case(&config);
        CHECK_STILL();
    }
    for (uint32_t i = 0; i < COUNT(wrong); i++) {
        struct relay_shape shape = config_of(4, 2, 64).shape;
        shape.kind.scale = 1.0f;
        CHECK_OK(relay_backend_supports(backend, &shape, &err), err);
        shape.kind.head_dim_qk = wrong[i];
        CHECK_CODE(relay_backend_supports(backend, &shape, &err), RELAY_INVALID_ARGUMENT);
        CHECK(strstr(err.msg, "head_dim_qk") != NULL);
    }
}

static void zero_queries(struct problem *problem)
{
    memset(problem->q[0], 0, 64 * sizeof(float));
}

/* 8. The LSE is natural: n equal scores of 0 give ln n. */
static void test_regression_lse_is_natural(void)
{
    static const uint32_t counts[] = {1, 2, 3, 100, 1000};
    for (uint32_t i = 0; i < COUNT(counts); i++) {
        struct problem_entry entry = {.segment = PROBLEM_NONE, .context = counts[i], .q_len = 1};
        struct problem_config config = config_of(1, 1, 64);
        struct problem problem;
        double got;
        config.entries = &entry;
        config.num_entries = 1;
        config.edit = zero_queries;
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, NULL);
        CHECK_STILL();
        got = (double)problem_lse(&problem, 0, 0)[0];
        CHECK(fabs(got - log((double)counts[i])) <= 1e-5);
        problem_fini(&problem);
    }
}

/* 9. The merge is associative and commutative: the same keys as one prompt, as levels cut anywhere,
 * or as the request's own context give the same output. */
static void test_regression_merge_over_regroupings(void)
{
    static const struct problem_segment cuts[][4] = {
        {{600, PROBLEM_NONE, 0}},
        {{100, PROBLEM_NONE, 0}, {500, 0, 0}},
        {{1, PROBLEM_NONE, 0}, {298, 0, 0}, {1, 1, 0}, {300, 2, 0}},
        {{599, PROBLEM_NONE, 0}, {1, 0, 0}},
        {{0, PROBLEM_NONE, 0}},
        {{257, PROBLEM_NONE, 0}},
    };
    static const uint32_t counts[] = {1, 2, 4, 2, 1, 1};
    static const uint32_t contexts[] = {50, 50, 50, 50, 650, 393};
    float *first = NULL;
    for (uint32_t i = 0; i < COUNT(cuts); i++) {
        struct problem_entry entry = {.segment = counts[i] - 1, .context = contexts[i], .q_len = 1};
        size_t bytes = 0;
        float *now = (float *)(void *)run_by_position(cuts[i], counts[i], &entry, 1, &bytes);
        CHECK_STILL();
        CHECK(now != NULL);
        first = first != NULL ? first : now;
        for (size_t d = 0; d < bytes / sizeof(float); d++) {
            double error = fabs((double)now[d] - (double)first[d]);
            /* Both are within the table's bounds of one truth; |V| is about 1. */
            if (!(error <= 4.0 * sum_allowed * (1.0 + fabs((double)now[d])))) {
                CHECK_FAIL("cut %u: [%zu] %.9g and %.9g", i, d, (double)now[d], (double)first[d]);
            }
        }
        if (now != first) {
            free(now);
        }
    }
    free(first);
}

/* NaN keys and values at every token that no row may see. */
static void poison_outside_window(struct problem *problem)
{
    struct problem_strip *strips[2] = {&problem->segments[0], &problem->contexts[0]};
    uint32_t last = problem->contexts[0].position + problem->contexts[0].tokens - 1;
    for (uint32_t s = 0; s < 2; s++) {
        for (uint32_t t = 0; t < strips[s]->tokens; t++) {
            if (strips[s]->position + t + problem->shape.kind.window <= last) {
                for (uint32_t d = 0; d < 2 * 64; d++) {
                    problem_k(problem, strips[s], t, 0)[d] = t % 3 != 0 ? NAN : INFINITY;
                    problem_v(problem, strips[s], t, 0)[d] = t % 2 != 0 ? NAN : -INFINITY;
                }
            }
        }
    }
}

/* 10. NaN outside the window does not leak through a weight of 0. (Past the lengths and in unused
 * pages, every test has NaN.) */
static void test_regression_stale_tokens(void)
{
    static const uint32_t windows[] = {1, 15, 16, 17, 60, 64, 100, 129};
    static const struct problem_segment prompt[] = {{200, PROBLEM_NONE, 0}};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 63, .q_len = 1, .append = true}};
    for (uint32_t i = 0; i < COUNT(windows); i++) {
        struct problem_config config = config_of(4, 2, 64);
        struct problem problem;
        const float *out;
        config.segments = prompt;
        config.num_segments = 1;
        config.entries = entries;
        config.num_entries = 1;
        config.shape.kind.window = windows[i];
        config.edit = poison_outside_window;
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, NULL);
        CHECK_STILL();
        out = problem_out(&problem, 0, 0);
        for (uint32_t d = 0; d < 4 * 64; d++) {
            CHECK(isfinite(out[d]));
        }
        problem_fini(&problem);
    }
}

/* 11. The shared path is taken: the plan reads each prompt token once a batch (once a row tile,
 * where the kernel limits rows), not once a request; ref counts the bytes where it reads them. */
static void test_regression_prompt_is_read_once(void)
{
    static const struct problem_segment segments[] = {{777, PROBLEM_NONE, 0}, {130, 0, 0}};
    struct problem_entry entries[24];
    struct problem_config config = config_of(8, 2, 64);
    struct problem_plan never = {.sharing = RELAY_SHARING_NEVER};
    struct problem_plan wide = {.item_rows_max = 1000};
    uint64_t before[2], after[2], shared_once, unshared;
    struct relay_error err;
    struct problem problem;
    for (uint32_t i = 0; i < COUNT(entries); i++) {
        entries[i] =
            (struct problem_entry){.segment = i % 2, .context = 5 + i, .q_len = 1, .append = true};
    }
    config.segments = segments;
    config.num_segments = COUNT(segments);
    config.entries = entries;
    config.num_entries = COUNT(entries);
    init_case(&problem, &config);
    CHECK_STILL();
    run_and_check(&problem, &never);
    CHECK_STILL();
    unshared = problem.plan->prompt_tokens_read;
    CHECK_EQ(unshared, 24 * 777 + 12 * 130);
    CHECK_OK(problem_plan(&problem, &wide, &err), err);
    shared_once = problem.plan->prompt_tokens_read;
    CHECK_EQ(shared_once, 777 + 130);
    relay_backend_bytes_read(backend, &before[0], &before[1]);
    CHECK_OK(problem_run(&problem, &err), err);
    relay_backend_bytes_read(backend, &after[0], &after[1]);
    if (after[0] != 0) { /* a backend that counts */
        CHECK_EQ(after[0] - before[0], shared_once * relay_shape_kv_bytes(&problem.shape));
        CHECK_EQ(after[1] - before[1],
                 problem.plan->context_tokens_read * relay_shape_kv_bytes(&problem.shape));
    } else {
        CHECK(strcmp(relay_backend_info(backend)->name, "ref") != 0);
    }
    /* As the backend plans by itself: once per tile of rows. */
    CHECK_OK(problem_plan(&problem, NULL, &err), err);
    CHECK(problem.plan->prompt_tokens_read < unshared / 2);
    problem_fini(&problem);
}

/* 12. Prompt = everything, one own token, a prompt of one token, page k +- 1, one request. */
static void test_regression_smallest_pieces(void)
{
    static const uint32_t prompts[] = {1, 15, 16, 17, 31, 32, 33, 47, 48, 49};
    static const uint32_t contexts[] = {0, 1, 2, 15, 16, 17};
    for (uint32_t p = 0; p < COUNT(prompts); p++) {
        for (uint32_t c = 0; c < COUNT(contexts); c++) {
            struct problem_segment segment = {prompts[p], PROBLEM_NONE, 0};
            struct problem_entry entry = {
                .segment = 0, .context = contexts[c], .q_len = 1, .append = contexts[c] != 0};
            struct problem_config config = config_of(4, 2, 64);
            config.segments = &segment;
            config.num_segments = 1;
            config.entries = &entry;
            config.num_entries = 1;
            config.seed = p * 10 + c;
            check_case(&config);
            CHECK_STILL();
        }
    }
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_regression_packed_heads_with_split_keys);
    CHECK_RUN(test_regression_lse_stride);
    CHECK_RUN(test_regression_empty_rows_in_a_split_batch);
    CHECK_RUN(test_regression_empty_is_neutral);
    CHECK_RUN(test_regression_scores_below_sentinels);
    CHECK_RUN(test_regression_many_and_odd_heads);
    CHECK_RUN(test_regression_odd_head_dims);
    CHECK_RUN(test_regression_lse_is_natural);
    CHECK_RUN(test_regression_merge_over_regroupings);
    CHECK_RUN(test_regression_stale_tokens);
    CHECK_RUN(test_regression_prompt_is_read_once);
    CHECK_RUN(test_regression_smallest_pieces);
    return conformance_close();
}
