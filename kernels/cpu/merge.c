/* Merging in portable C. See merge.inc. */
#include "cpu/vec_lanes.inc"

#include "cpu/merge.inc"

void relay_cpu_merge_portable(const struct relay_cpu_merge *work)
{
    merge_row(work);
}
