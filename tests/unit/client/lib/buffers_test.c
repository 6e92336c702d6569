/* Send buffers: reuse, slices that outlive the pool's owner, threads. */
#include "testlib/check.h"

#include "client/lib/buffers.h"

#include <grpc/grpc.h>
#include <pthread.h>

static void test_buffers_are_reused(void)
{
    struct relay_buffers *pool = relay_buffers_create();
    CHECK(pool != NULL);
    struct relay_buffer *a = relay_buffer_take(pool, 100000);
    struct relay_buffer *b = relay_buffer_take(pool, 100000);
    CHECK(a != NULL && b != NULL && a != b);
    relay_buffer_release(a);
    CHECK(relay_buffer_take(pool, 50000) == a);
    relay_buffer_release(a);
    relay_buffer_release(b);
    relay_buffer_release(NULL);
    relay_buffers_destroy(pool);
    relay_buffers_destroy(NULL);
}

static void test_buffers_too_large_are_refused(void)
{
    struct relay_buffers *pool = relay_buffers_create();
    CHECK(pool != NULL);
    CHECK(relay_buffer_take(pool, SIZE_MAX) == NULL);
    CHECK(relay_buffer_take(pool, SIZE_MAX - 16) == NULL);
    struct relay_buffer *a = relay_buffer_take(pool, 8);
    CHECK(a != NULL);
    relay_buffer_release(a);
    relay_buffers_destroy(pool);
}

/* gRPC lets a slice go whenever it likes, also after the client is gone. */
static void test_slices_outlive_the_pool(void)
{
    struct relay_buffers *pool = relay_buffers_create();
    CHECK(pool != NULL);
    struct relay_buffer *buffer = relay_buffer_take(pool, 8192);
    CHECK(buffer != NULL);
    memset(relay_buffer_data(buffer), 7, 8192);
    grpc_slice large = relay_buffer_slice(buffer, 0, 8000);
    grpc_slice small = relay_buffer_slice(buffer, 8000, 192);
    grpc_slice empty = relay_buffer_slice(buffer, 8192, 0);
    relay_buffer_release(buffer);
    relay_buffers_destroy(pool);
    CHECK_EQ(GRPC_SLICE_LENGTH(large), 8000);
    CHECK_EQ(GRPC_SLICE_LENGTH(small), 192);
    CHECK_EQ(GRPC_SLICE_LENGTH(empty), 0);
    CHECK_EQ(GRPC_SLICE_START_PTR(large)[7999], 7);
    CHECK_EQ(GRPC_SLICE_START_PTR(small)[191], 7);
    grpc_slice_unref(large);
    grpc_slice_unref(small);
    grpc_slice_unref(empty);
}

static void *take_and_give(void *user)
{
    for (uint32_t i = 0; i < 2000; i++) {
        struct relay_buffer *buffer = relay_buffer_take(user, 4096 + i % 7 * 1024);
        if (buffer == NULL) {
            return user;
        }
        memset(relay_buffer_data(buffer), (int)i, 4096);
        grpc_slice slice = relay_buffer_slice(buffer, 0, 4096);
        relay_buffer_release(buffer);
        const int first = GRPC_SLICE_START_PTR(slice)[0];
        grpc_slice_unref(slice);
        if (first != (int)(i & 255)) {
            return user;
        }
    }
    return NULL;
}

static void test_buffers_of_many_threads(void)
{
    pthread_t threads[4];
    void *failed = NULL;
    struct relay_buffers *pool = relay_buffers_create();
    CHECK(pool != NULL);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, take_and_give, pool), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        failed = result != NULL ? result : failed;
    }
    CHECK(failed == NULL);
    relay_buffers_destroy(pool);
}

int main(void)
{
    grpc_init();
    CHECK_RUN(test_buffers_are_reused);
    CHECK_RUN(test_buffers_too_large_are_refused);
    CHECK_RUN(test_slices_outlive_the_pool);
    CHECK_RUN(test_buffers_of_many_threads);
    grpc_shutdown();
    return check_done();
}
