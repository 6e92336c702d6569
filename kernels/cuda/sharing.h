/* How a plan's shared tokens are best computed, and with that by which of a shape's kernels: its
 * tiles by one warpgroup each, by two that share them, or on half of the warpgroups while the
 * others stream what requests have of their own.
 *
 * Pure: from the plan alone, by figures measured on an H200. Must not know kernels or schedules.
 * Any thread. */
#ifndef RELAY_CUDA_SHARING_H
#define RELAY_CUDA_SHARING_H

#include <relay/plan.h>

enum relay_cuda_sharing {
    RELAY_CUDA_SINGLE = 0,
    RELAY_CUDA_PAIRED, /* two warpgroups may share a tile of 128 rows */
    RELAY_CUDA_BESIDE, /* units of many rows may finish them, with what others streamed meanwhile */
};

/* With BESIDE: */
struct relay_cuda_beside {
    uint32_t quantum;      /* steps of a shared unit */
    uint32_t narrow_heads; /* KV heads side by side in an own one */
    uint32_t early_tiles;  /* shared tiles whose last splits finish their rows */
};

/* Whether an item's rows are the rest of many that see a shared segment. */
bool relay_cuda_is_rest(const struct relay_plan *plan, uint32_t group, uint32_t item);

/* Whether warpgroups had better share tiles, on so many multiprocessors. */
bool relay_cuda_is_paired(const struct relay_plan *plan, uint32_t num_kv_heads, uint32_t group,
                          uint32_t multiprocessors);

/* Whether own tokens had better stream beside the shared ones, and how, on so many warpgroups. */
bool relay_cuda_is_beside(const struct relay_plan *plan, uint32_t num_kv_heads, uint32_t group,
                          uint32_t warpgroups, struct relay_cuda_beside *out);

#endif
