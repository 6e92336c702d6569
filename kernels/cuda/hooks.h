/* More of the cuda backend than <relay/backend.h> has: for benches, tests, and engines in the same
 * process. Tensors of a relay_io may lie in memory from relay_backend_reserve too; the attention
 * kernel then stores the new tokens itself, in the same launch.
 *
 * The thread that calls run calls these. */
#ifndef RELAY_CUDA_HOOKS_H
#define RELAY_CUDA_HOOKS_H

#include "cuda/schedule.h"

#include <relay/backend.h>

#ifdef __cplusplus
extern "C" {
#endif

struct relay_cuda_options {
    struct relay_cuda_tuning tuning;
    const char *kernel; /* the only one of the table to use, NULL = the best */
    uint32_t blocks;    /* of a multiprocessor at most, 0 = as many as fit */
    bool two_launches;  /* producers, then merges */
    bool no_overlap;    /* a launch begins when the one before it is done */
    bool no_early;      /* and reads K/V only then */
    bool keep_own;      /* own tokens leave L2 like others */
    bool direct_io;     /* host memory is read and written in place by the attention kernel */
};

/* Everything enqueued before is done first. NULL: the defaults. UNAVAILABLE when poisoned. */
enum relay_code relay_cuda_configure(struct relay_backend *backend,
                                     const struct relay_cuda_options *options,
                                     struct relay_error *err);

/* The kernel that computes the shape, "simt" for the one that takes all. Borrowed. */
const char *relay_cuda_kernel_name(const struct relay_backend *backend,
                                   const struct relay_shape *shape);

/* The kernel of the last run: a plan's items decide too. Borrowed. */
const char *relay_cuda_kernel_used(const struct relay_backend *backend);

/* Waits for everything enqueued; says whether all words of partial results and the ticket are back
 * to what they are between launches. */
enum relay_code relay_cuda_settled(struct relay_backend *backend, bool *settled,
                                   struct relay_error *err);

/* cudaStream_t of run. */
void *relay_cuda_stream(struct relay_backend *backend);

/* Between begin and end, run records into a graph and does nothing; the same plans and problems
 * must have run before, so that nothing is allocated or uploaded. The graph uses the addresses it
 * was recorded with: no larger problem may run while it lives. */
struct relay_cuda_graph;
enum relay_code relay_cuda_graph_begin(struct relay_backend *backend, struct relay_error *err);
enum relay_code relay_cuda_graph_end(struct relay_backend *backend, struct relay_cuda_graph **out,
                                     struct relay_error *err);
/* Enqueues a replay. */
enum relay_code relay_cuda_graph_launch(struct relay_cuda_graph *graph, struct relay_error *err);
void relay_cuda_graph_destroy(struct relay_cuda_graph *graph);

#ifdef __cplusplus
}
#endif
#endif
