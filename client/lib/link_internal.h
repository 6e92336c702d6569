/* The insides of a link, shared by link.c (who waits and who pumps), link_connect.c (the
 * connection) and link_messages.c (what is sent and what comes). All functions here need
 * link->mutex. */
#ifndef RELAY_CLIENT_LINK_INTERNAL_H
#define RELAY_CLIENT_LINK_INTERNAL_H

#include "link.h"
#include "stream.h"

struct relay_link {
    struct relay_session *session;
    uint32_t spin_us;
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    uint32_t waiters; /* on changed */
    bool pumping;     /* one thread is in the completion queue or sleeps, without the mutex */

    int fd; /* the connection's socket: shutting it down takes callers' memory back from gRPC */
    grpc_channel *channel;
    struct relay_stream *stream; /* NULL = down */
    bool attached;
    bool cut; /* cancelled from here: no failure */
    bool draining, half_closed;
    uint32_t attempts; /* connections since an answer last came */
    uint64_t retry_us; /* not before */
    uint32_t in_flight, in_flight_max;
    bool asking;                   /* the server knows no such session: pump asks it why */
    struct relay_error lost;       /* code RELAY_OK, or why there will be no connection again */
    struct relay_error unreadable; /* code RELAY_OK, or why the stream was cancelled */

    struct relay_link_item *first, *last;    /* to be sent once attached */
    struct relay_link_step *steps;           /* begun and not yet let go */
    struct relay_step_call *oldest, *newest; /* unanswered */
    uint64_t ends_sent, ends_seen;           /* EndSteps: given to gRPC, known to have arrived */
};

/* ---- link_messages.c ---- */

void relay_link_enqueue(struct relay_link *link, struct relay_link_item *item);
void relay_link_dequeue(struct relay_link *link, struct relay_link_item *item);
/* Sends what may go. */
void relay_link_flush(struct relay_link *link);
/* One event of the stream. */
void relay_link_handle(struct relay_link *link, const grpc_event *event);
/* Takes the call out of the unanswered ones: done with err (NULL = OK), or freed if given up. */
void relay_link_call_done(struct relay_link *link, struct relay_step_call *call,
                          const struct relay_error *err);

/* ---- link_connect.c ---- */

/* Is there something to connect for, and is it time to? */
bool relay_link_is_due(const struct relay_link *link);
/* Connects and sends Attach. Blocks until deadline_us without the mutex, as the one who pumps. */
void relay_link_connect(struct relay_link *link, uint64_t deadline_us);
/* Closes stream and connection and forgets what was under way; what was not answered waits. */
void relay_link_take_down(struct relay_link *link);
/* The stream is over: takes it down and decides what becomes of what was under way. */
void relay_link_broken(struct relay_link *link);
/* The server does not know the session: because it has restarted, or because the session ended?
 * Blocks without the mutex, as the one who pumps. */
void relay_link_ask_why(struct relay_link *link);
/* Unanswered calls fail; later ones try again. */
void relay_link_fail(struct relay_link *link, const struct relay_error *why);
/* All steps and calls fail, now and for ever. */
void relay_link_lose(struct relay_link *link, const struct relay_error *why);

/* ---- link.c ---- */

/* Wakes those who wait on changed. */
void relay_link_wake(struct relay_link *link);

#endif
