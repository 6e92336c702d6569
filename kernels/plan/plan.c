/* A plan's life and the order of a build. See <relay/plan.h>. */
#include "plan/plan_internal.h"

#include "core/checked.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The only state here: backends know a plan they have seen by its number. */
static _Atomic uint64_t plan_serial;

enum relay_code plan_array_grow(struct plan_array *array, size_t n, struct relay_error *err)
{
    size_t capacity = array->capacity;
    size_t bytes;
    void *data;
    if (n <= capacity) {
        return RELAY_OK;
    }
    /* Half as much again, so that a slowly growing step does not copy every time. */
    capacity = n > SIZE_MAX / 2 ? n : n + n / 2 + 16;
    if (!relay_checked_mul(capacity, array->elem, &bytes)) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "a plan of %zu elements is too large", n);
    }
    data = realloc(array->data, bytes);
    if (data == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a plan array of %zu bytes",
                          bytes);
    }
    array->data = data;
    array->capacity = capacity;
    return RELAY_OK;
}

static void plan_clear(struct plan_builder *b)
{
    memset(&b->pub, 0, sizeof(b->pub));
    b->num_shared = 0;
}

enum relay_code relay_plan_create(struct relay_plan **out, struct relay_error *err)
{
    struct plan_builder *b = calloc(1, sizeof(*b));
    if (b == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a plan");
    }
    b->segments.elem = sizeof(struct relay_plan_segment);
    b->pages.elem = sizeof(uint32_t);
    b->rows.elem = sizeof(struct relay_plan_row);
    b->items.elem = sizeof(struct relay_item);
    b->appends.elem = sizeof(struct relay_append);
    b->merge_index.elem = sizeof(uint32_t);
    b->order.elem = sizeof(uint32_t);
    b->entry_row.elem = sizeof(uint32_t);
    b->ranges.elem = sizeof(struct plan_range);
    b->cursors.elem = sizeof(struct plan_cursor);
    b->own_segment.elem = sizeof(uint32_t);
    b->intervals.elem = sizeof(struct plan_interval);
    *out = &b->pub;
    return RELAY_OK;
}

void relay_plan_destroy(struct relay_plan *plan)
{
    struct plan_builder *b = (struct plan_builder *)plan;
    if (b == NULL) {
        return;
    }
    free(b->segments.data);
    free(b->pages.data);
    free(b->rows.data);
    free(b->items.data);
    free(b->appends.data);
    free(b->merge_index.data);
    free(b->order.data);
    free(b->entry_row.data);
    free(b->ranges.data);
    free(b->cursors.data);
    free(b->own_segment.data);
    free(b->intervals.data);
    free(b);
}

static void plan_publish(struct plan_builder *b)
{
    b->pub.serial = atomic_fetch_add_explicit(&plan_serial, 1, memory_order_relaxed) + 1;
    b->pub.part = b->in->part;
    b->pub.page_tokens = b->in->page_tokens;
    b->pub.block_tokens = b->in->block_tokens;
    b->pub.segments = b->segments.data;
    b->pub.pages = b->pages.data;
    b->pub.rows = b->rows.data;
    b->pub.items = b->items.data;
    b->pub.appends = b->appends.data;
    b->pub.merge_index = b->merge_index.data;
}

enum relay_code relay_plan_build(struct relay_plan *plan, const struct relay_plan_input *in,
                                 struct relay_error *err)
{
    struct plan_builder *b = (struct plan_builder *)plan;
    enum relay_code code;
    plan_clear(b);
    b->in = in;
    code = plan_check(in, err);
    if (code == RELAY_OK) {
        code = plan_order(b, err);
    }
    if (code == RELAY_OK) {
        code = plan_items(b, err);
    }
    if (code == RELAY_OK) {
        code = plan_merge(b, err);
    }
    if (code == RELAY_OK) {
        plan_publish(b);
    } else {
        plan_clear(b);
    }
    b->in = NULL;
    return code;
}
