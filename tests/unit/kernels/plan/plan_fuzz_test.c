/* The planner on thousands of random inputs, against the definition of what a row sees, token by
 * token: covered exactly once, on the grid, merged in order, cut tight, and without allocation when
 * nothing grew. The seed is printed. */
#include <relay/plan.h>

#include "testlib/check.h"
#include "testlib/rng.h"

#define CASES        20000u
#define SEGMENTS_MAX 7u
#define ENTRIES_MAX  10u
#define TOKENS_MAX   220u

struct input {
    struct relay_shape shape;
    struct relay_plan_input in;
    struct relay_segment segments[SEGMENTS_MAX];
    struct relay_entry entries[ENTRIES_MAX];
    uint32_t pages[(SEGMENTS_MAX + ENTRIES_MAX) * TOKENS_MAX];
};

static struct relay_plan *plan;
static uint64_t seed;
/* What the cases exercised, so that a test of nothing does not pass. */
static uint64_t items_seen, masked_seen, direct_seen, merged_seen;

static void draw_segments(struct rng *rng, struct input *x, uint32_t *page)
{
    for (uint32_t s = 0; s < x->in.num_segments; s++) {
        struct relay_segment *segment = &x->segments[s];
        uint32_t begin = 0;
        segment->parent = RELAY_NO_SEGMENT;
        if (s > 0 && rng_below(rng, 3) != 0) {
            segment->parent = rng_below(rng, s);
            begin = x->segments[segment->parent].position + x->segments[segment->parent].tokens;
        }
        segment->tokens = rng_below(rng, 8) == 0 ? 0 : rng_below(rng, TOKENS_MAX);
        segment->position = begin + (rng_below(rng, 4) == 0 ? rng_below(rng, 30) : 0);
        segment->pages = x->pages + *page;
        *page += segment->tokens; /* room for the smallest page */
    }
}

static void draw_entries(struct rng *rng, struct input *x, uint32_t *page)
{
    for (uint32_t i = 0; i < x->in.num_entries; i++) {
        struct relay_entry *e = &x->entries[i];
        uint32_t begin = 0;
        memset(e, 0, sizeof(*e));
        e->segment = RELAY_NO_SEGMENT;
        if (x->in.num_segments != 0 && rng_below(rng, 5) != 0) {
            e->segment = rng_below(rng, x->in.num_segments);
            begin = x->segments[e->segment].position + x->segments[e->segment].tokens;
        }
        e->io = rng_below(rng, 3);
        e->row_begin = i * 10;
        e->q_len = rng_range(rng, 1, 6);
        e->context_position = begin + (rng_below(rng, 4) == 0 ? rng_below(rng, 20) : 0);
        e->context_tokens = rng_below(rng, 4) == 0 ? 0 : rng_below(rng, TOKENS_MAX);
        e->pages = x->pages + *page;
        *page += e->context_tokens;
        if (e->context_tokens >= e->q_len && rng_below(rng, 3) != 0) {
            e->append = x->in.part != RELAY_PART_PROMPT_ONLY;
            e->position = e->context_position + e->context_tokens - e->q_len;
        } else {
            e->position = rng_below(rng, e->context_position + e->context_tokens + 20);
        }
    }
}

static void draw_input(struct rng *rng, struct input *x)
{
    static const uint32_t page_tokens[] = {1, 3, 8, 16, 64};
    static const uint32_t blocks[] = {1, 4, 16};
    uint32_t page = 0;
    memset(&x->shape, 0, sizeof(x->shape));
    x->shape.kind = (struct relay_layer_kind){
        .num_q_heads = 2, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8, .scale = 1.0f};
    x->shape.kv_dtype = RELAY_DTYPE_BF16;
    x->shape.io_dtype = RELAY_DTYPE_BF16;
    x->shape.out_dtype = RELAY_DTYPE_BF16;
    x->shape.kind.window = rng_below(rng, 3) == 0 ? rng_range(rng, 1, 100) : 0;
    x->shape.kind.chunk = rng_below(rng, 4) == 0 ? rng_range(rng, 1, 100) : 0;
    x->in = (struct relay_plan_input){
        .shape = &x->shape,
        .segments = x->segments,
        .num_segments = rng_below(rng, SEGMENTS_MAX + 1),
        .entries = x->entries,
        .num_entries = rng_below(rng, ENTRIES_MAX + 1),
        .part = (enum relay_part)rng_below(rng, 3),
        .sharing = (enum relay_sharing)rng_below(rng, 3),
        .page_tokens = page_tokens[rng_below(rng, 5)],
        .block_tokens = blocks[rng_below(rng, 3)],
        .splits_max = rng_range(rng, 1, 9),
        .item_rows_max = rng_below(rng, 2) == 0 ? 0 : rng_range(rng, 1, 9),
    };
    x->in.split_tokens_min = x->in.block_tokens * rng_range(rng, 1, 8);
    if (rng_below(rng, 2) == 0) {
        x->in.costs = (struct relay_plan_costs){.threads = rng_below(rng, 20),
                                                .item_ns = (float)rng_below(rng, 3000),
                                                .block_ns = (float)rng_below(rng, 3000),
                                                .row_ns = (float)rng_below(rng, 300)};
    }
    for (uint32_t i = 0; i < sizeof(x->pages) / sizeof(x->pages[0]); i++) {
        x->pages[i] = 1000 + i; /* so that a page id tells whose it is */
    }
    draw_segments(rng, x, &page);
    draw_entries(rng, x, &page);
}

/* By the definition in <relay/types.h>, not by relay_plan_interval. */
static bool sees(const struct relay_layer_kind *kind, uint64_t p, uint64_t j)
{
    return j <= p && (kind->window == 0 || j + kind->window > p) &&
           (kind->chunk == 0 || j / kind->chunk == p / kind->chunk);
}

static uint32_t split_of(const struct input *x, uint32_t tokens)
{
    uint32_t split = (tokens + x->in.splits_max - 1) / x->in.splits_max;
    uint32_t block = x->in.block_tokens;
    split = split > x->in.split_tokens_min ? split : x->in.split_tokens_min;
    return (split + block - 1) / block * block;
}

/* Rows of the item seeing [at least one | all] of it; checks that both ends are seen. */
static void check_item(const struct input *x, const struct relay_item *item)
{
    const struct relay_plan_segment *segment = &plan->segments[item->segment];
    uint32_t split = split_of(x, segment->tokens);
    bool begin_seen = false, end_seen = false, all_see_all = true;
    CHECK(item->token_begin < item->token_end && item->token_end <= segment->tokens);
    CHECK(item->row_count > 0 && item->row_begin + item->row_count <= plan->num_rows);
    CHECK_EQ(item->token_begin / split, (item->token_end - 1) / split);
    CHECK(x->in.item_rows_max == 0 || item->row_count <= x->in.item_rows_max);
    for (uint32_t r = item->row_begin; r < item->row_begin + item->row_count; r++) {
        uint32_t p = plan->rows[r].position;
        bool first = sees(&x->shape.kind, p, (uint64_t)segment->position + item->token_begin);
        bool last = sees(&x->shape.kind, p, (uint64_t)segment->position + item->token_end - 1);
        begin_seen = begin_seen || first;
        end_seen = end_seen || last;
        all_see_all = all_see_all && first && last; /* what a row sees is an interval */
    }
    CHECK(begin_seen && end_seen);
    CHECK_EQ(item->masked, !all_see_all);
}

static void check_items(const struct input *x)
{
    uint64_t prompt = 0, context = 0;
    uint32_t next_partial = 0;
    bool own_before = false;
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        CHECK(item->segment < plan->num_segments);
        check_item(x, item);
        CHECK_STILL();
        if (plan->segments[item->segment].shared) {
            CHECK(!own_before);
            prompt += item->token_end - item->token_begin;
        } else {
            own_before = true;
            context += item->token_end - item->token_begin;
        }
        if (item->partial != RELAY_DIRECT) {
            CHECK_EQ(item->partial, next_partial);
            next_partial += item->row_count;
        }
    }
    CHECK_EQ(plan->num_partials, next_partial);
    CHECK_EQ(plan->prompt_tokens_read, prompt);
    CHECK_EQ(plan->context_tokens_read, context);
}

/* The plan's row for an entry's row. */
static const struct relay_plan_row *find_row(const struct relay_entry *e, uint32_t i, uint32_t *at)
{
    for (uint32_t r = 0; r < plan->num_rows; r++) {
        const struct relay_plan_row *row = &plan->rows[r];
        /* row_begin differs for all entries, so io and row name one row. */
        if (row->io == e->io && row->row == e->row_begin + i) {
            *at = r;
            return row;
        }
    }
    return NULL;
}

static uint32_t find_segment(const uint32_t *pages, uint32_t tokens, bool shared)
{
    for (uint32_t s = 0; s < plan->num_segments && tokens != 0; s++) {
        const struct relay_plan_segment *segment = &plan->segments[s];
        if (segment->tokens == tokens && segment->shared == shared &&
            plan->pages[segment->page_begin] == pages[0]) {
            return s;
        }
    }
    return UINT32_MAX;
}

/* Walks the row's items in merge order; each must start where the walk through the row's visible
 * tokens stands. */
struct walk {
    uint32_t row;
    uint32_t next; /* into the row's list of items */
    uint32_t items[256];
    uint32_t num_items;
};

/* The items a row uses, in merge order, through its merge list or as the DIRECT one. */
static void collect_items(const struct relay_plan_row *row, struct walk *walk)
{
    walk->next = 0;
    walk->num_items = 0;
    if (row->direct) {
        CHECK_EQ(row->merge_count, 0);
    }
    for (uint32_t m = 0; m < row->merge_count; m++) {
        uint32_t partial = plan->merge_index[row->merge_begin + m];
        uint32_t found = UINT32_MAX;
        for (uint32_t i = 0; i < plan->num_items; i++) {
            const struct relay_item *item = &plan->items[i];
            if (item->partial != RELAY_DIRECT && partial >= item->partial &&
                partial < item->partial + item->row_count) {
                CHECK_EQ(partial - item->partial, walk->row - item->row_begin);
                found = i;
            }
        }
        CHECK(found != UINT32_MAX && walk->num_items < 256);
        walk->items[walk->num_items++] = found;
    }
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        if (item->partial == RELAY_DIRECT && walk->row >= item->row_begin &&
            walk->row < item->row_begin + item->row_count) {
            CHECK(row->direct && walk->num_items == 0);
            walk->items[walk->num_items++] = i;
        }
    }
    CHECK(!row->direct || walk->num_items == 1);
}

/* The row's visible tokens of one segment come from the next items of the walk. */
static void walk_segment(const struct input *x, struct walk *walk, uint32_t p, uint32_t s,
                         uint32_t position, uint32_t tokens)
{
    uint32_t t = 0;
    while (t < tokens) {
        const struct relay_item *item;
        if (!sees(&x->shape.kind, p, (uint64_t)position + t)) {
            t++;
            continue;
        }
        CHECK(walk->next < walk->num_items);
        item = &plan->items[walk->items[walk->next++]];
        CHECK_EQ(item->segment, s);
        CHECK(item->token_begin <= t && t < item->token_end);
        while (t < item->token_end && sees(&x->shape.kind, p, (uint64_t)position + t)) {
            t++;
        }
        if (t < item->token_end) {
            /* What the row sees ends inside the item: nothing may follow. */
            CHECK(t == tokens || !sees(&x->shape.kind, p, (uint64_t)position + t));
        }
    }
}

static void walk_path(const struct input *x, struct walk *walk, uint32_t p, uint32_t segment)
{
    const struct relay_segment *level;
    if (segment == RELAY_NO_SEGMENT) {
        return;
    }
    level = &x->segments[segment];
    walk_path(x, walk, p, level->parent);
    CHECK_STILL();
    walk_segment(x, walk, p, find_segment(level->pages, level->tokens, true), level->position,
                 level->tokens);
}

static void check_rows(const struct input *x)
{
    uint32_t rows = 0;
    for (uint32_t e = 0; e < x->in.num_entries; e++) {
        const struct relay_entry *entry = &x->entries[e];
        for (uint32_t i = 0; i < entry->q_len; i++, rows++) {
            struct walk walk;
            const struct relay_plan_row *row = find_row(entry, i, &walk.row);
            CHECK(row != NULL);
            CHECK_EQ(row->position, entry->position + i);
            collect_items(row, &walk);
            CHECK_STILL();
            if (x->in.part != RELAY_PART_CONTEXT_ONLY) {
                walk_path(x, &walk, row->position, entry->segment);
                CHECK_STILL();
            }
            if (x->in.part != RELAY_PART_PROMPT_ONLY) {
                walk_segment(x, &walk, row->position,
                             find_segment(entry->pages, entry->context_tokens, false),
                             entry->context_position, entry->context_tokens);
                CHECK_STILL();
            }
            /* Exactly once: nothing in the list is left over. */
            CHECK_EQ(walk.next, walk.num_items);
        }
    }
    CHECK_EQ(plan->num_rows, rows);
    /* DIRECT exactly when all of the item's rows have just this one item. */
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        bool only = true;
        for (uint32_t r = item->row_begin; r < item->row_begin + item->row_count; r++) {
            const struct relay_plan_row *row = &plan->rows[r];
            if (item->partial == RELAY_DIRECT) {
                only = only && row->direct; /* by this item: collect_items found no other */
            } else {
                only = only && row->merge_count == 1 &&
                       plan->merge_index[row->merge_begin] == item->partial + (r - item->row_begin);
            }
        }
        CHECK_EQ(item->partial == RELAY_DIRECT, only);
    }
}

/* With sharing, no row limit and nothing gained by dividing rows among threads, no token of a
 * prompt is in two items. */
static void check_read_once(const struct input *x)
{
    if (x->in.sharing == RELAY_SHARING_NEVER || x->in.item_rows_max != 0 ||
        (x->in.sharing == RELAY_SHARING_AUTO && x->in.costs.threads > 1)) {
        return;
    }
    for (uint32_t i = 0; i < plan->num_items; i++) {
        for (uint32_t j = 0; j < i; j++) {
            const struct relay_item *a = &plan->items[i];
            const struct relay_item *b = &plan->items[j];
            CHECK(a->segment != b->segment || a->token_begin >= b->token_end ||
                  b->token_begin >= a->token_end);
        }
    }
}

/* Never shared: no item has rows of two entries. */
static void check_not_shared(const struct input *x)
{
    for (uint32_t i = 0; x->in.sharing == RELAY_SHARING_NEVER && i < plan->num_items; i++) {
        const struct relay_plan_row *first = &plan->rows[plan->items[i].row_begin];
        for (uint32_t r = 0; r < plan->items[i].row_count; r++) {
            CHECK_EQ(first[r].row / 10, first->row / 10); /* entries are 10 rows apart */
        }
    }
}

static void check_appends(const struct input *x)
{
    uint32_t appends = 0;
    for (uint32_t e = 0; e < x->in.num_entries; e++) {
        const struct relay_entry *entry = &x->entries[e];
        bool found = false;
        for (uint32_t a = 0; a < plan->num_appends && entry->append; a++) {
            const struct relay_append *append = &plan->appends[a];
            found = found ||
                    (append->io == entry->io && append->row_begin == entry->row_begin &&
                     append->q_len == entry->q_len &&
                     append->token_begin == entry->position - entry->context_position &&
                     plan->pages[plan->segments[append->segment].page_begin] == entry->pages[0]);
        }
        CHECK_EQ(found, entry->append);
        appends += entry->append ? 1u : 0u;
    }
    CHECK_EQ(plan->num_appends, appends);
}

static void check_pages(const struct input *x)
{
    uint32_t pages = 0;
    for (uint32_t s = 0; s < plan->num_segments; s++) {
        const struct relay_plan_segment *segment = &plan->segments[s];
        uint32_t count = (segment->tokens + x->in.page_tokens - 1) / x->in.page_tokens;
        CHECK_EQ(segment->page_begin, pages);
        for (uint32_t i = 1; i < count; i++) {
            CHECK_EQ(plan->pages[pages + i], plan->pages[pages] + i);
        }
        pages += count;
    }
    CHECK_EQ(plan->num_pages, pages);
}

static void check_case(const struct input *x)
{
    struct relay_error err;
    struct relay_plan before;
    CHECK_OK(relay_plan_build(plan, &x->in, &err), err);
    check_items(x);
    CHECK_STILL();
    check_rows(x);
    CHECK_STILL();
    check_read_once(x);
    CHECK_STILL();
    check_not_shared(x);
    CHECK_STILL();
    check_appends(x);
    CHECK_STILL();
    check_pages(x);
    CHECK_STILL();
    items_seen += plan->num_items;
    merged_seen += plan->num_merge_index;
    for (uint32_t i = 0; i < plan->num_items; i++) {
        masked_seen += plan->items[i].masked ? 1u : 0u;
        direct_seen += plan->items[i].partial == RELAY_DIRECT ? 1u : 0u;
    }
    /* Built again it is the same, in the same memory. */
    before = *plan;
    CHECK_OK(relay_plan_build(plan, &x->in, &err), err);
    CHECK(plan->serial != before.serial);
    before.serial = plan->serial;
    CHECK(memcmp(&before, plan, sizeof(before)) == 0);
}

static void test_plan_covers_what_rows_see(void)
{
    static struct input x;
    for (uint32_t i = 0; i < CASES; i++) {
        struct rng rng = {seed + i};
        draw_input(&rng, &x);
        check_case(&x);
        if (check_failed_now) {
            fprintf(stderr, "seed %llu, case %u\n", (unsigned long long)seed, i);
            return;
        }
    }
    fprintf(stderr, "items %llu, masked %llu, direct %llu, merged %llu\n",
            (unsigned long long)items_seen, (unsigned long long)masked_seen,
            (unsigned long long)direct_seen, (unsigned long long)merged_seen);
    CHECK(masked_seen > CASES && direct_seen > CASES && merged_seen > 10 * CASES);
}

int main(int argc, char **argv)
{
    struct relay_error err;
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20240811u;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    if (relay_plan_create(&plan, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_plan_covers_what_rows_see);
    relay_plan_destroy(plan);
    return check_done();
}
