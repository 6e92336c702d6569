/* A server that misbehaves on command, for tests of librelay: it knows OpenSession, GetServerInfo
 * and the stream, and answers everything else with an empty message. One thread of its own. */
#ifndef RELAY_TEST_FAKE_SERVER_H
#define RELAY_TEST_FAKE_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_EPOCH 7u

enum fake_behaviour {
    FAKE_GOOD,        /* attaches, admits, answers calls with zeros */
    FAKE_ABORT,       /* the stream ends ABORTED at its first call; the next one is GOOD */
    FAKE_END,         /* the same with OK */
    FAKE_TOO_LARGE,   /* the stream ends RESOURCE_EXHAUSTED at its first call */
    FAKE_GARBAGE,     /* answers a call with bytes that are no message */
    FAKE_SHORT,       /* answers with fewer bytes than asked for */
    FAKE_STRANGER,    /* answers calls that were never made, then the one that was */
    FAKE_OTHER_EPOCH, /* Attached tells of another server */
    FAKE_RESTARTED,   /* knows no session, and GetServerInfo tells of another epoch */
    FAKE_FORGOT,      /* knows no session any more */
    FAKE_DRAIN,       /* says Drain with the first answer, then goes on as GOOD */
};

struct fake_server;

struct fake_server *fake_server_start(void);
void fake_server_stop(struct fake_server *server);
/* "127.0.0.1:port" */
const char *fake_server_target(const struct fake_server *server);
/* From the next stream on, and for unary calls at once. */
void fake_server_behave(struct fake_server *server, enum fake_behaviour behaviour);
/* Streams opened, calls and EndSteps received so far. */
unsigned fake_server_streams(const struct fake_server *server);
unsigned fake_server_calls(const struct fake_server *server);
unsigned fake_server_ends(const struct fake_server *server);
/* Streams whose client has closed its side properly. */
unsigned fake_server_half_closes(const struct fake_server *server);
/* Bytes of out a call is answered with. */
void fake_server_out_bytes(struct fake_server *server, uint32_t bytes);

#endif
