/* The schedule of units, without a device: units run here one by one on made-up scores and values,
 * a FINAL one after its producers, and every row must come out as a softmax over what the plan's
 * input lets it see. So splits, slots, sources, masks, appends and the order are all checked. */
#include "cuda/schedule.h"
#include "decode_input.h"
#include "testlib/check.h"
#include "testlib/rng.h"

#include <math.h>

#define ENTRIES_MAX  40u
#define SEGMENTS_MAX 6u
#define PAGE_TOKENS  16u

struct batch {
    struct relay_shape shape;
    struct relay_segment segments[SEGMENTS_MAX];
    struct relay_entry entries[ENTRIES_MAX];
    struct relay_plan_input in;
    uint32_t *pages;
    uint32_t num_pages;
};

/* ---- made-up attention: a key is known by its page and place, a packed row by its numbers ---- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    x *= UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

static double score(uint32_t io, uint32_t row, uint32_t head, uint32_t page, uint32_t place)
{
    uint64_t q = mix(((uint64_t)io << 40) ^ ((uint64_t)row << 8) ^ head);
    uint64_t k = mix(((uint64_t)page << 16) ^ place);
    return (double)(mix(q ^ k) % 2000) / 500.0 - 2.0;
}

static double value(uint32_t page, uint32_t place)
{
    return (double)(mix(((uint64_t)page << 20) + place + 5) % 1000) / 500.0 - 1.0;
}

struct sum {
    double weight;
    double value;
    bool pending;
};

static void add_tokens(struct sum *sum, const struct relay_layer_kind *kind, uint32_t io,
                       uint32_t row, uint32_t head, uint32_t row_position, const uint32_t *pages,
                       uint32_t position, uint32_t begin, uint32_t end)
{
    for (uint32_t t = begin; t < end; t++) {
        uint64_t key = (uint64_t)position + t;
        if (key > row_position || (kind->window != 0 && key + kind->window <= row_position) ||
            (kind->chunk != 0 && key / kind->chunk != row_position / kind->chunk)) {
            continue;
        }
        uint32_t page = pages[t / PAGE_TOKENS];
        double w = exp(score(io, row, head, page, t % PAGE_TOKENS));
        sum->weight += w;
        sum->value += w * value(page, t % PAGE_TOKENS);
    }
}

/* ---- random batches ---- */

static const uint32_t *some_pages(struct batch *b, uint32_t tokens)
{
    uint32_t first = b->num_pages;
    b->num_pages += (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
    return b->pages + first;
}

static void batch_init(struct batch *b, struct rng *rng)
{
    static const uint32_t groups[] = {1, 2, 4, 8, 7, 16, 24, 64, 200};
    static const uint32_t lengths[] = {1, 15, 64, 65, 200, 1000, 3000, 130};
    struct relay_layer_kind *kind = &b->shape.kind;
    memset(b, 0, sizeof(*b));
    b->pages = malloc(4000 * sizeof(uint32_t));
    CHECK(b->pages != NULL);
    for (uint32_t i = 0; i < 4000; i++) {
        b->pages[i] = i * 7 % 4000;
    }
    kind->num_kv_heads = 2;
    kind->num_q_heads = 2 * groups[rng_below(rng, 9)];
    kind->head_dim_qk = kind->head_dim_v = 64;
    kind->scale = 1.0f;
    kind->window = rng_below(rng, 3) == 0 ? 1 + rng_below(rng, 700) : 0;
    kind->chunk = rng_below(rng, 4) == 0 ? 1 + rng_below(rng, 500) : 0;
    b->shape.kv_dtype = b->shape.io_dtype = b->shape.out_dtype = RELAY_DTYPE_BF16;
    b->in.num_segments = rng_below(rng, SEGMENTS_MAX);
    for (uint32_t s = 0; s < b->in.num_segments; s++) {
        struct relay_segment *segment = &b->segments[s];
        bool root = s == 0 || rng_below(rng, 2) == 0;
        segment->tokens = rng_below(rng, 8) == 0 ? 0 : lengths[rng_below(rng, 8)];
        segment->parent = root ? RELAY_NO_SEGMENT : rng_below(rng, s);
        segment->position =
            root ? 0 : b->segments[segment->parent].position + b->segments[segment->parent].tokens;
        segment->pages = some_pages(b, segment->tokens);
    }
    b->in.num_entries = 1 + rng_below(rng, ENTRIES_MAX);
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->in.num_entries; i++) {
        struct relay_entry *e = &b->entries[i];
        bool prompt = b->in.num_segments != 0 && rng_below(rng, 5) != 0;
        e->segment = prompt ? rng_below(rng, b->in.num_segments) : RELAY_NO_SEGMENT;
        e->context_position =
            prompt ? b->segments[e->segment].position + b->segments[e->segment].tokens : 0;
        e->q_len = rng_below(rng, 3) == 0 ? 1 + rng_below(rng, 9) : 1;
        e->context_tokens = rng_below(rng, 6) == 0 ? 0 : e->q_len + rng_below(rng, 300);
        if (i == 3) {
            e->context_tokens = 5000;
        }
        e->pages = some_pages(b, e->context_tokens);
        e->position = e->context_position + e->context_tokens -
                      (e->context_tokens < e->q_len ? e->context_tokens : e->q_len);
        e->append = e->context_tokens >= e->q_len;
        e->io = i % 3;
        e->row_begin = row;
        row += e->q_len;
    }
    b->in.shape = &b->shape;
    b->in.segments = b->segments;
    b->in.entries = b->entries;
    b->in.part = (enum relay_part)(rng_below(rng, 6) == 0 ? 2 : 0);
    b->in.sharing = rng_below(rng, 4) == 0 ? RELAY_SHARING_NEVER : RELAY_SHARING_AUTO;
    b->in.page_tokens = PAGE_TOKENS;
    b->in.block_tokens = 64;
    b->in.split_tokens_min = rng_below(rng, 3) == 0 ? 128 : 64;
    b->in.splits_max = rng_below(rng, 3) == 0 ? 5 : 1;
    b->in.item_rows_max = rng_below(rng, 40);
}

/* ---- running a schedule ---- */

struct machine {
    const struct relay_plan *plan;
    const struct relay_cuda_schedule *schedule;
    uint32_t group;
    struct sum *slots; /* [slots] */
    struct sum *rows;  /* [packed rows] written */
    bool *written;
};

static void take_sources(struct machine *m, const struct relay_cuda_unit *u, uint32_t row,
                         struct sum *sum)
{
    for (uint32_t i = 0; i < u->source_count; i++) {
        const struct relay_cuda_source *source = &m->schedule->sources[u->source_begin + i];
        if (u->source_count == 1) {
            CHECK(memcmp(source, &u->source, sizeof(*source)) == 0);
        }
        for (uint32_t k = 0; k < source->count; k++) {
            uint32_t slot = source->slot + row * source->count + k;
            CHECK(slot < m->schedule->slots);
            /* Its producer came before, and nobody took it. */
            CHECK(!m->slots[slot].pending);
            sum->weight += m->slots[slot].weight;
            sum->value += m->slots[slot].value;
            m->slots[slot].pending = true;
        }
    }
}

static void check_pages(const struct machine *m, const struct relay_cuda_unit *u)
{
    uint32_t first = u->token_begin / 64 * 64 / PAGE_TOKENS;
    uint32_t last = (u->token_end - 1) / PAGE_TOKENS;
    for (uint32_t i = 0; i < RELAY_CUDA_UNIT_PAGES && first + i <= last; i++) {
        CHECK_EQ(u->pages[i], m->plan->pages[u->page_begin + first + i]);
    }
}

static void run_unit(struct machine *m, const struct relay_layer_kind *kind,
                     const struct relay_cuda_unit *u)
{
    static const uint32_t most[] = {16, 64, 128, 16};
    uint32_t type = u->flags & RELAY_CUDA_KIND_MASK;
    bool final = (u->flags & RELAY_CUDA_FINAL) != 0;
    CHECK(u->packed_count >= 1 && u->packed_count <= most[type]);
    CHECK(!final || type == RELAY_CUDA_NARROW || type == RELAY_CUDA_MERGE ||
          (type == RELAY_CUDA_WIDE && m->schedule->beside));
    if (type != RELAY_CUDA_MERGE) {
        CHECK(u->token_begin < u->token_end);
        check_pages(m, u);
        CHECK_STILL();
    }
    for (uint32_t i = 0; i < u->packed_count; i++) {
        uint32_t packed = u->packed_begin + i;
        const struct relay_plan_row *row = &m->plan->rows[packed / m->group];
        struct sum sum = {0.0, 0.0, false};
        if (i < m->group - u->packed_begin % m->group) {
            CHECK(u->io == row->io && u->row == row->row);
        } else {
            CHECK((u->flags & RELAY_CUDA_ONE_ROW) == 0);
        }
        if (type != RELAY_CUDA_MERGE) {
            struct sum unmasked = sum;
            struct relay_layer_kind all = {.num_q_heads = 1};
            add_tokens(&sum, kind, row->io, row->row, packed % m->group, row->position,
                       m->plan->pages + u->page_begin, u->position, u->token_begin, u->token_end);
            add_tokens(&unmasked, &all, row->io, row->row, packed % m->group, UINT32_MAX,
                       m->plan->pages + u->page_begin, u->position, u->token_begin, u->token_end);
            CHECK((u->flags & RELAY_CUDA_MASKED) != 0 || sum.weight == unmasked.weight);
        }
        take_sources(m, u, i, &sum);
        CHECK_STILL();
        if (final) {
            CHECK(!m->written[packed]);
            m->written[packed] = true;
            m->rows[packed] = sum;
        } else {
            uint32_t slot = u->slot + i * u->slot_stride;
            CHECK(slot < m->schedule->slots && m->slots[slot].pending);
            m->slots[slot] = sum;
        }
    }
}

static bool is_final(const struct machine *m, uint32_t unit)
{
    return (m->schedule->units[unit].flags & RELAY_CUDA_FINAL) != 0;
}

/* Units [begin, end), of those before num_wide the FINAL ones or the others. */
static void run_units(struct machine *m, const struct relay_layer_kind *kind, uint32_t begin,
                      uint32_t end, bool final)
{
    for (uint32_t i = begin; i < end; i++) {
        if (i >= m->schedule->num_wide || is_final(m, i) == final) {
            run_unit(m, kind, &m->schedule->units[i]);
            CHECK_STILL();
        }
    }
}

static void run_schedule(struct machine *m, const struct relay_layer_kind *kind)
{
    uint32_t packed = m->plan->num_rows * m->group;
    m->slots = calloc(m->schedule->slots + 1u, sizeof(*m->slots));
    m->rows = calloc(packed + 1u, sizeof(*m->rows));
    m->written = calloc(packed + 1u, sizeof(*m->written));
    CHECK(m->slots != NULL && m->rows != NULL && m->written != NULL);
    for (uint32_t i = 0; i < m->schedule->slots; i++) {
        m->slots[i].pending = true;
    }
    for (uint32_t i = 0; i < m->schedule->num_units; i++) {
        const struct relay_cuda_unit *u = &m->schedule->units[i];
        uint32_t type = u->flags & RELAY_CUDA_KIND_MASK;
        CHECK((type == RELAY_CUDA_PAIR) == (i < m->schedule->num_pairs));
        CHECK((type == RELAY_CUDA_NARROW) ==
              (i >= m->schedule->num_wide && i < m->schedule->num_narrow));
        CHECK((type == RELAY_CUDA_MERGE) == (i >= m->schedule->num_narrow));
        CHECK(i < m->schedule->num_wide || is_final(m, i) == (i >= m->schedule->num_produce));
        CHECK_STILL();
    }
    /* Units of many rows that are FINAL come after all that produce. */
    run_units(m, kind, 0, m->schedule->num_produce, false);
    run_units(m, kind, 0, m->schedule->num_wide, true);
    run_units(m, kind, m->schedule->num_produce, m->schedule->num_units, true);
    CHECK_STILL();
    for (uint32_t i = 0; i < m->schedule->slots; i++) {
        CHECK(m->slots[i].pending); /* everything stored was taken */
    }
    for (uint32_t i = 0; i < packed; i++) {
        CHECK(m->written[i]);
    }
}

static void machine_fini(struct machine *m)
{
    free(m->slots);
    free(m->rows);
    free(m->written);
}

/* Straight from the plan's input. */
static struct sum expected(const struct batch *b, uint32_t io, uint32_t row, uint32_t head)
{
    struct sum sum = {0.0, 0.0, false};
    for (uint32_t i = 0; i < b->in.num_entries; i++) {
        const struct relay_entry *e = &b->entries[i];
        uint32_t position = e->position + (row - e->row_begin);
        if (e->io != io || row < e->row_begin || row >= e->row_begin + e->q_len) {
            continue;
        }
        for (uint32_t s = e->segment;
             s != RELAY_NO_SEGMENT && b->in.part != RELAY_PART_CONTEXT_ONLY;
             s = b->segments[s].parent) {
            add_tokens(&sum, &b->shape.kind, io, row, head, position, b->segments[s].pages,
                       b->segments[s].position, 0, b->segments[s].tokens);
        }
        add_tokens(&sum, &b->shape.kind, io, row, head, position, e->pages, e->context_position, 0,
                   e->context_tokens);
    }
    return sum;
}

static void check_rows(const struct batch *b, const struct machine *m)
{
    for (uint32_t packed = 0; packed < m->plan->num_rows * m->group; packed++) {
        const struct relay_plan_row *row = &m->plan->rows[packed / m->group];
        struct sum want = expected(b, row->io, row->row, packed % m->group);
        CHECK(fabs(m->rows[packed].weight - want.weight) <= 1e-9 * want.weight);
        CHECK(fabs(m->rows[packed].value - want.value) <= 1e-9 * (want.weight + 1.0));
    }
}

static void check_appends(const struct machine *m)
{
    uint32_t at = 0;
    for (uint32_t a = 0; a < m->plan->num_appends; a++) {
        const struct relay_append *append = &m->plan->appends[a];
        for (uint32_t i = 0; i < append->q_len; i++, at++) {
            const struct relay_cuda_append *got = &m->schedule->appends[at];
            uint32_t token = append->token_begin + i;
            const struct relay_plan_segment *segment = &m->plan->segments[append->segment];
            CHECK_EQ(got->io, append->io);
            CHECK_EQ(got->row, append->row_begin + i);
            CHECK_EQ(got->page, m->plan->pages[segment->page_begin + token / PAGE_TOKENS]);
            CHECK_EQ(got->token, token % PAGE_TOKENS);
        }
    }
    CHECK_EQ(at, m->schedule->num_appends);
}

static struct relay_plan *plan;
static struct relay_cuda_schedule *schedule;

static void check_batch(const struct batch *b, const struct relay_cuda_geometry *geometry,
                        const struct relay_cuda_tuning *tuning)
{
    struct relay_error err;
    struct machine m = {plan, schedule, b->shape.kind.num_q_heads / 2, NULL, NULL, NULL};
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 2, m.group, geometry, tuning, &err), err);
    run_schedule(&m, &b->shape.kind);
    CHECK_STILL();
    check_rows(b, &m);
    CHECK_STILL();
    check_appends(&m);
    machine_fini(&m);
}

static void test_schedule_random_batches(void)
{
    static const struct relay_cuda_geometry geometries[] = {
        {.blocks = 132, .groups = 2, .pair = true, .fused = true},
        {.blocks = 216, .groups = 1, .fused = true},
        {.blocks = 132, .groups = 2, .pair = true},
        {.blocks = 64, .groups = 1, .one_head = true},
        {.blocks = 12, .groups = 1, .fused = true},
        {.blocks = 40, .groups = 1, .fused = true, .finals = true}};
    static const struct relay_cuda_tuning tunings[] = {
        {0},
        {.shared_splits = 7, .own_splits = 3},
        {.shared_splits = 1, .own_splits = 1},
        {.batch_invariant = true},
        {.steps_least = 1, .slot_cost = 1, .narrow_heads = 2},
        {.early_tiles = 2}};
    struct rng rng = {20251};
    for (uint32_t i = 0; i < 40; i++) {
        struct batch b;
        struct relay_error err;
        batch_init(&b, &rng);
        CHECK_STILL();
        CHECK_OK(relay_plan_build(plan, &b.in, &err), err);
        for (uint32_t g = 0; g < 6; g++) {
            check_batch(&b, &geometries[g], &tunings[(i + g) % 6]);
            if (check_failed_now) {
                fprintf(stderr, "batch %u geometry %u\n", i, g);
            }
            CHECK_STILL();
        }
        free(b.pages);
    }
}

/* A decode batch on one prompt, as in the benches. */
static void decode(struct batch *b, uint32_t q_heads, uint32_t kv_heads, uint32_t entries,
                   uint32_t prompt, uint32_t context)
{
    struct relay_error err;
    memset(b, 0, sizeof(*b));
    b->in = decode_input(&b->shape, b->segments, b->entries, q_heads, kv_heads, entries, prompt,
                         context);
    CHECK_OK(relay_plan_build(plan, &b->in, &err), err);
}

static uint32_t count_kind(uint32_t kind, bool final)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < schedule->num_units; i++) {
        count += (schedule->units[i].flags & RELAY_CUDA_KIND_MASK) == kind &&
                 ((schedule->units[i].flags & RELAY_CUDA_FINAL) != 0) == final;
    }
    return count;
}

/* Every request finishes itself: nothing is left to MERGE units. */
static void test_schedule_decode_is_one_wave(void)
{
    static const struct relay_cuda_geometry h200 = {
        .blocks = 132, .groups = 2, .pair = true, .fused = true};
    static const struct relay_cuda_tuning defaults;
    struct relay_error err;
    struct batch b;
    decode(&b, 32, 8, 32, 2048, 128);
    CHECK_STILL();
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &h200, &defaults, &err), err);
    CHECK_EQ(count_kind(RELAY_CUDA_NARROW, true), 32);
    CHECK_EQ(count_kind(RELAY_CUDA_MERGE, true), 0);
    CHECK(schedule->num_pairs >= 8 && schedule->num_pairs * 8 <= 132);
    decode(&b, 32, 8, 8, 2048, 128);
    CHECK_STILL();
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &h200, &defaults, &err), err);
    CHECK_EQ(count_kind(RELAY_CUDA_NARROW, true), 8);
    CHECK_EQ(count_kind(RELAY_CUDA_WIDE, false), 0); /* where there are PAIR units */
    CHECK(schedule->num_pairs >= 8 && schedule->num_pairs * 8 <= 132);
}

/* Where requests' own tokens fill half of the warpgroups with KV heads side by side, short prompts
 * are split over the other half and all is done at once; long ones are done first, by all. */
static void test_schedule_decode_beside(void)
{
    static const struct relay_cuda_geometry h200 = {.blocks = 264, .groups = 1, .fused = true};
    static const struct relay_cuda_geometry small = {.blocks = 100, .groups = 1, .fused = true};
    static const struct relay_cuda_tuning defaults;
    static const struct relay_cuda_tuning one_head = {.narrow_heads = 1};
    struct relay_error err;
    struct batch b;
    decode(&b, 8, 2, 40, 1024, 100);
    CHECK_STILL();
    check_batch(&b, &small, &defaults);
    CHECK_STILL();
    CHECK_EQ(schedule->narrow_heads, 2);
    CHECK(count_kind(RELAY_CUDA_WIDE, false) * 2 <= 50);
    check_batch(&b, &small, &one_head);
    CHECK_STILL();
    CHECK_EQ(schedule->narrow_heads, 1);
    decode(&b, 32, 8, 32, 2048, 128);
    CHECK_STILL();
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &h200, &defaults, &err), err);
    CHECK_EQ(schedule->narrow_heads, 2);
    CHECK_EQ(count_kind(RELAY_CUDA_NARROW, true), 32);
    CHECK(count_kind(RELAY_CUDA_WIDE, false) * 8 > 66);
    CHECK(count_kind(RELAY_CUDA_WIDE, false) * 8 <= 132);
    decode(&b, 32, 8, 32, 8192, 128);
    CHECK_STILL();
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &h200, &defaults, &err), err);
    CHECK(count_kind(RELAY_CUDA_WIDE, false) * 8 > 132);
    CHECK(count_kind(RELAY_CUDA_WIDE, false) * 8 <= 264);
}

static uint32_t longest_shared(uint32_t prompt)
{
    uint32_t longest = 0;
    for (uint32_t i = 0; i < schedule->num_units; i++) {
        const struct relay_cuda_unit *u = &schedule->units[i];
        uint32_t tokens = u->token_end - u->token_begin;
        if (u->position < prompt && tokens > longest) {
            longest = tokens;
        }
    }
    return longest;
}

/* A few requests more than tiles hold are no other case: the rest of their rows is split as the
 * others are, not left to one warpgroup with all the prompt. */
static void test_schedule_decode_has_no_cliffs(void)
{
    static const struct relay_cuda_geometry geometries[] = {
        {.blocks = 264, .groups = 1, .fused = true},
        {.blocks = 132, .groups = 2, .pair = true, .fused = true}};
    static const struct relay_cuda_tuning defaults;
    struct relay_error err;
    struct batch b;
    for (uint32_t g = 0; g < 2; g++) {
        for (uint32_t entries = 17; entries <= ENTRIES_MAX; entries++) {
            decode(&b, 32, 8, entries, 8192, 128);
            CHECK_STILL();
            CHECK_OK(
                relay_cuda_schedule_build(schedule, plan, 8, 4, &geometries[g], &defaults, &err),
                err);
            CHECK_EQ(count_kind(RELAY_CUDA_NARROW, false), 0);
            CHECK(longest_shared(8192) <= 2048); /* once it was all 8192, 4096 for 28 requests */
        }
    }
}

/* Read per request, a prompt is read by units of few rows. */
static void test_schedule_never_shared(void)
{
    static const struct relay_cuda_geometry pair = {
        .blocks = 132, .groups = 2, .pair = true, .fused = true};
    static const struct relay_cuda_tuning defaults;
    struct relay_error err;
    struct batch b;
    decode(&b, 32, 8, 32, 2048, 128);
    CHECK_STILL();
    b.in.sharing = RELAY_SHARING_NEVER;
    CHECK_OK(relay_plan_build(plan, &b.in, &err), err);
    CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &pair, &defaults, &err), err);
    CHECK_EQ(schedule->num_wide, 0);
}

/* With early tiles: those finish their rows, their requests' own units only produce, and the other
 * requests finish themselves. */
static void test_schedule_early_tiles(void)
{
    static const struct relay_cuda_geometry few = {
        .blocks = 40, .groups = 1, .fused = true, .finals = true};
    struct relay_error err;
    struct batch b;
    decode(&b, 16, 2, 40, 1000, 100); /* five tiles of eight requests */
    CHECK_STILL();
    for (uint32_t early = 1; early <= 6; early++) {
        const struct relay_cuda_tuning tuning = {.early_tiles = early};
        const uint32_t tiles = early < 5 ? early : 5;
        check_batch(&b, &few, &tuning);
        CHECK_STILL();
        CHECK(schedule->beside);
        CHECK_EQ(count_kind(RELAY_CUDA_WIDE, true), tiles);
        CHECK_EQ(count_kind(RELAY_CUDA_NARROW, false), 8 * tiles);
        CHECK_EQ(count_kind(RELAY_CUDA_NARROW, true), 40 - 8 * tiles);
        CHECK_EQ(count_kind(RELAY_CUDA_MERGE, true), 0);
        CHECK(schedule->num_wide * 2 <= 20);
    }
    /* Who has nothing of their own keeps their tile from it. */
    b.entries[9].context_tokens = 0;
    b.entries[9].append = false;
    CHECK_OK(relay_plan_build(plan, &b.in, &err), err);
    check_batch(&b, &few, &(struct relay_cuda_tuning){.early_tiles = 5});
    CHECK_STILL();
    CHECK_EQ(count_kind(RELAY_CUDA_WIDE, true), 4);
    CHECK_EQ(count_kind(RELAY_CUDA_MERGE, true), 1);
}

/* batch_invariant: a request's own splits and the prompt's do not depend on who else is there. */
static void test_schedule_invariant_splits(void)
{
    static const struct relay_cuda_geometry h200 = {
        .blocks = 132, .groups = 2, .pair = true, .fused = true};
    static const struct relay_cuda_tuning invariant = {.batch_invariant = true};
    uint32_t first_splits = 0;
    for (uint32_t entries = 1; entries <= ENTRIES_MAX; entries += 13) {
        struct relay_error err;
        struct batch b;
        uint32_t splits = 0;
        decode(&b, 32, 8, entries, 3000, 700);
        CHECK_STILL();
        CHECK_OK(relay_cuda_schedule_build(schedule, plan, 8, 4, &h200, &invariant, &err), err);
        for (uint32_t i = 0; i < schedule->num_units; i++) {
            const struct relay_cuda_unit *u = &schedule->units[i];
            uint32_t kind = u->flags & RELAY_CUDA_KIND_MASK;
            bool shared = kind != RELAY_CUDA_MERGE && u->position == 0; /* the prompt's */
            CHECK(!shared || kind != RELAY_CUDA_NARROW);
            splits += shared && u->packed_begin == 0;
        }
        CHECK(splits > 1);
        first_splits = first_splits == 0 ? splits : first_splits;
        CHECK_EQ(splits, first_splits);
    }
}

int main(void)
{
    struct relay_error err;
    if (relay_plan_create(&plan, &err) != RELAY_OK ||
        relay_cuda_schedule_create(&schedule, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_schedule_random_batches);
    CHECK_RUN(test_schedule_decode_is_one_wave);
    CHECK_RUN(test_schedule_decode_beside);
    CHECK_RUN(test_schedule_decode_has_no_cliffs);
    CHECK_RUN(test_schedule_never_shared);
    CHECK_RUN(test_schedule_early_tiles);
    CHECK_RUN(test_schedule_invariant_splits);
    relay_plan_destroy(plan);
    relay_cuda_schedule_destroy(schedule);
    relay_cuda_schedule_destroy(NULL);
    return check_done();
}
