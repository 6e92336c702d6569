/* Partials: which items need none, their numbers, and every row's list in merge order.
 *
 * Items come in the order in which a row merges (see plan_items.c), so appending item after item
 * to the lists of the rows that see it makes them sorted. */
#include "plan/plan_internal.h"

/* True when every row of the item sees it and nothing else. */
static bool item_is_direct(const struct plan_builder *b, const struct relay_item *item)
{
    const struct relay_plan_row *rows = b->rows.data;
    const struct relay_plan_segment *segment =
        (const struct relay_plan_segment *)b->segments.data + item->segment;
    for (uint32_t r = item->row_begin; r < item->row_begin + item->row_count; r++) {
        uint32_t lo;
        uint32_t hi;
        if (rows[r].merge_count != 1) {
            return false;
        }
        if (!item->masked) {
            continue;
        }
        relay_plan_interval(&b->in->shape->kind, rows[r].position, segment->position,
                            segment->tokens, &lo, &hi);
        if (lo >= item->token_end || hi <= item->token_begin) {
            return false;
        }
    }
    return true;
}

static enum relay_code number_partials(struct plan_builder *b, struct relay_error *err)
{
    struct relay_item *items = b->items.data;
    struct relay_plan_row *rows = b->rows.data;
    for (uint32_t i = 0; i < b->pub.num_items; i++) {
        struct relay_item *item = &items[i];
        if (item_is_direct(b, item)) {
            item->partial = RELAY_DIRECT;
            for (uint32_t r = item->row_begin; r < item->row_begin + item->row_count; r++) {
                rows[r].direct = true;
            }
            continue;
        }
        if (item->row_count >= RELAY_DIRECT - b->pub.num_partials) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "too many partial results");
        }
        item->partial = b->pub.num_partials;
        b->pub.num_partials += item->row_count;
    }
    return RELAY_OK;
}

static enum relay_code place_lists(struct plan_builder *b, struct relay_error *err)
{
    struct relay_plan_row *rows = b->rows.data;
    uint64_t total = 0;
    for (uint32_t r = 0; r < b->pub.num_rows; r++) {
        rows[r].merge_begin = (uint32_t)total;
        if (!rows[r].direct) {
            total += rows[r].merge_count;
        }
        if (total > UINT32_MAX) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "too many partial results");
        }
        rows[r].merge_count = 0; /* counts up again while the list is filled */
    }
    b->pub.num_merge_index = (uint32_t)total;
    return plan_array_grow(&b->merge_index, (size_t)total, err);
}

static void fill_lists(struct plan_builder *b)
{
    const struct relay_item *items = b->items.data;
    struct relay_plan_row *rows = b->rows.data;
    uint32_t *merge_index = b->merge_index.data;
    for (uint32_t i = 0; i < b->pub.num_items; i++) {
        const struct relay_item *item = &items[i];
        const struct relay_plan_segment *segment =
            (const struct relay_plan_segment *)b->segments.data + item->segment;
        if (item->partial == RELAY_DIRECT) {
            continue;
        }
        for (uint32_t r = 0; r < item->row_count; r++) {
            struct relay_plan_row *row = &rows[item->row_begin + r];
            uint32_t lo = item->token_begin;
            uint32_t hi = item->token_end;
            if (item->masked) {
                relay_plan_interval(&b->in->shape->kind, row->position, segment->position,
                                    segment->tokens, &lo, &hi);
            }
            if (lo < hi && lo < item->token_end && hi > item->token_begin) {
                merge_index[row->merge_begin + row->merge_count++] = item->partial + r;
            }
        }
    }
}

enum relay_code plan_merge(struct plan_builder *b, struct relay_error *err)
{
    enum relay_code code = number_partials(b, err);
    if (code != RELAY_OK) {
        return code;
    }
    code = place_lists(b, err);
    if (code != RELAY_OK) {
        return code;
    }
    fill_lists(b);
    return RELAY_OK;
}
