/* A call's slot on its way in and out of the wire, for the unary call and the stream alike: entry
 * arrays to decode into, tensors gathered from the message, slices of the slot in the answer. */
#ifndef RELAYD_RPC_SLOT_H
#define RELAYD_RPC_SLOT_H

#include "service/rpc/server.h"

#include <proto/wire/attend.h>

/* The queue's scratch to decode entries into; it lasts until the queue's next message.
 * RESOURCE_EXHAUSTED. Queue's thread. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_entry_storage(
    struct relayd_rpc_queue *queue, const struct relay_wire_entry_storage **out,
    struct relay_error *err);
/* q_lens is empty or as long as handles, positions as long as handles; INVALID_ARGUMENT, the field
 * in *field. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_check_entries(const struct relay_wire_entries *entries,
                                                          const char **field,
                                                          struct relay_error *err);
/* Copies the tensors to where the slot wants them. */
void relayd_rpc_slot_gather(struct relayd_call *slot, const struct relay_wire_view *view,
                            struct relay_wire_span q, struct relay_wire_span k,
                            struct relay_wire_span v);

/* The answer's tensors as slices of the slot, which goes back when gRPC has read both; each keeps
 * the RPC's object. */
void relayd_rpc_slot_slices(struct relayd_rpc_call *call, struct relayd_call *slot, grpc_slice *lse,
                            grpc_slice *out);
struct relay_wire_timings relayd_rpc_slot_timings(const struct relayd_call *slot);

#endif
