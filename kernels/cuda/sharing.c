/* See sharing.h. */
#include "cuda/sharing.h"

#include "core/checked.h"
#include "cuda/launch.h"

static bool is_many(const struct relay_item *item, uint32_t group)
{
    return (uint64_t)item->row_count * group > RELAY_CUDA_ROWS_NARROW;
}

bool relay_cuda_is_rest(const struct relay_plan *plan, uint32_t group, uint32_t item)
{
    const struct relay_item *rest = &plan->items[item];
    return item != 0 && is_many(rest - 1, group) && plan->segments[rest->segment].shared &&
           rest[-1].segment == rest->segment &&
           rest[-1].row_begin + rest[-1].row_count == rest->row_begin;
}

/* ---- two that share tiles ---- */

/* From how many tokens of an item of many rows on, and how many tiles of 128 rows and tokens for a
 * multiprocessor (fewer where very many rows see a segment), two warpgroups that share their tiles
 * are taken to be ahead of two that do not. Near the border either may be ahead, by 11 % at most.
 */
#define PAIR_TOKENS     4096u
#define PAIR_TILES      11u
#define PAIR_TILES_MANY 5u
#define PAIR_ROWS_MANY  512u

bool relay_cuda_is_paired(const struct relay_plan *plan, uint32_t num_kv_heads, uint32_t group,
                          uint32_t multiprocessors)
{
    uint64_t work = 0;    /* rounds of PAIR tiles times their tokens */
    uint64_t seen_by = 0; /* packed rows of an item's segment so far */
    uint64_t most = 0;
    uint32_t longest = 0;
    uint32_t tiles;
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        uint64_t rows = (uint64_t)item->row_count * group;
        uint32_t tokens = item->token_end - item->token_begin;
        if (rows > RELAY_CUDA_ROWS_WIDE || relay_cuda_is_rest(plan, group, i)) {
            work += tokens * ((rows + RELAY_CUDA_ROWS_PAIR - 1) / RELAY_CUDA_ROWS_PAIR);
            longest = tokens > longest ? tokens : longest;
        }
        seen_by = i != 0 && item->segment == plan->items[i - 1].segment ? seen_by + rows : rows;
        most = seen_by > most && tokens >= PAIR_TOKENS ? seen_by : most;
    }
    work *= num_kv_heads;
    tiles = most >= PAIR_ROWS_MANY ? PAIR_TILES_MANY : PAIR_TILES;
    return longest >= PAIR_TOKENS &&
           work >= (uint64_t)tiles * RELAY_CUDA_ROWS_PAIR * multiprocessors;
}

/* ---- own tokens beside ---- */

/* Nanoseconds: a step (64 tokens) of a shared unit while others stream; one of an own unit of one
 * KV head while shared ones compute, and when all warpgroups stream; an own unit's end. */
#define SHARED_STEP     1600u
#define OWN_STEP        1330u
#define OWN_STEP_OF_ALL 2060u
#define OWN_END         1500u

#define QUANTUM_LEAST 16u   /* steps: with fewer, beginnings and ends are most of it, */
#define QUANTUM_MOST  128u  /* and more are for warpgroups that share tiles */
#define SPLITS_MOST   2u    /* of a shared item; more */
#define SPLITS_RAGGED 4u    /* where own items are of many lengths, which fit worse otherwise */
#define UNIT_TOKENS   2560u /* of an own unit, times its heads, at most where one head has fewer */

/* The plan's work, if it is of the only form looked for: each row sees one shared segment, from its
 * first token on, with many others, and then tokens that it alone sees. */
struct work {
    uint64_t tiles;   /* of shared items */
    uint32_t longest; /* steps of a shared item */
    uint64_t owns;    /* own items, */
    uint64_t tokens;  /* all of theirs, */
    uint32_t most;    /* and of the longest */
};

static uint32_t steps_of(const struct relay_item *item)
{
    return relay_ceil_div_u32(item->token_end, RELAY_CUDA_STEP_TOKENS);
}

static uint32_t tiles_of(const struct relay_item *item, uint32_t group)
{
    return relay_ceil_div_u32(item->row_count, RELAY_CUDA_ROWS_WIDE / group);
}

static bool survey(const struct relay_plan *plan, uint32_t group, struct work *work)
{
    uint64_t rows[2] = {0, 0}; /* own, shared */
    *work = (struct work){0, 0, 0, 0, 0};
    if (group > RELAY_CUDA_ROWS_NARROW) {
        return false;
    }
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        bool shared = plan->segments[item->segment].shared;
        bool many = is_many(item, group) || relay_cuda_is_rest(plan, group, i);
        if (shared != many || item->token_begin != 0 || (!shared && item->row_count != 1)) {
            return false;
        }
        rows[shared] += item->row_count;
        if (shared) {
            work->tiles += tiles_of(item, group);
            work->longest = steps_of(item) > work->longest ? steps_of(item) : work->longest;
        } else {
            work->owns++;
            work->tokens += item->token_end;
            work->most = item->token_end > work->most ? item->token_end : work->most;
        }
    }
    return rows[0] == plan->num_rows && rows[1] == plan->num_rows && plan->num_rows != 0;
}

/* Units of the shared items, of so many steps. */
static uint64_t shared_units(const struct relay_plan *plan, uint32_t heads, uint32_t group,
                             uint32_t quantum)
{
    uint64_t units = 0;
    for (uint32_t i = 0; i < plan->num_items; i++) {
        const struct relay_item *item = &plan->items[i];
        if (plan->segments[item->segment].shared) {
            units += (uint64_t)tiles_of(item, group) * heads *
                     relay_ceil_div_u32(steps_of(item), quantum);
        }
    }
    return units;
}

bool relay_cuda_is_beside(const struct relay_plan *plan, uint32_t num_kv_heads, uint32_t group,
                          uint32_t warpgroups, struct relay_cuda_beside *out)
{
    const uint32_t half = warpgroups / 2;
    struct work work;
    uint64_t shared, streaming, units, tokens, shared_time, own_time, early, most;
    uint32_t heads = 4;
    uint32_t n = 1;
    bool ragged;
    if (!survey(plan, group, &work) || work.tiles < 2 || work.tiles * num_kv_heads > half) {
        return false;
    }
    tokens = work.tokens / work.owns;
    ragged = work.most > tokens + tokens / 4;
    /* Half of the warpgroups are enough, and full. */
    while (n < (ragged ? SPLITS_RAGGED : SPLITS_MOST) &&
           shared_units(plan, num_kv_heads, group, relay_ceil_div_u32(work.longest, n + 1)) <=
               half) {
        n++;
    }
    out->quantum = relay_ceil_div_u32(work.longest, n);
    shared = shared_units(plan, num_kv_heads, group, out->quantum);
    if (shared * 8 < half * UINT64_C(7) || out->quantum < QUANTUM_LEAST ||
        out->quantum > QUANTUM_MOST) {
        return false;
    }
    streaming = warpgroups - shared;
    units = work.owns * num_kv_heads / heads;
    while (heads > 1 && (num_kv_heads % heads != 0 || tokens * heads > UNIT_TOKENS ||
                         (ragged && units * 2 < streaming * 5))) {
        heads /= 2;
        units = work.owns * num_kv_heads / heads;
    }
    out->narrow_heads = heads;
    shared_time = (uint64_t)out->quantum * SHARED_STEP;
    own_time = tokens * heads * OWN_STEP / RELAY_CUDA_STEP_TOKENS + OWN_END;
    /* Several rounds of own units, the first of them done before the shared ones; and not much less
     * to stream than to compute. */
    if (units * 2 < streaming * 5 || shared_time < own_time ||
        shared_time * 4 > work.tokens * num_kv_heads * OWN_STEP_OF_ALL / RELAY_CUDA_STEP_TOKENS /
                              warpgroups * 7) {
        return false;
    }
    /* What is streamed until the shared ones are done, and a fifth more: better that those wait
     * than what streams. But of many not the last few, so that their warpgroups have more to do. */
    early = (work.tiles * shared_time * streaming * 12 / (own_time * units) + 5) / 10;
    most = work.tiles - work.tiles / 8;
    early = early < 1 ? 1 : early > most ? most : early;
    out->early_tiles = (uint32_t)early;
    return true;
}
