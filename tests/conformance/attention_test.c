/* Attention against the dense fp64 oracle over head dims, group sizes, lengths, pages, dtypes,
 * trees and every term of the score. */
#include "conformance.h"

#include <math.h>

static const struct problem_segment one_prompt[] = {{130, PROBLEM_NONE, 0}};
/* Decode, a chunk of new tokens, one without prompt, one without context. */
static const struct problem_entry four_kinds[] = {
    {.segment = 0, .context = 70, .q_len = 1, .append = true},
    {.segment = 0, .context = 5, .q_len = 4, .append = true},
    {.segment = PROBLEM_NONE, .context = 33, .q_len = 1, .append = true},
    {.segment = 0, .context = 0, .q_len = 1},
};

static struct problem_config base_config(void)
{
    struct problem_config config = {
        .shape = problem_shape(4, 2, 64, RELAY_DTYPE_BF16, RELAY_DTYPE_BF16, RELAY_DTYPE_F32),
        .segments = one_prompt,
        .num_segments = COUNT(one_prompt),
        .entries = four_kinds,
        .num_entries = COUNT(four_kinds),
        .seed = 1,
    };
    return config;
}

static void test_attention_head_dims(void)
{
    static const uint32_t dims[][2] = {
        {64, 64},   {72, 72},   {80, 80},   {96, 96},  {112, 112}, {128, 128}, {136, 136},
        {192, 192}, {224, 224}, {256, 256}, {8, 8},    {16, 40},   {192, 128}, {64, 128},
        {40, 16},   {576, 512}, {512, 576}, {128, 24}, {248, 248},
    };
    for (uint32_t i = 0; i < COUNT(dims); i++) {
        struct problem_config config = base_config();
        config.shape.kind.head_dim_qk = dims[i][0];
        config.shape.kind.head_dim_v = dims[i][1];
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_mla(void)
{
    static const enum relay_dtype kv[] = {RELAY_DTYPE_BF16, RELAY_DTYPE_F16, RELAY_DTYPE_F8_E4M3};
    for (uint32_t i = 0; i < COUNT(kv); i++) {
        struct problem_config config = base_config();
        config.shape = problem_shape(16, 1, 576, kv[i], RELAY_DTYPE_BF16, RELAY_DTYPE_BF16);
        config.shape.kind.head_dim_v = 512;
        config.shape.kind.v_from_k = true;
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
        config.shape.kind.num_kv_heads = 4;
        config.shape.kind.head_dim_qk = 96;
        config.shape.kind.head_dim_v = 96;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_group_sizes(void)
{
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};
    for (uint32_t i = 0; i < COUNT(groups); i++) {
        struct problem_config config = base_config();
        for (uint32_t kv_heads = 1; kv_heads <= 3; kv_heads += 2) {
            config.shape.kind.num_kv_heads = kv_heads;
            config.shape.kind.num_q_heads = groups[i] * kv_heads;
            config.seed = i;
            check_case(&config);
            CHECK_STILL();
        }
    }
}

static void test_attention_causal_chunks(void)
{
    for (uint32_t q_len = 1; q_len <= 16; q_len++) {
        struct problem_config config = base_config();
        struct problem_entry entries[] = {
            {.segment = 0, .context = q_len, .q_len = q_len, .append = true},
            {.segment = 0, .context = 61 + q_len, .q_len = q_len, .append = true},
            {.segment = PROBLEM_NONE, .context = q_len, .q_len = q_len, .append = true},
            {.segment = PROBLEM_NONE, .context = 200, .q_len = q_len, .append = true},
        };
        config.entries = entries;
        config.seed = q_len;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_prefill_without_context(void)
{
    /* Rows inside the prompt: a causal edge through a shared segment. */
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 0, .q_len = 9, .placed = true, .position = 0},
        {.segment = 0, .context = 0, .q_len = 7, .placed = true, .position = 125},
        {.segment = 0, .context = 3, .q_len = 5, .placed = true, .position = 126},
    };
    struct problem_config config = base_config();
    config.entries = entries;
    config.num_entries = COUNT(entries);
    check_case(&config);
}

static void test_attention_page_sizes(void)
{
    static const uint32_t pages[] = {1, 8, 16, 32, 64, 7, 256};
    for (uint32_t i = 0; i < COUNT(pages); i++) {
        uint32_t page = pages[i];
        struct problem_config config = base_config();
        struct problem_segment segments[] = {{page, PROBLEM_NONE, 0},
                                             {3 * page - 1, PROBLEM_NONE, 0},
                                             {2 * page + 1, PROBLEM_NONE, 0}};
        struct problem_entry entries[] = {
            {.segment = 0, .context = page, .q_len = 1, .append = true},
            {.segment = 1, .context = page + 1, .q_len = 2, .append = true},
            {.segment = 2, .context = page > 1 ? page - 1 : 3, .q_len = 1, .append = true},
            {.segment = 1, .context = 5 * page, .q_len = 1},
        };
        config.segments = segments;
        config.num_segments = COUNT(segments);
        config.entries = entries;
        config.page_tokens = page;
        config.seed = page;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_prompt_lengths(void)
{
    static const uint32_t tokens[] = {0, 1, 15, 16, 63, 64, 65, 255, 256, 257, 4103};
    static const uint32_t contexts[] = {0, 1, 15, 16, 17, 100};
    for (uint32_t i = 0; i < COUNT(tokens); i++) {
        struct problem_segment segment = {tokens[i], PROBLEM_NONE, 0};
        struct problem_entry entries[COUNT(contexts)];
        struct problem_config config = base_config();
        for (uint32_t c = 0; c < COUNT(contexts); c++) {
            entries[c] = (struct problem_entry){
                .segment = 0, .context = contexts[c], .q_len = 1, .append = contexts[c] != 0};
        }
        config.segments = &segment;
        config.entries = entries;
        config.num_entries = COUNT(contexts);
        config.page_tokens = 16;
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_context_lengths(void)
{
    static const uint32_t contexts[] = {1, 15, 16, 17, 63, 64, 65, 127, 129, 511, 513, 1025, 4103};
    struct problem_entry entries[COUNT(contexts)];
    struct problem_config config = base_config();
    for (uint32_t c = 0; c < COUNT(contexts); c++) {
        entries[c] = (struct problem_entry){
            .segment = PROBLEM_NONE, .context = contexts[c], .q_len = 1 + c % 2, .append = c != 0};
    }
    entries[0].q_len = 1;
    config.num_segments = 0;
    config.entries = entries;
    config.num_entries = COUNT(contexts);
    check_case(&config);
}

static void test_attention_nothing_to_see(void)
{
    /* No prompt, no context; an empty prompt; rows before everything: out 0, LSE -inf. */
    static const struct problem_segment segments[] = {{0, PROBLEM_NONE, 0}, {40, PROBLEM_NONE, 8}};
    static const struct problem_entry entries[] = {
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 2},
        {.segment = 0, .context = 0, .q_len = 1},
        {.segment = 1, .context = 4, .q_len = 3, .placed = true, .position = 2},
        {.segment = 1, .context = 4, .q_len = 4, .append = true},
        {.segment = 1, .context = 9, .q_len = 4, .placed = true, .position = 6},
    };
    for (int sinks = 0; sinks < 2; sinks++) {
        struct problem_config config = base_config();
        struct problem problem;
        const float *out;
        config.segments = segments;
        config.num_segments = COUNT(segments);
        config.entries = entries;
        config.num_entries = COUNT(entries);
        config.sinks = sinks != 0;
        init_case(&problem, &config);
        CHECK_STILL();
        run_and_check(&problem, NULL);
        CHECK_STILL();
        out = problem_out(&problem, 0, 1);
        for (uint32_t i = 0; i < 4 * 64; i++) {
            CHECK(out[i] == 0.0f);
        }
        for (uint32_t h = 0; h < 4; h++) {
            float lse = problem_lse(&problem, 1, 0)[h];
            CHECK(sinks ? lse == problem.sinks[h] : (isinf(lse) && lse < 0));
        }
        problem_fini(&problem);
    }
}

static void test_attention_trees(void)
{
    /* Two three-level trees, entries that end on every level, and strangers. */
    static const struct problem_segment segments[] = {
        {100, PROBLEM_NONE, 0}, {50, 0, 0}, {33, 1, 0}, {17, 1, 0}, {64, 0, 0},
        {300, PROBLEM_NONE, 0}, {1, 5, 0},  {0, 6, 0},  {40, 7, 0},
    };
    static const struct problem_entry entries[] = {
        {.segment = 2, .context = 10, .q_len = 1, .append = true},
        {.segment = 8, .context = 1, .q_len = 2},
        {.segment = 0, .context = 20, .q_len = 3, .append = true},
        {.segment = PROBLEM_NONE, .context = 65, .q_len = 1, .append = true},
        {.segment = 3, .context = 0, .q_len = 1},
        {.segment = 1, .context = 128, .q_len = 1, .append = true},
        {.segment = 4, .context = 5, .q_len = 5, .append = true},
        {.segment = 6, .context = 70, .q_len = 1, .append = true},
        {.segment = 2, .context = 3, .q_len = 1, .append = true},
        {.segment = PROBLEM_NONE, .context = 0, .q_len = 1},
        {.segment = 5, .context = 2, .q_len = 2, .append = true},
        {.segment = 7, .context = 0, .q_len = 1},
    };
    static const enum relay_sharing sharing[] = {RELAY_SHARING_AUTO, RELAY_SHARING_ALWAYS,
                                                 RELAY_SHARING_NEVER};
    struct problem_config config = base_config();
    struct problem problem;
    config.segments = segments;
    config.num_segments = COUNT(segments);
    config.entries = entries;
    config.num_entries = COUNT(entries);
    config.num_ios = 3;
    config.sinks = true;
    init_case(&problem, &config);
    CHECK_STILL();
    for (uint32_t i = 0; i < COUNT(sharing); i++) {
        for (uint32_t rows = 0; rows <= 3; rows += 3) {
            struct problem_plan how = {.sharing = sharing[i], .item_rows_max = rows};
            run_and_check(&problem, &how);
            CHECK_STILL();
        }
    }
    problem_fini(&problem);
}

static void test_attention_dtypes(void)
{
    static const enum relay_dtype all[] = {RELAY_DTYPE_F32, RELAY_DTYPE_F16, RELAY_DTYPE_BF16,
                                           RELAY_DTYPE_F8_E4M3};
    for (uint32_t i = 0; i < 64; i++) {
        struct problem_config config = base_config();
        config.shape.kv_dtype = all[i / 16];
        config.shape.io_dtype = all[i / 4 % 4];
        config.shape.out_dtype = all[i % 4];
        config.sinks = true;
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_windows(void)
{
    /* Cutting the context, the edge between, the prompt, all and nothing. */
    static const uint32_t windows[] = {1, 2, 16, 70, 71, 72, 100, 199, 200, 201, 5000, UINT32_MAX};
    for (uint32_t i = 0; i < COUNT(windows); i++) {
        struct problem_config config = base_config();
        config.shape.kind.window = windows[i];
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_window_with_only_the_tail_kept(void)
{
    /* A window layer may hold only the last tokens of prompt and context. */
    static const struct problem_segment segments[] = {{63, PROBLEM_NONE, 1000}, {10, 0, 5}};
    static const struct problem_entry entries[] = {
        {.segment = 0, .context = 40, .q_len = 2, .append = true, .context_gap = 0},
        {.segment = 1, .context = 64, .q_len = 1, .append = true, .context_gap = 100},
    };
    struct problem_config config = base_config();
    config.segments = segments;
    config.num_segments = COUNT(segments);
    config.entries = entries;
    config.num_entries = COUNT(entries);
    config.shape.kind.window = 64;
    check_case(&config);
}

static void test_attention_chunks(void)
{
    static const uint32_t chunks[] = {1, 16, 64, 130, 131, 132, 199, 200, 1000};
    for (uint32_t i = 0; i < COUNT(chunks); i++) {
        struct problem_config config = base_config();
        config.shape.kind.chunk = chunks[i];
        config.seed = i;
        check_case(&config);
        CHECK_STILL();
        config.shape.kind.window = 40;
        check_case(&config);
        CHECK_STILL();
    }
}

static void test_attention_score_terms(void)
{
    /* Every combination of sinks, softcap, ALiBi, a window and a scale of its own. */
    for (uint32_t mask = 0; mask < 32; mask++) {
        struct problem_config config = base_config();
        config.shape.kind.num_q_heads = 6; /* slopes of a group that is no power of two */
        config.sinks = (mask & 1u) != 0;
        config.shape.kind.softcap = (mask & 2u) != 0 ? 3.0f : 0.0f;
        config.alibi = (mask & 4u) != 0;
        config.shape.kind.window = (mask & 8u) != 0 ? 90 : 0;
        config.shape.kind.scale = (mask & 16u) != 0 ? 0.5f : 0.0f;
        config.seed = mask;
        check_case(&config);
        CHECK_STILL();
    }
}

static void minus_infinity_sinks(struct problem *problem)
{
    problem->sinks[0] = -INFINITY;
    problem->sinks[1] = 80.0f; /* outweighs all keys */
}

static void test_attention_sinks_at_the_edges(void)
{
    struct problem_config config = base_config();
    config.sinks = true;
    config.edit = minus_infinity_sinks;
    check_case(&config);
}

static void test_attention_without_lse(void)
{
    struct problem_config config = base_config();
    config.no_lse = true;
    check_case(&config);
}

static void test_attention_many_rows(void)
{
    /* 2048 rows over one short prompt; and over several prompts with ragged contexts. */
    enum { ROWS = 2048 };
    static struct problem_entry entries[ROWS];
    static const struct problem_segment segments[] = {
        {64, PROBLEM_NONE, 0}, {80, PROBLEM_NONE, 0}, {3, PROBLEM_NONE, 0}};
    struct problem_config config = base_config();
    config.shape = problem_shape(2, 1, 32, RELAY_DTYPE_BF16, RELAY_DTYPE_F32, RELAY_DTYPE_F32);
    config.segments = segments;
    config.entries = entries;
    config.num_entries = ROWS;
    for (uint32_t i = 0; i < ROWS; i++) {
        entries[i] = (struct problem_entry){.segment = 0, .context = 1, .q_len = 1};
    }
    check_case(&config);
    CHECK_STILL();
    for (uint32_t i = 0; i < 256; i++) {
        entries[i] = (struct problem_entry){
            .segment = i % 3, .context = i % 37, .q_len = 1 + i % 3, .append = i % 37 >= 3};
    }
    config.num_segments = COUNT(segments);
    config.num_entries = 256;
    config.num_ios = 5;
    check_case(&config);
}

static void test_attention_single_row(void)
{
    static const struct problem_entry entry = {
        .segment = 0, .context = 1, .q_len = 1, .append = true};
    struct problem_config config = base_config();
    config.entries = &entry;
    config.num_entries = 1;
    check_case(&config);
}

int main(int argc, char **argv)
{
    int code = conformance_open(argc, argv);
    if (code >= 0) {
        return code;
    }
    CHECK_RUN(test_attention_head_dims);
    CHECK_RUN(test_attention_mla);
    CHECK_RUN(test_attention_group_sizes);
    CHECK_RUN(test_attention_causal_chunks);
    CHECK_RUN(test_attention_prefill_without_context);
    CHECK_RUN(test_attention_page_sizes);
    CHECK_RUN(test_attention_prompt_lengths);
    CHECK_RUN(test_attention_context_lengths);
    CHECK_RUN(test_attention_nothing_to_see);
    CHECK_RUN(test_attention_trees);
    CHECK_RUN(test_attention_dtypes);
    CHECK_RUN(test_attention_windows);
    CHECK_RUN(test_attention_window_with_only_the_tail_kept);
    CHECK_RUN(test_attention_chunks);
    CHECK_RUN(test_attention_score_terms);
    CHECK_RUN(test_attention_sinks_at_the_edges);
    CHECK_RUN(test_attention_without_lse);
    CHECK_RUN(test_attention_many_rows);
    CHECK_RUN(test_attention_single_row);
    return conformance_close();
}
