/* service/store/pool: ids, references, and memory that comes and goes under them. */
#include "fixture.h"
#include "service/store/pool.h"

#include <pthread.h>

struct pool_fixture {
    struct fixture f; /* its backend; no store */
    pthread_mutex_t mutex;
    struct relayd_pools pools;
    struct relayd_pool *pool;
};

static void setup(struct pool_fixture *p, uint64_t page_bytes, uint64_t pages_max)
{
    struct relay_error err;
    fixture_init(&p->f);
    (void)pthread_mutex_init(&p->mutex, NULL);
    CHECK_OK(relayd_pools_init(&p->pools, &p->f.backend.base, &p->mutex, UINT64_MAX, &err), err);
    CHECK_OK(relayd_pool_create(&p->pools, page_bytes, pages_max, &p->pool, &err), err);
    (void)pthread_mutex_lock(&p->mutex);
}

static void teardown(struct pool_fixture *p)
{
    (void)pthread_mutex_unlock(&p->mutex);
    relayd_pool_destroy(p->pool);
    relayd_pools_fini(&p->pools);
    (void)pthread_mutex_destroy(&p->mutex);
    CHECK_EQ(p->pools.bytes_committed, 0);
    CHECK_EQ(atomic_load(&p->f.backend.faults), 0);
    CHECK_EQ(atomic_load(&p->f.backend.blocks), 0);
    CHECK_EQ(atomic_load(&p->f.backend.reserved), 0);
}

static void test_pool_gives_distinct_pages(void)
{
    static struct pool_fixture p;
    uint32_t ids[100];
    bool seen[100] = {false};
    bool unlocked = false;
    struct relay_error err;
    setup(&p, 4096, 100);
    CHECK_STILL();
    CHECK_EQ(relayd_pool_max(p.pool), 100);
    CHECK_OK(relayd_pool_ensure(p.pool, 100, &unlocked, &err), err);
    CHECK(unlocked);
    CHECK_EQ(relayd_pool_ready(p.pool), 100);
    relayd_pool_take(p.pool, 100, ids);
    for (uint32_t i = 0; i < 100; i++) {
        CHECK(ids[i] < 100 && !seen[ids[i]]);
        seen[ids[i]] = true;
        memset((char *)relayd_pool_base(p.pool) + (size_t)ids[i] * 4096, (int)i, 4096);
    }
    CHECK_EQ(relayd_pool_used(p.pool), 100);
    CHECK_EQ(p.pools.pages_used, 100);
    CHECK_CODE(relayd_pool_ensure(p.pool, 1, &unlocked, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(relayd_pool_unref(p.pool, ids, 100), 100);
    CHECK_EQ(relayd_pool_used(p.pool), 0);
    CHECK_EQ(relayd_pool_ready(p.pool), 100);
    teardown(&p);
}

static void test_pool_page_lives_until_its_last_reference(void)
{
    static struct pool_fixture p;
    uint32_t ids[3];
    bool unlocked = false;
    struct relay_error err;
    setup(&p, 4096, 16);
    CHECK_STILL();
    CHECK_OK(relayd_pool_ensure(p.pool, 3, &unlocked, &err), err);
    relayd_pool_take(p.pool, 3, ids);
    relayd_pool_ref(p.pool, ids, 2);
    CHECK_EQ(relayd_pool_unref(p.pool, ids, 3), 1);
    CHECK_EQ(relayd_pool_used(p.pool), 2);
    CHECK_EQ(relayd_pool_unref(p.pool, ids, 2), 2);
    CHECK_EQ(relayd_pool_used(p.pool), 0);
    teardown(&p);
}

static void test_pool_gives_memory_of_free_slabs_back(void)
{
    static struct pool_fixture p;
    uint32_t ids[12];
    bool unlocked = false;
    struct relay_error err;
    int all;
    setup(&p, (uint64_t)4 << 20, 12); /* two pages a slab */
    CHECK_STILL();
    CHECK_OK(relayd_pool_ensure(p.pool, 12, &unlocked, &err), err);
    all = atomic_load(&p.f.backend.blocks);
    CHECK_EQ(all, 24);
    CHECK_EQ(p.pools.bytes_committed, 24 * RELAY_COMMIT_BYTES);
    relayd_pool_take(p.pool, 12, ids);
    CHECK_EQ(relayd_pools_trim(&p.pools), 0);
    CHECK_EQ(relayd_pool_unref(p.pool, ids + 5, 7), 7); /* page 4 stays, with its slab */
    CHECK_EQ(relayd_pools_trim(&p.pools), 3);
    CHECK_EQ(atomic_load(&p.f.backend.blocks), 12);
    CHECK_EQ(relayd_pool_ready(p.pool), 1);
    unlocked = false;
    CHECK_OK(relayd_pool_ensure(p.pool, 1, &unlocked, &err), err);
    CHECK(!unlocked);
    CHECK_OK(relayd_pool_ensure(p.pool, 2, &unlocked, &err), err);
    CHECK(unlocked);
    relayd_pool_take(p.pool, 2, ids + 5);
    CHECK_EQ(ids[5], 5);
    CHECK_EQ(ids[6], 6);
    CHECK_EQ(relayd_pool_unref(p.pool, ids, 7), 7);
    (void)relayd_pools_trim(&p.pools);
    CHECK_EQ(p.pools.bytes_committed, 0);
    CHECK_EQ(relayd_pool_ready(p.pool), 0);
    teardown(&p);
}

/* Slabs smaller than, larger than and not aligned to a commit block: no block may be committed
 * twice or taken away under a neighbour. */
static void fuzz(uint64_t page_bytes, uint32_t pages_max)
{
    static struct pool_fixture p;
    static uint32_t held[4096];
    static bool taken[4096];
    uint32_t n = 0;
    uint32_t random = 12345;
    struct relay_error err;
    bool unlocked;
    memset(taken, 0, sizeof(taken));
    setup(&p, page_bytes, pages_max);
    CHECK_STILL();
    for (int round = 0; round < 400; round++) {
        random = random * 1664525u + 1013904223u;
        if ((random >> 30) == 0) {
            (void)relayd_pools_trim(&p.pools);
        } else if ((random >> 30) < 3 && n < pages_max) {
            uint32_t want = 1 + (random >> 8) % (pages_max - n);
            CHECK_OK(relayd_pool_ensure(p.pool, want, &unlocked, &err), err);
            relayd_pool_take(p.pool, want, held + n);
            for (uint32_t i = n; i < n + want; i++) {
                unsigned char *page =
                    (unsigned char *)relayd_pool_base(p.pool) + held[i] * page_bytes;
                CHECK(held[i] < pages_max && !taken[held[i]]);
                taken[held[i]] = true;
                page[0] = page[page_bytes - 1] = (unsigned char)held[i];
            }
            n += want;
        } else if (n > 0) {
            uint32_t drop = 1 + (random >> 8) % n;
            for (uint32_t i = n - drop; i < n; i++) {
                const unsigned char *page =
                    (unsigned char *)relayd_pool_base(p.pool) + held[i] * page_bytes;
                CHECK_EQ(page[0], (unsigned char)held[i]);
                CHECK_EQ(page[page_bytes - 1], (unsigned char)held[i]);
                taken[held[i]] = false;
            }
            CHECK_EQ(relayd_pool_unref(p.pool, held + n - drop, drop), drop);
            n -= drop;
        }
        CHECK_EQ(relayd_pool_used(p.pool), n);
        CHECK_EQ(atomic_load(&p.f.backend.faults), 0);
    }
    CHECK_EQ(relayd_pool_unref(p.pool, held, n), n);
    teardown(&p);
}

static void test_pool_slabs_share_blocks(void)
{
    fuzz(64, 4096); /* many slabs in one block */
    CHECK_STILL();
    fuzz(1344, 4096); /* slabs of 1024 pages across block borders */
    CHECK_STILL();
    fuzz(((uint64_t)3 << 20) + 64, 40); /* pages across block borders */
}

static void test_pool_failed_commit_changes_nothing(void)
{
    static struct pool_fixture p;
    bool unlocked = false;
    struct relay_error err;
    setup(&p, (uint64_t)1 << 20, 32);
    CHECK_STILL();
    atomic_store(&p.f.backend.fail_commits, 1);
    CHECK_CODE(relayd_pool_ensure(p.pool, 9, &unlocked, &err), RELAY_RESOURCE_EXHAUSTED);
    CHECK_EQ(relayd_pool_ready(p.pool), 0);
    CHECK_EQ(p.pools.bytes_committed, 0);
    CHECK_OK(relayd_pool_ensure(p.pool, 9, &unlocked, &err), err);
    CHECK_EQ(relayd_pool_ready(p.pool), 16);
    teardown(&p);
}

static void test_pool_under_pressure_takes_from_idle_pools(void)
{
    static struct pool_fixture p;
    struct relayd_pool *other = NULL;
    uint32_t ids[8];
    bool unlocked = false;
    struct relay_error err;
    setup(&p, (uint64_t)1 << 20, 8);
    CHECK_STILL();
    (void)pthread_mutex_unlock(&p.mutex);
    CHECK_OK(relayd_pool_create(&p.pools, (uint64_t)1 << 20, 8, &other, &err), err);
    (void)pthread_mutex_lock(&p.mutex);
    p.pools.bytes_committed_max = (uint64_t)8 << 20;
    CHECK_OK(relayd_pool_ensure(p.pool, 8, &unlocked, &err), err);
    relayd_pool_take(p.pool, 8, ids);
    CHECK_EQ(relayd_pool_unref(p.pool, ids, 8), 8);
    CHECK_EQ(p.pools.bytes_committed, (uint64_t)8 << 20);
    CHECK_OK(relayd_pool_ensure(other, 8, &unlocked, &err), err);
    CHECK_EQ(p.pools.bytes_committed, (uint64_t)8 << 20);
    CHECK_EQ(relayd_pool_ready(p.pool), 0);
    (void)pthread_mutex_unlock(&p.mutex);
    relayd_pool_destroy(other);
    (void)pthread_mutex_lock(&p.mutex);
    teardown(&p);
}

int main(void)
{
    CHECK_RUN(test_pool_gives_distinct_pages);
    CHECK_RUN(test_pool_page_lives_until_its_last_reference);
    CHECK_RUN(test_pool_gives_memory_of_free_slabs_back);
    CHECK_RUN(test_pool_slabs_share_blocks);
    CHECK_RUN(test_pool_failed_commit_changes_nothing);
    CHECK_RUN(test_pool_under_pressure_takes_from_idle_pools);
    return check_done();
}
