/* The planner's own view of a plan: the public struct plus the memory it keeps between builds.
 *
 * A build runs these steps in order: check, order, items, merge. One thread at a time. */
#ifndef RELAY_PLAN_INTERNAL_H
#define RELAY_PLAN_INTERNAL_H

#include <relay/plan.h>

/* An array that only grows; capacity is kept between builds. */
struct plan_array {
    void *data;
    size_t capacity; /* elements */
    size_t elem;
};

/* Consecutive rows and entries in plan order that may see a segment: the subtree below it. */
struct plan_range {
    uint32_t row_begin;
    uint32_t row_count;
    uint32_t entry_begin; /* into builder order */
    uint32_t entry_count;
};

/* Where a segment's next own row and entry, and its next child's, go. */
struct plan_cursor {
    uint32_t own_row;
    uint32_t own_entry;
    uint32_t child_row;
    uint32_t child_entry;
};

struct plan_builder {
    struct relay_plan pub;             /* first: a struct relay_plan * is a struct plan_builder * */
    const struct relay_plan_input *in; /* during a build */

    struct plan_array segments;    /* struct relay_plan_segment */
    struct plan_array pages;       /* uint32_t */
    struct plan_array rows;        /* struct relay_plan_row */
    struct plan_array items;       /* struct relay_item */
    struct plan_array appends;     /* struct relay_append */
    struct plan_array merge_index; /* uint32_t */

    /* Scratch. */
    struct plan_array order;       /* uint32_t: input entry of each plan entry */
    struct plan_array entry_row;   /* uint32_t: first plan row of each plan entry */
    struct plan_array ranges;      /* struct plan_range of each input segment */
    struct plan_array cursors;     /* struct plan_cursor of each input segment */
    struct plan_array own_segment; /* uint32_t: plan segment of each plan entry's context */
    struct plan_array intervals;   /* struct plan_interval of one tile's rows */

    uint32_t num_shared; /* plan segments that are prompt levels */
    double own_ns;       /* what the entries' own tokens cost by in->costs */
};

struct plan_interval {
    uint32_t lo;
    uint32_t hi;
};

/* Makes room for n elements, keeping the content. RESOURCE_EXHAUSTED. */
enum relay_code plan_array_grow(struct plan_array *array, size_t n, struct relay_error *err);

enum relay_code plan_check(const struct relay_plan_input *in, struct relay_error *err);
/* Fills segments, pages, rows, appends, ranges and own_segment. */
enum relay_code plan_order(struct plan_builder *b, struct relay_error *err);
/* Sets own_ns. */
void plan_cost_begin(struct plan_builder *b);
/* Rows of a tile of a shared segment that `rows` rows read, split every split_tokens: item_rows_max
 * or fewer. rows > 0. */
uint32_t plan_cost_tile_rows(const struct plan_builder *b, uint32_t segment_tokens, uint32_t rows,
                             uint32_t split_tokens);
/* Fills items (partial unset) and counts in each row's merge_count the items it sees. */
enum relay_code plan_items(struct plan_builder *b, struct relay_error *err);
/* Decides what is DIRECT, numbers the partials and lists each row's. */
enum relay_code plan_merge(struct plan_builder *b, struct relay_error *err);

#endif
