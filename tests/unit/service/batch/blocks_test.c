/* Blocks: given ones are taken again, by whoever asks for their size; what is in use is apart. */
#include "service/batch/blocks.h"
#include "testlib/check.h"

#include <pthread.h>
#include <string.h>

static struct relay_backend *backend;
static struct relay_error err;

static struct relayd_blocks *make(void)
{
    struct relayd_blocks *blocks = NULL;
    return relayd_blocks_create(backend, &blocks, &err) == RELAY_OK ? blocks : NULL;
}

static void test_blocks_are_used_again(void)
{
    struct relayd_blocks *blocks = make();
    CHECK(blocks != NULL);
    void *large = relayd_blocks_take(blocks, 1000000);
    void *small = relayd_blocks_take(blocks, 1);
    CHECK(large != NULL && small != NULL && large != small);
    CHECK_EQ((uintptr_t)large % 64, 0);
    memset(large, 1, 1000000);
    relayd_blocks_give(blocks, large, 1000000);
    relayd_blocks_give(blocks, small, 1);
    CHECK(relayd_blocks_take(blocks, 100) == small);
    CHECK(relayd_blocks_take(blocks, 900000) == large); /* the same power of two */
    void *other = relayd_blocks_take(blocks, 900000);
    CHECK(other != NULL && other != large);
    relayd_blocks_give(blocks, other, 900000);
    relayd_blocks_give(blocks, large, 900000);
    relayd_blocks_give(blocks, small, 100);
    relayd_blocks_give(blocks, NULL, 5);
    relayd_blocks_release(blocks);
}

static void test_blocks_of_no_size_there_is(void)
{
    struct relayd_blocks *blocks = make();
    CHECK(blocks != NULL);
    CHECK(relayd_blocks_take(blocks, SIZE_MAX) == NULL);
    relayd_blocks_release(blocks);
    relayd_blocks_release(NULL);
}

static void test_blocks_outlive_their_creator(void)
{
    struct relayd_blocks *blocks = make();
    CHECK(blocks != NULL);
    struct relayd_blocks *mine = relayd_blocks_ref(blocks);
    relayd_blocks_release(blocks);
    void *memory = relayd_blocks_take(mine, 64);
    CHECK(memory != NULL);
    relayd_blocks_give(mine, memory, 64);
    relayd_blocks_release(mine);
}

static void *hammer(void *arg)
{
    struct relayd_blocks *blocks = arg;
    for (size_t i = 0; i < 5000; i++) {
        const size_t bytes = (i % 3 + 1) * 50000;
        unsigned char *memory = relayd_blocks_take(blocks, bytes);
        if (memory != NULL) {
            memory[100] = (unsigned char)i; /* a second owner would be a race */
            relayd_blocks_give(blocks, memory, bytes);
        }
    }
    return NULL;
}

static void test_blocks_from_many_threads(void)
{
    struct relayd_blocks *blocks = make();
    CHECK(blocks != NULL);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, hammer, blocks), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    relayd_blocks_release(blocks);
}

int main(void)
{
    if (relay_backend_open("ref", NULL, &backend, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_blocks_are_used_again);
    CHECK_RUN(test_blocks_of_no_size_there_is);
    CHECK_RUN(test_blocks_outlive_their_creator);
    CHECK_RUN(test_blocks_from_many_threads);
    relay_backend_close(backend);
    return check_done();
}
