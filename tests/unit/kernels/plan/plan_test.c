/* The planner on cases small enough to write the answer down, and every rule it refuses to break.
 */
#include <relay/plan.h>

#include "testlib/check.h"

static struct relay_plan *plan;
static struct relay_error err;

static uint32_t pages[4096];

static struct relay_shape shape(void)
{
    struct relay_shape s = {
        .kind = {.num_q_heads = 4,
                 .num_kv_heads = 2,
                 .head_dim_qk = 16,
                 .head_dim_v = 16,
                 .scale = 0.25f},
        .kv_dtype = RELAY_DTYPE_BF16,
        .io_dtype = RELAY_DTYPE_BF16,
        .out_dtype = RELAY_DTYPE_BF16,
    };
    return s;
}

static struct relay_plan_input input(const struct relay_shape *s, const struct relay_segment *seg,
                                     uint32_t num_seg, const struct relay_entry *entries,
                                     uint32_t num_entries)
{
    struct relay_plan_input in = {
        .shape = s,
        .segments = seg,
        .num_segments = num_seg,
        .entries = entries,
        .num_entries = num_entries,
        .page_tokens = 16,
        .split_tokens_min = 64,
        .splits_max = 4,
        .block_tokens = 16,
    };
    return in;
}

static struct relay_entry decode(uint32_t segment, uint32_t prompt, uint32_t context)
{
    struct relay_entry e = {
        .q_len = 1,
        .segment = segment,
        .position = prompt + context - 1,
        .pages = pages,
        .context_position = prompt,
        .context_tokens = context,
        .append = true,
    };
    return e;
}

static void test_plan_orders_rows_depth_first(void)
{
    /* 0 has children 1 and 3, 1 has child 2, 4 is another root. */
    struct relay_segment seg[5] = {{pages, 10, 0, RELAY_NO_SEGMENT},
                                   {pages, 10, 10, 0},
                                   {pages, 10, 20, 1},
                                   {pages, 10, 10, 0},
                                   {pages, 10, 0, RELAY_NO_SEGMENT}};
    uint32_t ends[] = {RELAY_NO_SEGMENT, 4, 3, 2, 0, 1, 2, RELAY_NO_SEGMENT, 0};
    uint32_t want[] = {4, 8, 5, 3, 6, 2, 1, 0, 7};
    struct relay_entry entries[9];
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, seg, 5, entries, 9);
    for (uint32_t i = 0; i < 9; i++) {
        entries[i] = decode(ends[i], 40, 3);
        entries[i].row_begin = i;
    }
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->num_rows, 9);
    for (uint32_t i = 0; i < 9; i++) {
        CHECK_EQ(plan->rows[i].row, want[i]);
    }
    /* Every prompt level is one item over one row range. */
    CHECK_EQ(plan->num_items, 5 + 9);
    CHECK_EQ(plan->items[0].row_begin, 0);
    CHECK_EQ(plan->items[0].row_count, 6);
    CHECK_EQ(plan->items[1].row_begin, 2);
    CHECK_EQ(plan->items[1].row_count, 3);
    CHECK_EQ(plan->prompt_tokens_read, 50);
    CHECK_EQ(plan->context_tokens_read, 27);
}

static void test_plan_splits_on_the_segments_own_grid(void)
{
    /* 1000 tokens in at most 4 splits: 250, rounded up to blocks of 16: 256. */
    struct relay_segment seg = {pages, 1000, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[2] = {decode(0, 1000, 1), decode(0, 1000, 100)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 2);
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->num_items, 4 + 1 + 2);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(plan->items[i].token_begin, 256 * i);
        CHECK_EQ(plan->items[i].token_end, i == 3 ? 1000 : 256 * (i + 1));
        CHECK_EQ(plan->items[i].row_count, 2);
        CHECK_EQ(plan->items[i].partial, 2 * i);
        CHECK(!plan->items[i].masked);
    }
    CHECK_EQ(plan->items[6].token_begin, 64); /* 100 tokens: 64 is the smallest split */
    CHECK_EQ(plan->rows[0].merge_count, 5);
    CHECK_EQ(plan->rows[1].merge_count, 6);
    CHECK_EQ(plan->merge_index[plan->rows[1].merge_begin], 1);
    CHECK_EQ(plan->merge_index[plan->rows[1].merge_begin + 3], 7);
    CHECK_EQ(plan->num_partials, 4 * 2 + 1 + 2);
}

static void test_plan_never_sharing_reads_per_entry(void)
{
    struct relay_segment seg = {pages, 100, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[3] = {decode(0, 100, 1), decode(0, 100, 1), decode(0, 100, 1)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 3);
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->prompt_tokens_read, 100);
    in.sharing = RELAY_SHARING_NEVER;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->prompt_tokens_read, 300);
    CHECK_EQ(plan->num_items, 3 * 2 + 3);
    CHECK_EQ(plan->rows[2].merge_count, 3);
}

static void test_plan_marks_direct_rows(void)
{
    struct relay_segment seg = {pages, 32, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[4] = {decode(RELAY_NO_SEGMENT, 0, 5), decode(0, 32, 5),
                                     decode(RELAY_NO_SEGMENT, 0, 100), decode(0, 32, 0)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 4);
    entries[3].append = false;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    /* Rows: 1 and 3 with the prompt, then 0 and 2. The prompt's item is not direct for row 3 only,
     * because row 1 shares it. */
    CHECK(!plan->rows[0].direct && plan->rows[0].merge_count == 2);
    CHECK(!plan->rows[1].direct && plan->rows[1].merge_count == 1);
    CHECK(plan->rows[2].direct && plan->rows[2].merge_count == 0);
    CHECK(!plan->rows[3].direct && plan->rows[3].merge_count == 2);
}

static void test_plan_row_that_sees_nothing(void)
{
    struct relay_entry e = decode(RELAY_NO_SEGMENT, 0, 0);
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, NULL, 0, &e, 1);
    e.append = false;
    e.position = 7;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->num_items, 0);
    CHECK_EQ(plan->num_rows, 1);
    CHECK(!plan->rows[0].direct);
    CHECK_EQ(plan->rows[0].merge_count, 0);
    in.num_entries = 0;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->num_rows, 0);
}

static void test_plan_causal_rows_are_masked(void)
{
    struct relay_entry e = decode(RELAY_NO_SEGMENT, 0, 70);
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, NULL, 0, &e, 1);
    e.q_len = 8;
    e.position = 62; /* rows at 62..69: the second split of 64 is seen by rows from 64 on */
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->num_items, 2);
    CHECK(plan->items[0].masked && plan->items[1].masked);
    CHECK_EQ(plan->items[1].token_begin, 64);
    CHECK_EQ(plan->items[1].token_end, 70);
    CHECK_EQ(plan->rows[1].merge_count, 1);
    CHECK_EQ(plan->rows[2].merge_count, 2);
    CHECK_EQ(plan->num_appends, 1);
    CHECK_EQ(plan->appends[0].token_begin, 62);
    CHECK_EQ(plan->appends[0].q_len, 8);
}

static void test_plan_window_cuts_the_prompt(void)
{
    struct relay_segment seg = {pages, 656, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[2] = {decode(0, 656, 10), decode(0, 656, 600)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 2);
    s.kind.window = 512;
    in.splits_max = 1;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->items[0].token_begin, 154); /* row at 665 sees from 665 - 511 on */
    CHECK_EQ(plan->items[0].token_end, 656);
    CHECK(plan->items[0].masked); /* the row at 1255 sees none of the prompt */
    CHECK_EQ(plan->rows[0].merge_count, 2);
    CHECK(plan->rows[1].direct);
}

static void test_plan_parts(void)
{
    struct relay_segment seg = {pages, 100, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[2] = {decode(0, 100, 4), decode(0, 100, 4)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 2);
    in.part = RELAY_PART_CONTEXT_ONLY;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->prompt_tokens_read, 0);
    CHECK_EQ(plan->context_tokens_read, 8);
    CHECK_EQ(plan->num_appends, 2);
    in.part = RELAY_PART_PROMPT_ONLY;
    CHECK_CODE(relay_plan_build(plan, &in, &err), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "PROMPT_ONLY") != NULL);
    CHECK_EQ(plan->num_rows, 0); /* empty after a failure */
    entries[0].append = entries[1].append = false;
    entries[1].pages = NULL; /* not looked at */
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK_EQ(plan->prompt_tokens_read, 100);
    CHECK_EQ(plan->context_tokens_read, 0);
}

/* One wrong field at a time; `word` must be in the message. */
static void expect_refused(const struct relay_plan_input *in, const char *word)
{
    err.msg[0] = '\0';
    CHECK_CODE(relay_plan_build(plan, in, &err), RELAY_INVALID_ARGUMENT);
    if (strstr(err.msg, word) == NULL) {
        CHECK_FAIL("\"%s\" does not name %s", err.msg, word);
    }
    CHECK_EQ(plan->num_rows, 0);
    CHECK_EQ(plan->num_items, 0);
}

static void test_plan_refuses_wrong_limits(void)
{
    struct relay_shape s = shape();
    const struct relay_plan_input good = input(&s, NULL, 0, NULL, 0);
    struct relay_plan_input in;
#define REFUSED(field, value, word)                                                                \
    in = good;                                                                                     \
    in.field = (value);                                                                            \
    expect_refused(&in, (word));                                                                   \
    CHECK_STILL()
    REFUSED(page_tokens, 0, "page_tokens");
    REFUSED(block_tokens, 0, "block_tokens");
    REFUSED(split_tokens_min, 0, "split_tokens_min");
    REFUSED(split_tokens_min, 65, "split_tokens_min");
    REFUSED(splits_max, 0, "splits_max");
    REFUSED(part, (enum relay_part)7, "part");
    REFUSED(sharing, (enum relay_sharing)7, "sharing");
    REFUSED(num_segments, 1, "segments");
    REFUSED(num_segments, UINT32_MAX, "many");
#undef REFUSED
    s.kind.scale = 0.0f;
    expect_refused(&good, "scale");
}

static void test_plan_refuses_wrong_segments(void)
{
    const struct relay_segment good[2] = {{pages, 10, 5, RELAY_NO_SEGMENT}, {pages, 10, 15, 0}};
    struct relay_segment seg[2];
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, seg, 2, NULL, 0);
#define REFUSED(i, field, value, word)                                                             \
    memcpy(seg, good, sizeof(seg));                                                                \
    seg[i].field = (value);                                                                        \
    expect_refused(&in, (word));                                                                   \
    CHECK_STILL()
    REFUSED(0, pages, NULL, "segments[0]");
    REFUSED(0, position, UINT32_MAX - 5, "segments[0]");
    REFUSED(0, parent, 1, "segments[0].parent");
    REFUSED(1, parent, 1, "segments[1].parent");
    REFUSED(1, parent, 9, "segments[1].parent");
    REFUSED(1, position, 14, "overlaps");
#undef REFUSED
    memcpy(seg, good, sizeof(seg));
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
}

static void test_plan_refuses_wrong_entries(void)
{
    struct relay_segment seg = {pages, 10, 0, RELAY_NO_SEGMENT};
    const struct relay_entry good = decode(0, 10, 5);
    struct relay_entry e;
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, &e, 1);
#define REFUSED(field, value, word)                                                                \
    e = good;                                                                                      \
    e.field = (value);                                                                             \
    expect_refused(&in, (word));                                                                   \
    CHECK_STILL()
    REFUSED(q_len, 0, "entries[0].q_len");
    REFUSED(q_len, UINT32_MAX, "entries[0]");
    REFUSED(row_begin, UINT32_MAX, "entries[0]");
    REFUSED(position, UINT32_MAX, "entries[0]");
    REFUSED(segment, 1, "entries[0].segment");
    REFUSED(pages, NULL, "entries[0] has context");
    REFUSED(context_position, 9, "overlaps");
    REFUSED(context_position, UINT32_MAX - 2, "context_position");
    REFUSED(position, 15, "outside");
    REFUSED(position, 9, "outside");
    REFUSED(q_len, 2, "outside");
#undef REFUSED
    e = good;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
}

static void test_plan_refuses_too_many_rows(void)
{
    struct relay_entry e[2] = {decode(RELAY_NO_SEGMENT, 0, 0), decode(RELAY_NO_SEGMENT, 0, 0)};
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, NULL, 0, e, 2);
    for (int i = 0; i < 2; i++) {
        e[i].append = false;
        e[i].position = 0;
        e[i].q_len = UINT32_MAX / 2 + 1;
    }
    expect_refused(&in, "rows");
}

static void test_plan_keeps_its_memory(void)
{
    struct relay_segment seg = {pages, 1000, 0, RELAY_NO_SEGMENT};
    static struct relay_entry entries[64];
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 64);
    struct relay_plan before;
    for (uint32_t i = 0; i < 64; i++) {
        entries[i] = decode(0, 1000, 1 + i);
    }
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    before = *plan;
    in.num_entries = 3;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    in.num_entries = 64;
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK(before.rows == plan->rows && before.items == plan->items &&
          before.merge_index == plan->merge_index && before.pages == plan->pages &&
          before.segments == plan->segments && before.appends == plan->appends);
}

static void test_plan_interval_at_the_edges(void)
{
    struct relay_layer_kind kind = shape().kind;
    uint32_t lo, hi;
    relay_plan_interval(&kind, UINT32_MAX, UINT32_MAX - 1, 1, &lo, &hi);
    CHECK(lo == 0 && hi == 1);
    relay_plan_interval(&kind, 4, 5, 10, &lo, &hi);
    CHECK(lo == 0 && hi == 0);
    kind.window = UINT32_MAX;
    relay_plan_interval(&kind, 9, 5, 10, &lo, &hi);
    CHECK(lo == 0 && hi == 5);
    kind.window = 3;
    kind.chunk = 8;
    relay_plan_interval(&kind, 9, 0, 20, &lo, &hi);
    CHECK(lo == 8 && hi == 10);
    relay_plan_interval(&kind, 15, 0, 20, &lo, &hi);
    CHECK(lo == 13 && hi == 16);
}

/* Items of the prompt, one prompt of 1024 tokens for all entries. */
static uint32_t prompt_items(struct relay_plan_input *in, uint32_t entries)
{
    uint32_t count = 0;
    in->num_entries = entries;
    if (relay_plan_build(plan, in, &err) != RELAY_OK) {
        return 0;
    }
    for (uint32_t i = 0; i < plan->num_items; i++) {
        count += plan->segments[plan->items[i].segment].shared ? 1u : 0u;
    }
    return count;
}

static void test_plan_divides_rows_where_threads_would_wait(void)
{
    struct relay_segment seg = {pages, 1024, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[64];
    struct relay_shape s = shape(); /* 2 KV heads */
    struct relay_plan_input in = input(&s, &seg, 1, entries, 64);
    for (uint32_t i = 0; i < 64; i++) {
        entries[i] = decode(0, 1024, 1);
        entries[i].row_begin = i;
    }
    in.splits_max = 1;
    in.costs = (struct relay_plan_costs){.item_ns = 1000, .block_ns = 300, .row_ns = 80};
    CHECK_EQ(prompt_items(&in, 64), 1); /* nobody to divide among */
    in.costs.threads = 2;
    CHECK_EQ(prompt_items(&in, 64), 1); /* a KV head each */
    in.costs.threads = 8;
    CHECK_EQ(prompt_items(&in, 64), 4);
    CHECK_EQ(prompt_items(&in, 2), 2); /* no more tiles than rows */
    CHECK_EQ(prompt_items(&in, 1), 1);
    in.costs.block_ns = 1e6f; /* reading is all that costs: twice would be twice the price */
    CHECK_EQ(prompt_items(&in, 64), 1);
    in.costs.block_ns = 300;
    in.splits_max = 4; /* enough to do without */
    CHECK_EQ(prompt_items(&in, 64), 4);
    CHECK_EQ(plan->items[1].row_count, 64);
    in.splits_max = 1;
    in.sharing = RELAY_SHARING_ALWAYS;
    CHECK_EQ(prompt_items(&in, 64), 1);
    CHECK_EQ(plan->prompt_tokens_read, 1024);
}

/* What a plan costs does not change what a row merges, or in which order. */
static void test_plan_costs_leave_splits_alone(void)
{
    struct relay_segment seg = {pages, 1000, 0, RELAY_NO_SEGMENT};
    struct relay_entry entries[9];
    struct relay_shape s = shape();
    struct relay_plan_input in = input(&s, &seg, 1, entries, 9);
    uint32_t counts[9];
    for (uint32_t i = 0; i < 9; i++) {
        entries[i] = decode(0, 1000, 70 + i);
    }
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    for (uint32_t r = 0; r < 9; r++) {
        counts[r] = plan->rows[r].merge_count;
    }
    in.costs = (struct relay_plan_costs){.threads = 64, .block_ns = 1, .row_ns = 1000};
    CHECK_OK(relay_plan_build(plan, &in, &err), err);
    CHECK(plan->prompt_tokens_read > 1000);
    for (uint32_t r = 0; r < 9; r++) {
        CHECK_EQ(plan->rows[r].merge_count, counts[r]);
    }
    for (uint32_t i = 0; i < plan->num_items; i++) {
        bool shared = plan->segments[plan->items[i].segment].shared;
        CHECK(!shared ||
              plan->items[i].token_begin % 256 == 0); /* 1000 over 4, up to whole blocks of 16 */
    }
}

int main(void)
{
    if (relay_plan_create(&plan, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_plan_orders_rows_depth_first);
    CHECK_RUN(test_plan_splits_on_the_segments_own_grid);
    CHECK_RUN(test_plan_never_sharing_reads_per_entry);
    CHECK_RUN(test_plan_marks_direct_rows);
    CHECK_RUN(test_plan_row_that_sees_nothing);
    CHECK_RUN(test_plan_causal_rows_are_masked);
    CHECK_RUN(test_plan_window_cuts_the_prompt);
    CHECK_RUN(test_plan_parts);
    CHECK_RUN(test_plan_refuses_wrong_limits);
    CHECK_RUN(test_plan_refuses_wrong_segments);
    CHECK_RUN(test_plan_refuses_wrong_entries);
    CHECK_RUN(test_plan_refuses_too_many_rows);
    CHECK_RUN(test_plan_keeps_its_memory);
    CHECK_RUN(test_plan_interval_at_the_edges);
    CHECK_RUN(test_plan_divides_rows_where_threads_would_wait);
    CHECK_RUN(test_plan_costs_leave_splits_alone);
    relay_plan_destroy(plan);
    relay_plan_destroy(NULL);
    return check_done();
}
