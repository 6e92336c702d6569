/* Walking raw bytes by a protobuf-c descriptor before anything is allocated. Private to this room.
 *
 * What passes is well-formed at every depth, so the unpack that follows meets no hostile bytes. */
#ifndef RELAY_WIRE_SCAN_H
#define RELAY_WIRE_SCAN_H

#include <proto/wire/cursor.h>
#include <protobuf-c/protobuf-c.h>

/* Codes as in relay_wire_unpack_request; skip_unknown lets unknown fields and enum values pass. */
RELAY_MUST_CHECK enum relay_code relay_wire_scan(struct relay_wire_cursor *cursor,
                                                 const ProtobufCMessageDescriptor *descriptor,
                                                 bool skip_unknown, struct relay_error *err);

#endif
