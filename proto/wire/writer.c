/* The head writer: see writer.h. */
#include <proto/wire/cursor.h>
#include <proto/wire/writer.h>
#include <string.h>

/* An outer tag and length, both at their longest. */
#define PREFIX_BYTES ((size_t)16)
/* Small slices are stored inside grpc_slice and cannot be cut by reference. */
#define HEAD_BYTES_MIN ((size_t)64)

size_t relay_wire_varint_bytes(uint64_t value)
{
    size_t n = 1;
    while (value >= 0x80) {
        value >>= 7;
        n++;
    }
    return n;
}

static uint8_t *put_varint(uint8_t *at, uint64_t value)
{
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    return at;
}

static uint8_t *put_tag(uint8_t *at, uint32_t number, uint32_t wire_type)
{
    return put_varint(at, (uint64_t)number << 3 | wire_type);
}

void relay_wire_writer_init(struct relay_wire_writer *writer, size_t head_bytes_max)
{
    /* Behind the head comes the tag and length of the first tensor. */
    writer->slice =
        grpc_slice_malloc(HEAD_BYTES_MIN + PREFIX_BYTES + head_bytes_max + PREFIX_BYTES);
    writer->begin = GRPC_SLICE_START_PTR(writer->slice) + PREFIX_BYTES;
    writer->at = writer->begin;
}

void relay_wire_put_varint(struct relay_wire_writer *writer, uint64_t value)
{
    writer->at = put_varint(writer->at, value);
}

void relay_wire_put_u64(struct relay_wire_writer *writer, uint32_t number, uint64_t value)
{
    if (value != 0) {
        writer->at = put_varint(put_tag(writer->at, number, RELAY_WIRE_VARINT), value);
    }
}

static uint8_t *put_fixed64(uint8_t *at, uint64_t value)
{
    for (unsigned shift = 0; shift < 64; shift += 8) {
        *at++ = (uint8_t)(value >> shift);
    }
    return at;
}

void relay_wire_put_fixed64(struct relay_wire_writer *writer, uint32_t number, uint64_t value)
{
    if (value != 0) {
        writer->at = put_fixed64(put_tag(writer->at, number, RELAY_WIRE_FIXED64), value);
    }
}

void relay_wire_put_bytes(struct relay_wire_writer *writer, uint32_t number, const void *data,
                          size_t length)
{
    if (length != 0) {
        writer->at = put_varint(put_tag(writer->at, number, RELAY_WIRE_LENGTH), length);
        memcpy(writer->at, data, length);
        writer->at += length;
    }
}

void relay_wire_put_u32s(struct relay_wire_writer *writer, uint32_t number, const uint32_t *values,
                         uint32_t count)
{
    size_t length = 0;
    for (uint32_t i = 0; i < count; i++) {
        length += relay_wire_varint_bytes(values[i]);
    }
    if (count != 0) {
        writer->at = put_varint(put_tag(writer->at, number, RELAY_WIRE_LENGTH), length);
        for (uint32_t i = 0; i < count; i++) {
            writer->at = put_varint(writer->at, values[i]);
        }
    }
}

void relay_wire_put_fixed64s(struct relay_wire_writer *writer, uint32_t number,
                             const uint64_t *values, uint32_t count)
{
    if (count != 0) {
        writer->at = put_varint(put_tag(writer->at, number, RELAY_WIRE_LENGTH), 8 * (size_t)count);
        for (uint32_t i = 0; i < count; i++) {
            writer->at = put_fixed64(writer->at, values[i]);
        }
    }
}

grpc_byte_buffer *relay_wire_writer_finish(struct relay_wire_writer *writer, uint32_t outer_number,
                                           const struct relay_wire_tensor *tensors,
                                           size_t num_tensors)
{
    grpc_slice parts[2 * RELAY_WIRE_TENSORS_MAX + 1];
    size_t num_parts = 1;
    uint8_t *begin = writer->begin;
    uint64_t length = (uint64_t)(writer->at - writer->begin);
    grpc_byte_buffer *buffer;

    for (size_t i = 0; i < num_tensors; i++) {
        size_t bytes = GRPC_SLICE_LENGTH(tensors[i].slice);
        uint8_t tag[PREFIX_BYTES];
        uint8_t *end;
        if (bytes == 0) {
            grpc_slice_unref(tensors[i].slice);
            continue;
        }
        end = put_varint(put_tag(tag, tensors[i].number, RELAY_WIRE_LENGTH), bytes);
        if (num_parts == 1) {
            memcpy(writer->at, tag, (size_t)(end - tag));
            writer->at += end - tag;
        } else {
            parts[num_parts++] = grpc_slice_from_copied_buffer((char *)tag, (size_t)(end - tag));
        }
        parts[num_parts++] = tensors[i].slice;
        length += (uint64_t)(end - tag) + bytes;
    }
    if (outer_number != 0) {
        uint8_t prefix[PREFIX_BYTES];
        uint8_t *end = put_varint(put_tag(prefix, outer_number, RELAY_WIRE_LENGTH), length);
        begin -= end - prefix;
        memcpy(begin, prefix, (size_t)(end - prefix));
    }
    parts[0] =
        grpc_slice_sub_no_ref(writer->slice, (size_t)(begin - GRPC_SLICE_START_PTR(writer->slice)),
                              (size_t)(writer->at - GRPC_SLICE_START_PTR(writer->slice)));
    buffer = grpc_raw_byte_buffer_create(parts, num_parts);
    for (size_t i = 0; i < num_parts; i++) {
        grpc_slice_unref(parts[i]);
    }
    return buffer;
}
