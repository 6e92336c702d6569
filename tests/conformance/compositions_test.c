/* A row's bits in 1,000 random compositions: which requests run together, in which order, shared or
 * not, in tiles of which height, on how many threads. Calibration is frozen: all backends here are
 * opened with the kernels that the first one has, by name. */
#include "conformance.h"

#include "testlib/rng.h"

#define COMPOSITIONS 1000u
#define THREADS_MAX  4u

static const struct problem_segment segments[] = {
    {330, PROBLEM_NONE, 0}, {130, 0, 0}, {65, 1, 0}, {64, PROBLEM_NONE, 0}};
static const struct problem_entry entries[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 0, .context = 1, .q_len = 1, .append = true},
    {.segment = 0, .context = 0, .q_len = 1},
    {.segment = 0, .context = 64, .q_len = 2, .append = true},
    {.segment = 1, .context = 17, .q_len = 1, .append = true},
    {.segment = 1, .context = 0, .q_len = 3},
    {.segment = 2, .context = 5, .q_len = 4, .append = true},
    {.segment = 2, .context = 129, .q_len = 1, .append = true},
    {.segment = 3, .context = 200, .q_len = 1, .append = true},
    {.segment = 3, .context = 33, .q_len = 5, .append = true},
    {.segment = PROBLEM_NONE, .context = 190, .q_len = 1, .append = true},
    {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
};
#define ENTRIES COUNT(entries)

/* Shapes that reach different kernels and their remainders. */
static struct problem_config variant(uint32_t i)
{
    static const uint32_t heads[][2] = {{4, 2}, {7, 1}, {2, 2}, {6, 2}};
    static const uint32_t dims[] = {64, 128, 72, 64};
    const enum relay_dtype kv = i == 3 ? RELAY_DTYPE_F16 : RELAY_DTYPE_BF16;
    const enum relay_dtype io = i == 3 ? RELAY_DTYPE_F32 : RELAY_DTYPE_BF16;
    struct problem_config config = {
        .shape = problem_shape(heads[i][0], heads[i][1], dims[i], kv, io, io),
        .segments = segments,
        .num_segments = COUNT(segments),
        .entries = entries,
        .num_entries = ENTRIES,
        .num_ios = 2,
        .sinks = i == 2,
        .seed = 70 + i,
    };
    config.shape.kind.window = i == 3 ? 150 : 0;
    return config;
}
#define VARIANTS 4u

/* Has the entry the bits that keep_bits kept? */
static bool same_bits(const struct problem *p, uint32_t entry, const unsigned char *want)
{
    const size_t out = problem_out_bytes(p);
    const size_t lse = p->shape.kind.num_q_heads * sizeof(float);
    for (uint32_t r = 0; r < p->entries[entry].q_len; r++, want += out + lse) {
        if (memcmp(want, problem_out(p, entry, r), out) != 0 ||
            memcmp(want + out, problem_lse(p, entry, r), lse) != 0) {
            return false;
        }
    }
    return true;
}

static bool keep_bits(const struct problem *p, uint32_t entry, unsigned char **kept)
{
    const size_t out = problem_out_bytes(p);
    const size_t lse = p->shape.kind.num_q_heads * sizeof(float);
    unsigned char *to = malloc(p->entries[entry].q_len * (out + lse));
    *kept = to;
    for (uint32_t r = 0; to != NULL && r < p->entries[entry].q_len; r++, to += out + lse) {
        memcpy(to, problem_out(p, entry, r), out);
        memcpy(to + out, problem_lse(p, entry, r), lse);
    }
    return to != NULL;
}

/* A random way to plan random entries, in random order. */
static void compose(struct rng *rng, uint32_t order[ENTRIES], struct problem_plan *how)
{
    static const enum relay_sharing sharings[] = {RELAY_SHARING_AUTO, RELAY_SHARING_ALWAYS,
                                                  RELAY_SHARING_NEVER};
    for (uint32_t i = 0; i < ENTRIES; i++) {
        uint32_t j = rng_below(rng, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    how->entries = order;
    how->num_entries = rng_range(rng, 1, ENTRIES);
    how->sharing = sharings[rng_below(rng, 3)];
    how->item_rows_max = rng_below(rng, 8);
}

/* Opens the same kernels on another number of threads. */
static struct relay_backend *open_on(uint32_t threads)
{
    const struct relay_backend_info *info = relay_backend_info(backend);
    struct relay_backend_options options = RELAY_BACKEND_OPTIONS_INIT;
    struct relay_backend *other = NULL;
    options.threads = threads;
    options.batch_invariant = info->batch_invariant;
    options.isa = strcmp(info->name, "cpu") == 0 ? info->isa : isa;
    return relay_backend_open(info->name, &options, &other, NULL) == RELAY_OK ? other : NULL;
}

static bool run_plan(struct problem *problem, const struct problem_plan *how)
{
    struct relay_error err;
    if (problem_plan(problem, how, &err) == RELAY_OK && problem_run(problem, &err) == RELAY_OK) {
        return true;
    }
    fprintf(stderr, "%s\n", err.msg);
    return false;
}

/* One problem on all backends; splits of 64 tokens, so that rows merge many partials. */
static void check_variant(struct relay_backend *const backends[THREADS_MAX], uint32_t v)
{
    const struct problem_config config = variant(v);
    struct problem problems[THREADS_MAX];
    unsigned char *want[ENTRIES];
    struct rng rng = {.state = 900 + v};
    for (uint32_t t = 0; t < THREADS_MAX; t++) {
        struct relay_error err;
        CHECK_OK(problem_init(&problems[t], backends[t], &config, &err), err);
    }
    for (uint32_t e = 0; e < ENTRIES; e++) {
        struct problem_plan alone = {.entries = &e, .num_entries = 1, .split_tokens_min = 64};
        CHECK(run_plan(&problems[0], &alone));
        CHECK(keep_bits(&problems[0], e, &want[e]));
    }
    for (uint32_t i = 0; i < COMPOSITIONS / VARIANTS; i++) {
        uint32_t order[ENTRIES];
        struct problem_plan how = {.split_tokens_min = 64};
        struct problem *problem = &problems[rng_below(&rng, THREADS_MAX)];
        compose(&rng, order, &how);
        CHECK(run_plan(problem, &how));
        for (uint32_t c = 0; c < how.num_entries; c++) {
            if (!same_bits(problem, order[c], want[order[c]])) {
                CHECK_FAIL("variant %u composition %u: entry %u has other bits", v, i, order[c]);
            }
        }
    }
    for (uint32_t e = 0; e < ENTRIES; e++) {
        free(want[e]);
    }
    for (uint32_t t = 0; t < THREADS_MAX; t++) {
        problem_fini(&problems[t]);
    }
}

static void test_compositions_keep_every_bit(void)
{
    static const uint32_t threads[THREADS_MAX] = {1, 2, 3, 5};
    struct relay_backend *backends[THREADS_MAX];
    if (!relay_backend_info(backend)->batch_invariant) {
        CHECK_SKIP("%s does not promise batch invariance", relay_backend_info(backend)->name);
    }
    for (uint32_t t = 0; t < THREADS_MAX; t++) {
        backends[t] = open_on(threads[t]);
        CHECK(backends[t] != NULL);
    }
    for (uint32_t v = 0; v < VARIANTS; v++) {
        check_variant(backends, v);
        CHECK_STILL();
    }
    for (uint32_t t = 0; t < THREADS_MAX; t++) {
        relay_backend_close(backends[t]);
    }
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_compositions_keep_every_bit);
    return conformance_close();
}
