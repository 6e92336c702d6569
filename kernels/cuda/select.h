/* Which kernel computes a shape on a device: the one pure chooser behind supports, plan_defaults
 * and run, so that they cannot disagree. No CUDA; any thread. */
#ifndef RELAY_CUDA_SELECT_H
#define RELAY_CUDA_SELECT_H

#include "cuda/sharing.h"

#include <relay/plan.h>

struct relay_cuda_traits {
    const char *name;          /* "wgmma_bf16_128" */
    enum relay_dtype io_dtype; /* of queries; UNSPECIFIED: any */
    enum relay_dtype kv_dtype; /* of stored K/V */
    uint32_t head_dim_most;    /* of both; shorter rows are padded in shared memory */
    uint32_t capability_least; /* of a device it runs on, 10 * major + minor */
    uint32_t capability_most;  /* 0 = no limit */
    uint32_t groups;           /* warpgroups of a block; 0: one block a unit, nothing persistent */
    bool special;              /* takes softcap and ALiBi */
    enum relay_cuda_sharing sharing;
    size_t shared_bytes; /* of a block */
};

struct relay_cuda_device {
    uint32_t capability; /* 10 * major + minor */
    size_t shared_bytes; /* most that a block can have */
    uint32_t multiprocessors;
};

/* The index of the first that fits, or `num`. `sharing`: that of the plan; kernels that are SINGLE
 * take every plan. `name`: only this one, NULL = any. */
uint32_t relay_cuda_select(const struct relay_cuda_traits *const *traits, uint32_t num,
                           const struct relay_shape *shape, const struct relay_cuda_device *device,
                           enum relay_cuda_sharing sharing, const char *name);

#endif
