/* Bad arguments get a code and a message, write nothing, and leave the next good call its bits. */
#include "conformance.h"

static const struct problem_segment segments[] = {{300, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 9, .q_len = 3, .append = true},
    {.segment = 0, .context = 40, .q_len = 1},
};

static struct problem_config errors_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(4, 2, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = COUNT(entries),
        .seed = 8,
    };
    return config;
}

static void test_errors_open(void)
{
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *other = NULL;
    struct relay_error err;
    CHECK_CODE(relay_backend_open("no such", NULL, &other, &err), RELAY_NOT_FOUND);
    CHECK(strstr(err.msg, "no such") != NULL);
    CHECK_CODE(relay_backend_open(NULL, NULL, &other, &err), RELAY_NOT_FOUND);
    options.size = 1;
    CHECK_CODE(relay_backend_open("ref", &options, &other, &err), RELAY_INVALID_ARGUMENT);
    options.size = 4096;
    CHECK_CODE(relay_backend_open("ref", &options, &other, &err), RELAY_INVALID_ARGUMENT);
    CHECK(other == NULL);
    options.size = sizeof(options.size); /* the oldest caller: everything else by default */
    CHECK_OK(relay_backend_open(relay_backend_info(backend)->name, &options, &other, &err), err);
    relay_backend_close(other);
    relay_backend_close(NULL);
}

static void test_errors_registry(void)
{
    bool found = false;
    size_t i = 0;
    for (; relay_backend_name(i) != NULL; i++) {
        found = found || strcmp(relay_backend_name(i), relay_backend_info(backend)->name) == 0;
    }
    CHECK(found && i >= 1 && relay_backend_name(i + 100) == NULL);
}

static void test_errors_info(void)
{
    const struct relay_backend_info *info = relay_backend_info(backend);
    CHECK(info->name[0] != '\0' && info->isa[0] != '\0');
    CHECK(info->threads >= 1 && info->page_tokens >= 1 && info->memory_bytes > 0);
}

static void test_errors_shapes(void)
{
    struct relay_shape good = errors_config().shape;
    struct relay_shape shape;
    struct relay_error err;
    good.kind.scale = 0.125f;
    CHECK_OK(relay_backend_supports(backend, &good, &err), err);
#define REFUSED(field, value, word)                                                                \
    shape = good;                                                                                  \
    shape.field = (value);                                                                         \
    CHECK_CODE(relay_backend_supports(backend, &shape, &err), RELAY_INVALID_ARGUMENT);             \
    CHECK(strstr(err.msg, (word)) != NULL)
    REFUSED(kind.num_q_heads, 0, "num_q_heads");
    REFUSED(kind.num_q_heads, 5, "num_kv_heads");
    REFUSED(kind.num_kv_heads, 0, "num_kv_heads");
    REFUSED(kind.head_dim_v, 12, "head_dim_v");
    REFUSED(kind.head_dim_v, 0, "head_dim_v");
    REFUSED(kind.scale, 0.0f, "scale");
    REFUSED(kind.softcap, -1.0f, "softcap");
    REFUSED(kv_dtype, RELAY_DTYPE_UNSPECIFIED, "kv_dtype");
    REFUSED(io_dtype, (enum relay_dtype)77, "io_dtype");
    REFUSED(out_dtype, (enum relay_dtype)77, "out_dtype");
#undef REFUSED
}

/* What problem_run would run, with ios that the test may change. */
static struct relay_problem problem_of(const struct problem *p, struct relay_io *ios)
{
    struct relay_problem problem = {
        .shape = &p->shape,
        .plan = p->plan,
        .kv = p->kv,
        .ios = ios,
        .num_ios = p->num_ios,
        .workspace = p->workspace,
        .workspace_bytes = p->workspace_bytes,
    };
    for (uint32_t i = 0; i < p->num_ios; i++) {
        ios[i] = p->ios[i].io;
    }
    return problem;
}

static void test_errors_run_refuses_and_writes_nothing(void)
{
    struct problem_config config = errors_config();
    /* Two ios, splits, so that there is a workspace. */
    struct problem_plan how = {.split_tokens_min = 64, .splits_max = 4};
    struct problem problem;
    unsigned char *before, *after;
    size_t bytes;
    struct relay_io ios[2];
    struct relay_problem bad;
    struct relay_error err;
    uint64_t ticket = 77;
    config.num_ios = 2;
    init_case(&problem, &config);
    CHECK_STILL();
    run_and_check(&problem, &how);
    CHECK_STILL();
    before = problem_snapshot(&problem, &bytes);
    CHECK(before != NULL && problem.workspace_bytes > 0);
#define REFUSED(change, word)                                                                      \
    bad = problem_of(&problem, ios);                                                               \
    change;                                                                                        \
    CHECK_CODE(relay_backend_run(backend, &bad, &ticket, &err), RELAY_INVALID_ARGUMENT);           \
    if (strstr(err.msg, (word)) == NULL) {                                                         \
        CHECK_FAIL("\"%s\" does not name %s", err.msg, (word));                                    \
    }                                                                                              \
    CHECK_EQ(ticket, 77)
    REFUSED(bad.workspace_bytes--, "workspace");
    REFUSED(bad.workspace = NULL, "workspace");
    REFUSED(bad.workspace = (unsigned char *)bad.workspace + 8, "aligned");
    REFUSED(bad.num_ios = 1, "io 1 of 1");
    REFUSED(ios[0].q = NULL, "ios[0] has no q");
    REFUSED(ios[1].out = NULL, "ios[1] has no out");
    REFUSED(ios[0].k = NULL, "ios[0] appends but has no k");
    REFUSED(ios[0].v = NULL, "ios[0] appends but has no v");
    REFUSED(bad.kv.k = NULL, "kv.k");
    REFUSED(bad.kv.v = NULL, "kv.v");
    REFUSED(bad.kv.page_stride = 64, "page_stride");
#undef REFUSED
    after = problem_snapshot(&problem, &bytes);
    CHECK(after != NULL && memcmp(before, after, bytes) == 0);
    free(after);
    run_and_check(&problem, &how);
    CHECK_STILL();
    after = problem_snapshot(&problem, &bytes);
    CHECK(after != NULL && memcmp(before, after, bytes) == 0);
    free(before);
    free(after);
    problem_fini(&problem);
}

static void test_errors_pages(void)
{
    struct problem_config config = errors_config();
    struct problem problem;
    struct relay_pages_span good, span;
    struct relay_error err;
    static unsigned char rows[4096];
    init_case(&problem, &config);
    CHECK_STILL();
    good = (struct relay_pages_span){.shape = &problem.shape,
                                     .kv = problem.kv,
                                     .page_tokens = problem.page_tokens,
                                     .pages = problem.segments[0].pages,
                                     .token_count = 3};
    CHECK_OK(relay_backend_pages_read(backend, &good, rows, rows, &err), err);
    CHECK_CODE(relay_backend_pages_write(backend, &good, NULL, rows, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_backend_pages_write(backend, &good, rows, NULL, &err), RELAY_INVALID_ARGUMENT);
#define REFUSED(field, value)                                                                      \
    span = good;                                                                                   \
    span.field = (value);                                                                          \
    CHECK_CODE(relay_backend_pages_write(backend, &span, rows, rows, &err),                        \
               RELAY_INVALID_ARGUMENT);                                                            \
    CHECK_CODE(relay_backend_pages_read(backend, &span, rows, rows, &err), RELAY_INVALID_ARGUMENT)
    REFUSED(page_tokens, 0);
    REFUSED(pages, NULL);
    REFUSED(kv.k, NULL);
    REFUSED(kv.v, NULL);
    REFUSED(kv.page_stride, 7);
    REFUSED(token_begin, UINT32_MAX);
#undef REFUSED
    span = good;
    span.token_count = 0; /* nothing to do, so nothing needed */
    span.pages = NULL;
    CHECK_OK(relay_backend_pages_write(backend, &span, NULL, NULL, &err), err);
    problem_fini(&problem);
}

static void test_errors_commit(void)
{
    struct relay_error err;
    void *base = NULL;
    CHECK_OK(relay_backend_reserve(backend, 2 * RELAY_COMMIT_BYTES, &base, &err), err);
    CHECK_CODE(relay_backend_commit(backend, base, 0, 4096, &err), RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_backend_commit(backend, base, 4096, RELAY_COMMIT_BYTES, &err),
               RELAY_INVALID_ARGUMENT);
    CHECK_CODE(relay_backend_commit(backend, base, 0, 0, &err), RELAY_INVALID_ARGUMENT);
    relay_backend_release(backend, base, 2 * RELAY_COMMIT_BYTES);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_errors_open);
    CHECK_RUN(test_errors_registry);
    CHECK_RUN(test_errors_info);
    CHECK_RUN(test_errors_shapes);
    CHECK_RUN(test_errors_run_refuses_and_writes_nothing);
    CHECK_RUN(test_errors_pages);
    CHECK_RUN(test_errors_commit);
    return conformance_close();
}
