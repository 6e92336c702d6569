/* Bits: the same run after run, and for backends that say batch_invariant the same for a row alone,
 * in any batch, in any order, shared or not, on any number of threads. */
#include "conformance.h"

static const struct problem_segment segments[] = {
    {700, PROBLEM_NONE, 0}, {333, 0, 0}, {65, 1, 0}, {90, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 2, .context = 5, .q_len = 4, .append = true},
    {.segment = 1, .context = 0, .q_len = 1},
    {.segment = PROBLEM_NONE, .context = 833, .q_len = 2, .append = true},
    {.segment = 2, .context = 2, .q_len = 1, .append = true},
    {.segment = 0, .context = 17, .q_len = 1, .append = true},
    {.segment = 3, .context = 600, .q_len = 3, .append = true},
    {.segment = 0, .context = 0, .q_len = 1},
    {.segment = 0, .context = 1, .q_len = 1, .append = true},
    {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
    {.segment = 2, .context = 128, .q_len = 2, .append = true},
};
#define ENTRIES COUNT(entries)

/* Configurations that reach different kernels. */
static struct problem_config variant(uint32_t i)
{
    static const uint32_t heads[][2] = {{4, 4}, {8, 2}, {12, 1}, {6, 2}};
    static const uint32_t dims[] = {64, 128, 72, 256};
    struct problem_config config = {
        .shape = problem_shape(heads[i % 4][0], heads[i % 4][1], dims[i % 4],
                               i % 2 ? RELAY_DTYPE_F16 : RELAY_DTYPE_BF16,
                               i % 3 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F32, RELAY_DTYPE_F32),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = ENTRIES,
        .num_ios = 2,
        .sinks = i % 2 != 0,
        .alibi = i == 2,
        .seed = 40 + i,
    };
    config.shape.kind.window = i == 3 ? 300 : 0;
    config.shape.kind.softcap = i == 1 ? 8.0f : 0.0f;
    return config;
}

static void run_plan(struct problem *problem, const struct problem_plan *how)
{
    struct relay_error err;
    CHECK_OK(problem_plan(problem, how, &err), err);
    CHECK_OK(problem_run(problem, &err), err);
}

/* The rows of the entries that ran have the bits of the snapshot. */
static void expect_bits(const struct problem *p, const unsigned char *snapshot)
{
    size_t out = problem_out_bytes(p);
    size_t lse = p->shape.kind.num_q_heads * sizeof(float);
    for (uint32_t c = 0; c < p->num_chosen; c++) {
        uint32_t entry = p->chosen_index[c];
        const unsigned char *at = snapshot;
        for (uint32_t i = 0; i < entry; i++) {
            at += p->entries[i].q_len * (out + lse);
        }
        for (uint32_t r = 0; r < p->entries[entry].q_len; r++, at += out + lse) {
            if (memcmp(at, problem_out(p, entry, r), out) != 0 ||
                memcmp(at + out, problem_lse(p, entry, r), lse) != 0) {
                CHECK_FAIL("entry %u row %u has other bits (%u entries, seed %llu)", entry, r,
                           p->num_chosen, (unsigned long long)p->config.seed);
            }
        }
    }
}

/* Makes a problem, checks it and keeps its bits. */
static void start(struct problem *problem, uint32_t i, unsigned char **snapshot)
{
    struct problem_config config = variant(i);
    size_t bytes;
    init_case(problem, &config);
    CHECK_STILL();
    run_and_check(problem, NULL);
    CHECK_STILL();
    *snapshot = problem_snapshot(problem, &bytes);
    CHECK(*snapshot != NULL);
}

static void finish(struct problem *problem, unsigned char *snapshot)
{
    free(snapshot);
    problem_fini(problem);
}

static void test_invariance_repeats(void)
{
    struct problem problem;
    unsigned char *want = NULL;
    struct relay_error err;
    start(&problem, 1, &want);
    CHECK_STILL();
    for (int i = 0; i < 100; i++) {
        CHECK_OK(problem_run(&problem, &err), err);
        expect_bits(&problem, want);
        CHECK_STILL();
    }
    finish(&problem, want);
}

static void require_batch_invariant(void)
{
    if (!relay_backend_info(backend)->batch_invariant) {
        CHECK_SKIP("%s does not promise batch invariance", relay_backend_info(backend)->name);
    }
}

static void test_invariance_alone_or_in_a_batch(void)
{
    require_batch_invariant();
    CHECK_STILL();
    for (uint32_t i = 0; i < 4; i++) {
        struct problem problem;
        unsigned char *want = NULL;
        start(&problem, i, &want);
        CHECK_STILL();
        for (uint32_t e = 0; e < ENTRIES; e++) {
            struct problem_plan how = {.entries = &e, .num_entries = 1};
            run_plan(&problem, &how);
            CHECK_STILL();
            expect_bits(&problem, want);
            CHECK_STILL();
        }
        finish(&problem, want);
    }
}

static void test_invariance_any_order(void)
{
    static const uint32_t orders[][ENTRIES] = {
        {10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}, {5, 0, 3, 8, 10, 2, 7, 1, 9, 4, 6}, {3, 1, 10, 6, 0}};
    static const uint32_t counts[] = {11, 11, 5};
    require_batch_invariant();
    CHECK_STILL();
    for (uint32_t i = 0; i < 4; i++) {
        struct problem problem;
        unsigned char *want = NULL;
        start(&problem, i, &want);
        CHECK_STILL();
        for (uint32_t o = 0; o < COUNT(orders); o++) {
            struct problem_plan how = {.entries = orders[o], .num_entries = counts[o]};
            run_plan(&problem, &how);
            CHECK_STILL();
            expect_bits(&problem, want);
            CHECK_STILL();
        }
        finish(&problem, want);
    }
}

static void test_invariance_shared_or_not(void)
{
    require_batch_invariant();
    CHECK_STILL();
    for (uint32_t i = 0; i < 4; i++) {
        struct problem problem;
        unsigned char *want = NULL;
        start(&problem, i, &want);
        CHECK_STILL();
        for (uint32_t rows = 0; rows < 4; rows++) {
            struct problem_plan never = {.sharing = RELAY_SHARING_NEVER, .item_rows_max = rows};
            struct problem_plan tiles = {.item_rows_max = rows + 1};
            run_plan(&problem, &never);
            CHECK_STILL();
            expect_bits(&problem, want);
            CHECK_STILL();
            run_plan(&problem, &tiles);
            CHECK_STILL();
            expect_bits(&problem, want);
            CHECK_STILL();
        }
        finish(&problem, want);
    }
}

static void test_invariance_any_thread_count(void)
{
    static const uint32_t threads[] = {1, 2, 3, 7};
    const char *name = relay_backend_info(backend)->name;
    require_batch_invariant();
    CHECK_STILL();
    for (uint32_t i = 0; i < 4; i++) {
        struct problem problem;
        unsigned char *want = NULL;
        struct problem_config config = variant(i);
        start(&problem, i, &want);
        CHECK_STILL();
        for (uint32_t t = 0; t < COUNT(threads); t++) {
            struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
            struct relay_backend *other = NULL;
            struct relay_error err;
            struct problem again;
            options.threads = threads[t];
            options.isa = isa;
            options.batch_invariant = true;
            CHECK_OK(relay_backend_open(name, &options, &other, &err), err);
            CHECK_OK(problem_init(&again, other, &config, &err), err);
            run_plan(&again, NULL);
            CHECK_STILL();
            expect_bits(&again, want);
            CHECK_STILL();
            problem_fini(&again);
            relay_backend_close(other);
        }
        finish(&problem, want);
    }
}

/* Where pages lie and how long they are does not matter either. */
static void test_invariance_any_page_size(void)
{
    static const uint32_t pages[] = {1, 16, 64, 24};
    require_batch_invariant();
    CHECK_STILL();
    for (uint32_t i = 0; i < 4; i++) {
        struct problem problem;
        unsigned char *want = NULL;
        start(&problem, i, &want);
        CHECK_STILL();
        for (uint32_t p = 0; p < COUNT(pages); p++) {
            struct problem_config config = variant(i);
            struct problem again;
            config.page_tokens = pages[p];
            init_case(&again, &config);
            CHECK_STILL();
            run_plan(&again, NULL);
            CHECK_STILL();
            expect_bits(&again, want);
            CHECK_STILL();
            problem_fini(&again);
        }
        finish(&problem, want);
    }
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_invariance_repeats);
    CHECK_RUN(test_invariance_alone_or_in_a_batch);
    CHECK_RUN(test_invariance_any_order);
    CHECK_RUN(test_invariance_shared_or_not);
    CHECK_RUN(test_invariance_any_thread_count);
    CHECK_RUN(test_invariance_any_page_size);
    return conformance_close();
}
