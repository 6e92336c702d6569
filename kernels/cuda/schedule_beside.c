/* Whether requests' own tokens are computed beside the prompts or after them.
 *
 * A multiprocessor has room for two warpgroups. One with many rows computes, one with few streams,
 * and neither is much slower for the other; so where requests' own tokens, unsplit and several KV
 * heads side by side, take about half of the warpgroups, prompts are best split over the other
 * half. Costs in hundredths of a step, the constants from sweeps on an H200.
 *
 * Where there is more to stream than at once, it must not wait for prompts: early tiles of these
 * finish their rows themselves, with what of theirs was streamed meanwhile (sharing.h says when
 * that pays). Pure. */
#include "cuda/schedule_internal.h"

#include "core/checked.h"
#include "cuda/sharing.h"

#include <string.h>

#define STREAM_STEP 200u /* of a NARROW unit when all warpgroups stream, */
#define NARROW_STEP 80u  /* and when few do */
#define UNIT        250u /* a unit's beginning and end */

/* Units of the shared segments, in warpgroups. */
static uint64_t shared_units(const struct schedule_builder *b, uint32_t quantum)
{
    const struct schedule_split *splits = b->splits.data;
    uint64_t units = 0;
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        if (b->plan->segments[s].shared) {
            units += (uint64_t)splits[s].tiles * b->heads *
                     relay_ceil_div_u32(splits[s].steps, quantum) *
                     schedule_groups_of(splits[s].kind);
        }
    }
    return units;
}

/* The fewest steps of a unit with which the shared segments, of no more than `slots` tiles, are in
 * no more than `slots` units. */
static uint32_t shared_quantum(const struct schedule_builder *b, const struct schedule_load *load,
                               uint32_t slots)
{
    uint32_t longest = relay_ceil_div_u32(load->longest, RELAY_CUDA_STEP_TOKENS) + 1;
    uint32_t low = 1;
    while (low < longest) {
        uint32_t middle = low + (longest - low) / 2;
        if (shared_units(b, middle) <= slots) {
            longest = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Hundredths of a step that memory takes for that. */
static uint64_t stream_cost(const struct schedule_builder *b, const struct schedule_load *load)
{
    return load->stored * STREAM_STEP / ((uint64_t)schedule_warpgroups(b) * RELAY_CUDA_STEP_TOKENS);
}

static uint64_t wide_cost(const struct schedule_builder *b, const struct schedule_load *load,
                          uint32_t quantum)
{
    return max_u64(quantum * SCHEDULE_WIDE_STEP + UNIT, stream_cost(b, load));
}

/* Hundredths of a step until own tokens, `heads` side by side, and shared ones in units of
 * `quantum` are done, those beside these, but what there is no room for after them; UINT64_MAX
 * where that is more than one unit for each warpgroup. */
static uint64_t beside_cost(const struct schedule_builder *b, const struct schedule_load loads[2],
                            uint32_t quantum, uint32_t heads)
{
    uint64_t slots = schedule_warpgroups(b);
    uint64_t shared = shared_units(b, quantum);
    uint64_t own = (loads[1].tiles + heads - 1) / heads;
    uint64_t later = own > slots - shared ? own - (slots - shared) : 0;
    uint64_t step = max_u64(NARROW_STEP, STREAM_STEP * (later != 0 ? later : own) / slots);
    uint64_t wide = wide_cost(b, &loads[0], quantum);
    uint64_t least = stream_cost(b, &loads[0]) + stream_cost(b, &loads[1]) + UNIT;
    /* The longest come first: those that come later are no longer than the mean. */
    uint64_t tokens = later != 0 ? loads[1].stored / loads[1].tiles : loads[1].longest;
    uint64_t narrow = tokens * heads * step / RELAY_CUDA_STEP_TOKENS + UNIT;
    if (later > shared) {
        return UINT64_MAX;
    }
    if (later != 0) {
        return max_u64((wide + narrow) * 11 / 8, least + wide / 4);
    }
    narrow += narrow / 12; /* fewer warpgroups stream a little slower than all */
    return max_u64(wide > narrow ? wide + narrow / 4 : narrow + wide / 4, least);
}

static uint32_t parts_of(const struct schedule_load *load, uint32_t quantum)
{
    return relay_ceil_div_u32(load->longest, quantum * RELAY_CUDA_STEP_TOKENS);
}

/* The same with the shared ones over all warpgroups first, and with the partial results. */
static uint64_t after_cost(const struct schedule_builder *b, const struct schedule_load loads[2],
                           uint32_t quantum)
{
    return wide_cost(b, &loads[0], quantum) + stream_cost(b, &loads[1]) + 2 * UNIT +
           parts_of(&loads[0], quantum) * SCHEDULE_SLOT_COST;
}

/* Whether so many KV heads may be side by side: all of them, or as told. */
static bool heads_fit(const struct schedule_builder *b, uint32_t heads)
{
    uint32_t told = b->tuning->narrow_heads;
    return b->heads % heads == 0 &&
           (told == 0 || heads == told || (heads < told && b->heads % (2 * heads) != 0));
}

/* With early tiles, by cost or as told: the steps of a shared unit, or 0. */
static uint32_t early_quantum(struct schedule_builder *b, const struct schedule_load loads[2])
{
    const struct relay_cuda_tuning *t = b->tuning;
    uint32_t slots = schedule_warpgroups(b);
    struct relay_cuda_beside beside = {0, 2, t->early_tiles};
    if (!b->geometry->finals || !b->geometry->fused) {
        return 0;
    }
    if (t->early_tiles != 0) {
        beside.quantum =
            schedule_max(shared_quantum(b, &loads[0], slots / 2), SCHEDULE_STEPS_LEAST);
    } else if (!relay_cuda_is_beside(b->plan, b->heads, b->group, slots, &beside)) {
        return 0;
    }
    b->narrow_heads = t->narrow_heads != 0 ? t->narrow_heads : beside.narrow_heads;
    while (b->heads % b->narrow_heads != 0) {
        b->narrow_heads /= 2;
    }
    b->early_tiles = beside.early_tiles;
    return beside.quantum;
}

/* Shared tiles of many rows alone, and own ones of few, all from their segment's first token on. */
static bool is_plain(const struct schedule_load loads[2])
{
    return loads[0].kinds == 1u << RELAY_CUDA_WIDE && loads[1].kinds == 1u << RELAY_CUDA_NARROW &&
           !loads[0].cut && !loads[1].cut;
}

uint64_t schedule_after_cost(const struct schedule_builder *b, const struct schedule_load loads[2])
{
    uint32_t slots = schedule_warpgroups(b);
    return is_plain(loads) && loads[0].tiles <= slots
               ? after_cost(b, loads, shared_quantum(b, &loads[0], slots))
               : UINT64_MAX;
}

uint32_t schedule_beside(struct schedule_builder *b, const struct schedule_load loads[2])
{
    uint32_t slots = schedule_warpgroups(b);
    uint32_t found, quantum, all;
    uint64_t best;
    if (b->geometry->one_head || b->tuning->shared_splits != 0 || b->tuning->own_splits != 0 ||
        !is_plain(loads) || loads[0].tiles > slots / 2) {
        return 0;
    }
    found = early_quantum(b, loads);
    if (found != 0 || loads[1].tiles <= slots / 2) {
        return found;
    }
    quantum = schedule_max(shared_quantum(b, &loads[0], slots / 2), SCHEDULE_STEPS_LEAST);
    all = shared_quantum(b, &loads[0], slots);
    if (parts_of(&loads[0], all) > SCHEDULE_SPLITS_MOST) {
        return 0;
    }
    best = after_cost(b, loads, all);
    for (uint32_t h = 1; h <= 4; h *= 2) {
        uint64_t cost = heads_fit(b, h) ? beside_cost(b, loads, quantum, h) : UINT64_MAX;
        if (cost < best &&
            (cost += parts_of(&loads[0], quantum) * SCHEDULE_SLOT_COST + cost / 64) < best) {
            best = cost;
            found = quantum;
            b->narrow_heads = h;
        }
    }
    return found;
}

/* Whether the tile's rows have the same shared tiles, this one last of them, and then one partial
 * result of their own each, numbered as the rows are: what one FINAL unit can merge. */
static bool is_followed(const struct schedule_builder *b, const struct schedule_tile *tile)
{
    const struct schedule_tile *tiles = schedule_tiles(b);
    const uint32_t *begin = b->cover_begin.data;
    const uint32_t *covers = b->covers.data;
    const uint32_t first = tile->packed_begin / b->group;
    const uint32_t shared = begin[first + 1] - begin[first] - 1;
    uint32_t own = covers[begin[first + 1] - 1];
    if (b->atoms_of_row != 1 || shared == 0 || &tiles[covers[begin[first] + shared - 1]] != tile ||
        tiles[own].packed_begin != tile->packed_begin) {
        return false;
    }
    for (uint32_t row = first; row * b->group < tile->packed_end; row++) {
        const uint32_t *of = covers + begin[row];
        if (row * b->group == tiles[own].packed_end) {
            own++;
        }
        if (begin[row + 1] - begin[row] != shared + 1 || of[shared] != own ||
            tiles[own].kind != RELAY_CUDA_NARROW || tiles[own].splits != 1 ||
            memcmp(of, covers + begin[first], shared * sizeof(*of)) != 0) {
            return false;
        }
    }
    return tiles[own].packed_end == tile->packed_end;
}

void schedule_beside_mark(struct schedule_builder *b)
{
    struct schedule_tile *tiles = schedule_tiles(b);
    uint32_t left = b->early_tiles;
    uint64_t units = 0;
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        units += tiles[t].kind == RELAY_CUDA_WIDE ? (uint64_t)tiles[t].splits * b->heads : 0;
    }
    if (units > schedule_warpgroups(b) / 2) {
        return; /* all of them must begin with the launch */
    }
    for (uint32_t t = 0; t < b->num_tiles && left != 0; t++) {
        if (tiles[t].kind == RELAY_CUDA_WIDE && is_followed(b, &tiles[t])) {
            tiles[t].final = true;
            b->pub.beside = true;
            left--;
        }
    }
}
