/* From a plan to units: what a launch works on, in which order, and who merges what.
 *
 * A plan's items say which rows read which tokens. The schedule packs their rows into tiles that a
 * kernel takes at once, splits long ones over the device, numbers the partial results, and makes
 * for every group of rows one unit FINAL: it merges the others' results with its own and writes
 * the rows. Producers come before the units that wait for them, so a launch whose blocks take units
 * in order cannot wait for itself; but FINAL units of many rows (`beside`) wait for later ones,
 * which is safe as they begin with the launch, half of the warpgroups at most, and take no more
 * until they are done.
 *
 * Pure host code: no CUDA, no threads, no clock. One thread at a time builds a schedule; it keeps
 * its memory between builds. */
#ifndef RELAY_CUDA_SCHEDULE_H
#define RELAY_CUDA_SCHEDULE_H

#include "cuda/launch.h"

#include <relay/plan.h>

/* The kernel and the device the units are for. */
struct relay_cuda_geometry {
    uint32_t blocks; /* resident at once */
    uint32_t groups; /* warpgroups of a block */
    bool pair;       /* two warpgroups may share a tile of 128 rows */
    bool fused;      /* FINAL units may wait for others of the same launch */
    bool one_head;   /* units are never of several KV heads */
    bool finals;     /* units of many rows may be FINAL */
};

/* What is measured, not derived. Zeros are the defaults. */
struct relay_cuda_tuning {
    uint32_t shared_splits; /* of a segment that several read; 0 = by cost */
    uint32_t own_splits;    /* of one request's own tokens; 0 = by cost */
    uint32_t steps_least;   /* of a split; 0 = 2, of shared ones 1 */
    uint32_t slot_cost;     /* of a partial result, in hundredths of a step; 0 = 10 */
    uint32_t narrow_heads;  /* KV heads side by side in a NARROW unit: 1, 2, 4; 0 = by cost */
    uint32_t early_tiles;   /* shared tiles that are FINAL, where they can be; 0 = by cost */
    bool batch_invariant;   /* splits and kinds follow from a row's own segments only */
};

struct relay_cuda_schedule {
    struct relay_cuda_unit *units;     /* [num_units] by kind; producers before FINAL ones */
    struct relay_cuda_source *sources; /* [num_sources] */
    struct relay_cuda_append *appends; /* [num_appends] a token each */
    uint32_t num_units;
    uint32_t num_pairs;
    uint32_t num_wide;    /* units before the first NARROW */
    uint32_t num_produce; /* units before the first NARROW that is FINAL */
    uint32_t num_narrow;  /* units before the first MERGE */
    uint32_t num_sources;
    uint32_t num_appends;
    uint32_t slots;        /* partial results of one KV head */
    uint32_t narrow_heads; /* KV heads that a NARROW unit's warpgroup computes side by side */
    /* WIDE units, all of which begin with the launch, wait for NARROW ones that produce. */
    bool beside;
};

enum relay_code relay_cuda_schedule_create(struct relay_cuda_schedule **out,
                                           struct relay_error *err);
void relay_cuda_schedule_destroy(struct relay_cuda_schedule *schedule);

/* RESOURCE_EXHAUSTED when memory is out or numbers do not fit; the schedule is then empty. */
enum relay_code relay_cuda_schedule_build(struct relay_cuda_schedule *schedule,
                                          const struct relay_plan *plan, uint32_t num_kv_heads,
                                          uint32_t group,
                                          const struct relay_cuda_geometry *geometry,
                                          const struct relay_cuda_tuning *tuning,
                                          struct relay_error *err);

#endif
