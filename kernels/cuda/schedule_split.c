/* Into how many splits the tiles of a segment are cut, by cost.
 *
 * All tiles of a segment share its splits, so that those on the same tokens run side by side and
 * meet them in L2. Costs are counted in steps (64 tokens of one warpgroup); the constants come from
 * sweeps on an H200. Pure. */
#include "cuda/schedule_internal.h"

#include "core/checked.h"

#define UNIT_STEPS   3u   /* what a NARROW unit's beginning and end cost */
#define ROWS_OF_COST 100u /* packed rows whose partial results cost a hundredth of a step */
/* Batch-invariant splits follow from the segment's length alone. */
#define INVARIANT_SHARED_STEPS 8u
#define INVARIANT_OWN_STEPS    16u
#define INVARIANT_SPLITS_MOST  16u

static void survey(struct schedule_builder *b, struct schedule_load loads[2])
{
    struct schedule_split *splits = b->splits.data;
    const struct schedule_tile *tiles = schedule_tiles(b);
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        splits[s] = (struct schedule_split){0, 0, 0, RELAY_CUDA_NARROW};
    }
    loads[0] = loads[1] = (struct schedule_load){0};
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        const struct relay_item *item = &b->plan->items[tiles[t].item];
        struct schedule_split *split = &splits[item->segment];
        struct schedule_load *load = &loads[b->plan->segments[item->segment].shared ? 0 : 1];
        uint32_t steps = schedule_steps(item);
        uint32_t tokens = item->token_end - item->token_begin;
        bool seen = split->tiles != 0;
        split->steps = schedule_max(split->steps, steps);
        split->kind = schedule_max(split->kind, tiles[t].kind);
        split->tiles++;
        load->steps += (uint64_t)steps * b->heads * schedule_groups_of(tiles[t].kind);
        load->longest = schedule_max(load->longest, tokens);
        load->stored += seen ? 0 : (uint64_t)tokens * b->heads;
        load->kinds |= 1u << tiles[t].kind;
        load->cut = load->cut || item->token_begin != 0;
        load->tiles += (uint64_t)b->heads * schedule_groups_of(tiles[t].kind);
    }
}

/* The count that makes the longest warpgroup's work least: rounds of splits, their lengths, and
 * what each more partial result costs. `units`: tiles times heads that are split alike, in
 * warpgroups; `slots`: warpgroups. `longer`: than most of its kind, so that shorter ones fill the
 * rounds; then the mean and half a split. */
static uint32_t cheapest(uint32_t steps, uint64_t units, uint32_t slots, uint32_t least,
                         uint32_t slot_cost, bool longer)
{
    uint32_t most = schedule_min(schedule_max(steps / least, 1), SCHEDULE_SPLITS_MOST);
    uint32_t best = 1;
    uint64_t best_cost = UINT64_MAX;
    for (uint32_t n = 1; n <= most; n++) {
        uint64_t rounds = (units * n + slots - 1) / slots;
        uint64_t merge = n == 1 ? 0 : (uint64_t)n * slot_cost;
        uint64_t each = relay_ceil_div_u32(steps, n) * 100u + 100u;
        uint64_t cost =
            merge + (longer && rounds > 1 ? units * n * each / slots + each / 2 : rounds * each);
        if (cost < best_cost) {
            best_cost = cost;
            best = n;
        }
    }
    return best;
}

#define UNIT 300u /* a unit's beginning and end, hundredths of a step */

/* To merge so many partial results of a row. */
static uint32_t merge_cost(const struct schedule_builder *b, uint32_t parts)
{
    return schedule_spreads(b, parts) ? 200 + parts * 5 / 2 : parts * 10;
}

/* What units of `quantum` steps cost that run at once, the requests' own after the shared ones
 * where there is no room beside them; UINT64_MAX where there are too many shared ones for that.
 * Hundredths of a step. */
static uint64_t wave_cost(const struct schedule_builder *b, uint32_t quantum)
{
    const struct schedule_split *splits = b->splits.data;
    uint32_t slots = schedule_warpgroups(b);
    uint64_t units[2] = {0, 0}; /* shared, own; in warpgroups */
    uint32_t own_steps = 0;
    uint32_t parts = 0;
    bool pairs = false;
    uint64_t later;
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        uint32_t n = relay_ceil_div_u32(splits[s].steps, quantum);
        bool shared = b->plan->segments[s].shared;
        units[shared ? 0 : 1] +=
            (uint64_t)splits[s].tiles * n * b->heads * schedule_groups_of(splits[s].kind);
        if (splits[s].tiles != 0) {
            parts = schedule_max(parts, n);
            pairs = pairs || splits[s].kind == RELAY_CUDA_PAIR;
            own_steps = shared ? own_steps : schedule_max(own_steps, splits[s].steps);
        }
    }
    if (units[0] > slots || parts > SCHEDULE_SPLITS_MOST ||
        (!pairs && units[0] + units[1] > slots)) {
        return UINT64_MAX;
    }
    later = units[0] + units[1] > slots ? units[0] + units[1] - slots : 0;
    return (uint64_t)quantum * 100u + merge_cost(b, parts) +
           (later + slots - 1) / slots * (schedule_min(quantum, own_steps) * 100u + UNIT);
}

/* The steps of a unit, the same for all segments, with which all units run at once and the step is
 * soonest done; 0 where there are too many tiles for that, or shared ones first and own ones then
 * are sooner done. */
static uint32_t one_wave(const struct schedule_builder *b, const struct schedule_load loads[2])
{
    const struct schedule_split *splits = b->splits.data;
    uint32_t longest = 0;
    uint32_t best = 0;
    uint64_t best_cost = UINT64_MAX;
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        longest = splits[s].tiles != 0 ? schedule_max(longest, splits[s].steps) : longest;
    }
    /* Larger quanta come in larger strides: near ones differ little. */
    for (uint32_t q = SCHEDULE_STEPS_LEAST; q < 2 * longest; q += schedule_max(q / 8, 1)) {
        uint64_t cost = wave_cost(b, q);
        if (cost < best_cost) {
            best_cost = cost;
            best = q;
        }
        if (longest <= q) {
            break;
        }
    }
    return best_cost <= schedule_after_cost(b, loads) ? best : 0;
}

/* With all own units of `quantum` steps at work at once, the steps of a shared one: warpgroups that
 * are left are worth taking, so that prompts are done before the requests' own tokens. */
static uint32_t shared_wave(const struct schedule_builder *b, uint32_t quantum)
{
    const struct schedule_split *splits = b->splits.data;
    uint32_t slots = schedule_warpgroups(b);
    uint64_t own_units = 0;
    uint32_t own_steps = 0;
    uint32_t best = quantum;
    uint64_t best_cost = UINT64_MAX;
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        if (splits[s].kind == RELAY_CUDA_PAIR) {
            return quantum; /* its units have the multiprocessors to themselves */
        }
        if (!b->plan->segments[s].shared) {
            own_units +=
                (uint64_t)splits[s].tiles * b->heads * relay_ceil_div_u32(splits[s].steps, quantum);
            own_steps = schedule_max(own_steps, schedule_min(splits[s].steps, quantum));
        }
    }
    for (uint32_t q = quantum; own_units != 0 && q >= SCHEDULE_STEPS_LEAST;
         q -= schedule_max(q / 8, 1)) {
        uint64_t units = own_units;
        uint32_t steps = 0;
        uint32_t parts = 0;
        uint64_t own = own_steps * 100u;
        uint64_t shared;
        uint64_t cost;
        for (uint32_t s = 0; s < b->plan->num_segments; s++) {
            if (b->plan->segments[s].shared && splits[s].tiles != 0) {
                uint32_t n = relay_ceil_div_u32(splits[s].steps, q);
                units += (uint64_t)splits[s].tiles * b->heads * n;
                steps = schedule_max(steps, relay_ceil_div_u32(splits[s].steps, n));
                parts = schedule_max(parts, n);
            }
        }
        if (units > slots || parts > SCHEDULE_SPLITS_MOST) {
            break;
        }
        /* The later of the two, and a little for the memory that both want. */
        shared = (uint64_t)steps * SCHEDULE_WIDE_STEP;
        cost = (own > shared ? own + shared / 4 : shared + own / 4) + merge_cost(b, parts);
        if (cost + cost / 20 < best_cost) { /* more partial results must be worth it */
            best_cost = cost;
            best = q;
        }
    }
    return best;
}

/* Up to so many steps, where own tokens take twice as long, wide units are quicker alone on a
 * multiprocessor, beside own tokens, than half as long with a second one there. */
#define APART_STEPS 16u

/* A partial result more of every row: more where there are many rows, whose outputs go to L2 and
 * back. */
static uint32_t slot_cost_of(const struct schedule_builder *b)
{
    uint64_t rows = (uint64_t)b->plan->num_rows * b->group * b->heads;
    return SCHEDULE_SLOT_COST + (uint32_t)schedule_min((uint32_t)(rows / ROWS_OF_COST), 1000u);
}

static uint32_t splits_of(const struct schedule_builder *b, const struct schedule_split *split,
                          bool shared, const struct schedule_load loads[2],
                          const uint32_t quanta[2])
{
    const struct relay_cuda_tuning *tuning = b->tuning;
    uint32_t slots = schedule_warpgroups(b);
    uint32_t least = tuning->steps_least != 0 ? tuning->steps_least
                     : shared                 ? 1
                                              : SCHEDULE_STEPS_LEAST;
    uint32_t slot_cost = tuning->slot_cost != 0 ? tuning->slot_cost : slot_cost_of(b);
    uint32_t fixed = shared ? tuning->shared_splits : tuning->own_splits;
    uint32_t quantum = quanta[shared ? 0 : 1];
    const struct schedule_load *load = &loads[shared ? 0 : 1];
    uint64_t units;
    uint32_t unit;
    uint32_t n;
    bool longer;
    if (fixed != 0) {
        return fixed;
    }
    if (quantum != 0) {
        return relay_ceil_div_u32(split->steps, quantum);
    }
    /* Few own tokens: they take their warpgroups, the prompts split over the others. */
    if (shared && loads[1].tiles < slots / 2) {
        slots -= (uint32_t)loads[1].tiles;
    }
    if (!shared && load->steps >= (uint64_t)slots * split->steps) {
        return 1; /* enough to do without */
    }
    /* As if all were as long as this one: so many units of it make the same work. */
    units = (load->steps + split->steps - 1) / split->steps;
    if (shared && split->kind == RELAY_CUDA_WIDE) {
        n = cheapest(split->steps, units, schedule_max(slots / 2, 1), least, slot_cost, false);
        unit = relay_ceil_div_u32(split->steps, n);
        if (unit <= APART_STEPS && 2 * unit * slots <= loads[1].steps) {
            return n;
        }
    }
    longer = !shared && (uint64_t)split->steps * load->tiles * 5 > load->steps * 6;
    return cheapest(split->steps, units, slots, least, slot_cost, longer);
}

static uint32_t invariant_steps(const struct relay_plan_segment *segment)
{
    uint32_t steps = relay_ceil_div_u32(segment->tokens, RELAY_CUDA_STEP_TOKENS);
    uint32_t quantum = segment->shared ? INVARIANT_SHARED_STEPS : INVARIANT_OWN_STEPS;
    uint32_t splits = schedule_min(schedule_max(steps / quantum, 1), INVARIANT_SPLITS_MOST);
    return relay_ceil_div_u32(steps, splits);
}

enum relay_code schedule_split_choose(struct schedule_builder *b, struct relay_error *err)
{
    struct schedule_load loads[2];
    struct schedule_split *splits;
    uint32_t quanta[2]; /* of shared segments and of own ones; 0: by splits_of() */
    enum relay_code code = schedule_grow(&b->splits, (size_t)b->plan->num_segments + 1, err);
    if (code != RELAY_OK) {
        return code;
    }
    splits = b->splits.data;
    survey(b, loads);
    b->narrow_heads = 0;
    b->early_tiles = 0;
    if (b->tuning->batch_invariant) {
        quanta[0] = quanta[1] = 0;
    } else if ((quanta[0] = schedule_beside(b, loads)) != 0) {
        quanta[1] = relay_ceil_div_u32(loads[1].longest, RELAY_CUDA_STEP_TOKENS) + 1;
    } else {
        quanta[1] = one_wave(b, loads);
        quanta[0] = quanta[1] != 0 ? shared_wave(b, quanta[1]) : 0;
    }
    for (uint32_t s = 0; s < b->plan->num_segments; s++) {
        struct schedule_split *split = &splits[s];
        const struct relay_plan_segment *segment = &b->plan->segments[s];
        bool invariant = b->tuning->batch_invariant;
        /* A tile of a PAIR has two steps; who shares the launch must not show in the splits. */
        bool even = invariant || split->kind == RELAY_CUDA_PAIR;
        uint64_t steps;
        if (split->tiles == 0) {
            continue;
        }
        steps = invariant ? invariant_steps(segment)
                          : relay_ceil_div_u32(split->steps,
                                               splits_of(b, split, segment->shared, loads, quanta));
        steps += even ? steps % 2 : 0;
        split->tokens = (uint32_t)(steps * RELAY_CUDA_STEP_TOKENS > INT32_MAX
                                       ? INT32_MAX / RELAY_CUDA_STEP_TOKENS * RELAY_CUDA_STEP_TOKENS
                                       : steps * RELAY_CUDA_STEP_TOKENS);
    }
    for (uint32_t t = 0; t < b->num_tiles; t++) {
        struct schedule_tile *tile = &schedule_tiles(b)[t];
        const struct relay_item *item = &b->plan->items[tile->item];
        uint32_t tokens = splits[item->segment].tokens;
        tile->split_first = item->token_begin / tokens;
        tile->splits = (item->token_end - 1) / tokens - tile->split_first + 1;
    }
    return RELAY_OK;
}

/* Steps until `units` NARROW units of `steps` each are done, in hundredths. Of more than run at
 * once some end when others have just begun: half a unit more than the mean. */
static uint64_t narrow_cost(uint64_t units, uint64_t steps, uint32_t slots)
{
    const uint64_t each = (steps + UNIT_STEPS) * 100u;
    const uint64_t rounds = (units + slots - 1) / slots;
    const uint64_t mean = units * each / slots + steps * 50u;
    return rounds <= 1 ? each : rounds == 2 && mean < 2 * each ? 2 * each : mean;
}

/* More heads side by side in a warpgroup share one end of a unit, but make its way there longer. */
uint32_t schedule_narrow_heads(const struct schedule_builder *b)
{
    const struct relay_cuda_unit *units = b->units.data;
    uint32_t slots = schedule_warpgroups(b);
    uint64_t narrow = (uint64_t)(b->pub.num_narrow - b->pub.num_wide) * b->heads;
    uint64_t steps = 0;
    uint64_t best_cost = UINT64_MAX;
    uint32_t best = 1;
    if (b->geometry->one_head || b->tuning->batch_invariant) {
        return 1;
    }
    if (b->narrow_heads != 0) {
        return b->narrow_heads;
    }
    for (uint32_t i = b->pub.num_wide; i < b->pub.num_narrow; i++) {
        steps += (units[i].token_end - units[i].token_begin) / RELAY_CUDA_STEP_TOKENS + 1;
    }
    steps *= b->heads;
    for (uint32_t heads = 1; heads <= 4 && narrow != 0; heads *= 2) {
        uint64_t cost = narrow_cost(narrow / heads, steps * heads / narrow, slots);
        if (b->heads % heads != 0 ||
            (b->tuning->narrow_heads != 0 && heads > b->tuning->narrow_heads)) {
            break;
        }
        if (cost < best_cost || b->tuning->narrow_heads != 0) {
            best_cost = cost;
            best = heads;
        }
    }
    return best;
}
