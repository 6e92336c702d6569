/* What is the cpu backend's own: results that no thread count and no tile shape changes, appends of
 * many rows, several runs in flight, shapes it refuses. Values against the oracle are mostly the
 * conformance suite's matter. */
#include <relay/backend.h>

#include "testlib/check.h"
#include "testlib/problem.h"

static struct relay_backend *open_cpu(uint32_t threads)
{
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *backend = NULL;
    options.threads = threads;
    if (relay_backend_open("cpu", &options, &backend, NULL) != RELAY_OK) {
        return NULL;
    }
    return backend;
}

/* The results of one way to plan, or NULL; checked against the oracle. */
static unsigned char *results(struct problem *problem, const struct problem_plan *how,
                              size_t *bytes)
{
    struct relay_error err;
    char why[256];
    if (problem_plan(problem, how, &err) != RELAY_OK || problem_run(problem, &err) != RELAY_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return NULL;
    }
    if (!problem_check(problem, why, sizeof(why))) {
        fprintf(stderr, "%s\n", why);
        return NULL;
    }
    return problem_snapshot(problem, bytes);
}

/* ---- threads -----------------------------------------------------------------------------------
 */

static void test_cpu_bits_do_not_depend_on_threads(void)
{
    static const uint32_t threads[] = {1, 2, 3, 7};
    static const struct problem_segment segments[] = {{700, PROBLEM_NONE, 0}};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 3, .q_len = 1, .append = true},
        {.segment = 0, .context = 70, .q_len = 3, .append = true},
        {.segment = PROBLEM_NONE, .context = 130, .q_len = 2},
        {.segment = 0, .context = 0, .q_len = 1},
    };
    struct problem_config config = {
        .shape = problem_shape(6, 2, 40, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = 1,
        .entries = entries,
        .num_entries = 4,
        .sinks = true,
        .seed = 11,
    };
    unsigned char *first = NULL;
    size_t first_bytes = 0;
    for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
        struct relay_backend *backend = open_cpu(threads[i]);
        struct relay_error err;
        struct problem problem;
        size_t bytes = 0;
        CHECK(backend != NULL);
        CHECK_EQ(relay_backend_info(backend)->threads, threads[i]);
        CHECK_OK(problem_init(&problem, backend, &config, &err), err);
        unsigned char *now = results(&problem, NULL, &bytes);
        problem_fini(&problem);
        relay_backend_close(backend);
        CHECK(now != NULL);
        if (first == NULL) {
            first = now;
            first_bytes = bytes;
            continue;
        }
        bool same = bytes == first_bytes && memcmp(first, now, bytes) == 0;
        free(now);
        CHECK(same);
    }
    free(first);
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* Every remainder of a row tile, windows that cut rows of one tile apart, chunks: each row alone
 * and all together. */
static void check_alone_and_together(const struct problem_config *config)
{
    struct relay_backend *backend = open_cpu(2);
    struct relay_error err;
    struct problem problem;
    CHECK(backend != NULL);
    CHECK_OK(problem_init(&problem, backend, config, &err), err);
    size_t bytes = 0;
    unsigned char *together = results(&problem, NULL, &bytes);
    CHECK(together != NULL);
    size_t row_bytes = problem_out_bytes(&problem) + config->shape.kind.num_q_heads * sizeof(float);
    const unsigned char *at = together;
    bool same = true;
    for (uint32_t e = 0; e < config->num_entries; e++) {
        struct problem_plan alone = {.entries = &e, .num_entries = 1};
        size_t entry_bytes = row_bytes * config->entries[e].q_len;
        unsigned char *one;
        size_t one_bytes = 0;
        CHECK_OK(problem_plan(&problem, &alone, &err), err);
        CHECK_OK(problem_run(&problem, &err), err);
        one = problem_snapshot(&problem, &one_bytes);
        CHECK(one != NULL && one_bytes == bytes);
        same = same && memcmp(at, one + (at - together), entry_bytes) == 0;
        at += entry_bytes;
        free(one);
    }
    free(together);
    problem_fini(&problem);
    relay_backend_close(backend);
    CHECK(same);
}

static void test_cpu_row_alone_and_in_any_tile(void)
{
    static const struct problem_segment segments[] = {{150, PROBLEM_NONE, 0}};
    static const uint32_t kv_heads[] = {1, 2, 3, 6, 12}; /* 12, 6, 4, 2, 1 packed rows per row */
    struct problem_entry entries[5];
    for (uint32_t e = 0; e < 5; e++) {
        entries[e] = (struct problem_entry){
            .segment = 0, .context = 1 + 7 * e, .q_len = 1 + (e == 3 ? 6 : 0), .append = true};
    }
    for (size_t i = 0; i < sizeof(kv_heads) / sizeof(kv_heads[0]); i++) {
        for (uint32_t window = 0; window <= 90; window += 45) {
            struct problem_config config = {
                .shape = problem_shape(12, kv_heads[i], 24, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                       RELAY_DTYPE_F32),
                .segments = segments,
                .num_segments = 1,
                .entries = entries,
                .num_entries = 5,
                .page_tokens = 16,
                .alibi = window != 0,
                .seed = 100 + i,
            };
            config.shape.kind.window = window;
            config.shape.kind.softcap = window == 90 ? 5.0f : 0.0f;
            check_alone_and_together(&config);
            CHECK_STILL();
        }
    }
}

/* ---- appends -----------------------------------------------------------------------------------
 */

/* More new rows than one task takes, over page borders, in entries of uneven length. */
static void test_cpu_append_many_rows(void)
{
    static const enum relay_dtype stored[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                              RELAY_DTYPE_F8_E4M3};
    static const struct problem_entry entries[] = {
        {.segment = PROBLEM_NONE, .context = 45, .q_len = 37, .append = true},
        {.segment = PROBLEM_NONE, .context = 1, .q_len = 1, .append = true},
        {.segment = PROBLEM_NONE, .context = 20, .q_len = 20, .append = true},
        {.segment = PROBLEM_NONE, .context = 9, .q_len = 2},
    };
    for (size_t i = 0; i < sizeof(stored) / sizeof(stored[0]); i++) {
        struct problem_config config = {
            .shape = problem_shape(4, 2, 16, stored[i], RELAY_DTYPE_F32, RELAY_DTYPE_F32),
            .entries = entries,
            .num_entries = 4,
            .page_tokens = 8,
            .num_ios = 2,
            .seed = 5 + i,
        };
        struct relay_backend *backend = open_cpu(3);
        struct relay_error err;
        struct problem problem;
        CHECK(backend != NULL);
        CHECK_OK(problem_init(&problem, backend, &config, &err), err);
        size_t bytes = 0;
        unsigned char *out = results(&problem, NULL, &bytes);
        problem_fini(&problem);
        relay_backend_close(backend);
        CHECK(out != NULL);
        free(out);
    }
}

/* ---- runs in flight ----------------------------------------------------------------------------
 */

/* More runs than the backend has slots, waited for out of order, then closed with one in flight. */
static void test_cpu_many_runs_in_flight(void)
{
    enum { RUNS = 40 };
    static const struct problem_segment segments[] = {{33, PROBLEM_NONE, 0}};
    static const struct problem_entry entries[] = {{.segment = 0, .context = 2, .q_len = 1}};
    struct problem_config config = {
        .shape = problem_shape(2, 1, 8, RELAY_DTYPE_F32, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = 1,
        .entries = entries,
        .num_entries = 1,
        .seed = 3,
    };
    struct relay_backend *backend = open_cpu(2);
    struct relay_error err;
    struct problem problem;
    uint64_t tickets[RUNS];
    size_t bytes = 0;
    CHECK(backend != NULL);
    CHECK_OK(problem_init(&problem, backend, &config, &err), err);
    unsigned char *want = results(&problem, NULL, &bytes);
    CHECK(want != NULL);
    struct relay_io io = problem.ios[0].io;
    struct relay_problem call = {.shape = &problem.shape,
                                 .plan = problem.plan,
                                 .kv = problem.kv,
                                 .ios = &io,
                                 .num_ios = 1,
                                 .workspace = problem.workspace,
                                 .workspace_bytes = problem.workspace_bytes};
    for (int i = 0; i < RUNS; i++) {
        CHECK_OK(relay_backend_run(backend, &call, &tickets[i], &err), err);
    }
    for (int i = RUNS - 2; i >= 0; i--) {
        CHECK_OK(relay_backend_wait(backend, tickets[i], &err), err);
    }
    CHECK_OK(relay_backend_wait(backend, tickets[RUNS - 1], &err), err);
    unsigned char *got = problem_snapshot(&problem, &bytes);
    CHECK(got != NULL);
    CHECK(memcmp(want, got, bytes) == 0);
    free(got);
    free(want);
    CHECK_CODE(relay_backend_wait(backend, tickets[RUNS - 1] + 1, &err), RELAY_INVALID_ARGUMENT);
    problem_fini(&problem);
    relay_backend_close(backend);
}

static void test_cpu_refuses_f8_tensors(void)
{
    struct relay_backend *backend = open_cpu(1);
    struct relay_shape shape =
        problem_shape(8, 2, 64, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_F8_E4M3, RELAY_DTYPE_F32);
    struct relay_error err;
    shape.kind.scale = 0.125f;
    CHECK(backend != NULL);
    CHECK_CODE(relay_backend_supports(backend, &shape, &err), RELAY_UNIMPLEMENTED);
    CHECK(strstr(err.msg, "heads 8/2") != NULL && strstr(err.msg, "F8_E4M3") != NULL);
    shape.io_dtype = RELAY_DTYPE_BF16;
    CHECK_OK(relay_backend_supports(backend, &shape, &err), err);
    relay_backend_close(backend);
}

int main(void)
{
    CHECK_RUN(test_cpu_bits_do_not_depend_on_threads);
    CHECK_RUN(test_cpu_row_alone_and_in_any_tile);
    CHECK_RUN(test_cpu_append_many_rows);
    CHECK_RUN(test_cpu_many_runs_in_flight);
    CHECK_RUN(test_cpu_refuses_f8_tensors);
    return check_done();
}
