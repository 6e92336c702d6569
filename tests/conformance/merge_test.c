/* Parts merged by the test equal the whole call, however the keys are split: the identity at the
 * heart of the project. The merge here is the plain log-sum-exp formula in fp64. */
#include "conformance.h"

#include <math.h>

/* One row's partial results. */
struct part {
    const float *out; /* [Hq,dv] */
    const float *lse; /* [Hq] */
};

/* out [Hq,dv], lse [Hq] of n parts and the sinks (or NULL). */
static void merge_parts(const struct relay_layer_kind *kind, const struct part *parts, uint32_t n,
                        const float *sinks, float *out, float *lse)
{
    for (uint32_t h = 0; h < kind->num_q_heads; h++) {
        double max = sinks != NULL ? (double)sinks[h] : -INFINITY;
        double total = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            max = fmax(max, (double)parts[i].lse[h]);
        }
        if (max != -INFINITY) {
            total = sinks != NULL ? exp((double)sinks[h] - max) : 0.0;
            for (uint32_t i = 0; i < n; i++) {
                total += exp((double)parts[i].lse[h] - max);
            }
        }
        lse[h] = max == -INFINITY ? -INFINITY : (float)(max + log(total));
        for (uint32_t d = 0; d < kind->head_dim_v; d++) {
            double sum = 0.0;
            for (uint32_t i = 0; i < n && max != -INFINITY; i++) {
                sum += exp((double)parts[i].lse[h] - max) *
                       (double)parts[i].out[h * kind->head_dim_v + d];
            }
            out[h * kind->head_dim_v + d] = total > 0.0 ? (float)(sum / total) : 0.0f;
        }
    }
}

/* Two results of the same row by different roads: each within the oracle's tolerance of the truth,
 * so within twice that of each other, with scores of ordinary size and |V| up to scale. */
static void expect_close(const float *a, const float *b, size_t n, double scale)
{
    double allowed = 4.0 * TOLERANCE_SUM * TOLERANCE_EPS;
    for (size_t i = 0; i < n; i++) {
        if (isinf(a[i]) || isinf(b[i])) {
            CHECK(isinf(a[i]) && isinf(b[i]) && a[i] < 0 && b[i] < 0);
        } else if (!(fabs((double)a[i] - (double)b[i]) <= allowed * (scale + fabs((double)a[i])))) {
            CHECK_FAIL("[%zu] %.9g and %.9g", i, (double)a[i], (double)b[i]);
        }
    }
}

static const struct problem_segment segments[] = {
    {300, PROBLEM_NONE, 0}, {33, 0, 0}, {70, 1, 0}, {90, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 2, .context = 5, .q_len = 4, .append = true},
    {.segment = 1, .context = 0, .q_len = 1},
    {.segment = PROBLEM_NONE, .context = 33, .q_len = 2, .append = true},
    {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
    {.segment = 3, .context = 200, .q_len = 1, .append = true},
};

static struct problem_config merge_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(8, 2, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = COUNT(entries),
        .sinks = true,
        .seed = 5,
    };
    return config;
}

/* A snapshot's row: out then LSE. */
static struct part row_part(const struct problem *p, const unsigned char *snapshot, uint32_t row)
{
    size_t out = problem_out_bytes(p);
    size_t bytes = out + p->shape.kind.num_q_heads * sizeof(float);
    struct part part = {(const float *)(const void *)(snapshot + row * bytes),
                        (const float *)(const void *)(snapshot + row * bytes + out)};
    return part;
}

static void parts_case(const struct problem_config *config)
{
    static const enum relay_part order[] = {RELAY_PART_FULL, RELAY_PART_CONTEXT_ONLY,
                                            RELAY_PART_PROMPT_ONLY};
    struct problem problem;
    unsigned char *results[3];
    float out[8 * 64], lse[8];
    size_t bytes;
    init_case(&problem, config);
    CHECK_STILL();
    for (uint32_t i = 0; i < 3; i++) {
        struct problem_plan how = {.part = order[i]};
        run_and_check(&problem, &how); /* each part is right by itself too */
        CHECK_STILL();
        results[i] = problem_snapshot(&problem, &bytes);
        CHECK(results[i] != NULL);
    }
    for (uint32_t row = 0; row < problem_rows(&problem); row++) {
        struct part whole = row_part(&problem, results[0], row);
        struct part parts[2] = {row_part(&problem, results[1], row),
                                row_part(&problem, results[2], row)};
        merge_parts(&problem.shape.kind, parts, 2, problem.sinks, out, lse);
        expect_close(out, whole.out, 8 * 64, 4.0);
        CHECK_STILL();
        expect_close(lse, whole.lse, 8, 1.0);
        CHECK_STILL();
    }
    for (uint32_t i = 0; i < 3; i++) {
        free(results[i]);
    }
    problem_fini(&problem);
}

static void test_merge_of_parts_is_the_whole(void)
{
    struct problem_config config = merge_config();
    parts_case(&config);
    CHECK_STILL();
    config.sinks = false;
    parts_case(&config);
    CHECK_STILL();
    config.alibi = true;
    config.shape.kind.window = 120;
    config.shape.kind.softcap = 10.0f;
    parts_case(&config);
}

/* Finer and coarser splits, per entry or per tile: other partial results, the same sums. */
static void test_merge_over_any_split(void)
{
    static const struct problem_plan plans[] = {
        {.split_tokens_min = 64, .splits_max = 1000},
        {.split_tokens_min = 64, .splits_max = 3},
        {.splits_max = 1},
        {.split_tokens_min = 128, .splits_max = 7},
        {.sharing = RELAY_SHARING_NEVER},
        {.item_rows_max = 1},
        {.item_rows_max = 2, .splits_max = 2},
    };
    struct problem_config config = merge_config();
    struct problem problem;
    unsigned char *first = NULL;
    size_t bytes;
    init_case(&problem, &config);
    CHECK_STILL();
    for (uint32_t i = 0; i < COUNT(plans); i++) {
        unsigned char *now;
        run_and_check(&problem, &plans[i]);
        CHECK_STILL();
        now = problem_snapshot(&problem, &bytes);
        CHECK(now != NULL);
        first = first != NULL ? first : now;
        for (uint32_t row = 0; row < problem_rows(&problem); row++) {
            expect_close(row_part(&problem, now, row).out, row_part(&problem, first, row).out,
                         8 * 64, 4.0);
            CHECK_STILL();
        }
        if (now != first) {
            free(now);
        }
    }
    free(first);
    problem_fini(&problem);
}

/* A part with nothing in it leaves the other as it is, bit by bit: same tokens, same splits. */
static void test_merge_with_an_empty_part_changes_no_bit(void)
{
    static const struct problem_segment prompt[] = {{200, PROBLEM_NONE, 0}, {0, 0, 0}};
    static const struct problem_entry alone[] = {{.segment = 0, .context = 0, .q_len = 1},
                                                 {.segment = 1, .context = 0, .q_len = 1}};
    static const struct problem_entry context[] = {
        {.segment = PROBLEM_NONE, .context = 150, .q_len = 2, .append = true}};
    struct problem_config config = merge_config();
    config.segments = prompt;
    config.num_segments = 2;
    config.sinks = false;
    for (int side = 0; side < 2; side++) {
        struct problem problem;
        unsigned char *whole, *part;
        size_t bytes;
        struct problem_plan how = {.part = side ? RELAY_PART_CONTEXT_ONLY : RELAY_PART_PROMPT_ONLY};
        config.entries = side ? context : alone;
        config.num_entries = side ? COUNT(context) : COUNT(alone);
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, NULL);
        CHECK_STILL();
        whole = problem_snapshot(&problem, &bytes);
        run_and_check(&problem, &how);
        CHECK_STILL();
        part = problem_snapshot(&problem, &bytes);
        CHECK(whole != NULL && part != NULL && memcmp(whole, part, bytes) == 0);
        free(whole);
        free(part);
        problem_fini(&problem);
    }
}

static void test_merge_parts_in_every_out_dtype(void)
{
    static const enum relay_dtype out[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16};
    for (uint32_t i = 0; i < COUNT(out); i++) {
        for (uint32_t part = 0; part < 3; part++) {
            struct problem_config config = merge_config();
            struct problem_plan how = {.part = (enum relay_part)part};
            struct problem problem;
            config.shape.out_dtype = out[i];
            config.shape.io_dtype = RELAY_DTYPE_BF16;
            init_case(&problem, &config);
            CHECK_STILL();
            run_and_check(&problem, &how);
            CHECK_STILL();
            problem_fini(&problem);
        }
    }
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_merge_of_parts_is_the_whole);
    CHECK_RUN(test_merge_over_any_split);
    CHECK_RUN(test_merge_with_an_empty_part_changes_no_bit);
    CHECK_RUN(test_merge_parts_in_every_out_dtype);
    return conformance_close();
}
