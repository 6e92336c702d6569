/* Slow work off the hot threads: who needs it embeds a relayd_work and submits it to a
 * relayd_worker. main.c makes the worker out of libuv's thread pool; tests make one that runs at
 * once. */
#ifndef RELAYD_BASE_WORK_H
#define RELAYD_BASE_WORK_H

struct relayd_work;
typedef void (*relayd_work_fn)(struct relayd_work *work);

struct relayd_work {
    relayd_work_fn run;       /* on a pool thread; work may be resubmitted or freed inside */
    struct relayd_work *next; /* the worker's, while queued */
};

struct relayd_worker {
    /* Any thread; never blocks; every submitted work runs, also during a drain. */
    void (*submit)(void *user, struct relayd_work *work);
    void *user;
};

static inline void relayd_worker_submit(const struct relayd_worker *worker,
                                        struct relayd_work *work)
{
    worker->submit(worker->user, work);
}

#endif
