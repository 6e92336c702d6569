/* Rows in the depth-first order of the segment tree, and the segments they read.
 *
 * A node's own entries come first, then its children's: so every segment's readers are one row
 * range. It is a counting sort: sizes of subtrees from the leaves up, starts from the roots down;
 * both are index loops because a parent's index is smaller than its children's. O(n). */
#include "plan/plan_internal.h"

#include "core/checked.h"

#include <string.h>

/* Entries without a prompt are the own entries of one more root, after all the others. */
static uint32_t node_of(const struct relay_plan_input *in, uint32_t segment)
{
    return segment == RELAY_NO_SEGMENT ? in->num_segments : segment;
}

static uint32_t parent_of(const struct relay_plan_input *in, uint32_t node)
{
    return node < in->num_segments ? in->segments[node].parent : RELAY_NO_SEGMENT;
}

/* Counts each node's own rows and entries into its cursor. */
static enum relay_code count_own(struct plan_builder *b, struct relay_error *err)
{
    const struct relay_plan_input *in = b->in;
    struct plan_cursor *cursors = b->cursors.data;
    uint64_t rows = 0;
    memset(cursors, 0, ((size_t)in->num_segments + 1) * sizeof(*cursors));
    for (uint32_t i = 0; i < in->num_entries; i++) {
        struct plan_cursor *cursor = &cursors[node_of(in, in->entries[i].segment)];
        rows += in->entries[i].q_len;
        if (rows >= UINT32_MAX) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "entries[%u]: too many rows in all", i);
        }
        cursor->own_row += in->entries[i].q_len;
        cursor->own_entry++;
    }
    b->pub.num_rows = (uint32_t)rows;
    return RELAY_OK;
}

/* Turns the counts into ranges, and the cursors into places. */
static void place_nodes(struct plan_builder *b)
{
    const struct relay_plan_input *in = b->in;
    struct plan_cursor *cursors = b->cursors.data;
    struct plan_range *ranges = b->ranges.data;
    struct plan_cursor root = {0, 0, 0, 0};
    for (uint32_t n = 0; n <= in->num_segments; n++) {
        ranges[n] = (struct plan_range){0, cursors[n].own_row, 0, cursors[n].own_entry};
    }
    for (uint32_t n = in->num_segments + 1; n-- > 0;) {
        uint32_t parent = parent_of(in, n);
        if (parent != RELAY_NO_SEGMENT) {
            ranges[parent].row_count += ranges[n].row_count;
            ranges[parent].entry_count += ranges[n].entry_count;
        }
    }
    for (uint32_t n = 0; n <= in->num_segments; n++) {
        uint32_t parent = parent_of(in, n);
        struct plan_cursor *up = parent != RELAY_NO_SEGMENT ? &cursors[parent] : &root;
        ranges[n].row_begin = up->child_row;
        ranges[n].entry_begin = up->child_entry;
        up->child_row += ranges[n].row_count;
        up->child_entry += ranges[n].entry_count;
        cursors[n].child_row = ranges[n].row_begin + cursors[n].own_row;
        cursors[n].child_entry = ranges[n].entry_begin + cursors[n].own_entry;
        cursors[n].own_row = ranges[n].row_begin;
        cursors[n].own_entry = ranges[n].entry_begin;
    }
}

static void place_entries(struct plan_builder *b)
{
    const struct relay_plan_input *in = b->in;
    struct plan_cursor *cursors = b->cursors.data;
    struct relay_plan_row *rows = b->rows.data;
    uint32_t *order = b->order.data;
    uint32_t *entry_row = b->entry_row.data;
    for (uint32_t i = 0; i < in->num_entries; i++) {
        const struct relay_entry *e = &in->entries[i];
        struct plan_cursor *cursor = &cursors[node_of(in, e->segment)];
        order[cursor->own_entry] = i;
        entry_row[cursor->own_entry] = cursor->own_row;
        for (uint32_t q = 0; q < e->q_len; q++) {
            rows[cursor->own_row + q] = (struct relay_plan_row){
                .io = e->io, .row = e->row_begin + q, .position = e->position + q};
        }
        cursor->own_row += e->q_len;
        cursor->own_entry++;
    }
}

static enum relay_code add_segment(struct plan_builder *b, const uint32_t *pages,
                                   struct relay_plan_segment segment, struct relay_error *err)
{
    uint32_t count = relay_ceil_div_u32(segment.tokens, b->in->page_tokens);
    enum relay_code code;
    if (count > UINT32_MAX - b->pub.num_pages) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "too many pages in all");
    }
    code = plan_array_grow(&b->pages, (size_t)b->pub.num_pages + count, err);
    if (code != RELAY_OK) {
        return code;
    }
    if (count != 0) {
        memcpy((uint32_t *)b->pages.data + b->pub.num_pages, pages, count * sizeof(uint32_t));
    }
    segment.page_begin = b->pub.num_pages;
    ((struct relay_plan_segment *)b->segments.data)[b->pub.num_segments] = segment;
    b->pub.num_pages += count;
    b->pub.num_segments++;
    return RELAY_OK;
}

static enum relay_code add_shared(struct plan_builder *b, struct relay_error *err)
{
    const struct relay_plan_input *in = b->in;
    enum relay_code code = RELAY_OK;
    if (in->part == RELAY_PART_CONTEXT_ONLY) {
        return RELAY_OK;
    }
    for (uint32_t s = 0; code == RELAY_OK && s < in->num_segments; s++) {
        const struct relay_segment *segment = &in->segments[s];
        code = add_segment(b, segment->pages,
                           (struct relay_plan_segment){.tokens = segment->tokens,
                                                       .position = segment->position,
                                                       .shared = true},
                           err);
    }
    b->num_shared = b->pub.num_segments;
    return code;
}

/* Contexts in plan order, so that neighbours in rows are neighbours in items. */
static enum relay_code add_own(struct plan_builder *b, struct relay_error *err)
{
    const struct relay_plan_input *in = b->in;
    const uint32_t *order = b->order.data;
    uint32_t *own_segment = b->own_segment.data;
    struct relay_append *appends = b->appends.data;
    for (uint32_t i = 0; i < in->num_entries; i++) {
        const struct relay_entry *e = &in->entries[order[i]];
        enum relay_code code;
        own_segment[i] = RELAY_NO_SEGMENT;
        if (in->part == RELAY_PART_PROMPT_ONLY || e->context_tokens == 0) {
            continue;
        }
        own_segment[i] = b->pub.num_segments;
        code = add_segment(b, e->pages,
                           (struct relay_plan_segment){.tokens = e->context_tokens,
                                                       .position = e->context_position,
                                                       .shared = false},
                           err);
        if (code != RELAY_OK) {
            return code;
        }
        if (e->append) {
            appends[b->pub.num_appends++] =
                (struct relay_append){.segment = own_segment[i],
                                      .io = e->io,
                                      .row_begin = e->row_begin,
                                      .q_len = e->q_len,
                                      .token_begin = e->position - e->context_position};
        }
    }
    return RELAY_OK;
}

enum relay_code plan_order(struct plan_builder *b, struct relay_error *err)
{
    const struct relay_plan_input *in = b->in;
    size_t nodes = (size_t)in->num_segments + 1;
    size_t entries = in->num_entries;
    enum relay_code code = plan_array_grow(&b->cursors, nodes, err);
    if (code != RELAY_OK || (code = plan_array_grow(&b->ranges, nodes, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->order, entries, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->entry_row, entries, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->own_segment, entries, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->appends, entries, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->segments, nodes + entries, err)) != RELAY_OK ||
        (code = count_own(b, err)) != RELAY_OK ||
        (code = plan_array_grow(&b->rows, b->pub.num_rows, err)) != RELAY_OK) {
        return code;
    }
    place_nodes(b);
    place_entries(b);
    code = add_shared(b, err);
    if (code != RELAY_OK) {
        return code;
    }
    return add_own(b, err);
}
