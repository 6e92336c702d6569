/* Items: row tiles times token splits, cut to what the tile's rows see.
 *
 * Splits lie on a grid from the segment's first token whose step follows from the segment's own
 * length, so which partials a row has does not depend on who shares its tile. Within a segment,
 * items come tile by tile, tokens ascending; segments in index order, so a row's items appear in
 * the order in which its partials are merged. */
#include "plan/plan_internal.h"

#include "core/checked.h"

/* Some rows' view of a segment. */
struct view {
    uint32_t lo_min;
    uint32_t lo_max;
    uint32_t hi_min;
    uint32_t hi_max;
    uint32_t seeing; /* rows that see anything */
};

static void view_add(struct view *view, uint32_t lo, uint32_t hi)
{
    if (lo >= hi) {
        return;
    }
    if (view->seeing == 0) {
        *view = (struct view){lo, lo, hi, hi, 1};
        return;
    }
    view->lo_min = lo < view->lo_min ? lo : view->lo_min;
    view->lo_max = lo > view->lo_max ? lo : view->lo_max;
    view->hi_min = hi < view->hi_min ? hi : view->hi_min;
    view->hi_max = hi > view->hi_max ? hi : view->hi_max;
    view->seeing++;
}

static bool view_uniform(const struct view *view, uint32_t rows)
{
    return view->seeing == rows && view->lo_min == view->lo_max && view->hi_min == view->hi_max;
}

static enum relay_code push_item(struct plan_builder *b, struct relay_item item,
                                 struct relay_error *err)
{
    uint64_t tokens = item.token_end - item.token_begin;
    enum relay_code code;
    if (b->pub.num_items == UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "too many items");
    }
    code = plan_array_grow(&b->items, (size_t)b->pub.num_items + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    ((struct relay_item *)b->items.data)[b->pub.num_items++] = item;
    if (item.segment < b->num_shared) {
        b->pub.prompt_tokens_read += tokens;
    } else {
        b->pub.context_tokens_read += tokens;
    }
    return RELAY_OK;
}

static uint32_t split_tokens(const struct relay_plan_input *in, uint32_t tokens)
{
    uint64_t split = relay_ceil_div_u32(tokens, in->splits_max);
    if (split < in->split_tokens_min) {
        split = in->split_tokens_min;
    }
    split = (split + in->block_tokens - 1) / in->block_tokens * in->block_tokens;
    return split < UINT32_MAX ? (uint32_t)split : UINT32_MAX;
}

/* What rows [row_begin, +row_count) see of tokens [begin, end) of a segment; counts it in rows. */
static struct view cut_view(struct plan_builder *b, uint32_t row_begin, uint32_t row_count,
                            uint32_t begin, uint32_t end)
{
    const struct plan_interval *intervals = b->intervals.data;
    struct relay_plan_row *rows = b->rows.data;
    struct view view = {0, 0, 0, 0, 0};
    for (uint32_t r = 0; r < row_count; r++) {
        uint32_t lo = intervals[r].lo > begin ? intervals[r].lo : begin;
        uint32_t hi = intervals[r].hi < end ? intervals[r].hi : end;
        view_add(&view, lo, hi);
        rows[row_begin + r].merge_count += lo < hi ? 1u : 0u;
    }
    return view;
}

static enum relay_code emit_tile(struct plan_builder *b, uint32_t s, uint32_t row_begin,
                                 uint32_t row_count, struct relay_error *err)
{
    const struct relay_plan_segment *segment = (struct relay_plan_segment *)b->segments.data + s;
    const struct relay_plan_row *rows = b->rows.data;
    struct plan_interval *intervals;
    struct view all = {0, 0, 0, 0, 0};
    uint64_t split = split_tokens(b->in, segment->tokens);
    enum relay_code code = plan_array_grow(&b->intervals, row_count, err);
    if (code != RELAY_OK) {
        return code;
    }
    intervals = b->intervals.data;
    for (uint32_t r = 0; r < row_count; r++) {
        relay_plan_interval(&b->in->shape->kind, rows[row_begin + r].position, segment->position,
                            segment->tokens, &intervals[r].lo, &intervals[r].hi);
        view_add(&all, intervals[r].lo, intervals[r].hi);
    }
    for (uint64_t at = all.lo_min / split * split; at < all.hi_max; at += split) {
        uint32_t begin = at > all.lo_min ? (uint32_t)at : all.lo_min;
        uint32_t end = at + split < all.hi_max ? (uint32_t)(at + split) : all.hi_max;
        struct view view = cut_view(b, row_begin, row_count, begin, end);
        if (view.seeing == 0) {
            continue; /* between the windows of rows that are far apart */
        }
        code = push_item(b,
                         (struct relay_item){.segment = s,
                                             .row_begin = row_begin,
                                             .row_count = row_count,
                                             .token_begin = view.lo_min,
                                             .token_end = view.hi_max,
                                             .partial = RELAY_DIRECT,
                                             .masked = !view_uniform(&view, row_count)},
                         err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

static enum relay_code emit_rows(struct plan_builder *b, uint32_t s, uint32_t row_begin,
                                 uint32_t row_count, uint32_t tile, struct relay_error *err)
{
    while (row_count != 0) {
        uint32_t rows = row_count < tile ? row_count : tile;
        enum relay_code code = emit_tile(b, s, row_begin, rows, err);
        if (code != RELAY_OK) {
            return code;
        }
        row_begin += rows;
        row_count -= rows;
    }
    return RELAY_OK;
}

/* The rows of one plan entry alone. */
static enum relay_code emit_entry(struct plan_builder *b, uint32_t s, uint32_t entry,
                                  struct relay_error *err)
{
    const uint32_t *order = b->order.data;
    const uint32_t *entry_row = b->entry_row.data;
    uint32_t rows = b->in->entries[order[entry]].q_len;
    uint32_t tile = b->in->item_rows_max != 0 ? b->in->item_rows_max : rows;
    return emit_rows(b, s, entry_row[entry], rows, tile, err);
}

/* The rows of all entries below a segment together, in as few tiles as pays. */
static enum relay_code emit_shared(struct plan_builder *b, uint32_t s, struct relay_error *err)
{
    const struct plan_range *range = (const struct plan_range *)b->ranges.data + s;
    uint32_t tokens = ((const struct relay_plan_segment *)b->segments.data)[s].tokens;
    uint32_t tile;
    if (range->row_count == 0) {
        return RELAY_OK;
    }
    tile = plan_cost_tile_rows(b, tokens, range->row_count, split_tokens(b->in, tokens));
    return emit_rows(b, s, range->row_begin, range->row_count, tile, err);
}

enum relay_code plan_items(struct plan_builder *b, struct relay_error *err)
{
    const struct plan_range *ranges = b->ranges.data;
    const uint32_t *own_segment = b->own_segment.data;
    bool share = b->in->sharing != RELAY_SHARING_NEVER;
    enum relay_code code = RELAY_OK;
    plan_cost_begin(b);
    for (uint32_t s = 0; code == RELAY_OK && s < b->num_shared; s++) {
        if (share) {
            code = emit_shared(b, s, err);
            continue;
        }
        for (uint32_t i = 0; code == RELAY_OK && i < ranges[s].entry_count; i++) {
            code = emit_entry(b, s, ranges[s].entry_begin + i, err);
        }
    }
    for (uint32_t i = 0; code == RELAY_OK && i < b->in->num_entries; i++) {
        if (own_segment[i] != RELAY_NO_SEGMENT) {
            code = emit_entry(b, own_segment[i], i, err);
        }
    }
    return code;
}
