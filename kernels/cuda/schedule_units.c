/* Units and sources from tiles and groups: numbers partial results, puts units in order. Pure. */
#include "cuda/schedule_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- partial results and sources ---- */

static uint32_t stored_splits(const struct schedule_tile *tile)
{
    return tile->splits - (tile->final ? 1u : 0u);
}

static enum relay_code number_slots(struct schedule_builder *b, struct relay_error *err)
{
    struct schedule_tile *tiles = schedule_tiles(b);
    uint64_t slots = 0;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        tiles[t].slot = (uint32_t)slots;
        slots += (uint64_t)stored_splits(&tiles[t]) * (tiles[t].packed_end - tiles[t].packed_begin);
        if (slots > INT32_MAX) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "too many partial results");
        }
    }
    b->pub.slots = (uint32_t)slots;
    return RELAY_OK;
}

static enum relay_code make_sources(struct schedule_builder *b, struct relay_error *err)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    const uint32_t *covers = b->covers.data;
    struct schedule_group *groups = b->groups.data;
    for (uint32_t g = 0; g < b->num_groups; g++) {
        struct schedule_group *group = &groups[g];
        enum relay_code code =
            schedule_grow(&b->sources, (size_t)b->pub.num_sources + group->cover_count, err);
        if (code != RELAY_OK) {
            return code;
        }
        group->source_begin = b->pub.num_sources;
        for (uint32_t i = 0; i < group->cover_count; i++) {
            const struct schedule_tile *tile = &tiles[covers[group->cover_begin + i]];
            uint32_t count = stored_splits(tile);
            if (count != 0) {
                ((struct relay_cuda_source *)b->sources.data)[b->pub.num_sources++] =
                    (struct relay_cuda_source){
                        .slot = tile->slot + (group->packed_begin - tile->packed_begin) * count,
                        .count = count,
                    };
            }
        }
        group->source_count = b->pub.num_sources - group->source_begin;
    }
    return RELAY_OK;
}

/* ---- the tokens that come with the call ---- */

static enum relay_code make_appends(struct schedule_builder *b, struct relay_error *err)
{
    const struct relay_plan *plan = b->plan;
    uint64_t total = 0;
    uint32_t *of;
    struct relay_cuda_append *to;
    enum relay_code code = schedule_grow(&b->append_of, (size_t)plan->num_segments + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    of = b->append_of.data;
    for (uint32_t s = 0; s < plan->num_segments; s++) {
        of[s] = UINT32_MAX;
    }
    for (uint32_t a = 0; a < plan->num_appends; a++) {
        of[plan->appends[a].segment] = a;
        total += plan->appends[a].q_len;
    }
    if (total > INT32_MAX) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "too many new tokens");
    }
    code = schedule_grow(&b->appends, (size_t)total + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    to = b->appends.data;
    for (uint32_t a = 0; a < plan->num_appends; a++) {
        const struct relay_append *append = &plan->appends[a];
        const uint32_t *pages = plan->pages + plan->segments[append->segment].page_begin;
        for (uint32_t i = 0; i < append->q_len; i++) {
            uint32_t token = append->token_begin + i;
            *to++ = (struct relay_cuda_append){
                .io = append->io,
                .row = append->row_begin + i,
                .page = pages[token / plan->page_tokens],
                .token = token % plan->page_tokens,
            };
        }
    }
    b->pub.num_appends = (uint32_t)total;
    return RELAY_OK;
}

/* ---- units ---- */

static enum relay_code push_unit(struct schedule_builder *b, const struct relay_cuda_unit *unit,
                                 struct relay_error *err)
{
    enum relay_code code = schedule_grow(&b->units, (size_t)b->pub.num_units + 1, err);
    if (code == RELAY_OK) {
        ((struct relay_cuda_unit *)b->units.data)[b->pub.num_units++] = *unit;
    }
    return code;
}

static void set_rows(const struct schedule_builder *b, struct relay_cuda_unit *unit, uint32_t begin,
                     uint32_t end)
{
    const struct relay_plan_row *row = &b->plan->rows[begin / b->group];
    unit->packed_begin = begin;
    unit->packed_count = end - begin;
    unit->io = row->io;
    unit->row = row->row;
    if ((end - 1) / b->group == begin / b->group) {
        unit->flags |= RELAY_CUDA_ONE_ROW;
    }
}

static void set_sources(const struct schedule_builder *b, struct relay_cuda_unit *unit,
                        const struct schedule_group *group)
{
    unit->flags |= RELAY_CUDA_FINAL;
    unit->source_begin = group->source_begin;
    unit->source_count = group->source_count;
    if (group->source_count <= relay_cuda_sources_held(unit->flags)) {
        for (uint32_t i = 0; i < group->source_count; i++) {
            unit->sources[i] =
                ((const struct relay_cuda_source *)b->sources.data)[group->source_begin + i];
        }
    }
}

static void set_pages(const struct schedule_builder *b, struct relay_cuda_unit *unit,
                      const struct relay_plan_segment *segment)
{
    const struct relay_plan *plan = b->plan;
    uint32_t first =
        unit->token_begin / RELAY_CUDA_STEP_TOKENS * RELAY_CUDA_STEP_TOKENS / plan->page_tokens;
    uint32_t last = (unit->token_end - 1) / plan->page_tokens;
    unit->page_begin = segment->page_begin;
    for (uint32_t i = 0; i < RELAY_CUDA_UNIT_PAGES && first + i <= last; i++) {
        unit->pages[i] = plan->pages[segment->page_begin + first + i];
    }
}

/* How the unit's tokens fall into tiles; after narrow_heads is known. */
static void set_tiles(const struct schedule_builder *b, struct relay_cuda_unit *unit)
{
    uint32_t kind = unit->flags & RELAY_CUDA_KIND_MASK;
    uint32_t shift = kind == RELAY_CUDA_PAIR     ? 7
                     : kind == RELAY_CUDA_NARROW ? 6 - b->pub.narrow_heads / 2
                                                 : 6;
    uint32_t tokens = 1u << shift;
    uint32_t first = unit->token_begin / RELAY_CUDA_STEP_TOKENS * RELAY_CUDA_STEP_TOKENS;
    uint32_t end = unit->append_count != 0 ? schedule_min(unit->token_end, unit->append_token)
                                           : unit->token_end;
    unit->flags |= shift << RELAY_CUDA_TILE_SHIFT;
    unit->tiles = (unit->token_end - first + tokens - 1) / tokens;
    unit->whole_begin = (unit->token_begin - first + tokens - 1) / tokens;
    unit->whole_end = schedule_max(end > first ? (end - first) / tokens : 0, unit->whole_begin);
}

static enum relay_code push_split(struct schedule_builder *b, uint32_t t, uint32_t split,
                                  struct relay_error *err)
{
    const struct schedule_tile *tile = &schedule_tiles(b)[t];
    const struct relay_item *item = &b->plan->items[tile->item];
    const struct relay_plan_segment *segment = &b->plan->segments[item->segment];
    const uint32_t *append_of = b->append_of.data;
    const struct schedule_split *splits = b->splits.data;
    const uint32_t tokens = splits[item->segment].tokens;
    const uint64_t begin = (uint64_t)(tile->split_first + split) * tokens;
    struct relay_cuda_unit unit;
    memset(&unit, 0, sizeof(unit));
    unit.flags = tile->kind | (item->masked ? (uint32_t)RELAY_CUDA_MASKED : 0u) |
                 (splits[item->segment].tiles > 1 ? (uint32_t)RELAY_CUDA_SHARED : 0u);
    set_rows(b, &unit, tile->packed_begin, tile->packed_end);
    unit.token_begin = begin > item->token_begin ? (uint32_t)begin : item->token_begin;
    unit.token_end =
        begin + tokens < item->token_end ? (uint32_t)(begin + tokens) : item->token_end;
    unit.position = segment->position;
    unit.slot = tile->slot + split;
    unit.slot_stride = stored_splits(tile);
    if (tile->final && split + 1 == tile->splits) {
        set_sources(b, &unit, &((const struct schedule_group *)b->groups.data)[tile->group]);
    }
    if (append_of[item->segment] != UINT32_MAX) {
        const struct relay_append *append = &b->plan->appends[append_of[item->segment]];
        unit.append_token = append->token_begin;
        unit.append_count = append->q_len;
        unit.append_io = append->io;
        unit.append_row = append->row_begin;
    }
    set_pages(b, &unit, segment);
    return push_unit(b, &unit, err);
}

/* Producers of one kind: of each segment split by split, so that tiles on the same tokens are
 * neighbours. */
static enum relay_code push_producers(struct schedule_builder *b, uint32_t kind,
                                      struct relay_error *err)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    enum relay_code code = RELAY_OK;
    for (uint32_t t = 0, end; code == RELAY_OK && t < b->num_tiles; t = end) {
        uint32_t segment = b->plan->items[tiles[t].item].segment;
        uint32_t first = UINT32_MAX;
        uint32_t last = 0;
        for (end = t; end < b->num_tiles && b->plan->items[tiles[end].item].segment == segment;
             end++) {
            if (tiles[end].kind == kind && stored_splits(&tiles[end]) != 0) {
                first = schedule_min(first, tiles[end].split_first);
                last = schedule_max(last, tiles[end].split_first + stored_splits(&tiles[end]));
            }
        }
        for (uint32_t split = first; split < last; split++) {
            for (uint32_t i = t; code == RELAY_OK && i < end; i++) {
                if (tiles[i].kind == kind && split >= tiles[i].split_first &&
                    split - tiles[i].split_first < stored_splits(&tiles[i])) {
                    code = push_split(b, i, split - tiles[i].split_first, err);
                }
            }
        }
    }
    return code;
}

struct final_order {
    uint32_t tokens;
    uint32_t tile;
};

static int compare_finals(const void *a, const void *b)
{
    const struct final_order *x = a;
    const struct final_order *y = b;
    if (x->tokens != y->tokens) {
        return x->tokens > y->tokens ? -1 : 1;
    }
    return x->tile < y->tile ? -1 : 1;
}

/* Of one kind, the longest first, so that short ones fill the gaps at the end. */
static enum relay_code push_finals(struct schedule_builder *b, uint32_t kind,
                                   struct relay_error *err)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    struct final_order *order;
    uint32_t count = 0;
    bool sorted = true;
    enum relay_code code = schedule_grow(&b->order, (size_t)b->num_tiles + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    order = b->order.data;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        if (tiles[t].final && tiles[t].kind == kind) {
            const struct relay_item *item = &b->plan->items[tiles[t].item];
            uint32_t tokens = ((const struct schedule_split *)b->splits.data)[item->segment].tokens;
            uint64_t begin = (uint64_t)(tiles[t].split_first + tiles[t].splits - 1) * tokens;
            order[count].tokens =
                item->token_end - (begin > item->token_begin ? (uint32_t)begin : item->token_begin);
            order[count].tile = t;
            sorted = sorted && (count == 0 || order[count - 1].tokens >= order[count].tokens);
            count++;
        }
    }
    if (!sorted) {
        qsort(order, count, sizeof(*order), compare_finals);
    }
    for (uint32_t i = 0; code == RELAY_OK && i < count; i++) {
        code = push_split(b, order[i].tile, tiles[order[i].tile].splits - 1, err);
    }
    return code;
}

static enum relay_code push_merges(struct schedule_builder *b, struct relay_error *err)
{
    const struct schedule_group *groups = b->groups.data;
    enum relay_code code = RELAY_OK;
    for (uint32_t g = 0; code == RELAY_OK && g < b->num_groups; g++) {
        struct relay_cuda_unit unit;
        if (groups[g].finished) {
            continue;
        }
        memset(&unit, 0, sizeof(unit));
        unit.flags = RELAY_CUDA_MERGE;
        set_rows(b, &unit, groups[g].packed_begin, groups[g].packed_end);
        set_sources(b, &unit, &groups[g]);
        code = push_unit(b, &unit, err);
    }
    return code;
}

enum relay_code schedule_units_make(struct schedule_builder *b, struct relay_error *err)
{
    enum relay_code code = number_slots(b, err);
    if (code == RELAY_OK) {
        code = make_sources(b, err);
    }
    if (code == RELAY_OK) {
        code = make_appends(b, err);
    }
    if (code == RELAY_OK) {
        code = push_producers(b, RELAY_CUDA_PAIR, err);
    }
    b->pub.num_pairs = b->pub.num_units;
    if (code == RELAY_OK) {
        code = push_producers(b, RELAY_CUDA_WIDE, err);
    }
    if (code == RELAY_OK) {
        code = push_finals(b, RELAY_CUDA_WIDE, err);
    }
    b->pub.num_wide = b->pub.num_units;
    if (code == RELAY_OK) {
        code = push_producers(b, RELAY_CUDA_NARROW, err);
    }
    b->pub.num_produce = b->pub.num_units;
    if (code == RELAY_OK) {
        code = push_finals(b, RELAY_CUDA_NARROW, err);
    }
    b->pub.num_narrow = b->pub.num_units;
    if (code == RELAY_OK) {
        code = push_merges(b, err);
    }
    return code;
}

void schedule_units_cut(struct schedule_builder *b)
{
    struct relay_cuda_unit *units = b->units.data;
    for (uint32_t i = 0; i < b->pub.num_narrow; i++) {
        set_tiles(b, &units[i]);
    }
}
