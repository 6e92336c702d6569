/* Connections within the process's file descriptors.
 *
 * gRPC up to 1.55 closes a listener for good when accept4 fails because descriptors have run out
 * (CVE-2023-4785), and offers no hook there. So relayd has an accept4 of its own, which gRPC's call
 * finds before libc's: a connection that would take the last descriptors is closed at once (its
 * client sees UNAVAILABLE and may come again), and a lack of descriptors never looks like a broken
 * listener. Any thread. */
#ifndef RELAYD_RPC_ACCEPT_H
#define RELAYD_RPC_ACCEPT_H

#include <stdint.h>

/* Descriptors that connections leave to the rest of the process. */
#define RELAYD_RPC_FDS_RESERVED 16u

/* Connections closed so far for want of descriptors. Naming it also links accept4 in. */
uint64_t relayd_rpc_refused_connections(void);

#endif
