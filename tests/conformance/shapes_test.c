/* Shapes that other shared-prefix attention projects test or publish, each list named after its
 * project. Problems over WORK_MAX run with --full only; see conformance.h. */
#include "conformance.h"

/* A grid runs under smaller limits: its largest members differ only in size. */
#define GRID_WORK_MAX     (WORK_MAX / 16)
#define GRID_ELEMENTS_MAX ((uint64_t)1 << 23) /* of K, all prompts and contexts together */

static uint32_t grid_cases, grid_run;

static struct problem_config config_of(uint32_t q_heads, uint32_t kv_heads, uint32_t dim)
{
    struct problem_config config = {
        .shape = problem_shape(q_heads, kv_heads, dim, RELAY_DTYPE_F16, RELAY_DTYPE_F16,
                               RELAY_DTYPE_F16),
        .page_tokens = 16,
        .seed = 1,
    };
    return config;
}

static uint64_t problem_elements(const struct problem_config *c)
{
    uint64_t tokens = 0;
    for (uint32_t s = 0; s < c->num_segments; s++) {
        tokens += c->segments[s].tokens;
    }
    for (uint32_t i = 0; i < c->num_entries; i++) {
        tokens += c->entries[i].context;
    }
    return tokens * c->shape.kind.num_kv_heads * c->shape.kind.head_dim_qk;
}

static void check_grid_case(const struct problem_config *config)
{
    grid_cases++;
    if (full ||
        (problem_work(config) <= GRID_WORK_MAX && problem_elements(config) <= GRID_ELEMENTS_MAX)) {
        grid_run++;
        check_case(config);
    }
}

/* Batch x context x prompt, everyone on one prompt. */
static void uniform_case(struct problem_config config, uint32_t batch, uint32_t prompt,
                         uint32_t context)
{
    struct problem_segment segment = {prompt, PROBLEM_NONE, 0};
    struct problem_entry *entries = calloc(batch, sizeof(*entries));
    CHECK(entries != NULL);
    for (uint32_t i = 0; i < batch; i++) {
        entries[i] =
            (struct problem_entry){.segment = 0, .context = context, .q_len = 1, .append = true};
    }
    config.segments = &segment;
    config.num_segments = 1;
    config.entries = entries;
    config.num_entries = batch;
    config.seed = batch * 31 + prompt;
    check_grid_case(&config);
    free(entries);
}

static void test_shapes_vllm_ra(void)
{
    static const uint32_t batches[] = {1, 4, 8, 16, 32, 64, 128};
    for (uint32_t b = 0; b < COUNT(batches); b++) {
        for (uint32_t context = 128; context <= 256; context *= 2) {
            for (uint32_t prompt = 64; prompt <= 16384; prompt *= 2) {
                uniform_case(config_of(52, 52, 128), batches[b], prompt, context);
                CHECK_STILL();
            }
        }
    }
}

static void test_shapes_flashinfer_shared_prefix(void)
{
    static const uint32_t batches[] = {12, 17}, suffixes[] = {37, 17}, prompts[] = {128, 512, 2048};
    static const uint32_t heads[] = {8, 16}, dims[] = {128, 256}, pages[] = {1, 16};
    for (uint32_t i = 0; i < 2 * 2 * 3 * 2 * 2 * 2; i++) {
        struct problem_config config =
            config_of(heads[i / 12 % 2], heads[i / 12 % 2], dims[i / 24 % 2]);
        config.page_tokens = pages[i / 48 % 2];
        uniform_case(config, batches[i % 2], prompts[i / 4 % 3], suffixes[i / 2 % 2]);
        CHECK_STILL();
    }
}

static void test_shapes_flashinfer_batch(void)
{
    static const uint32_t pages[] = {1, 8, 16}, kv_heads[] = {1, 4}, groups[] = {1, 4, 7, 8};
    static const uint32_t dims[] = {64, 128, 256};
    for (uint32_t i = 0; i < 3 * 2 * 4 * 3 * 2; i++) {
        uint32_t kv = kv_heads[i / 3 % 2];
        struct problem_config config = config_of(kv * groups[i / 6 % 4], kv, dims[i / 24 % 3]);
        config.page_tokens = pages[i % 3];
        config.shape.kind.softcap = i / 72 % 2 != 0 ? 50.0f : 0.0f;
        config.shape.kv_dtype = i % 2 != 0 ? RELAY_DTYPE_BF16 : RELAY_DTYPE_F16;
        uniform_case(config, 3, 97, 61);
        CHECK_STILL();
    }
}

/* Entries of ragged lengths on one prompt. */
static void ragged_case(struct problem_config config, uint32_t prompt, const uint32_t (*lengths)[2],
                        uint32_t n, uint32_t repeat)
{
    struct problem_segment segment = {prompt, PROBLEM_NONE, 0};
    struct problem_entry *entries = calloc((size_t)n * repeat, sizeof(*entries));
    CHECK(entries != NULL);
    for (uint32_t i = 0; i < n * repeat; i++) {
        /* Their lengths are of prompt and context together. */
        entries[i] = (struct problem_entry){.segment = 0,
                                            .context = lengths[i % n][1] - prompt,
                                            .q_len = lengths[i % n][0],
                                            .append = true};
    }
    config.segments = &segment;
    config.num_segments = 1;
    config.entries = entries;
    config.num_entries = n * repeat;
    check_grid_case(&config);
    free(entries);
}

static void test_shapes_vllm_cascade(void)
{
    static const uint32_t prefill[][2] = {{129, 871}, {18, 280}, {37, 988}, {1023, 2304}, {1, 257}};
    static const uint32_t some[][2] = {{18, 280}, {37, 988}, {1, 257}};
    static const uint32_t decode[][2] = {{1, 1023}, {1, 879}, {1, 778}, {1, 1777}};
    static const uint32_t heads[][2] = {{4, 4}, {8, 2}, {16, 2}};
    static const uint32_t dims[] = {128, 192, 256};
    for (uint32_t i = 0; i < 3 * 3 * 2; i++) {
        struct problem_config config = config_of(heads[i % 3][0], heads[i % 3][1], dims[i / 3 % 3]);
        config.shape.kind.softcap = i / 9 != 0 ? 50.0f : 0.0f;
        config.seed = i;
        ragged_case(config, 256, prefill, COUNT(prefill), 1);
        CHECK_STILL();
        ragged_case(config, 256, some, COUNT(some), 1);
        CHECK_STILL();
        ragged_case(config, 512, decode, COUNT(decode), 100);
        CHECK_STILL();
        ragged_case(config, 512, decode, COUNT(decode), 2);
        CHECK_STILL();
    }
}

/* A tree with one root by levels: counts[l] nodes of tokens[l]; the last level is the requests'
 * own context. Children are dealt evenly. */
static void tree_case(struct problem_config config, const uint32_t *counts, const uint32_t *tokens,
                      uint32_t levels)
{
    static struct problem_segment segments[64];
    struct problem_entry *entries = calloc(counts[levels - 1], sizeof(*entries));
    uint32_t level_begin = 0, level_count = 0, next = 0;
    CHECK(entries != NULL);
    for (uint32_t l = 0; l + 1 < levels; l++) {
        uint32_t begin = next;
        CHECK(next + counts[l] <= COUNT(segments));
        for (uint32_t i = 0; i < counts[l]; i++) {
            uint32_t parent = l == 0 ? PROBLEM_NONE : level_begin + i * level_count / counts[l];
            segments[next++] = (struct problem_segment){tokens[l], parent, 0};
        }
        level_begin = begin;
        level_count = counts[l];
    }
    for (uint32_t i = 0; i < counts[levels - 1]; i++) {
        entries[i] = (struct problem_entry){
            .segment = level_begin + (uint32_t)((uint64_t)i * level_count / counts[levels - 1]),
            .context = tokens[levels - 1],
            .q_len = 1,
            .append = true};
    }
    config.segments = segments;
    config.num_segments = next;
    config.entries = entries;
    config.num_entries = counts[levels - 1];
    check_grid_case(&config);
    free(entries);
}

static void test_shapes_pat_trees(void)
{
    static const struct {
        uint32_t levels, counts[4], tokens[4];
    } trees[] = {
        {2, {1, 10}, {4096, 416}},
        {2, {1, 256}, {256, 32}},
        {2, {1, 1024}, {2048, 32}},
        {3, {1, 2, 64}, {1024, 256, 256}},
        {3, {1, 4, 256}, {32, 256, 32}},
        {3, {1, 8, 512}, {32, 512, 256}},
        {3, {1, 8, 512}, {32, 2048, 256}},
        {3, {1, 8, 512}, {512, 512, 256}},
        {4, {1, 4, 8, 256}, {32, 256, 256, 32}},
        {4, {1, 4, 16, 512}, {1024, 256, 128, 32}},
    };
    static const uint32_t heads[][2] = {{32, 32}, {16, 8}, {32, 8}, {64, 8}};
    for (uint32_t t = 0; t < COUNT(trees); t++) {
        for (uint32_t h = 0; h < COUNT(heads); h++) {
            struct problem_config config = config_of(heads[h][0], heads[h][1], 128);
            config.page_tokens = 32;
            tree_case(config, trees[t].counts, trees[t].tokens, trees[t].levels);
            CHECK_STILL();
        }
    }
    /* The same trees at an eighth of the requests and lengths always run. */
    for (uint32_t t = 0; t < COUNT(trees); t++) {
        uint32_t counts[4], tokens[4];
        struct problem_config config = config_of(16, 8, 64);
        for (uint32_t l = 0; l < trees[t].levels; l++) {
            bool last = l + 1 == trees[t].levels;
            counts[l] = last ? (trees[t].counts[l] + 31) / 32 + 1 : trees[t].counts[l];
            tokens[l] = (trees[t].tokens[l] + 7) / 8 + 1;
        }
        tree_case(config, counts, tokens, trees[t].levels);
        CHECK_STILL();
    }
}

static void test_shapes_hydragen_levels(void)
{
    static const uint32_t singles[][2] = {{1, 10}, {3, 6}, {16384, 1}, {16384, 128}, {16384, 256}};
    static const uint32_t wide[] = {9, 10, 11, 4, 129, 2, 3, 4, 5, 6, 7, 128};
    for (uint32_t kv = 1; kv <= 8; kv += 7) {
        struct problem_segment segments[2] = {{7, PROBLEM_NONE, 0}, {7, PROBLEM_NONE, 0}};
        struct problem_entry entries[COUNT(wide)];
        struct problem_config config = config_of(8, kv, 64);
        for (uint32_t i = 0; i < COUNT(singles); i++) {
            uniform_case(config, 2, singles[i][0], singles[i][1]);
            CHECK_STILL();
        }
        for (uint32_t i = 0; i < COUNT(wide); i++) {
            entries[i] = (struct problem_entry){
                .segment = i % 2, .context = wide[i], .q_len = 1, .append = true};
        }
        config.segments = segments;
        config.num_segments = 2;
        config.entries = entries;
        config.num_entries = COUNT(wide);
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_shapes_pat_hand_lengths(void)
{
    /* Lengths on a branching page table of 32: a root of 16, then branches. */
    static const struct problem_segment segments[] = {
        {16, PROBLEM_NONE, 0}, {1, 0, 0}, {16, 0, 0}, {4, 2, 0}, {12, 2, 0}};
    static const struct problem_entry entries[] = {
        {.segment = 1, .context = 0, .q_len = 1}, {.segment = 3, .context = 0, .q_len = 1},
        {.segment = 4, .context = 0, .q_len = 1}, {.segment = 4, .context = 1, .q_len = 1},
        {.segment = 2, .context = 0, .q_len = 1}, {.segment = 3, .context = 1, .q_len = 1},
        {.segment = 4, .context = 2, .q_len = 1}, {.segment = 2, .context = 1, .q_len = 1},
    };
    struct problem_config config = config_of(64, 8, 128);
    config.segments = segments;
    config.num_segments = COUNT(segments);
    config.entries = entries;
    config.num_entries = COUNT(entries);
    config.page_tokens = 32;
    check_case(&config);
    CHECK_STILL();
    uniform_case(config_of(64, 8, 128), 3, 32, 1);
}

static void test_shapes_chunk_attention(void)
{
    struct problem_config config = config_of(2, 2, 128);
    config.page_tokens = 64;
    uniform_case(config, 32, 1000, 1000);
    CHECK_STILL();
    uniform_case(config, 32, 100, 100);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_shapes_vllm_ra);
    CHECK_RUN(test_shapes_flashinfer_shared_prefix);
    CHECK_RUN(test_shapes_flashinfer_batch);
    CHECK_RUN(test_shapes_vllm_cascade);
    CHECK_RUN(test_shapes_pat_trees);
    CHECK_RUN(test_shapes_hydragen_levels);
    CHECK_RUN(test_shapes_pat_hand_lengths);
    CHECK_RUN(test_shapes_chunk_attention);
    fprintf(stderr, "%u of %u shapes\n", grid_run, grid_cases);
    return conformance_close();
}
