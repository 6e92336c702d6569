/* The reference against a dense fp64 softmax over the concatenated sequence, and its byte counter.
 * The conformance suite asks the same of every backend; these are the first to break. */
#include "testlib/check.h"
#include "testlib/problem.h"

static struct relay_backend *backend;

static const struct problem_segment segments[] = {
    {100, PROBLEM_NONE, 0}, {37, 0, 0}, {5, 1, 0}, {64, PROBLEM_NONE, 3}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 9, .q_len = 3, .append = true},
    {.segment = 2, .context = 1, .q_len = 1, .append = true},
    {.segment = PROBLEM_NONE, .context = 40, .q_len = 1},
    {.segment = 3, .context = 0, .q_len = 1},
    {.segment = 1, .context = 17, .q_len = 5, .append = true},
    {.segment = 2, .context = 300, .q_len = 2, .append = true},
    {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
};

static struct problem_config mixed_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(6, 2, 32, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = sizeof(segments) / sizeof(segments[0]),
        .entries = entries,
        .num_entries = sizeof(entries) / sizeof(entries[0]),
        .num_ios = 2,
        .seed = 1,
    };
    return config;
}

static void run_config(const struct problem_config *config)
{
    struct relay_error err;
    struct problem problem;
    char why[256] = "";
    bool ok;
    CHECK_OK(problem_init(&problem, backend, config, &err), err);
    CHECK_OK(problem_plan(&problem, NULL, &err), err);
    CHECK_OK(problem_run(&problem, &err), err);
    ok = problem_check(&problem, why, sizeof(why));
    if (!ok) {
        CHECK_FAIL("%s", why);
    }
    problem_fini(&problem);
}

static void test_ref_equals_dense(void)
{
    struct problem_config config = mixed_config();
    run_config(&config);
}

static void test_ref_equals_dense_with_everything(void)
{
    struct problem_config config = mixed_config();
    config.sinks = true;
    config.alibi = true;
    config.shape.kind.window = 60;
    config.shape.kind.softcap = 20.0f;
    config.shape.kv_dtype = RELAY_DTYPE_F8_E4M3;
    config.shape.out_dtype = RELAY_DTYPE_BF16;
    run_config(&config);
}

static void test_ref_counts_prompt_bytes_once(void)
{
    struct problem_config config = mixed_config();
    struct relay_error err;
    struct problem problem;
    uint64_t shared_before, own_before, shared, own;
    uint64_t prompt_tokens = 0, context_tokens = 0;
    CHECK_OK(problem_init(&problem, backend, &config, &err), err);
    CHECK_OK(problem_plan(&problem, NULL, &err), err);
    relay_backend_bytes_read(backend, &shared_before, &own_before);
    CHECK_OK(problem_run(&problem, &err), err);
    relay_backend_bytes_read(backend, &shared, &own);
    for (size_t s = 0; s < config.num_segments; s++) {
        prompt_tokens += segments[s].tokens;
    }
    for (size_t e = 0; e < config.num_entries; e++) {
        context_tokens += entries[e].context;
    }
    CHECK_EQ(shared - shared_before, prompt_tokens * relay_shape_kv_bytes(&problem.shape));
    CHECK_EQ(own - own_before, context_tokens * relay_shape_kv_bytes(&problem.shape));
    problem_fini(&problem);
}

int main(void)
{
    struct relay_error err;
    if (relay_backend_open("ref", NULL, &backend, &err) != RELAY_OK) {
        fprintf(stderr, "ref: %s\n", err.msg);
        return 1;
    }
    CHECK_RUN(test_ref_equals_dense);
    CHECK_RUN(test_ref_equals_dense_with_everything);
    CHECK_RUN(test_ref_counts_prompt_bytes_once);
    relay_backend_close(backend);
    return check_done();
}
