/* Pages of K/V: one pool per model, in one reservation of address space, so that a page id and one
 * base per layer reach every byte. Memory behind pages comes and goes in slabs of many pages.
 *
 * All pools of a store share its mutex. Functions marked [locked] want it held; those that say so
 * let it go while they ask the system for memory, and what was checked before must be checked
 * again. */
#ifndef RELAYD_STORE_POOL_H
#define RELAYD_STORE_POOL_H

#include <pthread.h>
#include <relay/backend.h>

struct relayd_pool;

/* What the pools of a store have in common. */
struct relayd_pools {
    struct relay_backend *backend;
    pthread_mutex_t *mutex;
    pthread_cond_t resized; /* some pool's `resizing` ended */
    struct relayd_pool *first;
    uint64_t pages_used;
    uint64_t bytes_committed;
    uint64_t
        bytes_committed_max; /* beyond it, free slabs are given back before new ones are made */
};

RELAY_MUST_CHECK enum relay_code relayd_pools_init(struct relayd_pools *pools,
                                                   struct relay_backend *backend,
                                                   pthread_mutex_t *mutex,
                                                   uint64_t bytes_committed_max,
                                                   struct relay_error *err);
void relayd_pools_fini(struct relayd_pools *pools);
/* [locked] Gives back the memory of wholly free slabs, letting the mutex go meanwhile. Returns how
 * many slabs went. */
uint32_t relayd_pools_trim(struct relayd_pools *pools);

/* Not locked. page_bytes is a multiple of 64. Address space only. RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_pool_create(struct relayd_pools *pools, uint64_t page_bytes,
                                                    uint64_t pages_max, struct relayd_pool **out,
                                                    struct relay_error *err);
/* Not locked. All pages must be free. NULL is fine. */
void relayd_pool_destroy(struct relayd_pool *pool);
void *relayd_pool_base(const struct relayd_pool *pool);

/* [locked] Makes at least n pages takeable. Lets the mutex go when it must wait or ask for memory
 * and then sets *unlocked (never cleared here). RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relayd_pool_ensure(struct relayd_pool *pool, uint64_t n,
                                                    bool *unlocked, struct relay_error *err);
/* [locked] How many pages take may take now. */
uint64_t relayd_pool_ready(const struct relayd_pool *pool);
/* [locked] Takes n <= ready pages, each with one reference. Lowest slabs first, so that high ones
 * fall empty. */
void relayd_pool_take(struct relayd_pool *pool, uint32_t n, uint32_t *ids);
/* [locked] Drops a reference of each page; returns how many pages that freed. */
uint32_t relayd_pool_unref(struct relayd_pool *pool, const uint32_t *ids, uint32_t n);
/* One more reference to each page; the caller holds one already. Any thread. */
void relayd_pool_ref(struct relayd_pool *pool, const uint32_t *ids, uint32_t n);

/* [locked] */
uint32_t relayd_pool_used(const struct relayd_pool *pool);
uint32_t relayd_pool_max(const struct relayd_pool *pool);

#endif
