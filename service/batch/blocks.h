/* Memory of calls in flight, shared by all sessions: as much as is in use at a time, not as much as
 * each session ever used. Blocks of a power of two, kept when they come back. Thread-safe. */
#ifndef RELAYD_BATCH_BLOCKS_H
#define RELAYD_BATCH_BLOCKS_H

#include <relay/backend.h>
#include <relay/status.h>

#define RELAYD_BLOCKS_KEPT_MAX ((size_t)256 << 20) /* bytes that wait to be used again */

struct relayd_blocks;

/* The creator holds one reference. The backend must outlive the last. */
RELAY_MUST_CHECK enum relay_code relayd_blocks_create(struct relay_backend *backend,
                                                      struct relayd_blocks **out,
                                                      struct relay_error *err);
struct relayd_blocks *relayd_blocks_ref(struct relayd_blocks *blocks);
/* The last reference frees all; every block must be back. NULL is fine. */
void relayd_blocks_release(struct relayd_blocks *blocks);

/* At least `bytes`, 64-byte aligned, contents unknown; NULL when there is no memory. */
void *relayd_blocks_take(struct relayd_blocks *blocks, size_t bytes);
/* bytes as they were asked for. NULL memory is fine. */
void relayd_blocks_give(struct relayd_blocks *blocks, void *memory, size_t bytes);

#endif
