/* How a backend plans and queues: defaults that the planner takes, plans and workspaces used again,
 * problems enqueued one behind the other. */
#include "conformance.h"

static const struct problem_segment segments[] = {{500, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 0, .context = 5, .q_len = 4, .append = true},
    {.segment = PROBLEM_NONE, .context = 300, .q_len = 1, .append = true},
};

static struct problem_config plan_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(4, 2, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = COUNT(entries),
        .seed = 6,
    };
    return config;
}

static void test_plan_defaults_are_valid(void)
{
    static const uint32_t heads[][2] = {{1, 1}, {32, 8}, {8, 1}, {1024, 1}, {96, 96}, {200, 8}};
    static const uint32_t dims[] = {8, 64, 128, 256, 576};
    static const enum relay_dtype kv[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                          RELAY_DTYPE_F8_E4M3};
    struct relay_plan *plan = NULL;
    struct relay_error err;
    CHECK_OK(relay_plan_create(&plan, &err), err);
    for (uint32_t i = 0; i < 6 * 5 * 4; i++) {
        struct relay_shape shape = problem_shape(heads[i % 6][0], heads[i % 6][1], dims[i / 6 % 5],
                                                 kv[i / 30], RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
        struct relay_plan_input in = {.shape = &shape};
        shape.kind.scale = 1.0f;
        CHECK_OK(relay_backend_supports(backend, &shape, &err), err);
        relay_backend_plan_defaults(backend, &in);
        CHECK_EQ(in.page_tokens, relay_backend_info(backend)->page_tokens);
        CHECK_OK(relay_plan_build(plan, &in, &err), err);
        in.page_tokens = 24;
        relay_backend_plan_defaults(backend, &in);
        CHECK_EQ(in.page_tokens, 24); /* set only where it is 0 */
        CHECK_OK(relay_plan_build(plan, &in, &err), err);
    }
    relay_plan_destroy(plan);
}

static void test_plan_without_rows_runs(void)
{
    static const uint32_t none[1] = {0};
    struct problem_config config = plan_config();
    struct problem_plan how = {.entries = none, .num_entries = 0};
    struct problem problem;
    init_case(&problem, &config);
    CHECK_STILL();
    run_and_check(&problem, &how);
    CHECK_STILL();
    problem_fini(&problem);
}

/* One plan object, built for another batch again and again. */
static void test_plan_is_built_again(void)
{
    static const uint32_t some[] = {2, 0};
    struct problem_config config = plan_config();
    struct problem_plan plans[] = {
        {.sharing = RELAY_SHARING_AUTO},     {.entries = some, .num_entries = 2},
        {.entries = some, .num_entries = 1}, {.sharing = RELAY_SHARING_NEVER},
        {.part = RELAY_PART_PROMPT_ONLY},    {.sharing = RELAY_SHARING_AUTO}};
    struct problem problem;
    init_case(&problem, &config);
    CHECK_STILL();
    for (uint32_t i = 0; i < COUNT(plans); i++) {
        run_and_check(&problem, &plans[i]);
        CHECK_STILL();
    }
    problem_fini(&problem);
}

/* Several requests may use one set of pages when only the prompt is read. */
static void test_plan_prompt_only_repeats_a_handle(void)
{
    static const uint32_t same[] = {1, 0, 2};
    struct problem_config config = plan_config();
    struct problem_plan how = {.part = RELAY_PART_PROMPT_ONLY, .entries = same, .num_entries = 3};
    struct problem problem;
    init_case(&problem, &config);
    CHECK_STILL();
    problem.entries[1].pages = problem.entries[0].pages;
    problem.entries[2].pages = problem.entries[0].pages;
    run_and_check(&problem, &how);
    CHECK_STILL();
    CHECK_EQ(problem.plan->num_appends, 0);
    CHECK_EQ(problem.plan->context_tokens_read, 0);
    problem_fini(&problem);
}

/* Two problems in flight over one pool: the second reads what the first appended. */
static void test_plan_runs_are_done_in_order(void)
{
    struct problem_config config = plan_config();
    struct problem first, second;
    struct relay_error err;
    struct relay_io ios[2];
    struct relay_problem problems[2];
    uint64_t tickets[2];
    char why[256] = "";
    init_case(&first, &config);
    CHECK_STILL();
    init_case(&second, &config);
    CHECK_STILL();
    CHECK_OK(problem_plan(&first, NULL, &err), err);
    /* The second appends nothing and uses the first one's pages. */
    for (uint32_t i = 0; i < COUNT(entries); i++) {
        second.entries[i].append = false;
        second.entries[i].pages = first.entries[i].pages;
    }
    second.plan_segments[0].pages = first.plan_segments[0].pages;
    CHECK_OK(problem_plan(&second, NULL, &err), err);
    for (uint32_t i = 0; i < 2; i++) {
        const struct problem *p = i == 0 ? &first : &second;
        ios[i] = p->ios[0].io;
        problems[i] = (struct relay_problem){.shape = &p->shape,
                                             .plan = p->plan,
                                             .kv = first.kv,
                                             .ios = &ios[i],
                                             .num_ios = 1,
                                             .workspace = p->workspace,
                                             .workspace_bytes = p->workspace_bytes};
    }
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_OK(relay_backend_run(backend, &problems[i], &tickets[i], &err), err);
    }
    CHECK(tickets[0] != tickets[1]);
    CHECK_OK(relay_backend_wait(backend, tickets[1], &err), err);
    CHECK_OK(relay_backend_wait(backend, tickets[0], &err), err);
    CHECK_OK(relay_backend_wait(backend, tickets[1], &err), err);
    if (!problem_check(&first, why, sizeof(why)) || !problem_check(&second, why, sizeof(why))) {
        CHECK_FAIL("%s", why);
    }
    problem_fini(&first);
    problem_fini(&second);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_plan_defaults_are_valid);
    CHECK_RUN(test_plan_without_rows_runs);
    CHECK_RUN(test_plan_is_built_again);
    CHECK_RUN(test_plan_prompt_only_repeats_a_handle);
    CHECK_RUN(test_plan_runs_are_done_in_order);
    return conformance_close();
}
