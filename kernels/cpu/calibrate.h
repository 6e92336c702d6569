/* What this machine's kernels cost, measured once when the backend opens: some milliseconds, 50 at
 * most, on one thread, on keys that lie in its caches; and then, on keys that do not, in which of
 * its caches a thread had better ask for those that come next. Which kernel is best cannot be told
 * from a processor's name: the same instruction has half the rate on one and twice on the other.
 *
 * Kernels are chosen for two kinds of item, which a row knows by itself: prompts, which many rows
 * read together, and requests' own tokens, which one request's rows read. Choices are frozen with
 * the backend, and bits with them. Used by the thread that opens. */
#ifndef RELAY_CPU_CALIBRATE_H
#define RELAY_CPU_CALIBRATE_H

#include "cpu/isa.h"

/* Orders isas->list[*] by what is measured, a kernel that was listed later only before one that it
 * beats by a quarter, sets isas->costs and
 * isas->second_cache, and says in `detail` what it found. RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relay_cpu_calibrate(struct relay_cpu_isas *isas, char *detail,
                                                     size_t detail_bytes, struct relay_error *err);

#endif
