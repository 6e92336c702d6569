/* Slots: all can be taken once, come back, place tensors apart, and outlive their creator. */
#include "service/batch/call.h"
#include "testlib/check.h"

#include <pthread.h>

static struct relay_backend *backend;
static struct relayd_blocks *blocks;
static struct relay_error err;

static struct relayd_slots *make(uint32_t calls)
{
    struct relayd_slots_options opt = {.blocks = blocks, .calls_max = calls, .tensor_bytes = 1024};
    struct relayd_slots *slots = NULL;
    return relayd_slots_create(&opt, &slots, &err) == RELAY_OK ? slots : NULL;
}

static void test_slots_exhaust_and_return(void)
{
    struct relayd_slots *slots = make(3);
    struct relayd_call *calls[3], *more = NULL;
    CHECK(slots != NULL);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(relayd_slots_take(slots, 4, &calls[i], &err), err);
        for (int j = 0; j < i; j++) {
            CHECK(calls[i] != calls[j]);
            CHECK(calls[i]->entries != calls[j]->entries);
        }
    }
    CHECK_CODE(relayd_slots_take(slots, 4, &more, &err), RELAY_RESOURCE_EXHAUSTED);
    relayd_slots_give(calls[1]);
    CHECK_OK(relayd_slots_take(slots, 4, &more, &err), err);
    CHECK(more == calls[1]);
    relayd_slots_release(slots); /* the calls keep it */
    relayd_slots_give(calls[0]);
    relayd_slots_give(more);
    relayd_slots_give(calls[2]);
}

static void test_slots_place_apart(void)
{
    struct relayd_slots *slots = make(64);
    struct relayd_call *call = NULL;
    CHECK_OK(relayd_slots_take(slots, 4, &call, &err), err);
    struct relayd_slot_bytes bytes = {.q = 100, .k = 1, .v = 0, .out = 300, .lse = 8};
    CHECK_OK(relayd_slots_place(call, &bytes, &err), err);
    CHECK(call->io.v == NULL);
    CHECK((const char *)call->io.k >= (const char *)call->io.q + 100);
    CHECK((const char *)call->io.out > (const char *)call->io.k);
    CHECK((const char *)call->io.lse >= (const char *)call->io.out + 300);
    CHECK_EQ((uintptr_t)call->io.out % 64, 0);
    bytes.out = 1024;
    CHECK_CODE(relayd_slots_place(call, &bytes, &err), RELAY_INVALID_ARGUMENT);
    bytes.out = SIZE_MAX - 10;
    CHECK_CODE(relayd_slots_place(call, &bytes, &err), RELAY_INVALID_ARGUMENT);
    relayd_slots_give(call);
    relayd_slots_release(slots);
}

static void test_slots_bad_options(void)
{
    CHECK(make(0) == NULL);
    CHECK(make(65) == NULL);
}

static void *hammer(void *arg)
{
    struct relayd_slots *slots = arg;
    for (int i = 0; i < 20000; i++) {
        struct relayd_call *call = NULL;
        if (relayd_slots_take(slots, 4, &call, NULL) == RELAY_OK) {
            call->entries[0].position = (uint32_t)i; /* a second owner would be a race */
            relayd_slots_give(call);
        }
    }
    return NULL;
}

static void test_slots_from_many_threads(void)
{
    struct relayd_slots *slots = make(2);
    pthread_t threads[4];
    CHECK(slots != NULL);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, hammer, slots), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    struct relayd_call *a = NULL, *b = NULL;
    CHECK_OK(relayd_slots_take(slots, 4, &a, &err), err);
    CHECK_OK(relayd_slots_take(slots, 4, &b, &err), err);
    relayd_slots_give(a);
    relayd_slots_give(b);
    relayd_slots_release(slots);
}

int main(void)
{
    if (relay_backend_open("ref", NULL, &backend, &err) != RELAY_OK ||
        relayd_blocks_create(backend, &blocks, &err) != RELAY_OK) {
        return 1;
    }
    CHECK_RUN(test_slots_exhaust_and_return);
    CHECK_RUN(test_slots_place_apart);
    CHECK_RUN(test_slots_bad_options);
    CHECK_RUN(test_slots_from_many_threads);
    relayd_blocks_release(blocks);
    relay_backend_close(backend);
    return check_done();
}
