/* Whether requests' own tokens are computed beside the prompts or after them.
 *
 * A multiprocessor has room for two warpgroups. One with many rows computes, one with few streams,
 * and neither is much slower for the other; so where requests' own tokens, unsplit and several KV
 * heads side by side, take about half of the warpgroups, prompts are best split over the other
 * half. Costs in hundredths of a step, the constants from sweeps on an H200. Pure. */
#include "cuda/schedule_internal.h"

#include "core/checked.h"

#define STREAM_STEP 200u /* of a NARROW unit when all warpgroups stream, */
#define NARROW_STEP 50u  /* and when few do */
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

/* The same with the shared ones over all warpgroups first. */
static uint64_t after_cost(const struct schedule_builder *b, const struct schedule_load loads[2],
                           uint32_t quantum)
{
    return wide_cost(b, &loads[0], quantum) + stream_cost(b, &loads[1]) + 2 * UNIT;
}

static uint32_t parts_of(const struct schedule_load *load, uint32_t quantum)
{
    return relay_ceil_div_u32(load->longest, quantum * RELAY_CUDA_STEP_TOKENS);
}

/* Whether so many KV heads may be side by side: all of them, or as told. */
static bool heads_fit(const struct schedule_builder *b, uint32_t heads)
{
    uint32_t told = b->tuning->narrow_heads;
    return b->heads % heads == 0 &&
           (told == 0 || heads == told || (heads < told && b->heads % (2 * heads) != 0));
}

uint32_t schedule_beside(const struct schedule_builder *b, const struct schedule_load loads[2],
                         uint32_t *heads)
{
    uint32_t slots = schedule_warpgroups(b);
    uint32_t found = 0;
    uint32_t quantum, all;
    uint64_t best;
    if (b->geometry->one_head || b->tuning->shared_splits != 0 || b->tuning->own_splits != 0 ||
        loads[0].kinds != 1u << RELAY_CUDA_WIDE || loads[1].kinds != 1u << RELAY_CUDA_NARROW ||
        loads[0].tiles > slots / 2 || loads[1].tiles <= slots / 2 || loads[0].cut || loads[1].cut) {
        return 0;
    }
    quantum = schedule_max(shared_quantum(b, &loads[0], slots / 2), SCHEDULE_STEPS_LEAST);
    all = shared_quantum(b, &loads[0], slots);
    if (parts_of(&loads[0], all) > SCHEDULE_SPLITS_MOST) {
        return 0;
    }
    best = after_cost(b, loads, all) + parts_of(&loads[0], all) * SCHEDULE_SLOT_COST;
    for (uint32_t h = 1; h <= 4; h *= 2) {
        uint64_t cost = heads_fit(b, h) ? beside_cost(b, loads, quantum, h) : UINT64_MAX;
        if (cost < best &&
            (cost += parts_of(&loads[0], quantum) * SCHEDULE_SLOT_COST + cost / 64) < best) {
            best = cost;
            found = quantum;
            *heads = h;
        }
    }
    return found;
}
