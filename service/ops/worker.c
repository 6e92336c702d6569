/* See worker.h. The stack of submitted work is shared; everything else is the loop thread's, but
 * for a runner's item while it runs on a pool thread. */
#include "service/ops/worker.h"

#include <stdlib.h>

static void submit(void *user, struct relayd_work *work)
{
    struct relayd_pool_worker *worker = user;
    struct relayd_work *head = atomic_load_explicit(&worker->submitted, memory_order_relaxed);
    do {
        work->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&worker->submitted, &head, work,
                                                    memory_order_release, memory_order_relaxed));
    uv_async_send(&worker->wake);
}

/* Takes all that was submitted to the end of the queue, oldest first. */
static void collect(struct relayd_pool_worker *worker)
{
    struct relayd_work *stack =
        atomic_exchange_explicit(&worker->submitted, NULL, memory_order_acquire);
    struct relayd_work *first = NULL, *last = stack;
    while (stack != NULL) {
        struct relayd_work *next = stack->next;
        stack->next = first;
        first = stack;
        stack = next;
    }
    if (first == NULL) {
        return;
    }
    if (worker->last != NULL) {
        worker->last->next = first;
    } else {
        worker->first = first;
    }
    worker->last = last;
}

static struct relayd_work *take_first(struct relayd_pool_worker *worker)
{
    struct relayd_work *work = worker->first;
    if (work != NULL) {
        worker->first = work->next;
        if (worker->first == NULL) {
            worker->last = NULL;
        }
    }
    return work;
}

static void on_pool_thread(uv_work_t *request)
{
    struct relayd_runner *runner = request->data;
    struct relayd_work *work = atomic_load_explicit(&runner->work, memory_order_acquire);
    work->run(work); /* work may be gone from here on */
    atomic_store_explicit(&runner->work, NULL, memory_order_release);
}

static void dispatch(struct relayd_pool_worker *worker);

static void after_work(uv_work_t *request, int status)
{
    struct relayd_runner *runner = request->data;
    struct relayd_pool_worker *worker = runner->owner;
    (void)status; /* requests are never cancelled */
    (void)atomic_load_explicit(&runner->work, memory_order_acquire);
    runner->next_idle = worker->idle;
    worker->idle = runner;
    worker->running--;
    dispatch(worker);
}

static void dispatch(struct relayd_pool_worker *worker)
{
    collect(worker);
    while (worker->first != NULL && worker->idle != NULL) {
        struct relayd_runner *runner = worker->idle;
        worker->idle = runner->next_idle;
        worker->running++;
        atomic_store_explicit(&runner->work, take_first(worker), memory_order_release);
        /* Fails only without a work callback. */
        (void)uv_queue_work(worker->loop, &runner->request, on_pool_thread, after_work);
    }
    if (!relayd_pool_worker_pending(worker)) {
        worker->on_idle(worker->user);
    }
}

static void on_wake(uv_async_t *wake)
{
    dispatch(wake->data);
}

enum relay_code relayd_pool_worker_init(struct relayd_pool_worker *worker, uv_loop_t *loop,
                                        uint32_t threads, void (*on_idle)(void *user), void *user,
                                        struct relay_error *err)
{
    *worker = (struct relayd_pool_worker){
        .face = {.submit = submit, .user = worker},
        .loop = loop,
        .on_idle = on_idle,
        .user = user,
    };
    worker->runners = calloc(threads, sizeof(*worker->runners));
    if (worker->runners == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    for (uint32_t i = 0; i < threads; i++) {
        struct relayd_runner *runner = &worker->runners[i];
        runner->owner = worker;
        runner->request.data = runner;
        runner->next_idle = worker->idle;
        worker->idle = runner;
    }
    int rc = uv_async_init(loop, &worker->wake, on_wake);
    if (rc != 0) {
        free(worker->runners);
        worker->runners = NULL;
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "worker: %s", uv_strerror(rc));
    }
    worker->wake.data = worker;
    return RELAY_OK;
}

bool relayd_pool_worker_pending(struct relayd_pool_worker *worker)
{
    return worker->running > 0 || worker->first != NULL ||
           atomic_load_explicit(&worker->submitted, memory_order_acquire) != NULL;
}

void relayd_pool_worker_fini(struct relayd_pool_worker *worker)
{
    collect(worker);
    for (struct relayd_work *work = take_first(worker); work != NULL; work = take_first(worker)) {
        work->run(work);
        collect(worker);
    }
    free(worker->runners);
    worker->runners = NULL;
}
