/* Tiles, covers and groups of a schedule, and the order of a build. See schedule.h. */
#include "cuda/schedule_internal.h"

#include "core/checked.h"
#include "cuda/sharing.h"

#include <stdlib.h>
#include <string.h>

enum relay_code schedule_grow(struct schedule_array *array, size_t n, struct relay_error *err)
{
    size_t capacity;
    size_t bytes;
    void *data;
    if (n <= array->capacity) {
        return RELAY_OK;
    }
    capacity = n > SIZE_MAX / 2 ? n : n + n / 2 + 16;
    if (!relay_checked_mul(capacity, array->elem, &bytes)) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "a schedule of %zu elements", n);
    }
    data = realloc(array->data, bytes);
    if (data == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a schedule of %zu bytes",
                          bytes);
    }
    array->data = data;
    array->capacity = capacity;
    return RELAY_OK;
}

enum relay_code relay_cuda_schedule_create(struct relay_cuda_schedule **out,
                                           struct relay_error *err)
{
    struct schedule_builder *b = calloc(1, sizeof(*b));
    if (b == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a schedule");
    }
    b->units.elem = sizeof(struct relay_cuda_unit);
    b->sources.elem = sizeof(struct relay_cuda_source);
    b->appends.elem = sizeof(struct relay_cuda_append);
    b->tiles.elem = sizeof(struct schedule_tile);
    b->splits.elem = sizeof(struct schedule_split);
    b->cover_begin.elem = sizeof(uint32_t);
    b->covers.elem = sizeof(uint32_t);
    b->groups.elem = sizeof(struct schedule_group);
    b->order.elem = 2 * sizeof(uint32_t);
    b->append_of.elem = sizeof(uint32_t);
    *out = &b->pub;
    return RELAY_OK;
}

void relay_cuda_schedule_destroy(struct relay_cuda_schedule *schedule)
{
    struct schedule_builder *b = (struct schedule_builder *)schedule;
    if (b == NULL) {
        return;
    }
    free(b->units.data);
    free(b->sources.data);
    free(b->appends.data);
    free(b->tiles.data);
    free(b->splits.data);
    free(b->cover_begin.data);
    free(b->covers.data);
    free(b->groups.data);
    free(b->order.data);
    free(b->append_of.data);
    free(b);
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* Whether the item's segment is some request's own and several rows read it, in whatever items. */
static bool is_own_of_several(const struct schedule_builder *b, uint32_t i)
{
    const struct relay_item *items = b->plan->items;
    uint32_t segment = items[i].segment;
    return !b->plan->segments[segment].shared &&
           (items[i].row_count > 1 || (i != 0 && items[i - 1].segment == segment) ||
            (i + 1 < b->plan->num_items && items[i + 1].segment == segment));
}

/* Batch-invariant kinds follow from the segment, not from the rows that an item happens to have.
 * And the last few rows of many go like the others: else they would be alone with all the tokens.
 */
static uint32_t kind_of(const struct schedule_builder *b, uint32_t item, uint32_t packed)
{
    const struct relay_item *of = &b->plan->items[item];
    bool shared = b->plan->segments[of->segment].shared;
    bool rest = packed < of->row_count * b->group || relay_cuda_is_rest(b->plan, b->group, item);
    bool wide = b->tuning->batch_invariant ? shared || is_own_of_several(b, item) : shared && rest;
    if (packed <= RELAY_CUDA_ROWS_NARROW && !wide) {
        return RELAY_CUDA_NARROW;
    }
    return b->geometry->pair ? RELAY_CUDA_PAIR : RELAY_CUDA_WIDE;
}

static enum relay_code add_tile(struct schedule_builder *b, uint32_t item, uint32_t begin,
                                uint32_t end, struct relay_error *err)
{
    enum relay_code code = schedule_grow(&b->tiles, (size_t)b->num_tiles + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    schedule_tiles(b)[b->num_tiles++] = (struct schedule_tile){
        .item = item,
        .packed_begin = begin,
        .packed_end = end,
        .kind = kind_of(b, item, end - begin),
    };
    return RELAY_OK;
}

/* Tiles of whole plan rows, or of pieces of one row where its heads alone are too many. */
static enum relay_code make_tiles(struct schedule_builder *b, struct relay_error *err)
{
    uint32_t most = b->geometry->pair ? RELAY_CUDA_ROWS_PAIR : RELAY_CUDA_ROWS_WIDE;
    uint32_t tile = b->group <= most ? most / b->group * b->group : most;
    enum relay_code code = RELAY_OK;
    for (uint32_t i = 0; i < b->plan->num_items; i++) {
        const struct relay_item *item = &b->plan->items[i];
        uint32_t begin = item->row_begin * b->group;
        uint32_t end = begin + item->row_count * b->group;
        uint32_t row_end;
        for (uint32_t at = begin; code == RELAY_OK && at < end; at = row_end) {
            row_end = end - at < tile ? end : at + tile;
            if (b->group > most && row_end > at / b->group * b->group + b->group) {
                row_end = at / b->group * b->group + b->group;
            }
            code = add_tile(b, i, at, row_end, err);
        }
    }
    return code;
}

/* ---- covers ------------------------------------------------------------------------------------
 *
 * An atom is the packed rows of one plan row, or 16 of them where a row has more. */

static uint32_t atom_of(const struct schedule_builder *b, uint32_t packed)
{
    return packed / b->group * b->atoms_of_row + packed % b->group / b->atom_rows;
}

static enum relay_code make_covers(struct schedule_builder *b, struct relay_error *err)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    size_t atoms = (size_t)b->plan->num_rows * b->atoms_of_row;
    uint32_t *begin;
    uint32_t *covers;
    uint64_t total = 0;
    enum relay_code code = schedule_grow(&b->cover_begin, atoms + 2, err);
    if (code != RELAY_OK) {
        return code;
    }
    begin = b->cover_begin.data;
    memset(begin, 0, (atoms + 2) * sizeof(*begin));
    /* Counted two places on, so that filling moves every begin to where it belongs. */
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        uint32_t last = atom_of(b, tiles[t].packed_end - 1);
        for (uint32_t a = atom_of(b, tiles[t].packed_begin); a <= last; a++) {
            begin[a + 2]++;
            total++;
        }
    }
    if (total > UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "a schedule of too many pieces");
    }
    for (size_t a = 2; a < atoms + 2; a++) {
        begin[a] += begin[a - 1];
    }
    code = schedule_grow(&b->covers, (size_t)total + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    covers = b->covers.data;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        uint32_t last = atom_of(b, tiles[t].packed_end - 1);
        for (uint32_t a = atom_of(b, tiles[t].packed_begin); a <= last; a++) {
            covers[begin[a + 1]++] = t;
        }
    }
    return RELAY_OK;
}

static bool same_covers(const struct schedule_builder *b, uint32_t x, uint32_t y)
{
    const uint32_t *begin = b->cover_begin.data;
    const uint32_t *covers = b->covers.data;
    uint32_t n = begin[x + 1] - begin[x];
    return n == begin[y + 1] - begin[y] &&
           (n == 0 || memcmp(covers + begin[x], covers + begin[y], n * sizeof(*covers)) == 0);
}

/* A tile whose rows have only it needs no merge once it is not split either. */
static void mark_alone(struct schedule_builder *b)
{
    struct schedule_tile *tiles = schedule_tiles(b);
    const uint32_t *begin = b->cover_begin.data;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        uint32_t last = atom_of(b, tiles[t].packed_end - 1);
        tiles[t].alone = true;
        for (uint32_t a = atom_of(b, tiles[t].packed_begin); a <= last; a++) {
            tiles[t].alone = tiles[t].alone && begin[a + 1] - begin[a] == 1;
        }
    }
}

/* ---- groups ------------------------------------------------------------------------------------
 */

static enum relay_code add_group(struct schedule_builder *b, uint32_t atom, uint32_t begin,
                                 uint32_t end, bool finished, struct relay_error *err)
{
    const uint32_t *cover_begin = b->cover_begin.data;
    enum relay_code code = schedule_grow(&b->groups, (size_t)b->num_groups + 1, err);
    if (code == RELAY_OK) {
        ((struct schedule_group *)b->groups.data)[b->num_groups++] = (struct schedule_group){
            .packed_begin = begin,
            .packed_end = end,
            .cover_begin = cover_begin[atom],
            .cover_count = cover_begin[atom + 1] - cover_begin[atom],
            .finished = finished,
        };
    }
    return code;
}

/* Warpgroups that all tiles' splits take. */
static uint64_t count_units(const struct schedule_builder *b)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    uint64_t units = 0;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        units += (uint64_t)tiles[t].splits * schedule_groups_of(tiles[t].kind);
    }
    return units * b->heads;
}

/* Partial results of a row of this atom. */
static uint32_t count_parts(const struct schedule_builder *b, uint32_t atom)
{
    const uint32_t *cover_begin = b->cover_begin.data;
    const uint32_t *covers = b->covers.data;
    uint32_t parts = 0;
    for (uint32_t i = cover_begin[atom]; i < cover_begin[atom + 1]; i++) {
        parts += schedule_tiles(b)[covers[i]].splits;
    }
    return parts;
}

/* Merging many partial results takes longer than anything else in a short step. Of how many on a
 * row has a warpgroup to itself, where there are enough, or four rows do, a warp's whole width to a
 * row, where some are free: sooner where rows are few. */
struct merge_limits {
    uint32_t spread;
    uint32_t four;
};
#define MERGE_FEW  64u
#define MERGE_ROWS 4u

static uint64_t packed_rows(const struct schedule_builder *b)
{
    return (uint64_t)b->plan->num_rows * b->group * b->heads;
}

static struct merge_limits merge_limits(const struct schedule_builder *b)
{
    return packed_rows(b) <= MERGE_FEW ? (struct merge_limits){.spread = 16, .four = 8}
                                       : (struct merge_limits){.spread = 24, .four = 20};
}

bool schedule_spreads(const struct schedule_builder *b, uint32_t parts)
{
    return b->geometry->fused && !b->tuning->batch_invariant && parts > merge_limits(b).spread &&
           packed_rows(b) <= schedule_warpgroups(b);
}

/* How many packed rows may be finished together. */
static uint32_t rows_together(const struct schedule_builder *b, uint64_t units, uint32_t atom)
{
    const uint64_t pieces =
        (uint64_t)b->plan->num_rows * b->heads * relay_ceil_div_u32(b->group, MERGE_ROWS);
    const bool fours = b->atom_rows > MERGE_ROWS && units + pieces <= schedule_warpgroups(b);
    uint32_t parts;
    if (!b->geometry->fused || b->tuning->batch_invariant ||
        (!fours && packed_rows(b) > schedule_warpgroups(b))) {
        return RELAY_CUDA_ROWS_NARROW;
    }
    parts = count_parts(b, atom);
    if (schedule_spreads(b, parts)) {
        return 1;
    }
    return fours && parts > merge_limits(b).four ? MERGE_ROWS : RELAY_CUDA_ROWS_NARROW;
}

/* The tile of many rows that finishes an atom's rows, or NULL. */
static struct schedule_tile *early_tile(const struct schedule_builder *b, uint32_t atom)
{
    const uint32_t *cover_begin = b->cover_begin.data;
    const uint32_t *covers = b->covers.data;
    struct schedule_tile *tile;
    if (cover_begin[atom + 1] - cover_begin[atom] < 2) {
        return NULL;
    }
    tile = &schedule_tiles(b)[covers[cover_begin[atom + 1] - 2]];
    return tile->final && tile->kind != RELAY_CUDA_NARROW ? tile : NULL;
}

/* Neighbouring rows with the same tiles go together, up to 16 packed ones; or all of an early tile.
 */
static enum relay_code make_groups(struct schedule_builder *b, struct relay_error *err)
{
    uint32_t atoms = b->plan->num_rows * b->atoms_of_row;
    uint64_t units = count_units(b);
    enum relay_code code = RELAY_OK;
    for (uint32_t a = 0; code == RELAY_OK && a < atoms;) {
        struct schedule_tile *early = early_tile(b, a);
        uint32_t row = a / b->atoms_of_row;
        uint32_t begin = row * b->group + a % b->atoms_of_row * b->atom_rows;
        uint32_t end = begin + b->atom_rows;
        uint32_t first = a++;
        uint32_t most;
        if (early != NULL) {
            early->group = b->num_groups;
            code = add_group(b, first, early->packed_begin, early->packed_end, true, err);
            a = atom_of(b, early->packed_end - 1) + 1;
            continue;
        }
        most = rows_together(b, units, first);
        if (end > (row + 1) * b->group) {
            end = (row + 1) * b->group;
        }
        while (b->atoms_of_row == 1 && a < atoms && end + b->group - begin <= most &&
               same_covers(b, first, a)) {
            end += b->group;
            a++;
        }
        for (; code == RELAY_OK && begin < end; begin += most) {
            code = add_group(b, first, begin, end - begin < most ? end : begin + most, false, err);
        }
    }
    return code;
}

/* Who finishes each group that no early tile does: its last tile, if that is the group's alone,
 * else a MERGE unit. */
static void choose_finals(struct schedule_builder *b)
{
    struct schedule_tile *tiles = schedule_tiles(b);
    struct schedule_group *groups = b->groups.data;
    const uint32_t *covers = b->covers.data;
    for (uint32_t g = 0; g < b->num_groups; g++) {
        struct schedule_tile *last;
        if (groups[g].cover_count == 0 || groups[g].finished) {
            continue;
        }
        last = &tiles[covers[groups[g].cover_begin + groups[g].cover_count - 1]];
        if (last->kind == RELAY_CUDA_NARROW && last->packed_begin == groups[g].packed_begin &&
            last->packed_end == groups[g].packed_end &&
            (b->geometry->fused || (last->alone && last->splits == 1))) {
            last->final = true;
            last->group = g;
            groups[g].finished = true;
        }
    }
}

/* ---- build -------------------------------------------------------------------------------------
 */

static enum relay_code build(struct schedule_builder *b, struct relay_error *err)
{
    enum relay_code code;
    if ((uint64_t)b->plan->num_rows * b->group > INT32_MAX) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%u rows of %u heads are too many",
                          b->plan->num_rows, b->group);
    }
    b->atom_rows = b->group < RELAY_CUDA_ROWS_NARROW ? b->group : RELAY_CUDA_ROWS_NARROW;
    b->atoms_of_row = relay_ceil_div_u32(b->group, b->atom_rows);
    code = make_tiles(b, err);
    if (code == RELAY_OK) {
        code = make_covers(b, err);
    }
    if (code == RELAY_OK) {
        mark_alone(b);
        code = schedule_split_choose(b, err);
    }
    if (code == RELAY_OK) {
        schedule_beside_mark(b);
        code = make_groups(b, err);
    }
    if (code == RELAY_OK) {
        choose_finals(b);
        code = schedule_units_make(b, err);
    }
    if (code == RELAY_OK) {
        b->pub.narrow_heads = schedule_narrow_heads(b);
        schedule_units_cut(b);
    }
    return code;
}

enum relay_code relay_cuda_schedule_build(struct relay_cuda_schedule *schedule,
                                          const struct relay_plan *plan, uint32_t num_kv_heads,
                                          uint32_t group,
                                          const struct relay_cuda_geometry *geometry,
                                          const struct relay_cuda_tuning *tuning,
                                          struct relay_error *err)
{
    struct schedule_builder *b = (struct schedule_builder *)schedule;
    enum relay_code code;
    memset(&b->pub, 0, sizeof(b->pub));
    b->plan = plan;
    b->geometry = geometry;
    b->tuning = tuning;
    b->heads = num_kv_heads;
    b->group = group;
    b->num_tiles = 0;
    b->num_groups = 0;
    code = build(b, err);
    if (code == RELAY_OK) {
        b->pub.units = b->units.data;
        b->pub.sources = b->sources.data;
        b->pub.appends = b->appends.data;
    } else {
        memset(&b->pub, 0, sizeof(b->pub));
    }
    b->plan = NULL;
    b->geometry = NULL;
    b->tuning = NULL;
    return code;
}
