/* Page allocation and the memory behind it. The store's mutex guards everything here but the page
 * references, which are atomic; commits and decommits run outside of it, one at a time per pool
 * (`resizing`), on slabs that nobody can take pages from meanwhile. */
#include "service/store/pool.h"

#include <stdatomic.h>
#include <stdlib.h>

#define SLAB_BYTES     ((uint64_t)8 << 20) /* about; one page where that is more */
#define SLAB_PAGES_MAX 1024u
#define NO_PAGE        UINT32_MAX
/* One decommit at most, so that whoever waits for the pool does not wait long. */
#define TRIM_SLABS_MAX 16u

enum slab_state {
    SLAB_ABSENT = 0, /* no memory */
    SLAB_RESIZING,   /* memory on its way in or out */
    SLAB_READY,
};

struct slab {
    enum slab_state state;
    uint32_t used;  /* pages taken */
    uint32_t fresh; /* pages never taken since it became ready: the last `fresh` of the slab */
    uint32_t free;  /* head of the list of pages given back, or NO_PAGE */
};

struct relayd_pool {
    struct relayd_pools *pools;
    struct relayd_pool *next;
    void *base;
    uint64_t page_bytes;
    size_t reserved_bytes;
    uint32_t pages_max;
    uint32_t slab_pages;
    uint32_t num_slabs;
    uint32_t used;
    uint64_t ready;
    bool resizing;
    uint32_t take_hint;   /* no slab below has a page to take */
    uint32_t absent_hint; /* no slab below is absent */
    struct slab *slabs;
    uint32_t *block_slabs; /* per RELAY_COMMIT_BYTES: slabs with memory that overlap it */
    atomic_uint *refs;     /* [pages_max] */
    uint32_t *next_free;   /* [pages_max] */
};

enum relay_code relayd_pools_init(struct relayd_pools *pools, struct relay_backend *backend,
                                  pthread_mutex_t *mutex, uint64_t bytes_committed_max,
                                  struct relay_error *err)
{
    pools->backend = backend;
    pools->mutex = mutex;
    pools->first = NULL;
    pools->pages_used = 0;
    pools->bytes_committed = 0;
    pools->bytes_committed_max = bytes_committed_max;
    if (pthread_cond_init(&pools->resized, NULL) != 0) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "cannot make a condition variable");
    }
    return RELAY_OK;
}

void relayd_pools_fini(struct relayd_pools *pools)
{
    (void)pthread_cond_destroy(&pools->resized);
}

static uint32_t slab_pages_of(uint64_t page_bytes)
{
    uint64_t pages = SLAB_BYTES / page_bytes;
    if (pages < 1) {
        return 1;
    }
    return pages < SLAB_PAGES_MAX ? (uint32_t)pages : SLAB_PAGES_MAX;
}

enum relay_code relayd_pool_create(struct relayd_pools *pools, uint64_t page_bytes,
                                   uint64_t pages_max, struct relayd_pool **out,
                                   struct relay_error *err)
{
    struct relayd_pool *pool = calloc(1, sizeof(*pool));
    enum relay_code code = RELAY_RESOURCE_EXHAUSTED;
    uint64_t bytes;
    if (pool == NULL) {
        goto no_memory;
    }
    pages_max = pages_max > 0 ? pages_max : 1;
    pages_max = pages_max < NO_PAGE ? pages_max : NO_PAGE - 1;
    if (pages_max > (SIZE_MAX / 2 - RELAY_COMMIT_BYTES) / page_bytes) {
        code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "a pool of %llu pages is too large",
                          (unsigned long long)pages_max);
        goto out;
    }
    bytes = pages_max * page_bytes;
    pool->pools = pools;
    pool->page_bytes = page_bytes;
    pool->pages_max = (uint32_t)pages_max;
    pool->slab_pages = slab_pages_of(page_bytes);
    pool->num_slabs = (uint32_t)((pages_max + pool->slab_pages - 1) / pool->slab_pages);
    pool->reserved_bytes =
        (size_t)(bytes + RELAY_COMMIT_BYTES - 1) / RELAY_COMMIT_BYTES * RELAY_COMMIT_BYTES;
    pool->slabs = calloc(pool->num_slabs, sizeof(*pool->slabs));
    pool->block_slabs =
        calloc(pool->reserved_bytes / RELAY_COMMIT_BYTES, sizeof(*pool->block_slabs));
    pool->refs = calloc(pool->pages_max, sizeof(*pool->refs));
    pool->next_free = calloc(pool->pages_max, sizeof(*pool->next_free));
    if (pool->slabs == NULL || pool->block_slabs == NULL || pool->refs == NULL ||
        pool->next_free == NULL) {
        goto no_memory;
    }
    code = relay_backend_reserve(pools->backend, pool->reserved_bytes, &pool->base, err);
    if (code != RELAY_OK) {
        pool->base = NULL;
        goto out;
    }
    (void)pthread_mutex_lock(pools->mutex);
    pool->next = pools->first;
    pools->first = pool;
    (void)pthread_mutex_unlock(pools->mutex);
    *out = pool;
    return RELAY_OK;
no_memory:
    code = RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "no memory for a pool of %llu pages",
                      (unsigned long long)pages_max);
out:
    if (pool != NULL) {
        free(pool->slabs);
        free(pool->block_slabs);
        free(pool->refs);
        free(pool->next_free);
        free(pool);
    }
    return code;
}

void relayd_pool_destroy(struct relayd_pool *pool)
{
    struct relayd_pools *pools;
    struct relayd_pool **link;
    size_t blocks;
    if (pool == NULL) {
        return;
    }
    pools = pool->pools;
    blocks = pool->reserved_bytes / RELAY_COMMIT_BYTES;
    (void)pthread_mutex_lock(pools->mutex);
    while (pool->resizing) { /* a trim may be at it */
        (void)pthread_cond_wait(&pools->resized, pools->mutex);
    }
    for (link = &pools->first; *link != pool; link = &(*link)->next) {
    }
    *link = pool->next;
    for (size_t b = 0; b < blocks; b++) {
        pools->bytes_committed -= pool->block_slabs[b] != 0 ? RELAY_COMMIT_BYTES : 0;
    }
    (void)pthread_mutex_unlock(pools->mutex);
    relay_backend_release(pools->backend, pool->base, pool->reserved_bytes);
    free(pool->slabs);
    free(pool->block_slabs);
    free(pool->refs);
    free(pool->next_free);
    free(pool);
}

void *relayd_pool_base(const struct relayd_pool *pool)
{
    return pool->base;
}

uint64_t relayd_pool_ready(const struct relayd_pool *pool)
{
    return pool->ready;
}

uint32_t relayd_pool_used(const struct relayd_pool *pool)
{
    return pool->used;
}

uint32_t relayd_pool_max(const struct relayd_pool *pool)
{
    return pool->pages_max;
}

/* ---- memory of slabs ---- */

static uint32_t slab_size(const struct relayd_pool *pool, uint32_t slab)
{
    uint32_t first = slab * pool->slab_pages;
    return pool->pages_max - first < pool->slab_pages ? pool->pages_max - first : pool->slab_pages;
}

/* The blocks [*first, *end) that the pages of a slab touch. */
static void slab_blocks(const struct relayd_pool *pool, uint32_t slab, size_t *first, size_t *end)
{
    uint64_t page = (uint64_t)slab * pool->slab_pages;
    *first = (size_t)(page * pool->page_bytes / RELAY_COMMIT_BYTES);
    *end = (size_t)(((page + slab_size(pool, slab)) * pool->page_bytes + RELAY_COMMIT_BYTES - 1) /
                    RELAY_COMMIT_BYTES);
}

static void blocks_count(struct relayd_pool *pool, uint32_t first, uint32_t end, bool add)
{
    for (uint32_t s = first; s < end; s++) {
        size_t block, block_end;
        slab_blocks(pool, s, &block, &block_end);
        for (; block < block_end; block++) {
            pool->block_slabs[block] += add ? 1u : UINT32_MAX;
        }
    }
}

/* Of the blocks under slabs [first, end), those that no other slab needs. Only the first and the
 * last block can be shared with neighbours, so what remains is one range. slabs are not counted in
 * block_slabs when this is called. */
static size_t block_bytes(const struct relayd_pool *pool, uint32_t first, uint32_t end,
                          size_t *offset)
{
    size_t begin, stop, ignored;
    slab_blocks(pool, first, &begin, &ignored);
    slab_blocks(pool, end - 1, &ignored, &stop);
    while (begin < stop && pool->block_slabs[begin] != 0) {
        begin++;
    }
    while (stop > begin && pool->block_slabs[stop - 1] != 0) {
        stop--;
    }
    *offset = begin * RELAY_COMMIT_BYTES;
    return (stop - begin) * RELAY_COMMIT_BYTES;
}

static void slabs_set(struct relayd_pool *pool, uint32_t first, uint32_t end, enum slab_state state)
{
    for (uint32_t s = first; s < end; s++) {
        struct slab *slab = &pool->slabs[s];
        if (slab->state == SLAB_READY) {
            pool->ready -= slab_size(pool, s);
        }
        slab->state = state;
        slab->free = NO_PAGE;
        slab->fresh = slab_size(pool, s);
        if (state == SLAB_READY) {
            pool->ready += slab_size(pool, s);
        }
    }
    if (state == SLAB_READY && first < pool->take_hint) {
        pool->take_hint = first;
    }
    if (state == SLAB_ABSENT && first < pool->absent_hint) {
        pool->absent_hint = first;
    }
}

/* Brings memory to absent slabs [first, end). */
static enum relay_code slabs_commit(struct relayd_pool *pool, uint32_t first, uint32_t end,
                                    struct relay_error *err)
{
    struct relayd_pools *pools = pool->pools;
    enum relay_code code = RELAY_OK;
    size_t offset;
    size_t bytes = block_bytes(pool, first, end, &offset);
    pool->resizing = true;
    slabs_set(pool, first, end, SLAB_RESIZING);
    blocks_count(pool, first, end, true);
    pools->bytes_committed += bytes;
    (void)pthread_mutex_unlock(pools->mutex);
    if (bytes != 0) {
        code = relay_backend_commit(pools->backend, pool->base, offset, bytes, err);
    }
    (void)pthread_mutex_lock(pools->mutex);
    if (code != RELAY_OK) {
        blocks_count(pool, first, end, false);
        pools->bytes_committed -= bytes;
    }
    slabs_set(pool, first, end, code == RELAY_OK ? SLAB_READY : SLAB_ABSENT);
    pool->resizing = false;
    (void)pthread_cond_broadcast(&pools->resized);
    return code;
}

/* Takes the memory of ready, unused slabs [first, end). */
static void slabs_decommit(struct relayd_pool *pool, uint32_t first, uint32_t end)
{
    struct relayd_pools *pools = pool->pools;
    size_t offset, bytes;
    blocks_count(pool, first, end, false);
    bytes = block_bytes(pool, first, end, &offset);
    pool->resizing = true;
    slabs_set(pool, first, end, SLAB_RESIZING);
    (void)pthread_mutex_unlock(pools->mutex);
    if (bytes != 0) {
        relay_backend_decommit(pools->backend, pool->base, offset, bytes);
    }
    (void)pthread_mutex_lock(pools->mutex);
    pools->bytes_committed -= bytes;
    slabs_set(pool, first, end, SLAB_ABSENT);
    pool->resizing = false;
    (void)pthread_cond_broadcast(&pools->resized);
}

static bool slab_idle(const struct relayd_pool *pool, uint32_t s)
{
    return pool->slabs[s].state == SLAB_READY && pool->slabs[s].used == 0;
}

/* The highest run of wholly free slabs, since low ones are taken again first. */
static bool idle_run(const struct relayd_pool *pool, uint32_t *first, uint32_t *end)
{
    uint32_t stop = pool->num_slabs;
    uint32_t begin;
    while (stop > 0 && !slab_idle(pool, stop - 1)) {
        stop--;
    }
    begin = stop;
    while (begin > 0 && stop - begin < TRIM_SLABS_MAX && slab_idle(pool, begin - 1)) {
        begin--;
    }
    *first = begin;
    *end = stop;
    return begin < stop;
}

/* All pools but one (NULL: all). */
static uint32_t trim(struct relayd_pools *pools, const struct relayd_pool *but)
{
    uint32_t slabs = 0;
    uint64_t runs_max = 0;
    bool found = true;
    for (struct relayd_pool *pool = pools->first; pool != NULL; pool = pool->next) {
        runs_max += pool->num_slabs; /* an end, even while others free and take all the time */
    }
    while (found && runs_max-- > 0) {
        uint32_t first, end;
        found = false;
        for (struct relayd_pool *pool = pools->first; pool != NULL; pool = pool->next) {
            if (pool != but && !pool->resizing && pool->ready != 0 &&
                idle_run(pool, &first, &end)) {
                slabs_decommit(pool, first, end);
                slabs += end - first;
                found = true; /* the mutex was let go: the list may be another one now */
                break;
            }
        }
    }
    return slabs;
}

uint32_t relayd_pools_trim(struct relayd_pools *pools)
{
    return trim(pools, NULL);
}

static bool wait_resized(struct relayd_pool *pool)
{
    bool waited = false;
    while (pool->resizing) {
        (void)pthread_cond_wait(&pool->pools->resized, pool->pools->mutex);
        waited = true;
    }
    return waited;
}

/* The lowest run of absent slabs, as long as `pages` pages need. */
static bool absent_run(struct relayd_pool *pool, uint64_t pages, uint32_t *first, uint32_t *end)
{
    uint32_t s = pool->absent_hint;
    uint64_t found = 0;
    while (s < pool->num_slabs && pool->slabs[s].state != SLAB_ABSENT) {
        s++;
    }
    pool->absent_hint = s;
    *first = s;
    while (s < pool->num_slabs && found < pages && pool->slabs[s].state == SLAB_ABSENT) {
        found += slab_size(pool, s);
        s++;
    }
    *end = s;
    return *first < *end;
}

enum relay_code relayd_pool_ensure(struct relayd_pool *pool, uint64_t n, bool *unlocked,
                                   struct relay_error *err)
{
    struct relayd_pools *pools = pool->pools;
    if (pool->ready < n && pools->bytes_committed + (n - pool->ready) * pool->page_bytes >
                               pools->bytes_committed_max) {
        /* What one model gave up is still committed: it must not add up with what this one needs.
         */
        if (trim(pools, pool) != 0) {
            *unlocked = true;
        }
    }
    while (pool->ready < n) {
        uint32_t first, end;
        enum relay_code code;
        if (wait_resized(pool)) {
            *unlocked = true;
            continue;
        }
        if (!absent_run(pool, n - pool->ready, &first, &end)) {
            return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "all %u pages of the model are in use",
                              pool->pages_max);
        }
        *unlocked = true;
        code = slabs_commit(pool, first, end, err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return RELAY_OK;
}

/* ---- pages ---- */

void relayd_pool_take(struct relayd_pool *pool, uint32_t n, uint32_t *ids)
{
    uint32_t s = pool->take_hint;
    for (uint32_t i = 0; i < n;) {
        struct slab *slab = &pool->slabs[s];
        uint32_t page;
        if (slab->state != SLAB_READY || (slab->free == NO_PAGE && slab->fresh == 0)) {
            s++;
            continue;
        }
        if (slab->free != NO_PAGE) {
            page = slab->free;
            slab->free = pool->next_free[page];
        } else {
            page = s * pool->slab_pages + slab_size(pool, s) - slab->fresh;
            slab->fresh--;
        }
        slab->used++;
        atomic_store_explicit(&pool->refs[page], 1, memory_order_relaxed);
        ids[i++] = page;
    }
    pool->take_hint = s;
    pool->used += n;
    pool->ready -= n;
    pool->pools->pages_used += n;
}

void relayd_pool_ref(struct relayd_pool *pool, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        (void)atomic_fetch_add_explicit(&pool->refs[ids[i]], 1, memory_order_relaxed);
    }
}

uint32_t relayd_pool_unref(struct relayd_pool *pool, const uint32_t *ids, uint32_t n)
{
    uint32_t freed = 0;
    /* Backwards, so that the pages come out again in ascending order. */
    for (uint32_t i = n; i-- > 0;) {
        uint32_t page = ids[i];
        uint32_t s = page / pool->slab_pages;
        struct slab *slab = &pool->slabs[s];
        if (atomic_fetch_sub_explicit(&pool->refs[page], 1, memory_order_acq_rel) != 1) {
            continue;
        }
        pool->next_free[page] = slab->free;
        slab->free = page;
        slab->used--;
        pool->take_hint = s < pool->take_hint ? s : pool->take_hint;
        freed++;
    }
    pool->used -= freed;
    pool->ready += freed;
    pool->pools->pages_used -= freed;
    return freed;
}
