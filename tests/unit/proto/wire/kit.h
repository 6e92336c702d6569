/* What the wire tests and the fuzzer share: random numbers, growing byte strings, byte buffers cut
 * into slices, and random valid protobuf of any message, made from its descriptor. */
#ifndef TESTS_WIRE_KIT_H
#define TESTS_WIRE_KIT_H

#include <grpc/grpc.h>
#include <proto/wire/wire.h>
#include <protobuf-c/protobuf-c.h>
#include <stdlib.h>
#include <string.h>

/* ---- random numbers (splitmix64) ---- */

static inline uint64_t kit_random(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0 <= result < n */
static inline size_t kit_below(uint64_t *seed, size_t n)
{
    return (size_t)(kit_random(seed) % n);
}

/* A number of random size up to max, zero and max often among them. */
static inline uint64_t kit_number(uint64_t *seed, uint64_t max)
{
    switch (kit_below(seed, 8)) {
    case 0:
        return 0;
    case 1:
        return max;
    default:
        return (kit_random(seed) >> kit_below(seed, 64)) & max;
    }
}

/* ---- growing bytes and raw protobuf ---- */

struct kit_bytes {
    uint8_t *data;
    size_t length;
    size_t room;
};

static inline void kit_put(struct kit_bytes *bytes, const void *data, size_t length)
{
    if (bytes->length + length > bytes->room) {
        bytes->room = 2 * (bytes->length + length) + 64;
        bytes->data = realloc(bytes->data, bytes->room);
        if (bytes->data == NULL) {
            abort();
        }
    }
    if (length > 0) {
        memcpy(bytes->data + bytes->length, data, length);
        bytes->length += length;
    }
}

static inline void kit_free(struct kit_bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct kit_bytes){0};
}

static inline void kit_varint(struct kit_bytes *bytes, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)((value & 0x7f) | (value >= 0x80 ? 0x80 : 0));
        kit_put(bytes, &byte, 1);
        value >>= 7;
    } while (value != 0);
}

static inline void kit_tag(struct kit_bytes *bytes, uint32_t number, uint32_t wire_type)
{
    kit_varint(bytes, (uint64_t)number << 3 | wire_type);
}

static inline void kit_field_varint(struct kit_bytes *bytes, uint32_t number, uint64_t value)
{
    kit_tag(bytes, number, 0);
    kit_varint(bytes, value);
}

static inline void kit_field_bytes(struct kit_bytes *bytes, uint32_t number, const void *data,
                                   size_t length)
{
    kit_tag(bytes, number, 2);
    kit_varint(bytes, length);
    kit_put(bytes, data, length);
}

/* ---- byte buffers ---- */

/* The bytes as slices that end at the cuts (ascending, may repeat). */
static inline grpc_byte_buffer *kit_buffer_cut(const uint8_t *data, size_t length,
                                               const size_t *cuts, size_t num_cuts)
{
    grpc_slice *slices = calloc(num_cuts + 1, sizeof(*slices));
    grpc_byte_buffer *buffer;
    size_t begin = 0;

    if (slices == NULL) {
        abort();
    }
    for (size_t i = 0; i <= num_cuts; i++) {
        size_t end = i < num_cuts ? cuts[i] : length;
        slices[i] = grpc_slice_malloc(end - begin);
        if (end > begin) {
            memcpy(GRPC_SLICE_START_PTR(slices[i]), data + begin, end - begin);
        }
        begin = end;
    }
    buffer = grpc_raw_byte_buffer_create(slices, num_cuts + 1);
    for (size_t i = 0; i <= num_cuts; i++) {
        grpc_slice_unref(slices[i]);
    }
    free(slices);
    return buffer;
}

static inline int kit_compare_sizes(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

/* Cut at random into 1 to 33 slices, empty ones among them. */
static inline grpc_byte_buffer *kit_buffer(const uint8_t *data, size_t length, uint64_t *seed)
{
    size_t cuts[32];
    size_t n = kit_below(seed, 33);
    for (size_t i = 0; i < n; i++) {
        cuts[i] = kit_below(seed, length + 1);
    }
    qsort(cuts, n, sizeof(cuts[0]), kit_compare_sizes);
    return kit_buffer_cut(data, length, cuts, n);
}

/* All bytes of a buffer in one piece. */
static inline struct kit_bytes kit_flatten(const grpc_byte_buffer *buffer)
{
    struct kit_bytes bytes = {0};
    const grpc_slice_buffer *slices = &buffer->data.raw.slice_buffer;
    for (size_t i = 0; i < slices->count; i++) {
        kit_put(&bytes, GRPC_SLICE_START_PTR(slices->slices[i]),
                GRPC_SLICE_LENGTH(slices->slices[i]));
    }
    return bytes;
}

/* Whether the span's bytes are these. */
static inline bool kit_span_is(const struct relay_wire_view *view, struct relay_wire_span span,
                               const void *data, size_t length)
{
    uint8_t *copy = malloc(span.length + 1);
    bool same = span.length == length && copy != NULL;
    if (same && length > 0) {
        relay_wire_gather(view, span, copy);
        same = memcmp(copy, data, length) == 0;
    }
    free(copy);
    return same;
}

/* ---- random valid protobuf ---- */

#define KIT_ELEMENTS_MAX 6

static inline void kit_random_message(struct kit_bytes *out,
                                      const ProtobufCMessageDescriptor *message, uint64_t *seed);

static inline uint32_t kit_wire_type(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 1;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return 5;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return 2;
    default:
        return 0;
    }
}

/* One value without its tag. */
static inline void kit_random_value(struct kit_bytes *out, const ProtobufCFieldDescriptor *field,
                                    uint64_t *seed)
{
    static const char *const texts[] = {"", "a", "prompt/v3",
                                        "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"};
    const ProtobufCEnumDescriptor *values;
    struct kit_bytes inner = {0};
    uint8_t raw[2000];
    uint64_t number;
    const char *text;

    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        kit_random_message(&inner, field->descriptor, seed);
        kit_varint(out, inner.length);
        kit_put(out, inner.data, inner.length);
        kit_free(&inner);
        return;
    case PROTOBUF_C_TYPE_STRING:
        text = texts[kit_below(seed, sizeof(texts) / sizeof(texts[0]))];
        kit_varint(out, strlen(text));
        kit_put(out, text, strlen(text));
        return;
    case PROTOBUF_C_TYPE_BYTES:
        number = kit_number(seed, 1) * kit_below(seed, sizeof(raw));
        if (strcmp(field->name, "session") == 0) {
            number = kit_below(seed, 2) * RELAY_WIRE_SESSION_BYTES;
        }
        for (size_t i = 0; i < number; i++) {
            raw[i] = (uint8_t)kit_random(seed);
        }
        kit_varint(out, number);
        kit_put(out, raw, number);
        return;
    case PROTOBUF_C_TYPE_ENUM:
        values = field->descriptor;
        kit_varint(out, (uint64_t)values->values[kit_below(seed, values->n_values)].value);
        return;
    case PROTOBUF_C_TYPE_BOOL:
        kit_varint(out, kit_below(seed, 2));
        return;
    case PROTOBUF_C_TYPE_UINT32:
        kit_varint(out, kit_number(seed, UINT32_MAX));
        return;
    case PROTOBUF_C_TYPE_INT32:
        kit_varint(out, (uint64_t)(int64_t)(int32_t)kit_number(seed, UINT32_MAX));
        return;
    default:
        number = kit_number(seed, UINT64_MAX);
        if (kit_wire_type(field->type) == 0) {
            kit_varint(out, number);
        } else {
            kit_put(out, &number, kit_wire_type(field->type) == 1 ? 8 : 4);
        }
        return;
    }
}

static inline void kit_random_field(struct kit_bytes *out, const ProtobufCFieldDescriptor *field,
                                    uint64_t *seed)
{
    bool repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
    size_t n = repeated ? kit_below(seed, KIT_ELEMENTS_MAX) : 1;

    if (repeated && kit_wire_type(field->type) != 2 && kit_below(seed, 2) == 0) {
        struct kit_bytes packed = {0};
        for (size_t i = 0; i < n; i++) {
            kit_random_value(&packed, field, seed);
        }
        kit_field_bytes(out, field->id, packed.data, packed.length);
        kit_free(&packed);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        kit_tag(out, field->id, kit_wire_type(field->type));
        kit_random_value(out, field, seed);
    }
}

/* Any order; scalars and arrays in several goes; never two members of a oneof, never a singular
 * message twice. */
static inline void kit_random_message(struct kit_bytes *out,
                                      const ProtobufCMessageDescriptor *message, uint64_t *seed)
{
    uint64_t seen = 0;
    bool oneof_seen = false;
    size_t goes = message->n_fields == 0 ? 0 : kit_below(seed, 2 * message->n_fields + 1);

    for (size_t i = 0; i < goes; i++) {
        size_t f = kit_below(seed, message->n_fields);
        const ProtobufCFieldDescriptor *field = &message->fields[f];
        bool oneof = (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0;
        bool once = oneof || (field->type == PROTOBUF_C_TYPE_MESSAGE &&
                              field->label != PROTOBUF_C_LABEL_REPEATED);
        if ((once && (seen >> f & 1) != 0) || (oneof && oneof_seen)) {
            continue;
        }
        seen |= (uint64_t)1 << f;
        oneof_seen |= oneof;
        kit_random_field(out, field, seed);
    }
}

#endif
