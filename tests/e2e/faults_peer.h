/* A client of the fault tests' own: one connection over plain gRPC core, so that what it sees is
 * the server's doing and no library's, and so that it can stop reading, or die, wherever it likes.
 * A peer and its calls belong to one thread. Nothing here repeats anything. */
#ifndef RELAY_TESTS_FAULTS_PEER_H
#define RELAY_TESTS_FAULTS_PEER_H

#include <grpc/grpc.h>
#include <proto/wire/unpack.h>
#include <relay/status.h>

/* Long enough for a loaded machine; nothing is asserted about time. */
#define FAULTS_TIMEOUT_MS 60000u

struct faults_peer {
    grpc_channel *channel;
    grpc_completion_queue *queue; /* plucked */
};

/* target as gRPC wants it. Connects with the first call. */
void faults_peer_open(struct faults_peer *peer, const char *target);
/* Its calls must be closed. Fine on a zeroed one. */
void faults_peer_close(struct faults_peer *peer);

/* ---- calls ---- */

struct faults_call;

/* method: "GetServerInfo", of relay.v1.RelayAttention, or a whole path. */
struct faults_call *faults_call_open(struct faults_peer *peer, const char *method);
/* Cancels what goes on, waits for that, frees. NULL is fine. */
void faults_call_close(struct faults_call *call);

/* Takes the message over. False when it did not leave in time (the next send waits for it first) or
 * the call is over. */
bool faults_call_send(struct faults_call *call, grpc_byte_buffer *message, uint32_t timeout_ms);
/* No more messages from here. */
bool faults_call_half_close(struct faults_call *call);

enum faults_event { FAULTS_MESSAGE, FAULTS_END, FAULTS_SILENCE };
/* The next message, the caller's; END: faults_call_status tells how. */
enum faults_event faults_call_receive(struct faults_call *call, uint32_t timeout_ms,
                                      grpc_byte_buffer **message);
/* Waits for the end; DEADLINE_EXCEEDED with a text of its own when it does not come. */
enum relay_code faults_call_status(struct faults_call *call, struct relay_error *err);

/* ---- unary ---- */

/* Sends the buffer (taken over) and waits for the one answer, the caller's. */
enum relay_code faults_unary_bytes(struct faults_peer *peer, const char *method,
                                   grpc_byte_buffer *request, uint32_t timeout_ms,
                                   grpc_byte_buffer **response, struct relay_error *err);
/* The same with messages; response may be NULL, else free it with free_unpacked. */
enum relay_code faults_unary(struct faults_peer *peer, const char *method,
                             const ProtobufCMessage *request,
                             const ProtobufCMessageDescriptor *descriptor,
                             ProtobufCMessage **response, struct relay_error *err);
/* The message in the buffer (which stays the caller's), or NULL. */
ProtobufCMessage *faults_unpack(grpc_byte_buffer *buffer,
                                const ProtobufCMessageDescriptor *descriptor);

#endif
