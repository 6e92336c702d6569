/* What gRPC leaves undone for the connections it accepts: file descriptors that run out, and peers
 * that stop reading.
 *
 * gRPC up to 1.55 closes a listener for good when accept4 fails because descriptors have run out
 * (CVE-2023-4785), and offers no hook there. So relayd has an accept4 of its own, which gRPC's call
 * finds before libc's: a connection that would take the last descriptors is closed at once (its
 * client sees UNAVAILABLE and may come again), and a lack of descriptors never looks like a broken
 * listener.
 *
 * gRPC does not end a connection while a write is under way, and a write to a unix socket whose
 * peer reads nothing stays under way: keepalive pings queue behind it, and even a drain waits. So
 * accepted connections are remembered, and those that took no byte for too long are shut down.
 *
 * The process has one set of connections, as it has one table of descriptors. Any thread. */
#ifndef RELAYD_RPC_CONNECTIONS_H
#define RELAYD_RPC_CONNECTIONS_H

#include <stdint.h>

/* Descriptors that connections leave to the rest of the process. */
#define RELAYD_RPC_FDS_RESERVED 16u

/* Connections closed so far for want of descriptors. */
uint64_t relayd_rpc_connections_refused(void);
/* Shuts down connections with bytes that wait for the peer and none of which left since they were
 * first seen so, at least stall_ns ago. Call it now and then. How many. */
uint32_t relayd_rpc_connections_sweep(uint64_t now_ns, uint64_t stall_ns);
/* Shuts down all that are left: nothing can be delivered to them any more. */
uint32_t relayd_rpc_connections_end(void);

#endif
