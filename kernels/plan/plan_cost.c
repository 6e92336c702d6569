/* Into how many row tiles a shared segment is cut when threads divide the work: a tile more reads
 * the keys once more, and lets one thread more begin.
 *
 * The whole step is taken to last as long as its longest part: all work spread evenly, or the
 * segment's own tasks, which are equal, dealt out in rounds. The fewest tiles win unless more of
 * them save 3 %, so that sharing is never slower than each request reading for itself, which is the
 * far end of the same scale. Pure arithmetic on the input: O(entries) once a build. */
#include "plan/plan_internal.h"

#include "core/checked.h"

#define WORTH_IT 0.97

/* Tokens of a segment that a row sees at most. */
static uint32_t tokens_seen(const struct relay_plan_input *in, uint32_t tokens)
{
    uint32_t window = in->shape->kind.window;
    return window != 0 && window < tokens ? window : tokens;
}

static double blocks_of(const struct relay_plan_input *in, uint32_t tokens)
{
    return (double)relay_ceil_div_u32(tokens, in->block_tokens);
}

void plan_cost_begin(struct plan_builder *b)
{
    const struct relay_plan_input *in = b->in;
    const struct relay_plan_costs *costs = &in->costs;
    const double kv_heads = in->shape->kind.num_kv_heads;
    const double group = (double)in->shape->kind.num_q_heads / kv_heads;
    double ns = 0.0;
    for (uint32_t i = 0; i < in->num_entries; i++) {
        const struct relay_entry *e = &in->entries[i];
        double rows = group * e->q_len;
        if (in->part == RELAY_PART_PROMPT_ONLY || e->context_tokens == 0) {
            continue;
        }
        ns += costs->item_ns + blocks_of(in, tokens_seen(in, e->context_tokens)) *
                                   ((double)costs->block_ns + rows * (double)costs->row_ns);
    }
    b->own_ns = ns * kv_heads;
}

/* How long the step takes with the segment's rows in `tiles` tiles. */
static double span(const struct plan_builder *b, uint32_t tokens, uint32_t rows, uint32_t splits,
                   uint32_t tiles)
{
    const struct relay_plan_input *in = b->in;
    const struct relay_plan_costs *costs = &in->costs;
    const double kv_heads = in->shape->kind.num_kv_heads;
    const double group = (double)in->shape->kind.num_q_heads / kv_heads;
    const double blocks = blocks_of(in, tokens);
    const double tile_rows = group * relay_ceil_div_u32(rows, tiles);
    const double tasks = kv_heads * splits * tiles;
    const double task_ns =
        (double)costs->item_ns +
        blocks / splits * ((double)costs->block_ns + tile_rows * (double)costs->row_ns);
    const double all_ns =
        tasks * (double)costs->item_ns +
        kv_heads * blocks *
            (tiles * (double)costs->block_ns + group * rows * (double)costs->row_ns);
    const uint64_t rounds = ((uint64_t)tasks + costs->threads - 1) / costs->threads;
    const double even = (all_ns + b->own_ns) / costs->threads;
    const double dealt = (double)rounds * task_ns;
    return even > dealt ? even : dealt;
}

uint32_t plan_cost_tile_rows(const struct plan_builder *b, uint32_t segment_tokens, uint32_t rows,
                             uint32_t split_tokens)
{
    const struct relay_plan_input *in = b->in;
    const uint32_t tile_max = in->item_rows_max != 0 ? in->item_rows_max : rows;
    if (in->sharing != RELAY_SHARING_AUTO || in->costs.threads < 2 || rows < 2 ||
        segment_tokens == 0) {
        return tile_max;
    }
    const uint32_t tokens = tokens_seen(in, segment_tokens);
    const uint32_t splits = relay_ceil_div_u32(tokens, split_tokens);
    const uint64_t units = (uint64_t)in->shape->kind.num_kv_heads * splits;
    uint32_t best = relay_ceil_div_u32(rows, tile_max);
    double best_span = span(b, tokens, rows, splits, best);
    for (uint64_t tasks = in->costs.threads; tasks <= 4ull * in->costs.threads; tasks *= 2) {
        uint64_t tiles = (tasks + units - 1) / units;
        tiles = tiles < rows ? tiles : rows;
        if (tiles <= best) {
            continue;
        }
        double s = span(b, tokens, rows, splits, (uint32_t)tiles);
        if (s < WORTH_IT * best_span) {
            best = (uint32_t)tiles;
            best_span = s;
        }
    }
    return relay_ceil_div_u32(rows, best);
}
