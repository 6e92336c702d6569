/* The value of the grpc-status-details-bin trailer: google.rpc.Status with one ErrorDetail.
 *
 * gRPC does the base64 itself. Any thread. */
#ifndef RELAY_WIRE_STATUS_DETAILS_H
#define RELAY_WIRE_STATUS_DETAILS_H

#include <proto/wire/unpack.h>
#include <relay/v1/relay.pb-c.h>

#define RELAY_WIRE_STATUS_DETAILS_KEY "grpc-status-details-bin"
/* Peers take about 8 KiB of metadata, and base64 makes it a third longer. */
#define RELAY_WIRE_STATUS_DETAILS_BYTES_MAX ((size_t)4096)

/* The trailer's value; the caller unrefs it. Entries past what fits the size above are left out;
 * an empty slice when even the detail without entries does not fit. */
grpc_slice relay_wire_status_details_encode(enum relay_code code, const char *message,
                                            const Relay__V1__ErrorDetail *detail);
/* Reads one back: *detail lies in the arena, NULL when the value holds no relay.v1.ErrorDetail.
 * INVALID_ARGUMENT for bytes that are no google.rpc.Status. */
RELAY_MUST_CHECK enum relay_code relay_wire_status_details_decode(const grpc_slice *value,
                                                                  struct relay_wire_arena *arena,
                                                                  enum relay_code *code,
                                                                  Relay__V1__ErrorDetail **detail,
                                                                  struct relay_error *err);

#endif
