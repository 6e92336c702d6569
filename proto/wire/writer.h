/* Writing the head of a message and hanging tensors behind it. Private to this room.
 *
 * Fields are written in the order of their numbers and left out when zero, so the bytes are those
 * protobuf-c would write. A writer belongs to one thread. */
#ifndef RELAY_WIRE_WRITER_H
#define RELAY_WIRE_WRITER_H

#include <proto/wire/wire.h>

/* The most bytes one scalar field takes. */
#define RELAY_WIRE_SCALAR_BYTES_MAX ((size_t)15)
#define RELAY_WIRE_TENSORS_MAX      3

struct relay_wire_writer {
    grpc_slice slice;
    uint8_t *begin; /* of the message; room for an outer tag and length lies before it */
    uint8_t *at;
};

/* A bytes field that is sent from where it lies. */
struct relay_wire_tensor {
    uint32_t number;
    grpc_slice slice;
};

size_t relay_wire_varint_bytes(uint64_t value);

/* head_bytes_max bounds all that is put. */
void relay_wire_writer_init(struct relay_wire_writer *writer, size_t head_bytes_max);
void relay_wire_put_varint(struct relay_wire_writer *writer, uint64_t value);
void relay_wire_put_u64(struct relay_wire_writer *writer, uint32_t number, uint64_t value);
void relay_wire_put_fixed64(struct relay_wire_writer *writer, uint32_t number, uint64_t value);
void relay_wire_put_bytes(struct relay_wire_writer *writer, uint32_t number, const void *data,
                          size_t length);
void relay_wire_put_u32s(struct relay_wire_writer *writer, uint32_t number, const uint32_t *values,
                         uint32_t count);
void relay_wire_put_fixed64s(struct relay_wire_writer *writer, uint32_t number,
                             const uint64_t *values, uint32_t count);

/* The buffer: the head, then each tensor that is not empty, ascending by number. outer_number is
 * the field of an outer message that this one is, 0 = none. Takes over the tensors' slices; ends
 * the writer. */
grpc_byte_buffer *relay_wire_writer_finish(struct relay_wire_writer *writer, uint32_t outer_number,
                                           const struct relay_wire_tensor *tensors,
                                           size_t num_tensors);

#endif
