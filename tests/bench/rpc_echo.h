/* What relayd's RPC path is measured against: a server and a client on bare gRPC C core that echo
 * messages of given sizes and do nothing else. Same channel arguments as relayd and librelay;
 * blocks like they do; tensors are sent from static memory. One thread each. */
#ifndef RELAY_BENCH_RPC_ECHO_H
#define RELAY_BENCH_RPC_ECHO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Serves address ("unix:/path" or "127.0.0.1:0") until killed; answers have answer_bytes. Writes
 * its port, decimal and a newline, to ready_fd. Does not return but for an error. */
int rpc_echo_serve(const char *address, size_t answer_bytes, int ready_fd);

struct rpc_echo_client;

/* NULL: printed. */
struct rpc_echo_client *rpc_echo_open(const char *target, size_t request_bytes,
                                      size_t answer_bytes);
void rpc_echo_close(struct rpc_echo_client *client);
/* One round trip, us; negative when it failed (printed). */
double rpc_echo_unary(struct rpc_echo_client *client);
/* The same on a stream that stays open. The server computes for busy_us before it answers, which is
 * taken off: what waiting alone costs, since processors that idle for long wake up slowly. */
double rpc_echo_stream(struct rpc_echo_client *client, uint32_t busy_us);

#endif
