/* A decode batch as the benches have it: requests with a new token each on one prompt. Who plans or
 * schedules it, and what else is in it, the tests say. */
#ifndef RELAY_TESTS_CUDA_DECODE_INPUT_H
#define RELAY_TESTS_CUDA_DECODE_INPUT_H

#include <relay/plan.h>

/* `prompt` and `context` in tokens, of BF16, head dim 128. Fills `shape`, segments[0] and entries
 * [0, num); the input points to them. */
static inline struct relay_plan_input decode_input(struct relay_shape *shape,
                                                   struct relay_segment *segments,
                                                   struct relay_entry *entries, uint32_t q_heads,
                                                   uint32_t kv_heads, uint32_t num, uint32_t prompt,
                                                   uint32_t context)
{
    static uint32_t pages[4096];
    *shape = (struct relay_shape){.kind = {.num_q_heads = q_heads,
                                           .num_kv_heads = kv_heads,
                                           .head_dim_qk = 128,
                                           .head_dim_v = 128,
                                           .scale = 1.0f},
                                  .kv_dtype = RELAY_DTYPE_BF16,
                                  .io_dtype = RELAY_DTYPE_BF16,
                                  .out_dtype = RELAY_DTYPE_BF16};
    segments[0] = (struct relay_segment){pages, prompt, 0, RELAY_NO_SEGMENT};
    for (uint32_t i = 0; i < num; i++) {
        entries[i] = (struct relay_entry){.row_begin = i,
                                          .q_len = 1,
                                          .segment = 0,
                                          .position = prompt + context - 1,
                                          .pages = pages,
                                          .context_position = prompt,
                                          .context_tokens = context,
                                          .append = true};
    }
    return (struct relay_plan_input){.shape = shape,
                                     .segments = segments,
                                     .num_segments = 1,
                                     .entries = entries,
                                     .num_entries = num,
                                     .page_tokens = 16,
                                     .split_tokens_min = 64,
                                     .splits_max = 1,
                                     .block_tokens = 64,
                                     .item_rows_max = 128 / (q_heads / kv_heads)};
}

#endif
