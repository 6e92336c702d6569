/* Binding addresses: "HOST:PORT", "[V6]:PORT", "unix:/PATH". Called before the server starts. */
#ifndef RELAYD_RPC_LISTEN_H
#define RELAYD_RPC_LISTEN_H

#include <grpc/grpc.h>
#include <relay/status.h>
#include <stdint.h>

/* *port is the TCP port, also for port 0; 0 for a unix socket. UNAVAILABLE naming the address: it
 * is in use, or not ours to bind. A socket file that nobody serves any more is replaced. */
RELAY_MUST_CHECK enum relay_code relayd_rpc_listen(grpc_server *server, const char *address,
                                                   uint32_t *port, struct relay_error *err);

#endif
